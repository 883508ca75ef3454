"""Layers and networks of the inference benchmark as .nqz files, kept in a folder between runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import data_folder, loaders
from onnx import TensorProto, helper

import nqformat
from nqformat import Codebook, CodebookTensor

N_LEVELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is timed.

    Attributes
    ----------
    label : str
    make : callable
        Writes the file to a path.
    linear : tuple of int, optional
        Of a fully connected layer: batch, inputs, outputs. Has peers that other rows lack.
    module : callable, optional
        Of a network: the PyTorch module, and an input for it.
    """

    label: str
    make: Callable[[Path], None]
    density: float
    linear: tuple[int, int, int] | None = None
    conv: dict[str, int] | None = None
    module: Callable[[], tuple[Any, Any]] | None = None

    @property
    def file_name(self) -> str:
        """Name of the file, made of the label."""
        kept = "".join(c if c.isalnum() else "-" for c in self.label.lower())
        return "-".join(part for part in kept.split("-") if part) + ".nqz"


def levels_of(weights: np.ndarray, density: float) -> CodebookTensor:
    """Prune by magnitude and round to evenly spaced levels, one of which is zero."""
    size = np.abs(weights)
    kept = size > 0 if density == 1 else (size > 0) & (size >= np.quantile(size, 1 - density))
    bound = float(size.max()) or 1.0
    values = np.linspace(-bound, bound, N_LEVELS - 1, dtype=np.float32)
    values = np.concatenate([[np.float32(0)], values[values != 0]])
    middles = (values[2:] + values[1:-1]) / 2
    indices = np.where(kept, 1 + np.searchsorted(middles, weights), 0).astype(np.uint8)
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


def _random_weight(shape: tuple[int, ...], density: float) -> CodebookTensor:
    rng = np.random.default_rng(len(shape))
    values = np.concatenate([[0], rng.normal(size=N_LEVELS - 1)]).astype(np.float32)
    kept = rng.random(shape) < density
    indices = np.where(kept, rng.integers(1, N_LEVELS, shape), 0).astype(np.uint8)
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


def _save_layer(path: Path, node: Any, weight: CodebookTensor, x: tuple[int, ...]) -> None:
    declared = helper.make_tensor_value_info("x", TensorProto.FLOAT, x)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph([node], "layer", [declared], [result]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    nqformat.save_file({"w": weight}, path, graph=model.SerializeToString())


def linear_row(n_out: int, n_in: int, density: float, batch: int) -> Row:
    """A fully connected layer of random weights."""
    what = "16 clusters" if density == 1 else f"{100 * density:.0f} %"

    def make(path: Path) -> None:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        _save_layer(path, node, _random_weight((n_in, n_out), density), (batch, n_in))

    label = f"FC {n_out} x {n_in}, {what}, batch {batch}"
    return Row(label=label, make=make, density=density, linear=(batch, n_in, n_out))


def conv_row(n_in: int, n_out: int, side: int, density: float, *, kernel: int = 3, stride: int = 1) -> Row:
    """A convolution of random weights on one image."""
    channels = f"{n_in}" if n_in == n_out else f"{n_in} to {n_out}"
    stride_words = f", stride {stride}" if stride > 1 else ""

    def make(path: Path) -> None:
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4, strides=[stride] * 2, kernel_shape=[kernel] * 2
        )
        weight = _random_weight((n_out, n_in, kernel, kernel), density)
        _save_layer(path, node, weight, (1, n_in, side, side))

    what = "16 clusters" if density == 1 else f"{100 * density:.0f} %"
    label = f"conv {kernel}x{kernel}{stride_words}, {channels} channels, {side} x {side}, {what}"
    return Row(label=label, make=make, density=density, conv={"stride": stride, "padding": kernel // 2})


CLUSTERED = ((4096, 4096), (1000, 4096), (300, 784), (1536, 384), (384, 1536), (384, 384))


def layer_rows() -> list[Row]:
    """The layers."""
    rows = [linear_row(4096, n_in, 0.09, batch) for n_in in (4096, 9216) for batch in (1, 8, 64)]
    rows += [linear_row(*shape, 1.0, batch) for shape in CLUSTERED for batch in (1, 8, 16, 64, 128)]
    for density in (0.1, 0.2):
        rows += [conv_row(n, n, side, density) for n, side in ((64, 56), (128, 28), (256, 14))]
        rows.append(conv_row(64, 128, 56, density, stride=2))
        rows.append(conv_row(64, 128, 56, density, kernel=1))
        rows.append(conv_row(512, 512, 14, density, kernel=1))
    rows += [conv_row(n, n, side, 1.0) for n, side in ((64, 56), (128, 28), (256, 14))]
    rows.append(conv_row(512, 512, 14, 1.0, kernel=1))
    return rows


def network_rows() -> list[Row]:
    """The networks; trained ones only with NQZ_DATA."""
    import onnx_networks as made
    import torch
    from torch import nn

    def encoder() -> tuple[Any, Any]:
        torch.manual_seed(7)
        ids = torch.randint(0, 4000, (1, 64), generator=torch.Generator().manual_seed(2))
        return made.Encoder(384).eval(), ids

    def lstm() -> tuple[Any, Any]:
        torch.manual_seed(7)
        return made.Recurrent(nn.LSTM, bidirectional=True).eval(), torch.randn(1, 20, 40)

    def mobile() -> tuple[Any, Any]:
        module, _ = made.module_and_input("MobileNetV2-like")
        return module, torch.randn(1, 3, 64, 64)

    rows = [
        _network_row(name, make, density)
        for name, make, densities in (
            ("MobileNetV2-like", mobile, (0.2, 1.0)),
            ("BERT-like encoder, 384 wide, 64 tokens", encoder, (0.1, 1.0)),
            ("BiLSTM", lstm, (0.1, 1.0)),
        )
        for density in densities
    ]
    return [*_trained_rows(), *rows]


def _trained_rows() -> list[Row]:
    source = data_folder()
    if source is None:
        return []
    import networks as trained
    import torch

    def maker(make: Callable[..., Any], shape: tuple[int, ...]) -> Callable[[], tuple[Any, Any]]:
        return lambda: (make(source, loaders(source)).module.eval(), torch.randn(shape))

    return [
        _network_row(name, maker(make, shape), density)
        for name, make, shape, densities in (
            ("LeNet-300-100", trained.lenet300, (1, 1, 28, 28), (0.08,)),
            ("LeNet-5", trained.lenet5, (1, 1, 28, 28), (0.08,)),
            ("ResNet-32", trained.resnet32, (1, 3, 32, 32), (0.1, 0.2, 1.0)),
        )
        for density in densities
    ]


def _network_row(name: str, module: Callable[[], tuple[Any, Any]], density: float) -> Row:
    def make(path: Path) -> None:
        import nqconvert

        made, example = module()
        nqconvert.convert(made, path, example_inputs=example, preset="lossless")
        with nqformat.safe_open(path) as file:
            graph, tensors = file.graph(), dict(file.tensors())
        packed = {
            n: levels_of(a, density) if a.ndim > 1 and a.dtype == np.float32 else a
            for n, a in tensors.items()
        }
        nqformat.save_file(packed, path, graph=graph)

    what = "16 clusters" if density == 1 else f"{100 * density:.0f} %"
    return Row(label=f"{name}, {what}, batch 1", make=make, density=density, module=module)


def prepared(row: Row, folder: Path) -> Path:
    """Return the row's file; written if it is not there yet."""
    path = folder / row.file_name
    if not path.exists():
        row.make(path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return path
