from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from nqconvert.graphs.ort_session import open_session, relative_difference, run_session
from nqconvert.sources import load_source
from nqconvert.sources.torch_module import module_runner
from nqformat.errors import ConversionError


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 36, 10)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, mask):
        x = torch.tanh(self.mix(self.embed(ids))) * mask[..., None]
        return {"logits": self.head(x), "hidden": x}


def rebuilt(source):
    model = onnx.ModelProto.FromString(source.graph)
    arrays = source.tensors | {n: view.assemble(source.tensors) for n, view in source.views.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return open_session(model.SerializeToString())


def outputs_agree(source, feeds):
    pairs = zip(source.run(feeds), run_session(rebuilt(source), feeds), strict=True)
    return all(relative_difference(expected, actual) < 1e-5 for expected, actual in pairs)


@pytest.fixture(scope="module")
def classifier():
    module = Classifier()
    module.train()
    module.norm.eval()
    return module, load_source(module, example_inputs=torch.zeros(1, 1, 8, 8))


@pytest.fixture(scope="module")
def encoder():
    module = Encoder()
    feeds = {"mask": torch.ones(2, 5), "ids": torch.arange(10).reshape(2, 5)}
    return module, load_source(module, example_inputs=feeds)


def test_further_axes_stay_open():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 4)

        def forward(self, x):
            return self.inner(x).mean(1)

    source = load_source(Mean(), example_inputs=torch.ones(2, 5, 6), dynamic_axes={"x": [1]})
    shape = onnx.ModelProto.FromString(source.graph).graph.input[0].type.tensor_type.shape
    assert [bool(d.dim_param) for d in shape.dim] == [True, True, False]
    with pytest.raises(ValueError, match="no example inputs"):
        load_source(Mean(), example_inputs=torch.ones(2, 5, 6), dynamic_axes={"z": [1]})
    with pytest.raises(ValueError, match="3 axes"):
        load_source(Mean(), example_inputs=torch.ones(2, 5, 6), dynamic_axes={"x": [3]})


class FixedLength(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(5, 6))
        self.register_buffer("hidden", torch.randn(6), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        return x * self.table + self.hidden


def test_further_axes_that_cannot_stay_open_leave_the_batch_open():
    module = FixedLength()
    source = load_source(module, example_inputs=torch.ones(2, 5, 6), dynamic_axes={"x": [1]})
    assert any(note.startswith("axes of dynamic_axes are fixed") for note in source.notes)
    shape = onnx.ModelProto.FromString(source.graph).graph.input[0].type.tensor_type.shape
    assert [bool(d.dim_param) for d in shape.dim] == [True, False, False]


def test_buffers_are_stored_under_their_names():
    module = FixedLength()
    source = load_source(module, example_inputs=torch.ones(2, 5, 6))
    assert set(source.tensors) == {"table", "hidden"}
    np.testing.assert_array_equal(source.tensors["hidden"], module.hidden.numpy())
    assert any(note.startswith("not stored") and "steps" in note for note in source.notes)


def test_a_module_keeps_its_modes_and_weights(classifier):
    module, _ = classifier
    assert module.training and module.fc.training and not module.norm.training
    fresh = Classifier().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in module.state_dict().items())


def test_the_batch_axis_is_open_and_the_outputs_are_the_modules(classifier):
    _, source = classifier
    assert source.input_names == ("x",)
    x = np.random.default_rng(2).normal(size=(5, 1, 8, 8)).astype(np.float32)
    assert outputs_agree(source, {"x": x})
    with torch.no_grad():
        expected = Classifier().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(source.run({"x": x})[0], expected)


def test_tensors_carry_the_modules_names_and_folded_ones_are_noted(classifier):
    module, source = classifier
    assert {"conv.weight", "fc.weight", "fc.bias"} <= set(source.tensors) and len(source.tensors) == 4
    np.testing.assert_array_equal(source.tensors["fc.weight"], module.fc.weight.detach().numpy())
    dropped = next(note for note in source.notes if note.startswith("not stored"))
    assert "norm.running_mean" in dropped and "fc" not in dropped
    assert any("folded" in note and "conv.weight" in note for note in source.notes)
    onnx_bytes = len(source.graph)
    assert onnx_bytes < 700


def test_tied_and_transposed_weights_are_stored_once_under_the_modules_names(encoder):
    module, source = encoder
    assert set(source.tensors) == {"embed.weight", "mix.weight", "mix.bias"}
    np.testing.assert_array_equal(source.tensors["mix.weight"], module.mix.weight.detach().numpy())
    assert {view.sources[0].name for view in source.views.values()} == {"embed.weight", "mix.weight"}


def test_several_inputs_and_outputs_are_matched_by_name(encoder):
    _, source = encoder
    assert source.input_names == ("ids", "mask") and len(source.output_names) == 2
    rng = np.random.default_rng(3)
    feeds = {
        "ids": rng.integers(0, 50, size=(4, 5)),
        "mask": rng.integers(0, 2, size=(4, 5)).astype(np.float32),
    }
    assert outputs_agree(source, feeds)
    assert source.example_feeds["ids"].shape == (2, 5)
    with pytest.raises(ValueError, match="mask"):
        source.run({"ids": feeds["ids"]})


def test_exporting_prints_nothing(capfd, recwarn):
    load_source(nn.Linear(3, 2), example_inputs=np.zeros((1, 3), np.float32))
    assert capfd.readouterr() == ("", "") and not recwarn.list


class OneSize(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) if x.shape[0] == 2 else x


def test_shapes_are_fixed_with_a_note_when_the_exporter_cannot_open_them():
    source = load_source(OneSize(), example_inputs=torch.ones(2, 3))
    assert any("batch size is fixed" in note for note in source.notes)
    shape = onnx.ModelProto.FromString(source.graph).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [2, 3]


class Unexportable(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.linalg.inv(x.numpy()))


def test_a_module_that_cannot_be_exported_is_named():
    with pytest.raises(ConversionError, match="Unexportable"):
        load_source(Unexportable(), example_inputs=torch.eye(2), dynamic_batch=False)


def test_weights_are_loaded_into_a_copy(tmp_path):
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    trained = {"module.weight": torch.full((2, 3), 4.0), "module.bias": torch.zeros(2)}
    torch.save(trained, tmp_path / "w.pt")
    source = load_source(module, example_inputs=torch.ones(1, 3), weights=tmp_path / "w.pt")
    assert torch.equal(module.weight, before)
    assert source.run(source.example_feeds)[0].tolist() == [[12.0, 12.0]]
    with pytest.raises(ConversionError, match="do not fit"):
        load_source(module, example_inputs=torch.ones(1, 3), weights={"other": torch.ones(1)})


def test_a_runner_can_be_had_without_an_export():
    module = nn.Linear(3, 2)
    weights = {"weight": np.full((2, 3), 2, np.float32), "bias": np.ones(2, np.float32)}
    run = module_runner(module, np.zeros((1, 3), np.float32), ("x",), weights=weights)
    assert run({"x": np.ones((2, 3), np.float32)})[0].tolist() == [[7, 7], [7, 7]]
    assert module.training
    with pytest.raises(ConversionError, match="1 tensors"):
        module_runner(module, torch.zeros(1, 3), ("x", "y"))
    with pytest.raises(FileNotFoundError):
        module_runner(module, torch.zeros(1, 3), ("x",), weights="absent.pt")


def test_missing_or_odd_example_inputs_are_refused():
    with pytest.raises(ConversionError, match="example_inputs"):
        load_source(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="str"):
        load_source(nn.Linear(3, 2), example_inputs="zeros")
