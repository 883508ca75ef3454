"""Running the networks in .nqz files, without PyTorch.

Examples
--------
>>> import nqruntime
>>> session = nqruntime.InferenceSession("model.nqz")  # doctest: +SKIP
>>> [logits] = session.run(None, {"input": images})  # doctest: +SKIP
"""

from __future__ import annotations

from .kernels.library import compile_kernels
from .session import InferenceSession

__all__ = ["InferenceSession", "compile_kernels"]
