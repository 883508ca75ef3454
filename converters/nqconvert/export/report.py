"""What an export wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTensor:
    """How one tensor stands in the exported model.

    Attributes
    ----------
    name : str
    form : str
        ``dense``, or the form followed by its integer types, such as ``codebook uint4``; views of other
        tensors name these.
    stored_bytes, dense_bytes : int
        Bytes in the exported model and bytes of the decoded tensor.
    reason : str
        Why the form left the tensor dense; else empty.
    """

    name: str
    form: str
    stored_bytes: int
    dense_bytes: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes
    ----------
    path : Path
    data_path : Path or None
        File with the external data.
    form : str
    opset : int
        Of ONNX's default domain.
    total_bytes : int
        Of the model file and its external data.
    tensors : tuple of ExportedTensor
    max_difference : float or None
        Largest difference of an output from a run with the decoded weights, over the largest magnitude
        of that output; None if it was not verified.
    notes : tuple of str
    """

    path: Path
    data_path: Path | None
    form: str
    opset: int
    total_bytes: int
    tensors: tuple[ExportedTensor, ...]
    max_difference: float | None
    notes: tuple[str, ...] = ()
