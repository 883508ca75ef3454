"""Which layout the planes of each value have, so that as few as possible must be copied."""

from __future__ import annotations

from nqruntime.packing.plane_layout import PlaneLayout

from .layouts import Planes, image_size


class PlaneChoice:
    """Collects what operations need of the planes of values.

    Kernels that shift whole channels need the same distance between rows in source and output; a convolution
    needs zeros around its source.
    """

    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pads: dict[str, int] = {}
        self._pitches: dict[str, int] = {}
        self._groups: dict[str, str] = {}
        self._computed: set[str] = set()

    def add(self, name: str, shape: tuple[int, ...], *, pad: int = 0, pitch: int = 0) -> None:
        """Give a value planes with at least so many zeros around it and floats from row to row."""
        self._shapes[name] = shape
        self._pads[name] = max(pad, self._pads.get(name, 0))
        self._pitches[name] = max(pitch, self._pitches.get(name, 0))
        self._groups.setdefault(name, name)

    def compute(self, name: str, shape: tuple[int, ...], *, pitch: int = 0) -> None:
        """Say that an operation gives the value as planes."""
        self.add(name, shape, pitch=pitch)
        self._computed.add(name)

    def computes(self, name: str) -> bool:
        """Whether an operation gives the value as planes."""
        return name in self._computed

    def same_pitch(self, first: str, second: str) -> None:
        """Let rows of two values, both added, have the same distance."""
        self._groups[self._group(first)] = self._group(second)

    def _group(self, name: str) -> str:
        while self._groups[name] != name:
            name = self._groups[name]
        return name

    def pitch(self, name: str) -> int:
        """Return the floats from row to row that all values of a group have."""
        group = self._group(name)
        members = [other for other in self._shapes if self._group(other) == group]
        return max(
            max(self._pitches[other], image_size(self._shapes[other])[1] + self._pads[other])
            for other in members
        )

    def pad(self, name: str) -> int:
        """Return the zeros around a value."""
        return self._pads[name]

    def layout(self, name: str) -> Planes:
        """Return the layout of a value, when all operations have said what they need."""
        height, width = image_size(self._shapes[name])
        plane = PlaneLayout(height=height, width=width, pad=self._pads[name], pitch=self.pitch(name))
        return Planes(shape=self._shapes[name], plane=plane)
