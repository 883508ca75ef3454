"""Conversion with sensitivities, bounds and fine-tuned centres, from a module or a file to a checked file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nqconvert
import nqformat
import nqruntime
from nqconvert.cli import main
from nqconvert.presets import PRESETS
from nqconvert.sensitivity.settings import SensitivitySettings
from nqconvert.sensitivity.stage import StageData, source_sensitivities
from nqconvert.training.fine_tuning import FineTuning, fine_tune_centres
from nqformat import CodebookTensor, ConversionError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
nn, functional = torch.nn, torch.nn.functional


class Net(nn.Module):
    """Convolution with batch norm, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(128, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Any) -> Any:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv(x))), 2)
        return self.out(functional.relu(self.hidden(x.flatten(1))))


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any, Any]:
    """A network that tells apart in which quarter of the image the light is."""
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (400,))
    images = 0.5 * torch.randn(400, 1, 8, 8)
    for i, label in enumerate(labels.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[i, 0, row : row + 4, column : column + 4] += 0.6
    module = Net()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(30):
        for start in range(0, 400, 100):
            optimizer.zero_grad()
            part = slice(start, start + 100)
            functional.cross_entropy(module(images[part]), labels[part]).backward()
            optimizer.step()
    module.eval()
    module.optimizer_state = optimizer.state_dict()
    return module, images, labels


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("choi", "inq"))])
def test_every_preset_converts_a_module_with_calibration_inputs(preset, trained, tmp_path):
    module, images, _ = trained
    report = nqconvert.convert(
        module, tmp_path / "m.nqz", example_inputs=images[:50], calibration=images[:100], preset=preset
    )
    assert report.outputs is not None and report.outputs.snr_db > 5
    measured = any("sensitivities by 'fisher' took" in note for note in report.notes)
    assert measured == (PRESETS[preset].settings.sensitivity == "auto")
    if measured:
        assert any("rescaled for folded batch norms: conv.weight" in note for note in report.notes)
    if preset.startswith("choi"):
        with nqformat.safe_open(tmp_path / "m.nqz") as file:
            books = {n: file.get_packed(n).codebook for n in ("conv.weight", "hidden.weight")}
        assert set(books["conv.weight"]) <= set(books["hidden.weight"])


def test_the_report_has_seconds_memory_and_predicted_against_measured_losses(trained, tmp_path):
    module, images, labels = trained
    data = (images[:200], labels[:200])
    report = nqconvert.convert(
        module,
        tmp_path / "m.nqz",
        example_inputs=images[:50],
        calibration=data,
        loss=functional.cross_entropy,
        preset="choi-uniform",
        step=0.5,
    )
    check = report.loss_check
    assert check is not None and check.n_samples == 200
    assert {c.name for c in check.tensors} == {"conv.weight", "hidden.weight", "out.weight"}
    assert check.together.predicted == pytest.approx(sum(c.predicted for c in check.tensors))
    with torch.no_grad():
        original = float(functional.cross_entropy(module(images[:200]), labels[:200]))
    session = nqruntime.InferenceSession(tmp_path / "m.nqz")
    logits = session.run(None, {session.get_inputs()[0].name: images[:200].numpy()})[0]
    after = float(functional.cross_entropy(torch.tensor(logits), labels[:200]))
    assert check.original_loss == pytest.approx(original, rel=1e-3)
    assert check.together.measured == pytest.approx(after - original, rel=1e-2, abs=1e-4)
    stages = ["load", "sensitivities", "Hessians", "evaluate", "quantize", "check losses", "encode", "verify"]
    assert list(report.stage_seconds) == stages
    assert sum(report.stage_seconds.values()) <= report.seconds
    assert report.peak_bytes is None or report.peak_bytes > 0
    assert "predicted" in str(report) and "seconds: load" in str(report)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["loss_check"]["n_samples"] == 200


def test_sensitivities_are_raised_to_a_power(trained):
    module, images, _ = trained
    source = nqconvert.load_source(module, example_inputs=images[:2])
    weights = {n: a for n, a in source.tensors.items() if a.ndim > 1}
    data = StageData(module=module, calibration=images[:40])
    plain, _ = source_sensitivities(source, weights, "becker", data, SensitivitySettings())
    root, _ = source_sensitivities(source, weights, "becker", data, SensitivitySettings(power=0.5))
    assert plain is not None and root is not None and set(root) == set(plain)
    for name, array in plain.items():
        np.testing.assert_allclose(root[name], np.sqrt(array), rtol=1e-6)
    with pytest.raises(ValueError, match="sensitivity_power must be positive"):
        nqconvert.convert(module, "never.nqz", example_inputs=images[:2], sensitivity_power=0.0)
    with pytest.raises(ValueError, match="power must be positive"):
        SensitivitySettings(power=-1.0)


