"""Whole networks from .nqz files on both engines, and what a process imports to run them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import nqformat
from nqformat import Codebook, CodebookTensor
from nqformat.errors import NqError
from nqformat.limits import Limits
from nqruntime import InferenceSession

ROOT = Path(__file__).parents[2]


def quantized(rng, shape, density, n_entries):
    levels = rng.integers(1, n_entries, size=shape)
    indices = np.where(rng.random(shape) < density, levels, 0).astype(np.uint8)
    values = (rng.normal(size=n_entries) * 0.2).astype(np.float32)
    values[0] = 0
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


class Network:
    """Nodes and tensors, chained one after the other."""

    def __init__(self, input_shape, seed):
        self.rng = np.random.default_rng(seed)
        self.input_shape = input_shape
        self.nodes, self.tensors, self.last = [], {}, "input"

    def add(self, op_type, *operands, **attributes):
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, [self.last, *operands], [output], **attributes))
        self.last = output
        return output

    def tensor(self, value):
        name = f"t{len(self.tensors)}"
        self.tensors[name] = value
        return name

    def weight(self, shape, density, n_entries=16):
        return self.tensor(quantized(self.rng, shape, density, n_entries))

    def vector(self, n):
        return self.tensor(self.rng.random(n).astype(np.float32))

    def model(self):
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.input_shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, None)],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def reference(self, x):
        whole = self.model()
        for name, tensor in self.tensors.items():
            array = tensor if isinstance(tensor, np.ndarray) else tensor.decode()
            whole.graph.initializer.append(numpy_helper.from_array(array, name))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, {"input": x})[0]

    def save(self, path):
        nqformat.save_file(self.tensors, path, graph=self.model().SerializeToString())
        return path


def mlp():
    net = Network(["batch", 64], 1)
    sizes = (64, 300, 100, 10)
    for n_in, n_out in itertools.pairwise(sizes):
        density = 0.08 if n_out > 10 else 1.0
        net.add("Gemm", net.weight((n_out, n_in), density), net.vector(n_out), transB=1)
        if n_out > 10:
            net.add("Relu")
    net.add("Softmax", axis=-1)
    return net


def cnn():
    """Sparse, palette and depthwise convolutions, a residual block, batch norm and pooling."""
    net = Network(["batch", 3, 16, 16], 2)
    net.add("Conv", net.weight((16, 3, 3, 3), 1.0), net.vector(16), pads=[1, 1, 1, 1])
    net.add("BatchNormalization", *(net.vector(16) for _ in range(4)))
    shortcut = net.add("Relu")
    net.add("Conv", net.weight((16, 16, 3, 3), 0.1), net.vector(16), pads=[1, 1, 1, 1])
    net.add("Add", shortcut)
    net.add("Clip", net.tensor(np.array(0, np.float32)), net.tensor(np.array(6, np.float32)))
    net.add("Conv", net.weight((16, 1, 3, 3), 1.0), net.vector(16), pads=[1, 1, 1, 1], group=16)
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Conv", net.weight((32, 16, 1, 1), 0.15), strides=[2, 2])
    net.add("LeakyRelu", alpha=0.1)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("MatMul", net.weight((32, 10), 0.9, 200))
    net.add("Add", net.vector(10))
    return net


NETWORKS = {"mlp": mlp(), "cnn": cnn()}


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS.keys())
def network(request):
    return request.param


def inputs_for(network, batch):
    return np.random.default_rng(batch).normal(size=(batch, *network.input_shape[1:])).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 33])
@pytest.mark.parametrize(
    ("engine", "memory", "kernels"),
    [
        ("ort", "default", "auto"),
        ("ort", "low", "auto"),
        ("native", "low", "numpy"),
        ("native", "default", "numba"),
    ],
)
def test_a_network_gives_what_onnx_runtime_gives(
    network, batch, engine, memory, kernels, tmp_path, monkeypatch
):
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    x = inputs_for(network, batch)
    with InferenceSession(network.save(tmp_path / "net.nqz"), engine=engine, memory=memory) as session:
        [actual] = session.run(None, {"input": x})
    expected = network.reference(x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_native_weights_take_less_memory_than_decoded_ones(network, tmp_path):
    path = network.save(tmp_path / "net.nqz")
    decoded = InferenceSession(path, engine="ort").weight_bytes
    assert InferenceSession(path, engine="native").weight_bytes < decoded
    assert InferenceSession(path, engine="native", memory="low").weight_bytes < decoded / 2


def test_the_number_of_threads_does_not_change_results(network, tmp_path):
    path = network.save(tmp_path / "net.nqz")
    x = inputs_for(network, 40)
    results = {
        InferenceSession(path, engine="native", threads=n).run(None, {"input": x})[0].tobytes()
        for n in (1, 2, 4)
    }
    assert len(results) == 1


def run_in_new_process(code, *arguments):
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'runtime')!r}]\n"
    completed = subprocess.run(
        [sys.executable, "-c", paths + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.strip(), completed.stderr.strip()


LOADED = "print(sorted({'numba', 'onnxruntime', 'onnx', 'torch', 'ml_dtypes'} & set(sys.modules)))\n"


def test_importing_the_package_imports_no_engine():
    assert run_in_new_process("import nqruntime\n" + LOADED) == ("[]", "")


RUN = """
import numpy as np
from nqruntime import InferenceSession
session = InferenceSession(sys.argv[1], engine=sys.argv[2])
x = np.zeros([2, *session.get_inputs()[0].shape[1:]], np.float32)
session.run(None, {session.get_inputs()[0].name: x})
"""


def test_a_small_network_runs_natively_with_numpy_alone(network, tmp_path):
    path = network.save(tmp_path / "net.nqz")
    assert run_in_new_process(RUN + LOADED, path, "native") == ("[]", "")


def test_onnx_runtime_runs_a_network_without_torch_or_onnx_and_prints_nothing(network, tmp_path):
    path = network.save(tmp_path / "net.nqz")
    assert run_in_new_process(RUN + LOADED, path, "ort") == ("['onnxruntime']", "")


def test_damaged_graphs_raise_our_own_errors_or_run(network, tmp_path, monkeypatch):
    content = np.frombuffer(network.model().SerializeToString(), dtype=np.uint8)
    rng = np.random.default_rng(5)
    path = network.save(tmp_path / "net.nqz")
    x = inputs_for(network, 1)
    outcomes = {"ran": 0, "refused": 0}
    for _ in range(400):
        damaged = content.copy()
        damaged[rng.integers(0, content.size)] = rng.integers(0, 256)
        monkeypatch.setattr(nqformat.NqzFile, "graph", lambda _, damaged=damaged: damaged.tobytes())
        try:
            session = InferenceSession(path, engine="native", limits=Limits(materialised_bytes=1 << 26))
            feeds = {value.name: x for value in session.get_inputs()}
        except NqError:
            outcomes["refused"] += 1
            continue
        try:
            session.run(None, feeds)
            outcomes["ran"] += 1
        except (NqError, TypeError, ValueError):
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20
