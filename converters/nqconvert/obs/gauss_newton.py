"""Gauss-Newton Hessians of every layer from calibration inputs, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nqconvert.graphs.products import Product
from nqconvert.graphs.torch_graph import TorchGraph, torch_tensor
from nqconvert.graphs.torch_operators import unfolded

from .scratch import release
from .statistics import LayerHessians

__all__ = ["GaussNewtonSettings", "add_gauss_newton"]

_MAX_ELEMENTS, _MAX_ROW_ELEMENTS = 1 << 19, 1 << 22
_MAX_PENDING_BYTES = 1 << 23


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussNewtonSettings:
    """How Hessians are measured.

    Attributes
    ----------
    temperature : float
        Of the softmax whose log-probabilities are differentiated; the Hessian is multiplied by its square,
        which leaves it in nats of the plain cross entropy.
    passes, row_passes : int
        Random mixtures of classes, a backward pass each; `row_passes` if a layer has Hessians of single
        outputs, to which only its own gradients add.
    sketches : int
        Random mixtures of a layer's outputs that its Hessian is summed over for each pass, if it has more
        outputs than that; and of its inputs that the weights of its outputs are found by.
    seed : int
    """

    temperature: float = 3.0
    passes: int = 2
    row_passes: int = 8
    sketches: int = 8
    seed: int = 0


def add_gauss_newton(
    layers: Sequence[LayerHessians],
    graph: TorchGraph,
    tensors: Mapping[str, np.ndarray],
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    settings: GaussNewtonSettings,
    progress: Callable[[str], None],
) -> None:
    """Measure the Hessian of the mean cross entropy with the network's own answers as soft targets.

    For a sample with gradient matrix ``G_c = d log p_c / dW`` the Hessian of W is close to ``sum_c p_c
    vec(G_c) vec(G_c)^T``; random signs s_c make it ``E g g^T`` with ``g = sum_c s_c sqrt(p_c) G_c``. Summed
    over the positions of a convolution before it is squared: neighbours' errors add up. Outputs that are no
    class scores (not two or three axes) count by half the squared error instead.

    Parameters
    ----------
    layers : sequence of LayerHessians
        Sums are added to; finished at the end.
    graph : TorchGraph
    tensors : mapping of str to ndarray
        Of the graph.
    batches : iterable of mappings
        Inputs by name; axis 0 counts samples.
    settings : GaussNewtonSettings
    progress : callable
        Called with a line for each batch.

    Source : Schraudolph 2002, "Fast curvature matrix-vector products"; random signs: Hutchinson 1990
    """
    weights = {name: torch_tensor(array) for name, array in tensors.items()}
    signs, sums = _Signs(settings.seed), _Sums()
    done = 0
    with _one_thread():
        for feeds in batches:
            given = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
            n_samples = next(iter(given.values())).shape[0]
            answer = partial(graph.run, given, weights)
            values, gradients = _backward(layers, answer, graph.output_names[0], signs, settings)
            for layer in layers:
                for product in layer.products:
                    seen, found = values[product.activation], gradients[product.output]
                    _add_product(
                        layer,
                        product,
                        seen,
                        found,
                        n_samples=n_samples,
                        sketches=_Sketches(signs=signs, sums=sums, n=settings.sketches),
                    )
            done += n_samples
            progress(f"measuring Hessians: {done} samples")
    with _one_thread():
        sums.flush()
    for layer in layers:
        layer.finish(done)


class _Sums:
    """Squares of mixtures on their way into Hessians: many at a time, since each takes a pass over all."""

    def __init__(self) -> None:
        self._pending: dict[int, tuple[np.ndarray, float, list[Tensor]]] = {}
        self._n_bytes = 0

    def add(self, hessian: np.ndarray, mixtures: Tensor, share: float) -> None:
        """Add ``share m m^T`` for each row m of `mixtures`, now or later; a Hessian has one share."""
        self._pending.setdefault(id(hessian), (hessian, share, []))[2].append(mixtures)
        self._n_bytes += mixtures.nbytes
        if self._n_bytes > _MAX_PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Add what is left."""
        for hessian, share, parts in self._pending.values():
            rows = torch.cat(parts)
            torch.from_numpy(hessian).addmm_(rows.T, rows, alpha=share)
            release(hessian)
        self._pending.clear()
        self._n_bytes = 0


