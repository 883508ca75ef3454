"""Methods of retraining by name, as conversions use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from .records import EpochRecord
from .training_data import Training

if TYPE_CHECKING:
    from nqconvert.sources import ModelSource

    from .pruning.surgery import SurgerySettings

__all__ = ["METHODS", "PRESET_METHODS", "SETTLING_METHODS", "Retrained", "retrain_by_method"]

PRESET_METHODS = {name: name for name in ("sparse-grids", "soft-weight-sharing", "adaptive", "inq", "hashed")}
"""Which method a preset retrains with if the training data does not say; the others prune by magnitude."""

SETTLING_METHODS = ("sparse-grids", "soft-weight-sharing", "inq", "adaptive", "rate", "hashed")
"""Methods that give weights the values that the file is to keep, so that no exporter may change them."""

_SHARED_SHARE = 0.125
_FINAL_SHARE = 0.3
_GRID_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """What retraining did.

    Attributes
    ----------
    note : str
        For the report.
    settle : callable or None
        Tells a source of the retrained module how it is to store the weights, if no method will find that.
    """

    note: str
    settle: Callable[[ModelSource], ModelSource] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What every method is given."""

    module: Any
    training: Training
    density: float
    seed: int
    tell: Callable[[str], None]

    def common(self) -> dict[str, Any]:
        """Return the arguments that all methods with a training loop share."""
        return {
            "lr": self.training.lr,
            "seed": self.seed,
            "checkpoint": self.training.checkpoint,
            "progress": self.report(),
        }

    def judged(self) -> dict[str, Any]:
        """Return those of methods that choose an epoch by validation."""
        return {**self.common(), "validation": self.training.validation}

    def report(self) -> Callable[[EpochRecord], None]:
        """Return what hears of every epoch."""
        done = 0

        def tell(record: EpochRecord) -> None:
            nonlocal done
            done += 1
            self.tell(
                f"retraining: epoch {done}, density {100 * record.density:.1f} %, loss "
                f"{record.train_loss:.4f}, about {record.seconds_left:.0f} s left"
            )

        return tell

    def patient(self) -> dict[str, Any]:
        """Return those of methods that may stop early, too."""
        return {**self.judged(), "patience": self.training.patience}

    def split(self, final_share: float = _FINAL_SHARE) -> dict[str, int]:
        """Return how many epochs change masks and how many follow."""
        n_final = max(1, round(final_share * self.training.epochs))
        return {"epochs": max(1, self.training.epochs - n_final), "final_epochs": n_final}


def _magnitude(call: _Call) -> str:
    from .pruning.gradual import prune_and_retrain

    training = call.training
    result = prune_and_retrain(
        call.module,
        training.loader,
        training.loss,
        density=call.density,
        per_layer=training.per_layer,
        scope=training.scope or "layer",
        steps=training.steps,
        epochs_per_step=training.epochs_per_step,
        final_epochs=training.final_epochs,
        **call.patient(),
    )
    n_epochs = len(result.log.records)
    return f"pruned to {100 * result.density:.1f} % of the weights and retrained {n_epochs} epochs"


def _surgery_settings(call: _Call, options: Mapping[str, Any], *, scope: str) -> SurgerySettings:
    from .pruning.surgery import SurgerySettings

    per_layer = tuple(call.training.per_layer.items())
    chosen: dict[str, Any] = {"scope": call.training.scope or scope, **options}
    return SurgerySettings(density=call.density, per_layer=per_layer, **chosen)


def _surgery(call: _Call) -> str:
    from .pruning.surgery import prune_by_surgery

    training = call.training
    settings = _surgery_settings(call, training.options, scope="layer")
    result = prune_by_surgery(
        call.module, training.loader, training.loss, settings=settings, **call.split(), **call.patient()
    )
    return f"pruned by surgery to {100 * result.density:.1f} % of the weights"


