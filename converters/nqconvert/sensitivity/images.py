"""Calibration inputs from a folder of images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nqconvert.sources.model_source import ModelSource
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

__all__ = ["ImageFolder"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_CHANNELS = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """Images to calibrate on; needs Pillow.

    Scaled to cover the model's input and cut to it around their middle, as numbers of 0 to `full_scale`, less
    `mean`, over `std`, channel by channel. Of more images than are wanted, some in equal distances of their
    sorted paths, so that folders by class are all seen.

    Attributes
    ----------
    folder : path-like
        Its subfolders count, too.
    size : (int, int) or None
        Height and width; None: those of the model's input.
    full_scale : float
        What white is: 1, or 255 for models that take bytes.
    mean, std : tuple of float
        One number, or one for each channel, in the unit of `full_scale`.
    """

    folder: str | os.PathLike[str]
    size: tuple[int, int] | None = None
    full_scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if any(not deviation > 0 for deviation in self.std) or not self.full_scale > 0:
            raise ValueError("the full scale and standard deviations of images must be positive")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"the size of images must be a height and a width, not {self.size}")

    def inputs(self, source: ModelSource, count: int) -> np.ndarray:
        """Return at most `count` images as the model's one input.

        Returns
        -------
        ndarray, shape (n, channels, height, width) or (n, height, width, channels)
            Of the input's dtype.

        Raises
        ------
        ConversionError
            If there is no image, one cannot be read, or the model has no input for images.
        MissingDependencyError
            If Pillow is missing.
        """
        image_module = require_package("PIL.Image")
        onnx = require_package("onnx")
        form = _input_form(source, self.size)
        files = sorted(p for p in Path(self.folder).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not files:
            raise ConversionError(f"no image in the folder {os.fspath(self.folder)!r}")
        places = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
        pixels = np.stack([_pixels(image_module, files[place], form) for place in places])
        scaled = pixels * np.float32(self.full_scale / 255.0)
        normal = (scaled - _by_channel("mean", self.mean, form)) / _by_channel("std", self.std, form)
        moved = normal.transpose(0, 3, 1, 2) if form.channels_first else normal
        dtype = onnx.helper.tensor_dtype_to_np_dtype(form.element_type)
        return np.ascontiguousarray(moved.astype(dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class _InputForm:
    height: int
    width: int
    channels: int
    channels_first: bool
    element_type: int


def _by_channel(name: str, numbers: tuple[float, ...], form: _InputForm) -> np.ndarray:
    if len(numbers) not in (1, form.channels):
        raise ConversionError(f"{len(numbers)} numbers given as {name} of {form.channels} channels")
    return np.array(numbers, dtype=np.float32)


def _input_form(source: ModelSource, size: tuple[int, int] | None) -> _InputForm:
    """Read the shape of the model's input."""
    if source.graph is None or len(source.input_names) != 1:
        raise ConversionError("images need a model with a graph and one input")
    model = require_package("onnx").ModelProto.FromString(source.graph)
    (value,) = (value for value in model.graph.input if value.name == source.input_names[0])
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if len(shape) == 4 and shape[1] in _CHANNELS:
        channels, sides, first = shape[1], shape[2:], True
    elif len(shape) == 4 and shape[3] in _CHANNELS:
        channels, sides, first = shape[3], shape[1:3], False
    else:
        raise ConversionError(f"the model's input {value.name!r} of shape {shape} is none for images")
    height, width = size or sides
    if not height or not width:
        raise ConversionError(f"the model's input {value.name!r} has no fixed size: give one for the images")
    return _InputForm(
        height=height,
        width=width,
        channels=channels,
        channels_first=first,
        element_type=value.type.tensor_type.elem_type,
    )


def _pixels(image_module: Any, path: Path, form: _InputForm) -> np.ndarray:
    """Return an image as float32, shape (height, width, channels), 0 to 255."""
    operations = require_package("PIL.ImageOps")
    try:
        with image_module.open(path) as image:
            fitted = operations.fit(
                image.convert(_CHANNELS[form.channels]),
                (form.width, form.height),
                image_module.Resampling.BILINEAR,
            )
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise ConversionError(f"{path} is no image that can be read: {error}") from None
    return np.asarray(fitted, dtype=np.float32).reshape(form.height, form.width, form.channels)