class _Signs:
    """Random signs, the same from run to run."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, *shape: int) -> Tensor:
        """Return -1 and 1 as float32."""
        return torch.randint(0, 2, shape, generator=self._generator) * 2.0 - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sketches:
    """Random mixtures, `n` of them, and where their squares go."""

    signs: _Signs
    sums: _Sums
    n: int


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch add up in one order, whatever number of threads is set."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _backward(
    layers: Sequence[LayerHessians],
    run: Callable[..., dict[str, Tensor]],
    answer: str,
    signs: _Signs,
    settings: GaussNewtonSettings,
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Return inputs of the products and, for each pass, the gradients at their outputs."""
    products = [product for layer in layers for product in layer.products]
    wanted = {product.output for product in products}
    outputs: dict[str, Tensor] = {}

    def marked(name: str, value: Any) -> Any:
        if name in wanted:
            value = value if value.requires_grad else value.detach().requires_grad_()
            outputs[name] = value
        return value

    values = run(watch={p.activation for p in products}, replace=marked)
    scores = _scores(values[answer], settings.temperature)
    order = list(outputs)
    gradients: dict[str, list[Tensor]] = {name: [] for name in order}
    n_passes = settings.passes if all(layer.rows is None for layer in layers) else settings.row_passes
    for number in range(n_passes):
        mixture = (scores * signs.draw(*scores.shape)).sum() / n_passes**0.5
        last = number + 1 == n_passes
        found = torch.autograd.grad(
            mixture, [outputs[name] for name in order], retain_graph=not last, allow_unused=True
        )
        for name, gradient in zip(order, found, strict=True):
            gradients[name].append(torch.zeros_like(outputs[name]) if gradient is None else gradient)
    return {name: value.detach() for name, value in values.items()}, gradients


def _scores(answer: Tensor, temperature: float) -> Tensor:
    """Return what is summed with random signs: its Gauss-Newton Hessian is the loss's."""
    if answer.ndim not in (2, 3) or answer.shape[-1] < 2:
        return answer.float()
    scores = torch.log_softmax(answer.float() / temperature, dim=-1)
    return temperature * scores * scores.detach().exp().sqrt()


