"""Methods by name: our own, loaded when asked for, and those that other packages add as entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

__all__ = ["MethodRegistry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRegistry:
    """Names and where their functions are.

    Attributes
    ----------
    kind : str
        What a method is, for messages.
    group : str
        Entry points of other packages.
    built_in : mapping of str to str
        Our own, as ``module:function``; these names cannot be taken over by other packages.
    """

    kind: str
    group: str
    built_in: Mapping[str, str]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self.built_in.keys() | {point.name for point in entry_points(group=self.group)})

    def find(self, name: str) -> Any:
        """Return the function of that name.

        Raises
        ------
        ValueError
            If there is none; the message lists those that exist.
        """
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            return getattr(import_module(module), attribute)
        for point in entry_points(group=self.group, name=name):
            return point.load()
        raise ValueError(f"unknown {self.kind} {name!r}; known: {', '.join(self.names())}")
