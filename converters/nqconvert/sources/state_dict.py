"""State dicts: .safetensors files, .pt files and mappings of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nqconvert.graphs.binding import content_key, equal_view, may_be_tied
from nqformat.dtypes import bfloat16_array, dtype_of
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package
from nqformat.tensor import ViewTensor

from .model_source import ModelSource

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def load_safetensors(path: Path) -> ModelSource:
    """Read a .safetensors file.

    Raises
    ------
    ConversionError
        If the file is malformed or holds an element type that a .nqz file cannot store.
    """
    safetensors = require_package("safetensors")
    arrays: dict[str, np.ndarray] = {}
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                try:
                    arrays[name] = file.get_tensor(name)
                except (AttributeError, TypeError):
                    label = file.get_slice(name).get_dtype()
                    raise ConversionError(f"tensor {name!r}: dtype {label} cannot be stored") from None
    except safetensors.SafetensorError as error:
        raise ConversionError(f"{path} is not a valid .safetensors file: {error}") from None
    return source_of_arrays(arrays)


def load_pickled_state_dict(path: Path) -> ModelSource:
    """Read a state dict written by ``torch.save``; nothing in the file is executed.

    Raises
    ------
    ConversionError
        If the file holds anything but plain tensors and containers.
    """
    return source_of_arrays(*arrays_of_entries(read_pickled_entries(path)))


def read_pickled_entries(path: Path) -> Mapping[str, Any]:
    """Return the entries of a state dict file, out of any wrapper around it."""
    torch = require_package("torch")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConversionError(
            f"{path} does not hold plain tensors and was not executed; save module.state_dict() "
            f"or a .safetensors file instead ({type(error).__name__})"
        ) from error
    return _unwrapped(content, path)


def weight_entries(weights: Any) -> Mapping[str, Any]:
    """Return a state dict for a torch module: tensors by name, prefixes of wrappers removed.

    Parameters
    ----------
    weights : path or mapping of str to tensor or ndarray

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    ConversionError
        If the file holds no plain tensors.
    """
    if isinstance(weights, Mapping):
        entries = _unwrapped(weights, "the mapping")
    elif checked_suffix(Path(weights)) == ".safetensors":
        entries = require_package("safetensors.torch").load_file(Path(weights))
    else:
        entries = read_pickled_entries(Path(weights))
    return _without_prefix({name: entry for name, entry in entries.items() if _is_tensor(entry)})


def checked_suffix(path: Path) -> str:
    """Return the lower-case suffix of an existing file."""
    if not path.exists():
        raise FileNotFoundError(f"model file {path} does not exist")
    if not path.is_file():
        raise ConversionError(f"{path} is not a file")
    return path.suffix.lower()


def load_mapping(entries: Mapping[str, Any]) -> ModelSource:
    """Take a mapping of names to NumPy arrays or torch tensors."""
    return source_of_arrays(*arrays_of_entries(_unwrapped(entries, "the mapping")))


def source_of_arrays(arrays: Mapping[str, np.ndarray], notes: tuple[str, ...] = ()) -> ModelSource:
    """Make a source without a graph; tensors with identical content become views of the first."""
    if not arrays:
        raise ConversionError("the state dict holds no tensors")
    tensors: dict[str, np.ndarray] = {}
    views: dict[str, ViewTensor] = {}
    seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, array in _without_prefix(arrays).items():
        if not isinstance(name, str) or not name:
            raise ConversionError(f"tensor names must be non-empty strings, not {name!r}")
        try:
            dtype_of(array)
        except TypeError as error:
            raise ConversionError(f"tensor {name!r}: {error}") from None
        first = seen.setdefault(content_key(array), name) if may_be_tied(array) else name
        if first == name:
            tensors[name] = array
        else:
            views[name] = equal_view(first, array)
    return ModelSource(tensors=tensors, views=views, notes=notes)


def arrays_of_entries(entries: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Convert entries to NumPy arrays; entries that are no tensors are left out and named in a note."""
    arrays: dict[str, np.ndarray] = {}
    skipped = []
    for name, entry in entries.items():
        if isinstance(entry, np.ndarray):
            arrays[name] = entry
        elif is_torch_tensor(entry):
            arrays[name] = array_of_torch(name, entry)
        else:
            skipped.append(str(name))
    notes = (f"left out, not tensors: {', '.join(skipped)}",) if skipped else ()
    return arrays, notes


def array_of_torch(name: str, tensor: Any) -> np.ndarray:
    """Return a torch tensor as a NumPy array (bfloat16 through ml_dtypes).

    Raises
    ------
    ConversionError
        If the tensor has a layout or element type without a counterpart.
    """
    torch = require_package("torch")
    plain = tensor.detach()
    if plain.is_quantized or plain.is_complex() or plain.layout != torch.strided:
        raise ConversionError(f"tensor {name!r} ({plain.dtype}, {plain.layout}) is not a plain dense tensor")
    plain = plain.cpu().contiguous()
    try:
        if plain.dtype == torch.bfloat16:
            return bfloat16_array(plain.view(torch.int16).numpy().view("<u2"), "ml_dtypes")
        array: np.ndarray = plain.numpy()
    except (TypeError, RuntimeError):
        raise ConversionError(f"tensor {name!r}: dtype {plain.dtype} cannot be stored") from None
    return array


def is_torch_tensor(value: Any) -> bool:
    """Tell whether `value` is a torch tensor, without importing torch for it."""
    return any(
        kind.__module__.split(".")[0] == "torch" and kind.__name__ == "Tensor" for kind in type(value).__mro__
    )


def _unwrapped(content: Any, origin: object) -> Mapping[str, Any]:
    """Return the mapping of tensors, taken out of a checkpoint that holds it under a known key."""
    if not isinstance(content, Mapping):
        raise ConversionError(f"{origin} holds a {type(content).__name__}, not a mapping of names to tensors")
    for key in _WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(_is_tensor(entry) for entry in inner.values()):
            return inner
    if not any(_is_tensor(entry) for entry in content.values()):
        raise ConversionError(f"{origin} holds no tensors at its top level nor under {', '.join(_WRAPPERS)}")
    return content


def _is_tensor(value: Any) -> bool:
    """Tell whether `value` is a NumPy array or a torch tensor."""
    return isinstance(value, np.ndarray) or is_torch_tensor(value)


def _without_prefix(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Remove prefixes that wrappers such as DataParallel put before every name."""
    named = dict(arrays)
    while True:
        prefix = next(
            (p for p in _PREFIXES if all(isinstance(n, str) and n.startswith(p) for n in named)), None
        )
        if prefix is None or any(name == prefix for name in named):
            return named
        named = {name.removeprefix(prefix): array for name, array in named.items()}