def test_losses_are_not_checked_without_need_and_a_reason_is_given_where_they_cannot_be(trained, tmp_path):
    module, images, _ = trained
    settings = {"example_inputs": images[:10], "calibration": images[:50], "preset": "choi-uniform"}
    assert nqconvert.convert(module, tmp_path / "m.nqz", **settings).loss_check is None
    report = nqconvert.convert(
        module,
        tmp_path / "m.nqz",
        sensitivity="activation",
        loss=lambda outputs, targets: (outputs - targets).square().mean(),
        **settings,
    )
    assert report.loss_check is None
    assert any("were not compared: labels cannot be sampled" in note for note in report.notes)


def test_presets_work_without_data_and_say_so(tmp_path):
    weights = {"w": np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)}
    report = nqconvert.convert(weights, tmp_path / "m.nqz", preset="choi-hessian-kmeans")
    assert "no sensitivities: there is no calibration data and no optimizer state" in report.notes
    with pytest.raises(ConversionError, match="needs a torch module"):
        nqconvert.convert(weights, tmp_path / "n.nqz", sensitivity="fisher", calibration=np.ones((2, 3)))
    assert not (tmp_path / "n.nqz").exists()


@pytest.mark.parametrize("method", ["becker", "empirical", "hutchinson", "adam", "activation"])
def test_every_sensitivity_reaches_the_stored_tensors(method, trained, tmp_path):
    module, images, labels = trained
    report = nqconvert.convert(
        module,
        tmp_path / "m.nqz",
        example_inputs=images[:50],
        method="hessian-kmeans",
        clusters=8,
        sensitivity=method,
        samples=60,
        calibration=(images, labels),
        optimizer_state=module.optimizer_state,
    )
    assert any(f"sensitivities by '{method}' took" in note for note in report.notes)
    assert not any("no sensitivities" in note for note in report.notes)


def test_an_onnx_file_is_measured_through_its_activations(trained, tmp_path):
    module, images, _ = trained
    nqconvert.convert(module, tmp_path / "m.nqz", example_inputs=images[:8], preset="lossless")
    nqconvert.export_onnx(tmp_path / "m.nqz", tmp_path / "m.onnx")
    report = nqconvert.convert(
        tmp_path / "m.onnx", tmp_path / "n.nqz", preset="choi-uniform", calibration=images.numpy()
    )
    assert any("sensitivities by 'activation' took" in note for note in report.notes)


@pytest.mark.parametrize("preset", ["choi-kmeans", "choi-uniform", "choi-ecsq"])
@pytest.mark.parametrize("target", [{"target_bits": 5}, {"target_size": 3500}, {"target_ratio": 5.5}])
def test_targets_bound_the_whole_file(preset, target, trained, tmp_path):
    module, images, _ = trained
    report = nqconvert.convert(
        module,
        tmp_path / "m.nqz",
        example_inputs=images[:8],
        calibration=images[:50],
        preset=preset,
        **target,
    )
    n_values = sum(t.n_elements for t in report.file.tensors)
    original = report.original_bytes
    bound = {
        "target_bits": 5 * n_values / 8,
        "target_size": 3500,
        "target_ratio": original / 5.5,
    }[next(iter(target))]
    assert 0.9 * bound < (tmp_path / "m.nqz").stat().st_size <= bound


def test_a_target_that_cannot_be_met_writes_nothing(trained, tmp_path):
    module, images, _ = trained
    with pytest.raises(ConversionError, match="300 bytes cannot be met"):
        nqconvert.convert(module, tmp_path / "m.nqz", example_inputs=images[:8], target_size=300)
    assert list(tmp_path.iterdir()) == []


