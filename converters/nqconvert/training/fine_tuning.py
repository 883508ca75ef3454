"""Fine-tuning of codebook entries while every weight keeps its entry."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nqconvert.sensitivity.binding import find_links
from nqconvert.sensitivity.calibration import calibration_batches, torch_batch
from nqconvert.sources.state_dict import array_of_torch
from nqconvert.sources.torch_module import evaluation_mode
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package
from nqformat.tensor import Codebook, CodebookTensor, Tensor, round_codebook

from .training_data import TrainingData

__all__ = ["FineTuning", "FineTuningLog", "FineTuningRecord", "fine_tune_centres"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningRecord:
    """What one epoch came to; epoch 0 is the start, without training."""

    epoch: int
    train_loss: float | None
    validation_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning(TrainingData):
    """What fine-tuning needs, besides the data.

    Attributes
    ----------
    epochs : int
    lr : float
        Of Adam, in units of each codebook's root mean square.
    patience : int
        Epochs without a better validation loss after which to stop.
    seed : int
    """

    epochs: int = 5
    lr: float = 2e-3
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        TrainingData.__post_init__(self)
        if self.epochs < 1 or self.patience < 1:
            raise ValueError(f"epochs and patience must be at least 1, not {self.epochs} and {self.patience}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, not {self.lr}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningLog:
    """History of a run.

    Attributes
    ----------
    records : tuple of FineTuningRecord
    best_epoch : int
        Whose entries were kept; 0 if no epoch was better than the start.
    tuned : tuple of str
        Tensors whose codebook was tuned.
    """

    records: tuple[FineTuningRecord, ...]
    best_epoch: int
    tuned: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One parameter of the module, made from a codebook."""

    parameter: str
    book: int
    indices: Any
    transposed: bool
    scale: Any

    def weight(self, centres: Any) -> Any:
        """Look the parameter up in its codebook; the gradient of an entry sums over its weights."""
        values = centres[self.indices]
        values = values.T if self.transposed else values
        return values if self.scale is None else values / self.scale


def fine_tune_centres(
    module: Any,
    tensors: Mapping[str, Tensor],
    originals: Mapping[str, np.ndarray],
    tuning: FineTuning,
    *,
    progress: Callable[[FineTuningRecord], None] | None = None,
) -> tuple[dict[str, Tensor], FineTuningLog]:
    """Train the entries of codebooks: the gradient of an entry is the sum over the weights that have it.

    Indices stay as they are, zero entries stay zero, and a codebook that tensors share stays shared. All
    other parameters stay as they are in the module. Losses are those of entries rounded to the codebook's
    dtype; the module computes in evaluation mode and is not changed.

    Parameters
    ----------
    module : torch.nn.Module
        That the tensors come from.
    tensors : mapping of str to Tensor
        Quantized, by stored name.
    originals : mapping of str to ndarray
        The same before quantization and pruning: they show which parameter a tensor is (as it is, transposed,
        or with a batch norm folded in). Tensors of which none is true are not tuned.
    tuning : FineTuning
    progress : callable, optional
        Called with a :class:`FineTuningRecord` after each epoch.

    Returns
    -------
    (tensors with the tuned codebooks, FineTuningLog)

    Raises
    ------
    ConversionError
        If nothing can be tuned, or the loss becomes NaN or infinite.

    Source : Han, Mao, Dally 2016, eq. (3); Choi, El-Khamy, Lee 2017, section 3.3
    """
    tuner = _Tuner(module, tensors, originals, tuning)
    log = tuner.run(progress or (lambda record: None))
    return tuner.tensors(tensors), log


