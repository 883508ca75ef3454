"""What the inference benchmark is compared with, beside ONNX Runtime on float32 weights."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from inference_files import Row
from onnx import TensorProto, helper, numpy_helper

import nqformat

Run = Callable[[], Any]
_BLOCK = 32


def peers(row: Row, path: Path, feeds: dict[str, np.ndarray], threads: int) -> dict[str, Run]:
    """Return what else can compute the row, by name; each call is one run."""
    found: dict[str, Run] = {}
    if row.linear is not None:
        found |= _linear_peers(row, path, feeds["x"], threads)
    if row.conv is not None:
        found["ort int8"] = _session_run(_conv_int8(row.conv, path, feeds["x"]), feeds["x"], threads)
    return found | {"torch": _torch(row, path, feeds, threads)}


def _linear_peers(row: Row, path: Path, x: np.ndarray, threads: int) -> dict[str, Run]:
    with nqformat.safe_open(path) as file:
        weight = file.get_tensor("w")
    found = {
        "ort int8": _session_run(_int8(weight, x, path), x, threads),
        "ort 4-bit": _session_run(_four_bit(weight, x, path), x, threads),
    }
    if row.density < 1 and threads == 1:
        from scipy.sparse import csr_array

        rows = csr_array(weight.T)
        columns = np.ascontiguousarray(x.T)
        found["scipy CSR"] = lambda: rows @ columns
    return found


def _dense(weight: np.ndarray, x: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", x.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _layer_path(path: Path, kind: str) -> Path:
    """One file serves all batches."""
    return path.with_name(f"{path.stem.partition('-batch-')[0]}-{kind}.onnx")


def _int8(weight: np.ndarray, x: np.ndarray, path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = _layer_path(path, "int8")
    if not target.exists():
        logging.disable(logging.WARNING)
        quantize_dynamic(_dense(weight, x), target, weight_type=QuantType.QInt8, per_channel=True)
        logging.disable(logging.NOTSET)
    return target


def _conv_int8(settings: dict[str, int], path: Path, x: np.ndarray) -> Path:
    """A convolution with inputs quantized in each run, as ONNX Runtime's tools make it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = _layer_path(path, "int8")
    if target.exists():
        return target
    with nqformat.safe_open(path) as file:
        weight = file.get_tensor("w")
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        kernel_shape=weight.shape[2:],
        pads=[settings["padding"]] * 4,
        strides=[settings["stride"]] * 2,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    logging.disable(logging.WARNING)
    quantize_dynamic(model, target, weight_type=QuantType.QUInt8, op_types_to_quantize=["Conv"])
    logging.disable(logging.NOTSET)
    return target


def _four_bit(weight: np.ndarray, x: np.ndarray, path: Path) -> Path:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    target = _layer_path(path, "nbits")
    if not target.exists():
        logging.disable(logging.WARNING)
        quantizer = MatMulNBitsQuantizer(
            _dense(weight, x), block_size=_BLOCK, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        logging.disable(logging.NOTSET)
        onnx.save(quantizer.model.model, target)
    return target


def _session_run(path: Path, x: np.ndarray, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def _torch(row: Row, path: Path, feeds: dict[str, np.ndarray], threads: int) -> Run:
    """PyTorch on the decoded weights of a layer, or on a network's own, which are as fast."""
    import torch

    torch.set_num_threads(threads)
    if row.module is not None:
        module, example = row.module()
        call: Run = lambda: module(example)  # noqa: E731
    else:
        with nqformat.safe_open(path) as file:
            weight = torch.from_numpy(file.get_tensor("w"))
        x = torch.from_numpy(feeds["x"])
        if row.conv is not None:
            settings = row.conv
            call = lambda: torch.nn.functional.conv2d(x, weight, **settings)  # noqa: E731
        else:
            rows = weight.T.contiguous()
            call = lambda: torch.nn.functional.linear(x, rows)  # noqa: E731

    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run
