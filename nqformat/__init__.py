"""Small neural-network files that run: reading and writing the .nqz format.

Examples
--------
>>> import numpy as np, nqformat, os, tempfile
>>> path = os.path.join(tempfile.mkdtemp(), "model.nqz")
>>> n_bytes = nqformat.save_file({"weight": np.eye(4, dtype=np.float32)}, path)
>>> nqformat.load_file(path)["weight"].trace()
np.float32(4.0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .dtypes import DType
from .errors import (
    BadMagicError,
    ConversionError,
    CorruptError,
    FormatError,
    LimitExceededError,
    MissingDependencyError,
    NqError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)
from .limits import Limits
from .reader import NqzFile, TensorInfo, from_bytes, load, load_file, safe_open
from .tensor import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    GroupedCodebook,
    GroupedTensor,
    HashedTensor,
    Layout,
    PackedTensor,
    RawTensor,
    Scales,
    Tensor,
    ViewSource,
    ViewTensor,
)

if TYPE_CHECKING:
    from .writer import save, save_file
else:

    def __getattr__(name):
        """Import the writer when it is asked for: readers do without."""
        if name not in ("save", "save_file"):
            raise AttributeError(f"module 'nqformat' has no attribute {name!r}")
        from . import writer

        return getattr(writer, name)


__version__ = "0.1.0"

__all__ = [
    "AffineTensor",
    "BadMagicError",
    "Codebook",
    "CodebookTensor",
    "ConversionError",
    "CorruptError",
    "DType",
    "FormatError",
    "GroupedCodebook",
    "GroupedTensor",
    "HashedTensor",
    "Layout",
    "LimitExceededError",
    "Limits",
    "MissingDependencyError",
    "NqError",
    "NqzFile",
    "PackedTensor",
    "RawTensor",
    "Scales",
    "Tensor",
    "TensorInfo",
    "TruncatedError",
    "UnsupportedFeatureError",
    "UnsupportedVersionError",
    "ViewSource",
    "ViewTensor",
    "from_bytes",
    "load",
    "load_file",
    "safe_open",
    "save",
    "save_file",
]