def _taken(options: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Take the options out that a settings class has, and return them."""
    return {field.name: options.pop(field.name) for field in fields(settings) if field.name in options}


def _sparse_grids(call: _Call) -> str:
    from .quantized.straight_through import GridSettings
    from .sparse_grids import SparseGridSettings, train_sparse_on_grids

    others: dict[str, Any] = dict(call.training.options)
    grids = _taken(others, GridSettings)
    own = _taken(others, SparseGridSettings)
    result = train_sparse_on_grids(
        call.module,
        call.training.loader,
        call.training.loss,
        settings=SparseGridSettings(
            surgery=_surgery_settings(call, others, scope="global"), grids=GridSettings(**grids), **own
        ),
        **call.split(_GRID_SHARE),
        **call.patient(),
    )
    return f"pruned by surgery to {100 * result.density:.1f} % of the weights, then trained on grids"


def _variational(call: _Call) -> str:
    from .pruning.variational import VariationalSettings, prune_variational

    settings = VariationalSettings(**call.training.options)
    result = prune_variational(
        call.module,
        call.training.loader,
        call.training.loss,
        settings=settings,
        **call.split(),
        **call.patient(),
    )
    return f"variational dropout left {100 * result.density:.1f} % of the weights"


def _soft_weight_sharing(call: _Call) -> str:
    from .sharing.soft_weight_sharing import SharingSettings, share_weights_softly

    result = share_weights_softly(
        call.module,
        call.training.loader,
        call.training.loss,
        settings=SharingSettings(**dict[str, Any](call.training.options)),
        epochs=call.training.epochs,
        final_epochs=max(1, round(_SHARED_SHARE * call.training.epochs)),
        **call.judged(),
    )
    told = f"{len(result.components)} shared values, {100 * result.density:.1f} % of the weights not zero"
    return told + (f"; prior weakened for {', '.join(result.collapsed)}" if result.collapsed else "")


def _inq(call: _Call) -> str:
    from .quantized.inq import PORTIONS, quantize_incrementally

    epochs = max(1, call.training.epochs // len(PORTIONS))
    quantize_incrementally(
        call.module, call.training.loader, call.training.loss, epochs=epochs, **call.judged()
    )
    return f"powers of two in {len(PORTIONS)} portions, {epochs} epochs after each"


def _adaptive(call: _Call) -> str:
    from .quantized.adaptive import AdaptiveSettings, quantize_adaptively

    def report(record: Any) -> None:
        call.tell(
            f"adaptive widths: iteration {record.iteration}, {record.bits:.2f} bits a weight, "
            f"loss {record.loss:.4f}"
        )

    options: dict[str, Any] = dict(call.training.options)
    result = quantize_adaptively(
        call.module,
        call.training.loader,
        call.training.loss,
        settings=AdaptiveSettings(**options),
        progress=report,
    )
    return (
        f"{result.mean_bits:.2f} bits a weight, loss {result.loss_before:.4f} -> {result.loss:.4f} "
        "on the training data"
    )


def _rate(call: _Call) -> str:
    from .quantized.entropy import RateSettings, retrain_for_rate

    options: dict[str, Any] = dict(call.training.options)
    retrain_for_rate(
        call.module,
        call.training.loader,
        call.training.loss,
        settings=RateSettings(**options),
        epochs=call.training.epochs,
        **call.judged(),
    )
    return f"retrained {call.training.epochs} epochs with the price of bits"


def _hashed(call: _Call) -> Retrained:
    from .sharing.hashed import train_hashed

    options: dict[str, Any] = dict(call.training.options)
    result = train_hashed(
        call.module,
        call.training.loader,
        call.training.loss,
        epochs=call.training.epochs,
        **options,
        **call.patient(),
    )
    note = f"weights share {100 * result.share:.1f} % as many values by a hash of their places"
    return Retrained(note=note, settle=result.settled)


METHODS: dict[str, Callable[[_Call], str | Retrained]] = {
    "magnitude": _magnitude,
    "surgery": _surgery,
    "sparse-grids": _sparse_grids,
    "variational": _variational,
    "soft-weight-sharing": _soft_weight_sharing,
    "inq": _inq,
    "adaptive": _adaptive,
    "rate": _rate,
    "hashed": _hashed,
}


def retrain_by_method(
    method: str, module: Any, training: Training, *, density: float, seed: int, tell: Callable[[str], None]
) -> Retrained:
    """Retrain a module in place; returns what was done.

    Raises
    ------
    ValueError
        If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method of retraining {method!r}; known: {', '.join(METHODS)}")
    call = _Call(module=module, training=training, density=density, seed=seed, tell=tell)
    made = METHODS[method](call)
    return made if isinstance(made, Retrained) else Retrained(note=made)
