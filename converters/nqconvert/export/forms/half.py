"""Weights in 16 bits and a Cast to float32: exact where the values are representable, else rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nqconvert.export.building import NODE_BYTES, Chain, GraphRewrite, make_node
from nqconvert.quantizers.distinct import bits_to_values
from nqformat.dtypes import DType
from nqformat.tensor import cast_values, round_codebook

from .form import Subject, TensorEncoding

_FLOAT = 1
_LOWEST_OPSET = {DType.FLOAT16: 6, DType.BFLOAT16: 13}


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfEncoding:
    """A float32 tensor rounded to 16 bits.

    Attributes
    ----------
    bits : ndarray
        In the storage dtype of `dtype`.
    dtype : DType
    exact : bool
        Whether nothing was rounded.
    """

    bits: np.ndarray
    dtype: DType
    exact: bool

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        return _LOWEST_OPSET[self.dtype]

    @property
    def best_opset(self) -> int:
        """Any opset that has the type."""
        return self.lowest_opset

    def n_bytes(self, opset: int) -> int:
        """Bytes of the elements."""
        return self.bits.nbytes

    def label(self, opset: int) -> str:
        """Name the type, and whether values were rounded."""
        return f"dense {self.dtype.label}{'' if self.exact else ', rounded'}"

    def widened(self) -> np.ndarray:
        """Return the elements as float32."""
        return bits_to_values(self.bits, self.dtype)

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Widen the tensor before all other nodes."""
        stored = rewrite.add_array(self.bits, self.dtype, name=f"{name}.{self.dtype.label}")
        chain = Chain(rewrite, stored)
        chain.add("Cast", to=_FLOAT)
        chain.end(name)

    def write_gathered(self, rewrite: GraphRewrite, name: str, *, whole: str | None) -> None:
        """Gather rows first, then widen those only."""
        stored = rewrite.add_array(self.bits, self.dtype, name=f"{name}.{self.dtype.label}")

        def decode(rows: str, output: str) -> list[Any]:
            return [make_node("Cast", [rows], output, to=_FLOAT)]

        rewrite.after_gathers(name, stored, decode)
        if whole is not None:
            rewrite.decoders.append(make_node("Cast", [stored], whole, to=_FLOAT))


class HalfForm:
    """Float32 tensors in 16 bits.

    Parameters
    ----------
    dtype : DType
        FLOAT16 or BFLOAT16.
    """

    keeps_views = False
    required = ""

    def __init__(self, dtype: DType) -> None:
        self._dtype = dtype

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return the tensor rounded to 16 bits, or the reason why it stays as it is."""
        if subject.info.dtype is not DType.FLOAT32:
            return "not float32"
        if subject.info.plain_bytes <= 8 * NODE_BYTES:
            return "too small for a Cast to pay"
        values = subject.bits()
        rounded = round_codebook(values, self._dtype)
        if not np.array_equal(np.isfinite(values), np.isfinite(rounded)):
            return f"values beyond the range of {self._dtype.label}"
        return HalfEncoding(
            bits=cast_values(rounded, self._dtype),
            dtype=self._dtype,
            exact=np.array_equal(values.view("<u4"), rounded.view("<u4")),
        )
