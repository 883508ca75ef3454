"""K-means of a network's own weights, batch norms apart: what folding does to the order of methods.

Folding multiplies each channel by its factor. In ResNet-32 this makes the weights of the sensitive layers
small, so that centres for them lie where most weights of all layers are; Hessian-weighted k-means then takes
more bits than plain k-means, and fewer with batch norms apart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from quantizer_curves import Point, Workbench, log_softmax, loss_and_accuracy, ratio_at_equal_cost
from quantizer_trials import settings_of

import nqformat
from nqconvert.quantization import quantize_tensors

__all__ = ["unfolded", "unfolded_ratios"]

Arrays = dict[str, np.ndarray]
_BATCH = 250


def unfolded(bench: Workbench, sensitivities: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
    """Return the weights as the module has them, and what stored weights' sensitivities mean for them.

    A stored weight is the module's times a factor of its channel; the sensitivity goes with its square.
    """
    weights, found = {}, {}
    for name, parameter in bench.network.module.named_parameters():
        if name in sensitivities:
            own, stored = parameter.detach().numpy(), bench.source.tensors[name]
            factor = np.divide(stored, own, out=np.zeros_like(stored), where=own != 0)
            weights[name], found[name] = own, sensitivities[name] * np.square(factor)
    return weights, found


def unfolded_ratios(
    bench: Workbench, clusters: tuple[int, ...], n_test: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Bytes of Hessian-weighted k-means over those of k-means, at equal divergence.

    Bytes are of files of the quantized weights alone; the divergence is that of the module with them.
    """
    given = bench.sensitivities["fisher"]
    assert given is not None
    weights, sensitivities = unfolded(bench, given)
    data = bench.network.test[0][:n_test], bench.network.test[1][:n_test]
    own = _logits(bench.network.module, data[0])
    curves: dict[str, list[Point]] = {"none": [], "fisher": []}
    for label, points in curves.items():
        for k in clusters:
            settings = settings_of(label, clusters=k)
            model = quantize_tensors(weights, settings, None if label == "none" else sensitivities)
            decoded = {name: model.tensors[name].decode() for name in weights}
            logits = _logits(_with_weights(bench.network.module, decoded), data[0])
            loss, accuracy = loss_and_accuracy(logits, data[1])
            shares = log_softmax(own)
            points.append(
                Point(
                    method=settings.method,
                    scope="global",
                    knob="clusters",
                    value=k,
                    file_bytes=len(nqformat.save(dict(model.tensors))),
                    fixed_bytes=sum(a.size for a in weights.values()) * np.log2(k) / 8,
                    loss=loss,
                    divergence=float((np.exp(shares) * (shares - log_softmax(logits))).sum(axis=1).mean()),
                    accuracy=accuracy,
                    seconds=0.0,
                )
            )
            say(f"batch norms apart: {points[-1]}")
    return {
        name: ratio_at_equal_cost(curves["none"], curves["fisher"], 0.0, measure="divergence", fixed=fixed)
        for name, fixed in (("huffman", False), ("fixed_length", True))
    }


def _with_weights(module: Any, weights: Arrays) -> Any:
    changed = copy.deepcopy(module)
    state = changed.state_dict()
    state.update({name: torch.from_numpy(array) for name, array in weights.items()})
    changed.load_state_dict(state)
    return changed


def _logits(module: Any, inputs: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = [module(part) for part in torch.from_numpy(inputs).split(_BATCH)]
    return torch.cat(parts).numpy()
