"""What a recipe is: a row's name, the network it starts from, how it is trained, and what it is to reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nqconvert.training import EpochRecord, TrainingLog
from nqconvert.training.sharing.hashed import HashedResult

from .data import Data, in_order
from .mnist import load_mnist


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a recipe is given besides the data; `facts` takes what the row should tell beside its file.

    `hashed` takes what a file of hashed weights is made of.

    ``paper_ratio`` is the compression as the method's own paper counts it, ``seconds`` those of all epochs,
    also of ones before a run was taken up again.
    """

    data: Data
    seed: int
    checkpoint: Path
    progress: Callable[[EpochRecord], None]
    facts: dict[str, float] = field(default_factory=dict)
    hashed: list[HashedResult] = field(default_factory=list)

    def followed(self, suffix: str | None = None) -> dict[str, Any]:
        """Return the arguments of a run that is reported and can be taken up again."""
        checkpoint = self.checkpoint if suffix is None else self.checkpoint.with_suffix(suffix)
        return {"seed": self.seed, "checkpoint": checkpoint, "progress": self.progress}

    def judged(self) -> dict[str, Any]:
        """Return the arguments of a run that ends with its best epoch on the validation images."""
        data = self.data
        return {**self.followed(), "validation": in_order(data.validation_images, data.validation_labels)}

    def note_seconds(self, log: TrainingLog) -> None:
        """Add the time of a training run."""
        self.facts["seconds"] = self.facts.get("seconds", 0.0) + sum(r.seconds for r in log.records)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One row.

    Attributes
    ----------
    network, method, note : str
    fp32_bytes : int
        Bytes of the dense network's parameters; ratios are of it.
    dense : callable
        ``dense(data)`` returns the trained network that the row starts from.
    train : callable
        ``train(module, work)`` returns the network that the file is to hold, quantized already.
    goals : tuple of (ratio, percent)
        Whole-file ratios to reach at no more than a test error; None: that of the dense network.
    paper : str
        The published row, or what else the file is compared with.
    load : callable
        Returns the data.
    rival : callable, optional
        ``rival(module, work)`` trains the same without quantizing, for NNCodec.
    share_of_rival : float or None
        Part of NNCodec's bytes to reach at no higher error.
    """

    network: str
    method: str
    fp32_bytes: int
    dense: Callable[[Data], torch.nn.Module]
    train: Callable[[torch.nn.Module, Work], torch.nn.Module]
    goals: tuple[tuple[float, float | None], ...]
    paper: str
    note: str = ""
    load: Callable[[], Data] = load_mnist
    rival: Callable[[torch.nn.Module, Work], torch.nn.Module] | None = None
    share_of_rival: float | None = None
