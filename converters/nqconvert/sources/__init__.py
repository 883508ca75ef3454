"""Model sources: what a converter can take."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nqformat.errors import ConversionError

from .model_source import ModelSource, Runner

__all__ = ["ModelSource", "Runner", "is_module", "load_source"]

_PICKLE_SUFFIXES = (".pt", ".pth", ".th", ".bin")


def load_source(
    model: Any,
    *,
    example_inputs: Any = None,
    weights: Any = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
    fold_batch_norms: bool = True,
) -> ModelSource:
    """Load a model from any of the supported forms.

    Parameters
    ----------
    model : path, mapping, onnx.ModelProto or torch.nn.Module
        Path of an .onnx, .safetensors or state dict (.pt, .pth, .th, .bin) file; mapping of names
        to NumPy arrays or torch tensors; or the model object itself.
    example_inputs : tensor, ndarray, sequence of these, or mapping by argument name, optional
        Needed for a torch module only.
    weights : path or mapping, optional
        State dict to load into a copy of the torch module.
    dynamic_batch : bool
        Leave axis 0 of a torch module's inputs open.
    dynamic_axes : mapping of str to sequence of int, optional
        Further axes to leave open, by the names of the arguments of ``forward``.
    fold_batch_norms : bool
        Fold batch norms into the weights before them, which changes these; PyTorch's exporter does so anyway.

    Raises
    ------
    FileNotFoundError
        If `model` or `weights` is a path that does not exist.
    ConversionError
        If the model cannot be represented; the message names the file, node or tensor.
    TypeError
        If `model` is none of the supported forms.

    Examples
    --------
    >>> import numpy as np
    >>> sorted(load_source({"a": np.zeros(3), "b": np.ones(2)}).tensors)
    ['a', 'b']
    """
    if is_module(model):
        from .torch_module import load_torch_module

        return load_torch_module(
            model,
            example_inputs,
            weights=weights,
            dynamic_batch=dynamic_batch,
            dynamic_axes=dynamic_axes,
            fold=fold_batch_norms,
        )
    if weights is not None:
        raise TypeError("weights can be given for a torch module only; other models bring their own")
    if isinstance(model, str | os.PathLike):
        return _load_path(Path(model), fold_batch_norms)
    if _is_instance(model, "onnx", "ModelProto"):
        from .onnx_model import load_model_proto

        return load_model_proto(model, fold=fold_batch_norms)
    if isinstance(model, Mapping):
        from .state_dict import load_mapping

        return load_mapping(model)
    raise TypeError(
        "model must be a path, a mapping of names to arrays, an onnx.ModelProto or a torch.nn.Module, "
        f"not {type(model).__name__}"
    )


def is_module(model: Any) -> bool:
    """Tell whether `model` is a torch module; imports nothing."""
    return _is_instance(model, "torch.nn", "Module")


def _load_path(path: Path, fold: bool) -> ModelSource:
    """Load the model file at `path` by its suffix."""
    from .state_dict import checked_suffix, load_pickled_state_dict, load_safetensors

    suffix = checked_suffix(path)
    if suffix == ".onnx":
        from .onnx_model import load_onnx_file

        return load_onnx_file(path, fold=fold)
    if suffix == ".safetensors":
        return load_safetensors(path)
    if suffix in _PICKLE_SUFFIXES:
        return load_pickled_state_dict(path)
    raise ConversionError(
        f"{path}: unknown kind of model; expected .onnx, .safetensors or {', '.join(_PICKLE_SUFFIXES)}"
    )


def _is_instance(value: Any, module_name: str, class_name: str) -> bool:
    """Tell whether `value` is an instance of a class whose package may not even be imported."""
    module = sys.modules.get(module_name)
    return module is not None and isinstance(value, getattr(module, class_name))
