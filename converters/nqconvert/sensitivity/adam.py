"""Second moments that an Adam optimizer kept while training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .settings import SensitivitySettings

__all__ = ["measure_adam"]

_SLOTS = ("exp_avg_sq", "v")


def measure_adam(model: Any, calibration: Any, settings: SensitivitySettings) -> dict[str, np.ndarray]:
    """Take sqrt(v), or v, from the state of an Adam optimizer (method ``adam``); costs nothing.

    The state is ``optimizer.state_dict()`` of torch, a file with it, or a mapping of parameter names to v (or
    to mappings with ``exp_avg_sq``). Moments are matched by name if the state has names, else by the order of
    the parameters. v is corrected for its start at zero where the state tells the step.

    Parameters
    ----------
    model : torch.nn.Module, or mapping of name to array
        Whose parameters the moments belong to.
    calibration : object
        Not used.
    settings : SensitivitySettings

    Raises
    ------
    ConversionError
        If there is no state, or number and shapes of the moments are not those of the parameters.

    Source : Choi, El-Khamy, Lee 2017, section 5.3; Kingma, Ba 2015, algorithm 1
    """
    if settings.optimizer_state is None:
        raise ConversionError("the sensitivity 'adam' needs the optimizer's state (optimizer_state)")
    shapes = _shapes(model)
    moments = _named_moments(_loaded(settings.optimizer_state), shapes)
    result = {}
    for name, moment in moments.items():
        if moment.shape != shapes[name]:
            raise ConversionError(
                f"the optimizer's moment for {name!r} has shape {moment.shape}, the parameter {shapes[name]}"
            )
        if not np.isfinite(moment).all() or (moment < 0).any():
            raise ConversionError(f"the optimizer's moments for {name!r} must be finite and not negative")
        result[name] = np.power(moment, settings.adam_power).astype(np.float32)
    if not result:
        raise ConversionError("the optimizer's state has no second moments (exp_avg_sq) of these parameters")
    return result


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    entries = model.items() if isinstance(model, Mapping) else model.named_parameters()
    return {name: tuple(value.shape) for name, value in entries}


def _loaded(state: Any) -> Mapping[Any, Any]:
    if not isinstance(state, str | os.PathLike):
        if not isinstance(state, Mapping):
            raise TypeError(f"optimizer_state must be a mapping or a path, not {type(state).__name__}")
        return state
    import pickle

    torch = require_package("torch")
    try:
        loaded = torch.load(state, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{os.fspath(state)} is not an optimizer state: {error}") from error
    if not isinstance(loaded, Mapping):
        raise ConversionError(f"{os.fspath(state)} holds no mapping")
    for key in ("optimizer", "optimizer_state_dict"):
        if "state" not in loaded and isinstance(loaded.get(key), Mapping):
            return dict(loaded[key])
    return loaded


def _named_moments(state: Mapping[Any, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return second moments by parameter name."""
    if "state" not in state or "param_groups" not in state:
        found = {str(name): _moment(entry, None) for name, entry in state.items()}
        return {name: moment for name, moment in found.items() if moment is not None and name in shapes}
    slots = state["state"]
    moments: dict[str, np.ndarray] = {}
    unnamed: list[tuple[Any, Any]] = []
    for group in state["param_groups"]:
        beta = group["betas"][1] if "betas" in group else None
        keys = group["params"]
        names = group.get("param_names") or [key if isinstance(key, str) else None for key in keys]
        for key, name in zip(keys, names, strict=True):
            moment = _moment(slots.get(key), beta)
            if name is None:
                unnamed.append((key, moment))
            elif name in shapes and moment is not None:
                moments[name] = moment
    if unnamed:
        if len(unnamed) != len(shapes):
            raise ConversionError(
                f"the optimizer's state has {len(unnamed)} parameters without names, the model {len(shapes)}"
            )
        in_order = sorted(unnamed, key=lambda pair: pair[0])
        matched = zip(shapes, in_order, strict=True)
        moments |= {name: moment for name, (_, moment) in matched if moment is not None}
    return moments


def _moment(entry: Any, beta: float | None) -> np.ndarray | None:
    """Return v in float64, corrected by its step; None if there is none."""
    step = None
    if isinstance(entry, Mapping):
        step = entry.get("step")
        entry = next((entry[slot] for slot in _SLOTS if slot in entry), None)
    if entry is None:
        return None
    array = np.asarray(entry.detach().cpu() if hasattr(entry, "detach") else entry).astype(np.float64)
    n_steps = 0.0 if step is None else float(step)
    return array / (1.0 - beta**n_steps) if beta is not None and n_steps >= 1 else array
