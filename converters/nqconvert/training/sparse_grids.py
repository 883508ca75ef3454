"""Few weights on coarse grids: surgery while the network trains, then grids, taught by what it was."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nqformat.optional_packages import require_package

from .batch_loss import answers_of
from .distillation import Taught, answers_are_logits, distillation_loss
from .pruning.gradual import PruningResult
from .pruning.surgery import SurgerySettings, prune_by_surgery
from .quantized.entropy import EntropyPenalty, RateSettings
from .quantized.straight_through import GridSettings, StraightThrough
from .records import Progress
from .technique import Technique
from .training_data import Loss, TrainingData
from .weight_names import vectors, weights_of_all_layers

if TYPE_CHECKING:
    import torch

__all__ = ["SparseGridSettings", "train_sparse_on_grids"]

_USUAL_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseGridSettings:
    """How many weights stay, how coarse they are, and how much the teacher says.

    Attributes
    ----------
    surgery : SurgerySettings
        Its density is the share of weights that are kept when grids are laid; fewer are left on coarse ones.
    grids : GridSettings
    bit_penalty : float
        Loss, in nats, that one bit for every weight may cost while the network trains on its grids: weights
        that are hardly worth their bits become zero.
    teacher_share : float or None
        Part of the loss that compares outputs with those of the network as it was; None: 0.7 where its
        outputs are logits for the labels of the batches, else 0.
    temperature : float
        Of the comparison.
    """

    surgery: SurgerySettings = field(default_factory=SurgerySettings)
    grids: GridSettings = field(default_factory=GridSettings)
    bit_penalty: float = 0.0
    teacher_share: float | None = None
    temperature: float = 3.0

    def __post_init__(self) -> None:
        if not self.bit_penalty >= 0:
            raise ValueError(f"bit_penalty must not be negative, but is {self.bit_penalty}")
        share = self.teacher_share
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"teacher_share must be 0 to 1, not {share}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")
        if self.grids.first_stage != 1:
            raise ValueError(f"grids are laid after surgery, in stage 1, not {self.grids.first_stage}")


def train_sparse_on_grids(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    settings: SparseGridSettings | None = None,
    epochs: int = 18,
    final_epochs: int = 12,
    lr: float = 1e-3,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    parameters: Sequence[str] | None = None,
    techniques: Sequence[Technique] = (),
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> PruningResult:
    """Retrain a trained `module` in place until it has few weights, which lie on uniform grids.

    Surgery finds the weights for `epochs`; then each tensor gets a grid, and the network trains on with
    rounded weights for `final_epochs`. The best of those by validation loss is kept.

    Parameters
    ----------
    module, loader, loss, lr, seed, validation, patience, progress, checkpoint, resume
        As in :func:`nqconvert.training.retrain`. Fold batch norms before
        (:func:`nqconvert.training.fold_batch_norms`).
    settings : SparseGridSettings or None
    epochs, final_epochs : int
    parameters : sequence of str, optional
        Weights to prune and quantize; None: those of all layers, embeddings and recurrent ones included.
        Biases, norms and other vectors are put on finer grids.
    techniques : sequence of Technique
        Further methods, after these.

    Returns
    -------
    PruningResult
        Its masks are those of surgery.

    Raises
    ------
    ConversionError
        As :func:`nqconvert.training.retrain`.
    ValueError
        If a teacher is wanted for outputs that are no logits for the batches' labels.

    Source : Guo, Yao, Chen 2016 (surgery); Bengio, Leonard, Courville 2013 (straight-through estimator);
        Hinton, Vinyals, Dean 2015 (distillation); Oktay et al. 2020 (price of bits)
    """
    require_package("torch")
    chosen = settings or SparseGridSettings()
    names = weights_of_all_layers(module) if parameters is None else list(parameters)
    grids = StraightThrough(names, vectors(module), chosen.grids)
    rate = EntropyPenalty(names, grids, RateSettings(penalty=chosen.bit_penalty))
    data = _with_teacher(module, TrainingData(loader=loader, loss=loss, validation=validation), chosen)
    return prune_by_surgery(
        module,
        data.loader,
        data.loss,
        settings=chosen.surgery,
        epochs=epochs,
        final_epochs=final_epochs,
        lr=lr,
        seed=seed,
        validation=validation,
        patience=patience,
        parameters=names,
        techniques=[grids, *([rate] if chosen.bit_penalty else []), *techniques],
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )


def _with_teacher(module: torch.nn.Module, data: TrainingData, settings: SparseGridSettings) -> TrainingData:
    """Let the network as it is now teach, if that is wanted and its outputs are logits."""
    share = settings.teacher_share
    if share == 0:
        return data
    teacher = copy.deepcopy(module).eval()
    if not _answers_logits(teacher, data.loader):
        if share is None:
            return data
        raise ValueError(
            "a teacher needs outputs that are logits of shape (n, classes, ...) for labels of shape "
            "(n, ...); set teacher_share to 0"
        )
    taught = distillation_loss(
        temperature=settings.temperature, share=_USUAL_SHARE if share is None else share, told=data.loss
    )
    return TrainingData(loader=Taught(data.loader, teacher), loss=taught, validation=data.validation)


def _answers_logits(teacher: torch.nn.Module, loader: Iterable[Any]) -> bool:
    import torch

    for inputs, targets in loader:
        with torch.no_grad():
            return answers_are_logits(answers_of(teacher, inputs), targets)
    return False
