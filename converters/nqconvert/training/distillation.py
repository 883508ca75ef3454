"""A teacher's answers in the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .batch_loss import answers_of
from .training_data import Loss

if TYPE_CHECKING:
    import torch

__all__ = ["Taught", "answers_are_logits", "distillation_loss"]


class Taught:
    """Batches with a teacher's answers computed for each: targets are ``(targets, logits)``.

    Parameters
    ----------
    batches : iterable of (inputs, targets)
    teacher : torch.nn.Module
        In evaluation mode; its outputs are one tensor of logits.

    Examples
    --------
    >>> import torch
    >>> teacher = torch.nn.Linear(2, 3).eval()
    >>> inputs, (labels, logits) = next(iter(Taught([(torch.zeros(4, 2), torch.zeros(4).long())], teacher)))
    >>> logits.shape
    torch.Size([4, 3])
    """

    def __init__(self, batches: Iterable[Any], teacher: torch.nn.Module) -> None:
        self._batches, self._teacher = batches, teacher

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        import torch

        for inputs, targets in self._batches:
            with torch.no_grad():
                logits = answers_of(self._teacher, inputs)
            yield inputs, (targets, logits)


def answers_are_logits(outputs: Any, targets: Any) -> bool:
    """Tell whether outputs look like logits of shape (n, classes, ...) for labels of shape (n, ...).

    Examples
    --------
    >>> import torch
    >>> answers_are_logits(torch.zeros(4, 3), torch.tensor([0, 2, 1, 1]))
    True
    >>> answers_are_logits(torch.zeros(4, 3), torch.zeros(4, 3))
    False
    """
    import torch

    if not isinstance(outputs, torch.Tensor) or not isinstance(targets, torch.Tensor):
        return False
    if not outputs.is_floating_point() or targets.is_floating_point() or outputs.ndim < 2:
        return False
    return outputs.shape[1] > 1 and targets.shape == (outputs.shape[0], *outputs.shape[2:])


def distillation_loss(*, temperature: float = 3.0, share: float = 0.7, told: Loss | None = None) -> Loss:
    """Return a loss of logits for targets of ``(targets, teacher's logits)``.

    It is ``share T^2 KL(softmax(teacher / T) || softmax(logits / T)) + (1 - share) told(logits, targets)``.

    Parameters
    ----------
    temperature : float
        T, above 0.
    share : float, 0 to 1
        Of the teacher; 1 uses no labels.
    told : callable, optional
        The loss without a teacher; None: cross entropy with labels.

    Returns
    -------
    callable
        ``loss(logits, (targets, teacher_logits))`` of logits of shape (n, classes, ...), a mean over all
        places; targets that are no pair give `told` alone, so that validation needs no teacher.

    Source : Hinton, Vinyals, Dean 2015, "Distilling the knowledge in a neural network", section 2

    Examples
    --------
    >>> import torch
    >>> logits, labels = torch.tensor([[1.0, 3.0]]), torch.tensor([1])
    >>> float(distillation_loss(share=1.0)(logits, (labels, logits)))
    0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be 0 to 1, not {share}")

    def loss(logits: torch.Tensor, targets: Any) -> torch.Tensor:
        import torch

        functional = torch.nn.functional
        own: Loss = functional.cross_entropy if told is None else told
        if not isinstance(targets, (tuple, list)):
            alone: torch.Tensor = own(logits, targets)
            return alone
        labels, teacher = targets
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, 1),
            functional.log_softmax(teacher / temperature, 1),
            reduction="sum",
            log_target=True,
        ) / (logits.numel() // logits.shape[1])
        rest = own(logits, labels) if share < 1 else 0.0
        return share * temperature**2 * divergence + (1 - share) * rest

    return loss