class _Tuner:
    def __init__(
        self,
        module: Any,
        tensors: Mapping[str, Tensor],
        originals: Mapping[str, np.ndarray],
        tuning: FineTuning,
    ) -> None:
        torch = require_package("torch")
        self._module = copy.deepcopy(module)
        self._tuning = tuning
        parameters = {n: array_of_torch(n, p) for n, p in module.named_parameters()}
        quantized = {
            name: tensor
            for name, tensor in tensors.items()
            if isinstance(tensor, CodebookTensor) and tensor.scales is None and name in originals
        }
        links = find_links({name: originals[name] for name in quantized}, parameters)
        self._books: list[Codebook] = []
        self._parts: list[_Part] = []
        device = next(module.parameters()).device
        for name, link in links.items():
            tensor = quantized[name]
            scale = None if link.scale is None else np.where(link.scale == 0, 1.0, link.scale)
            self._parts.append(
                _Part(
                    parameter=link.parameter,
                    book=self._book_number(tensor.codebook),
                    indices=torch.from_numpy(tensor.indices.astype(np.int64)).to(device),
                    transposed=link.transposed,
                    scale=None if scale is None else torch.from_numpy(scale).float().to(device),
                )
            )
        if not self._parts:
            raise ConversionError("fine-tuning found no codebook tensor that is a parameter of the module")
        self._tuned = tuple(links)
        self._centres = [
            torch.tensor(book.values, device=device, requires_grad=bool(book.values.any()))
            for book in self._books
        ]
        self._best = [book.values for book in self._books]

    def _book_number(self, codebook: Codebook) -> int:
        for number, known in enumerate(self._books):
            if known is codebook:
                return number
        self._books.append(codebook)
        return len(self._books) - 1

    def run(self, progress: Callable[[FineTuningRecord], None]) -> FineTuningLog:
        torch = require_package("torch")
        tuning = self._tuning
        groups = [
            {"params": [centres], "lr": tuning.lr * float(centres.detach().square().mean().sqrt())}
            for centres in self._centres
            if centres.requires_grad
        ]
        if not groups:
            raise ConversionError("fine-tuning found no codebook with an entry besides zero")
        optimizer = torch.optim.Adam(groups)
        zeros = [centres.detach() == 0 for centres in self._centres]
        records: list[FineTuningRecord] = []
        best_epoch, best_loss = 0, float("inf")
        with evaluation_mode(self._module), torch.random.fork_rng(devices=[]):
            for epoch in range(tuning.epochs + 1):
                torch.manual_seed(tuning.seed * 1_000_003 + epoch)
                train_loss = None if epoch == 0 else self._train(optimizer, zeros)
                loss = None if tuning.validation is None else self._validation_loss()
                records.append(FineTuningRecord(epoch=epoch, train_loss=train_loss, validation_loss=loss))
                progress(records[-1])
                if loss is None or loss < best_loss:
                    best_epoch, best_loss = epoch, float("inf") if loss is None else loss
                    self._best = self._rounded()
                elif epoch - best_epoch >= tuning.patience:
                    break
        return FineTuningLog(records=tuple(records), best_epoch=best_epoch, tuned=self._tuned)

    def _train(self, optimizer: Any, zeros: list[Any]) -> float:
        """Run one epoch; return the mean loss."""
        total, n_seen = 0.0, 0
        for batch in calibration_batches(self._tuning.loader, batch_size=1 << 30, samples=1 << 62):
            optimizer.zero_grad(set_to_none=True)
            value = self._loss(batch, self._centres)
            number = float(value.detach())
            if not np.isfinite(number):
                raise ConversionError(f"fine-tuning diverged: the loss is {number}; try a smaller lr")
            value.backward()
            for centres, zero in zip(self._centres, zeros, strict=True):
                if centres.grad is not None:
                    centres.grad.masked_fill_(zero, 0)
            optimizer.step()
            total, n_seen = total + number * batch.n_samples, n_seen + batch.n_samples
        return total / n_seen

    def _validation_loss(self) -> float:
        torch = require_package("torch")
        centres = [torch.from_numpy(values).to(self._centres[0].device) for values in self._rounded()]
        total, n_seen = 0.0, 0
        with torch.no_grad():
            for batch in calibration_batches(self._tuning.validation, batch_size=1 << 30, samples=1 << 62):
                total += float(self._loss(batch, centres)) * batch.n_samples
                n_seen += batch.n_samples
        return total / n_seen

    def _loss(self, given: Any, centres: list[Any]) -> Any:
        torch = require_package("torch")
        batch = torch_batch(given, self._module)
        weights = {part.parameter: part.weight(centres[part.book]) for part in self._parts}
        outputs = torch.func.functional_call(self._module, weights, batch.args, batch.kwargs)
        return self._tuning.loss(outputs, batch.targets)

    def _rounded(self) -> list[np.ndarray]:
        """Return the entries as their codebooks can store them; as they were where one overflows."""
        made = []
        for centres, book in zip(self._centres, self._books, strict=True):
            rounded = round_codebook(centres.detach().cpu().numpy(), book.stored_as) + np.float32(0)
            made.append(rounded if np.isfinite(rounded).all() else book.values)
        return made

    def tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return all tensors, those of tuned codebooks with the best entries, ascending and distinct."""
        renewed: dict[int, tuple[Codebook, np.ndarray]] = {}
        for book, values in zip(self._books, self._best, strict=True):
            entries, place = np.unique(values, return_inverse=True)
            renewed[id(book)] = (Codebook(values=entries, stored_as=book.stored_as), place)
        result: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            found = renewed.get(id(tensor.codebook)) if isinstance(tensor, CodebookTensor) else None
            if found is None or not isinstance(tensor, CodebookTensor):
                result[name] = tensor
                continue
            codebook, place = found
            indices = place.astype(tensor.indices.dtype)[tensor.indices]
            result[name] = replace(tensor, indices=indices, codebook=codebook)
        return result
