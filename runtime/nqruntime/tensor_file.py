"""What the runtime needs of an open .nqz file."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nqformat import PackedTensor, TensorInfo


class TensorFile(Protocol):
    """An open .nqz file; bfloat16 tensors come as uint16 bits."""

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor."""
        ...

    def get_tensor(self, name: str) -> np.ndarray:
        """Decode a tensor."""
        ...

    def get_packed(self, name: str) -> PackedTensor | np.ndarray:
        """Undo a tensor's entropy coding only."""
        ...