def _add_product(
    layer: LayerHessians,
    product: Product,
    activation: Tensor,
    gradients: list[Tensor],
    *,
    n_samples: int,
    sketches: _Sketches,
) -> None:
    """Add some samples at a time, so that windows of a convolution stay near the processor."""
    n_outputs, n_inputs = layer.scales.size, layer.blocks[-1].stop
    n_positions = gradients[0].numel() // max(1, n_samples * n_outputs)
    n_gradients = n_outputs * len(gradients)
    whole_gradients = layer.rows is not None and n_positions > 1
    per_sample = n_inputs * product.n_groups * (n_positions + (n_gradients if whole_gradients else 0))
    per_sample += n_gradients * (n_positions + sketches.n)
    most = _MAX_ELEMENTS if layer.rows is None else _MAX_ROW_ELEMENTS
    share = max(1, most // max(1, per_sample))
    whole = share >= n_samples or activation.shape[0] != n_samples
    for start in range(0, n_samples, n_samples if whole else share):
        part = slice(None) if whole else slice(start, start + share)
        inputs = _inputs(product, activation[part], n_samples if whole else activation[part].shape[0])
        outputs = torch.stack(
            [_outputs(product, gradient[part], len(inputs)) for gradient in gradients], dim=2
        )
        if layer.rows is None:
            _add_shared(layer, outputs, inputs, sketches)
        else:
            _add_rows(layer, outputs, inputs)


def _inputs(product: Product, activation: Tensor, n_samples: int) -> Tensor:
    """Return what the rows of the weight's matrices meet: (samples, groups, inputs, positions)."""
    n, groups = activation.shape[0], product.n_groups
    if product.operator == "Conv":
        windows = unfolded(activation, list(product.shape[2:]), product.attributes)
        return windows.reshape(n, groups, -1, windows.shape[-1])
    if product.operator == "ConvTranspose":
        return activation.reshape(n, groups, activation.shape[1] // groups, -1)
    moved = activation.movedim(product.feature_axis, -1)
    return _by_sample(moved, n_samples)


def _outputs(product: Product, gradient: Tensor, n_samples: int) -> Tensor:
    """Return gradients at the outputs as (samples, groups, outputs, positions)."""
    n = gradient.shape[0]
    if product.operator == "Conv":
        return gradient.reshape(n, product.n_groups, gradient.shape[1] // product.n_groups, -1)
    if product.operator == "ConvTranspose":
        kernel = list(product.shape[2:])
        attributes = {**product.attributes, "kernel_shape": kernel}
        windows = unfolded(gradient, kernel, attributes)
        return windows.reshape(n, product.n_groups, -1, windows.shape[-1])
    return _by_sample(gradient, n_samples)


def _by_sample(value: Tensor, n_samples: int) -> Tensor:
    """Return (samples, 1, features, positions); rows that are no multiple of the samples count singly."""
    features = value.shape[-1]
    n = n_samples if value.numel() // features % n_samples == 0 else value.numel() // features
    return value.reshape(n, 1, -1, features).transpose(2, 3)


def _add_shared(layer: LayerHessians, outputs: Tensor, inputs: Tensor, sketches: _Sketches) -> None:
    """Add the squares of per-sample gradients ``G = sum over positions of g x^T`` to shared Hessians.

    Parameters
    ----------
    outputs : torch.Tensor, shape (samples, groups, passes, outputs, positions)
    inputs : torch.Tensor, shape (samples, groups, inputs, positions)
        Without the constant of a bias.
    """
    n, _, n_passes, n_outputs, _ = outputs.shape
    stacked = outputs.flatten(2, 3)
    squares = _squares(stacked, inputs, layer.n_free, sketches).reshape(-1, n_passes, n_outputs)
    layer.scales += squares.sum(dim=1).double().numpy()
    if n_outputs > sketches.n:
        mixed = torch.matmul(sketches.signs.draw(n, 1, n_passes, sketches.n, n_outputs), outputs)
        stacked = mixed.flatten(2, 3) / sketches.n**0.5
    assert layer.shared is not None
    for block, *hessians in zip(layer.blocks, *layer.shared, strict=True):
        seen = inputs[:, :, block.start : block.stop - block.n_free]
        mixtures = _gradients(stacked, seen, block.n_free)
        for group, hessian in enumerate(hessians):
            sketches.sums.add(hessian, mixtures[:, group].flatten(0, 1), 1.0 / n_outputs)


def _gradients(outputs: Tensor, inputs: Tensor, n_free: int) -> Tensor:
    """Return ``sum over positions of g x^T``, the constant 1 of a bias as last input."""
    found = torch.matmul(outputs, inputs.transpose(2, 3))
    return torch.cat([found, outputs.sum(dim=3, keepdim=True)], dim=3) if n_free else found


def _squares(outputs: Tensor, inputs: Tensor, n_free: int, sketches: _Sketches) -> Tensor:
    """Return the sums over samples and inputs of G^2: (groups, outputs); of mixtures if inputs are many."""
    if inputs.shape[3] == 1:
        norms = torch.square(inputs).sum(dim=2) + n_free
        return (torch.square(outputs[..., 0]) * norms).sum(dim=0)
    if inputs.shape[2] > sketches.n:
        inputs = torch.matmul(sketches.signs.draw(sketches.n, inputs.shape[2]), inputs) / sketches.n**0.5
    return torch.square(_gradients(outputs, inputs, n_free)).sum(dim=(0, 3))


def _add_rows(layer: LayerHessians, outputs: Tensor, inputs: Tensor) -> None:
    """Add the squares of per-sample gradients to Hessians of single outputs; shapes as in `_add_shared`."""
    n, n_groups, n_passes, n_outputs, n_positions = outputs.shape
    if n_groups == n_positions == 1:
        seen = inputs[:, 0, :, 0]
        if layer.n_free:
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        _add_single_positions(layer, outputs[:, 0, :, :, 0], seen)
        return
    gradients = _gradients(outputs.flatten(2, 3), inputs, layer.n_free)
    gradients = gradients.reshape(n, -1, n_passes, n_outputs, gradients.shape[-1])
    layer.scales += torch.square(gradients).sum(dim=(0, 2, 4)).double().numpy()
    _add_squares(layer, gradients.transpose(1, 2).flatten(2, 3).flatten(0, 1))


def _add_single_positions(layer: LayerHessians, outputs: Tensor, inputs: Tensor) -> None:
    """Add ``sum over passes of g^2 x x^T`` for each output; (samples, passes, outputs), (samples, inputs)."""
    assert layer.rows is not None
    weights = torch.square(outputs).sum(dim=1)
    layer.scales += (torch.square(inputs).sum(dim=1) @ weights)[None].double().numpy()
    constant = [inputs.shape[1] - 1] * layer.n_free
    for row, (kept, hessian) in enumerate(zip(layer.kept, layer.rows, strict=True)):
        places = torch.from_numpy(np.append(kept, constant).astype(np.int64))
        part = inputs.index_select(1, places)
        hessian += ((part * weights[:, row : row + 1]).T @ part).double().numpy()


def _add_squares(layer: LayerHessians, gradients: Tensor) -> None:
    """Add squares to the Hessians of single outputs; `gradients` are (samples, outputs, inputs)."""
    assert layer.rows is not None
    constant = [gradients.shape[2] - 1] * layer.n_free
    for row, (kept, hessian) in enumerate(zip(layer.kept, layer.rows, strict=True)):
        places = torch.from_numpy(np.append(kept, constant).astype(np.int64))
        part = gradients[:, row].index_select(1, places)
        hessian += (part.T @ part).double().numpy()
