"""Search over the settings of retraining: the smallest file within a drop of accuracy, every trial logged."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .accuracy import Evaluation
from .conversion import convert
from .training.methods import PRESET_METHODS
from .training.training_data import Training

__all__ = ["SPACES", "Trial", "TuningResult", "tune"]

_EXCESS_PRICE = 10.0

SPACES: dict[str, dict[str, tuple[float, float]]] = {
    "magnitude": {"lr": (2e-4, 5e-3), "density": (0.02, 0.3)},
    "surgery": {"lr": (2e-4, 5e-3), "density": (0.02, 0.3)},
    "sparse-grids": {"lr": (2e-4, 5e-3), "density": (0.02, 0.3), "coarseness": (1.0, 4.0)},
    "variational": {"lr": (2e-4, 5e-3), "strength": (0.05, 1.0)},
    "soft-weight-sharing": {"lr": (1e-4, 3e-3), "tau": (5e-4, 5e-2)},
    "inq": {"lr": (1e-4, 5e-3)},
    "adaptive": {"max_rise": (1e-3, 0.2)},
    "rate": {"lr": (2e-4, 5e-3), "penalty": (1e-3, 0.1)},
    "hashed": {"lr": (2e-4, 5e-3), "share": (1 / 64, 1 / 4)},
}
"""What is searched for each method: ends of intervals, drawn from on a logarithmic scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One retraining.

    Attributes
    ----------
    number : int
    settings : dict of str to float
    file_bytes : int or None
        None if the trial failed.
    drop : float or None
        Percentage points of accuracy lost.
    kept : bool
        Whether the drop is within the bound.
    error : str
        Why a trial failed.
    """

    number: int
    settings: dict[str, float]
    file_bytes: int | None
    drop: float | None
    kept: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningResult:
    """All trials.

    Attributes
    ----------
    space : mapping of str to (float, float)
    trials : tuple of Trial
    """

    space: Mapping[str, tuple[float, float]]
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The trial with the smallest file of those within the bound."""
        kept = [trial for trial in self.trials if trial.kept and trial.file_bytes is not None]
        return min(kept, key=lambda trial: trial.file_bytes or 0, default=None)


def tune(
    model: Any,
    training: Training,
    *,
    example_inputs: Any,
    evaluate: Evaluation,
    preset: str = "deep-compression",
    max_drop: float = 0.3,
    trials: int = 20,
    space: Mapping[str, tuple[float, float]] | None = None,
    log: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: Callable[[Trial], None] | None = None,
    **settings: Any,
) -> TuningResult:
    """Convert again and again with other settings of retraining, chosen by what came of the ones before.

    Parameters
    ----------
    model : torch.nn.Module
    training : Training
        Names the method, or the preset does; its checkpoint is not used.
    example_inputs : array, tensor, sequence or mapping
    evaluate : callable
        As of :func:`nqconvert.convert`; give it validation data, not the test set.
    preset : str
    max_drop : float
        Percentage points of accuracy that may be lost.
    trials : int
    space : mapping of str to (float, float), optional
        What to search; None: :data:`SPACES`. Names are ``lr``, ``density`` and settings of the method.
    log : path-like, optional
        File of JSON lines: first the space and the bound, then every trial as it ends.
    seed : int
        Of the search and of retraining.
    progress : callable, optional
        Called with each :class:`Trial`.
    settings
        Further arguments of :func:`nqconvert.convert`.

    Returns
    -------
    TuningResult

    Raises
    ------
    ValueError
        If the method is unknown or a bound is not allowed.
    MissingDependencyError
        If optuna is missing; names the extra.

    Source : Akiba et al. 2019, "Optuna" (tree-structured Parzen estimator of Bergstra et al. 2011)
    """
    if trials < 1 or not max_drop >= 0:
        raise ValueError(f"trials must be at least 1 and max_drop not negative: {trials}, {max_drop}")
    method = training.method or PRESET_METHODS.get(preset, "magnitude")
    if method not in SPACES:
        raise ValueError(f"unknown method of retraining {method!r}; known: {', '.join(SPACES)}")
    chosen = dict(space or SPACES[method])
    for name, (low, high) in chosen.items():
        if not 0 < low < high:
            raise ValueError(f"space of {name!r} must be two positive numbers, ascending: {low}, {high}")
    optuna = require_package("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    _write(
        log, {"method": method, "preset": preset, "space": chosen, "max_drop": max_drop, "seed": seed}, "w"
    )
    done: list[Trial] = []
    for number in range(trials):
        asked = study.ask()
        drawn = {name: asked.suggest_float(name, *ends, log=True) for name, ends in chosen.items()}
        trial = _try(
            number,
            drawn,
            max_drop,
            lambda drawn: convert_drawn(
                model, replace(training, method=method, checkpoint=None), drawn,
                example_inputs=example_inputs, evaluate=evaluate, preset=preset, seed=seed, **settings,
            ),
        )  # fmt: skip
        study.tell(asked, _price(trial, max_drop))
        _write(log, {field: getattr(trial, field) for field in Trial.__dataclass_fields__}, "a")
        done.append(trial)
        if progress is not None:
            progress(trial)
    return TuningResult(space=chosen, trials=tuple(done))


def convert_drawn(
    model: Any, training: Training, drawn: Mapping[str, float], **arguments: Any
) -> tuple[int, float]:
    """Convert with the settings that were drawn; returns the bytes of the file and the drop in points."""
    options = {name: value for name, value in drawn.items() if name not in ("lr", "density")}
    given = replace(training, lr=drawn.get("lr", training.lr), options={**training.options, **options})
    if "density" in drawn:
        arguments["density"] = drawn["density"]
    with tempfile.TemporaryDirectory() as folder:
        report = convert(model, Path(folder) / "trial.nqz", training=given, **arguments)
    assert report.drop is not None
    return report.file_bytes, report.drop.points


def _try(
    number: int,
    drawn: dict[str, float],
    max_drop: float,
    run: Callable[[dict[str, float]], tuple[int, float]],
) -> Trial:
    """Run a trial; training that diverges is a failed trial, not an error."""
    try:
        file_bytes, drop = run(drawn)
    except ConversionError as error:
        return Trial(number=number, settings=drawn, file_bytes=None, drop=None, kept=False, error=str(error))
    return Trial(number=number, settings=drawn, file_bytes=file_bytes, drop=drop, kept=drop <= max_drop)


def _price(trial: Trial, max_drop: float) -> float:
    """Return what the search makes small: bytes, multiplied where the drop is too large."""
    if trial.file_bytes is None or trial.drop is None:
        return float("inf")
    excess = max(0.0, trial.drop - max_drop)
    return trial.file_bytes * (1.0 + _EXCESS_PRICE * excess)


def _write(log: str | os.PathLike[str] | None, row: Mapping[str, Any], mode: str) -> None:
    if log is not None:
        with open(log, mode, encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
