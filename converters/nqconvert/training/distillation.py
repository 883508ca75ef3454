"""A teacher's answers in the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .training_data import Loss

if TYPE_CHECKING:
    import torch

__all__ = ["distillation_loss"]


def distillation_loss(*, temperature: float = 3.0, share: float = 0.7) -> Loss:
    """Return a loss of logits for targets of ``(labels, teacher's logits)``.

    It is ``share T^2 KL(softmax(teacher / T) || softmax(logits / T)) + (1 - share) cross entropy``.

    Parameters
    ----------
    temperature : float
        T, above 0.
    share : float, 0 to 1
        Of the teacher; 1 uses no labels.

    Returns
    -------
    callable
        ``loss(logits, (labels, teacher_logits))``; targets that are labels alone give the cross entropy, so
        that validation needs no teacher.

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
        if not isinstance(targets, (tuple, list)):
            return functional.cross_entropy(logits, targets)
        labels, teacher = targets
        divergence = functional.kl_div(
            functional.log_softmax(logits / temperature, -1),
            functional.log_softmax(teacher / temperature, -1),
            reduction="batchmean",
            log_target=True,
        )
        told = functional.cross_entropy(logits, labels) if share < 1 else 0.0
        return share * temperature**2 * divergence + (1 - share) * told

    return loss