def validation_loss(file: Path, images: Any, labels: Any) -> float:
    from nqruntime import InferenceSession

    session = InferenceSession(file)
    outputs = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    return float(functional.cross_entropy(torch.tensor(outputs), labels))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_fine_tuned_centres_lower_the_loss_of_the_file(scope, trained, tmp_path):
    module, images, labels = trained
    loader = [(images[i : i + 50], labels[i : i + 50]) for i in range(0, 400, 50)]
    tuning = nqconvert.FineTuning(
        loader=loader, loss=functional.cross_entropy, validation=loader, epochs=4, lr=1e-2
    )
    settings = {"example_inputs": images[:8], "clusters": 3, "density": 0.4, "scope": scope}
    files = {name: tmp_path / f"{name}.nqz" for name in ("plain", "tuned")}
    nqconvert.convert(module, files["plain"], preset="deep-compression", **settings)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    report = nqconvert.convert(
        module, files["tuned"], preset="deep-compression", fine_tuning=tuning, **settings
    )
    assert all(torch.equal(p, before[n]) for n, p in module.named_parameters())
    assert any("centres fine-tuned in" in note and "validation loss" in note for note in report.notes)
    losses = {name: validation_loss(file, images, labels) for name, file in files.items()}
    assert losses["tuned"] < 0.9 * losses["plain"]
    plain, tuned = (nqformat.load_file(file) for file in files.values())
    for name in ("conv.weight", "hidden.weight"):
        assert np.array_equal(plain[name] == 0, tuned[name] == 0)
        assert np.unique(plain[name]).size >= np.unique(tuned[name]).size


def test_the_gradient_of_an_entry_is_the_sum_over_its_weights(trained):
    """One step of a linear loss: each entry moves against the sign of its grouped gradient."""
    module = nn.Linear(4, 2, bias=False)
    module.weight.data = torch.tensor([[1.0, 1.0, 2.0, 2.0], [0.0, 2.0, 1.0, 0.0]])
    book = nqformat.Codebook(values=np.float32([0, 1, 2]))
    indices = np.uint8([[1, 1, 2, 2], [0, 2, 1, 0]])
    inputs = torch.tensor([[1.0, 1.0, -3.0, 1.0]])  # grouped: 1 + 1 - 3 < 0 and -3 + 1 + 1 < 0
    tuning = FineTuning(loader=[(inputs, None)], loss=lambda outputs, targets: outputs.sum(), epochs=1)
    made, log = fine_tune_centres(
        module,
        {"w": CodebookTensor(indices=indices, codebook=book)},
        {"w": module.weight.detach().numpy()},
        tuning,
    )
    entries = made["w"].codebook.values
    assert entries[0] == 0 and entries[1] > 1 and entries[2] > 2
    assert log.tuned == ("w",) and [r.epoch for r in log.records] == [0, 1]


def test_fine_tuning_stops_when_validation_gets_no_better(trained, tmp_path):
    module, images, labels = trained
    noise = [(images[:50], torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(0)))]
    tuning = FineTuning(
        loader=noise, loss=functional.cross_entropy, validation=[(images, labels)], epochs=50, lr=0.05
    )
    report = nqconvert.convert(
        module,
        tmp_path / "m.nqz",
        example_inputs=images[:8],
        clusters=16,
        method="kmeans",
        fine_tuning=tuning,
    )
    note = next(note for note in report.notes if "fine-tuned" in note)
    assert int(note.split(" in ")[1].split()[0]) < 50


def test_fine_tuning_needs_a_module_and_sensible_settings(tmp_path):
    tuning = FineTuning(loader=[], loss=functional.cross_entropy)
    with pytest.raises(ConversionError, match="needs a torch module"):
        nqconvert.convert({"w": np.ones((9, 9))}, tmp_path / "m.nqz", fine_tuning=tuning)
    with pytest.raises(ValueError, match="epochs"):
        FineTuning(loader=[], loss=functional.cross_entropy, epochs=0)
    with pytest.raises(TypeError, match="exhausted"):
        FineTuning(loader=iter([]), loss=functional.cross_entropy)


def test_the_command_line_searches_a_size_with_calibration_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("small_factory.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))\n"
    )
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.normal(size=(30, 20)).astype(np.float32), targets=rng.integers(0, 5, 30))
    common = ["small_factory:make", "--example-input", "shape=1,20", "-o", "m.nqz"]
    arguments = ["--preset", "choi-ecsq", "--sensitivity", "empirical", "--calibration", "data.npz", "--json"]
    assert main(["convert", *common, *arguments, "--target-size", "1.4kB"]) == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] <= 1400
    assert main(["convert", *common, "--target-size", "150"]) == 1
    assert main(["convert", *common, "--target-size", "1400", "--clusters", "0"]) == 2
    with pytest.raises(SystemExit):
        main(["convert", *common, "--target-size", "many"])
