"""Mean squared gradients of single samples: Fisher information and its empirical form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nqconvert.sources.torch_module import evaluation_mode
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .calibration import Batch, calibration_batches, torch_batch
from .losses import loss_of, sampled_targets
from .settings import SensitivitySettings

__all__ = ["measure_empirical", "measure_fisher", "parameters_of", "sensitivity_arrays"]

_PER_SAMPLE_NUMBERS = 1 << 24
"""Most numbers that gradients of several samples take at a time; larger models go sample by sample."""


def measure_fisher(module: Any, calibration: Any, settings: SensitivitySettings) -> dict[str, np.ndarray]:
    """Mean squared gradients of single samples, labels drawn from the model (method ``fisher``).

    The diagonal of the Fisher information; for cross entropy and squared error its expectation is the
    diagonal of the Gauss-Newton matrix, which near a minimum is the Hessian. Targets in the calibration
    data are not used. Memory: parameters and gradients of at most 2**24 numbers, or of one sample.

    Source : Choi, El-Khamy, Lee 2017, section 3.2 (what the diagonal stands for); Martens 2020, "New insights
    and perspectives on the natural gradient method", section 5 (sampled against given labels)
    """
    generator = _generator(module, settings.seed)
    return _mean_squares(
        module,
        calibration,
        settings,
        lambda batch, outputs: sampled_targets(outputs(), settings, generator),
    )


def measure_empirical(module: Any, calibration: Any, settings: SensitivitySettings) -> dict[str, np.ndarray]:
    """Mean squared gradients of single samples with their given labels (method ``empirical``).

    Nearly nothing on a network that fits its calibration data; ``fisher`` is the better choice there.

    Raises
    ------
    ConversionError
        If the calibration data has no targets.
    """

    def given(batch: Batch, outputs: Callable[[], Any]) -> Any:
        if batch.targets is None:
            raise ConversionError("the sensitivity 'empirical' needs targets: (inputs, targets) batches")
        return batch.targets

    return _mean_squares(module, calibration, settings, given)


def parameters_of(module: Any) -> dict[str, Any]:
    """Return the module's floating-point parameters, detached; frozen ones too, tied ones once."""
    return {
        name: parameter.detach().requires_grad_()
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point()
    }


def sensitivity_arrays(sums: dict[str, Any], count: float) -> dict[str, np.ndarray]:
    """Return sums over `count` as float32 arrays, negative ones as 0.

    Raises
    ------
    ConversionError
        If a number is NaN or infinite; names the parameter.
    """
    arrays = {}
    for name, total in sums.items():
        array = (total.double() / count).float().cpu().numpy()
        if not np.isfinite(array).all():
            raise ConversionError(f"sensitivities of {name!r} are not finite; check the calibration data")
        arrays[name] = np.maximum(array, np.float32(0))
    return arrays


def _generator(module: Any, seed: int) -> Any:
    torch = require_package("torch")
    device = next((parameter.device for parameter in module.parameters()), "cpu")
    return torch.Generator(device=device).manual_seed(seed)


def _mean_squares(
    module: Any,
    calibration: Any,
    settings: SensitivitySettings,
    targets_of: Callable[[Batch, Callable[[], Any]], Any],
) -> dict[str, np.ndarray]:
    torch = require_package("torch")
    parameters = parameters_of(module)
    n_parameters = sum(parameter.numel() for parameter in parameters.values())
    chunk = max(1, min(settings.batch_size, _PER_SAMPLE_NUMBERS // max(n_parameters, 1)))
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    squares = _SampleSquares(module, parameters, loss_of(settings))
    done = 0
    with evaluation_mode(module):
        for given in calibration_batches(calibration, batch_size=chunk, samples=settings.samples):
            batch = torch_batch(given, module)
            targets = targets_of(batch, lambda batch=batch: _outputs(module, batch))  # type: ignore[misc]
            labelled = Batch(args=batch.args, kwargs=batch.kwargs, targets=targets)
            for name, square in squares.of(labelled):
                sums[name] += square
            done += batch.n_samples
            settings.progress(f"sensitivity: {done} of at most {settings.samples} samples")
    return sensitivity_arrays(sums, done)


def _outputs(module: Any, batch: Batch) -> Any:
    torch = require_package("torch")
    with torch.no_grad():
        return module(*batch.args, **batch.kwargs)


class _SampleSquares:
    """Squared gradients of each sample, summed over a batch: all at once where torch can, else in turn."""

    def __init__(self, module: Any, parameters: dict[str, Any], loss: Callable[[Any, Any], Any]) -> None:
        self._module = module
        self._parameters = parameters
        self._loss = loss
        self._at_once = True

    def of(self, batch: Batch) -> Iterator[tuple[str, Any]]:
        """Yield a sum for each parameter, possibly several times."""
        if self._at_once and batch.n_samples > 1:
            try:
                yield from self._vectorised(batch)
                return
            except Exception:  # torch has no batching rule for some operators; whatever else is wrong,
                self._at_once = False  # the plain way below says so
        for index in range(batch.n_samples):
            yield from self._single(batch.samples(index, index + 1))

    def _value(self, parameters: dict[str, Any], batch: Batch) -> Any:
        torch = require_package("torch")
        outputs = torch.func.functional_call(self._module, parameters, batch.args, batch.kwargs)
        return self._loss(outputs, batch.targets)

    def _vectorised(self, batch: Batch) -> list[tuple[str, Any]]:
        torch = require_package("torch")

        def value(parameters: dict[str, Any], args: Any, kwargs: Any, targets: Any) -> Any:
            one = Batch(args=args, kwargs=kwargs, targets=targets)
            return self._value(parameters, one.mapped(lambda tensor: tensor.unsqueeze(0)))

        detached = {name: parameter.detach() for name, parameter in self._parameters.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slopes = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0, 0))(
                detached, batch.args, batch.kwargs, batch.targets
            )
        return [(name, slope.square_().sum(dim=0)) for name, slope in slopes.items()]

    def _single(self, sample: Batch) -> Iterator[tuple[str, Any]]:
        torch = require_package("torch")
        slopes = torch.autograd.grad(
            self._value(self._parameters, sample), list(self._parameters.values()), allow_unused=True
        )
        for name, slope in zip(self._parameters, slopes, strict=True):
            if slope is not None:
                yield name, slope.square()
