"""What an export form is: a way to write single tensors, exactly or up to a rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nqconvert.export.building import GraphRewrite
from nqconvert.export.restore import StoredModel, TensorFile
from nqformat import TensorInfo

__all__ = ["Form", "GatheredEncoding", "JoinedEncoding", "Subject", "TensorEncoding"]


class TensorEncoding(Protocol):
    """One tensor in some form.

    Attributes
    ----------
    lowest_opset : int
        First opset at which it can be written.
    best_opset : int
        Opset from which on it is smallest.
    """

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        ...

    @property
    def best_opset(self) -> int:
        """Opset from which on it is smallest, `lowest_opset` or later."""
        ...

    def n_bytes(self, opset: int) -> int:
        """Bytes of its initializers in the model at that opset."""
        ...

    def label(self, opset: int) -> str:
        """Name the form and the types of integers."""
        ...

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Add initializers, and nodes that decode the tensor under `name` or take over its consumers."""
        ...


@runtime_checkable
class GatheredEncoding(TensorEncoding, Protocol):
    """A tensor that is only gathered from: its rows are decoded after that, so it stays small in memory."""

    def write_gathered(self, rewrite: GraphRewrite, name: str, *, whole: str | None) -> None:
        """Add initializers and decode after each Gather.

        Parameters
        ----------
        whole : str or None
            Name under which the whole tensor is wanted as well.
        """
        ...


@runtime_checkable
class JoinedEncoding(TensorEncoding, Protocol):
    """A tensor that is decoded by nodes which it shares with others of its form."""

    def write_together(self, rewrite: GraphRewrite, members: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
        """Add initializers and nodes for all tensors of the form.

        Parameters
        ----------
        members : mapping of str to JoinedEncoding
            By the names that the decoded tensors must have.

        Returns
        -------
        dict of str to (str, int)
            Label and bytes of each, as `label` and `n_bytes` tell them of a tensor alone.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A tensor that a form is asked for.

    Attributes
    ----------
    file : TensorFile
    stored : StoredModel
    info : TensorInfo
    gathered : bool
        Whether only Gather nodes (axis 0) read it.
    viewed : bool
        Whether views of it are made by nodes.
    """

    file: TensorFile
    stored: StoredModel
    info: TensorInfo
    gathered: bool
    viewed: bool = False

    def bits(self) -> np.ndarray:
        """Return the decoded tensor, bfloat16 as uint16 bits."""
        return np.ascontiguousarray(self.file.get_tensor(self.info.name))


class Form(Protocol):
    """A way to write tensors.

    Attributes
    ----------
    keeps_views : bool
        Whether views are nodes on what they take elements from, instead of tensors of their own.
    required : str
        What at least one tensor must be, for a message; empty if none must.
    """

    keeps_views: bool
    required: str

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return a tensor in this form, or the reason why it stays dense."""
        ...
