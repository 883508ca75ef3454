"""Conversion with calibration inputs: method obs, its searches and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nqconvert
from nqconvert import RepairSettings
from nqconvert.cli import main
from nqformat import ConversionError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


@pytest.fixture(scope="module")
def model() -> Any:
    rng = np.random.default_rng(0)
    arrays = {
        "conv": 0.3 * rng.normal(size=(8, 1, 3, 3)),
        "conv_bias": 0.1 * rng.normal(size=8),
        "hidden": 0.1 * rng.normal(size=(288, 40)),
        "hidden_bias": 0.1 * rng.normal(size=40),
        "out": rng.normal(size=(40, 6)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv", "conv_bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "hidden", "hidden_bias"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "out"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def agreement(model: Any) -> Any:
    """Share of inputs with the original's answer."""
    x = inputs(400, seed=2)
    wanted: list[np.ndarray] = []

    def evaluate(run: Any) -> float:
        found = run({"x": x})[0].argmax(1)
        if not wanted:
            wanted.append(found)
        return float((found == wanted[0]).mean())

    evaluate(nqconvert.load_source(model).run)
    return evaluate


def test_auto_takes_obs_where_there_is_calibration_data(model: Any, tmp_path: Any) -> None:
    path = tmp_path / "m.nqz"
    report = nqconvert.convert(model, path, calibration=inputs(100, 1), example_inputs=inputs(50, 3))
    assert report.method == "obs" and any("Hessians of 3 layers" in note for note in report.notes)
    assert report.outputs is not None and report.outputs.snr_db > 15
    assert nqconvert.convert(model, path).method == "kmeans"
    named = nqconvert.convert(model, path, calibration=inputs(100, 1), method="uniform", step=0.1)
    assert named.method == "uniform"


def test_equal_runs_give_equal_bytes(model: Any, tmp_path: Any) -> None:
    contents = []
    for name in ("a.nqz", "b.nqz"):
        path = tmp_path / name
        nqconvert.convert(model, path, calibration=inputs(60, 1), preset="post-training", seed=3)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]


def test_a_size_is_met_with_less_error_than_kmeans_makes(model: Any, tmp_path: Any) -> None:
    found = {}
    for method in ("obs", "kmeans"):
        report = nqconvert.convert(
            model,
            tmp_path / "m.nqz",
            calibration=inputs(200, 1),
            example_inputs=inputs(100, 3),
            method=method,
            scope="global",
            target_size=5000,
        )
        assert 4000 <= report.file_bytes <= 5000
        found[method] = report.outputs.snr_db
    assert found["obs"] > found["kmeans"] + 1


def test_an_accuracy_is_kept_in_ten_evaluations(model: Any, agreement: Any, tmp_path: Any) -> None:
    lines: list[str] = []
    sizes = []
    for drop in (1.0, 5.0):
        report = nqconvert.convert(
            model,
            tmp_path / "m.nqz",
            calibration=inputs(100, 1),
            preset="post-training",
            evaluate=agreement,
            max_drop=drop,
            repairs=RepairSettings(distillation="none"),
            progress=lines.append,
        )
        assert report.accuracy[0] == 1.0 and report.accuracy[1] >= 1.0 - drop / 100
        sizes.append(report.file_bytes)
    assert sizes[0] > sizes[1]
    tried = [line for line in lines if "evaluation" in line]
    assert 4 <= len(tried) <= 20 and all("drop" in line and "bytes" in line for line in tried)


def test_answers_by_sample_give_the_drop_an_interval(model: Any, tmp_path: Any) -> None:
    x = inputs(700, seed=2)
    scores = nqconvert.load_source(model).run({"x": x})[0]
    best, second = np.sort(scores, axis=1)[:, :-3:-1].T
    clear = np.flatnonzero(best - second > 0.1)[:600]  # others change sides in a file of 58 dB, too
    x, labels = x[clear], scores[clear].argmax(1)
    reports = {}
    for drop in (0.0, 2.0):
        reports[drop] = nqconvert.convert(
            model,
            tmp_path / f"{drop}.nqz",
            calibration=inputs(100, 1),
            preset="post-training",
            evaluate=lambda run: run({"x": x})[0].argmax(1) == labels,
            max_drop=drop,
        )
    none, some = (report.drop for report in reports.values())
    assert none.points <= 0.0 < none.high and none.n_samples == 600
    assert 0.0 < some.points < some.high <= 2.0
    assert reports[2.0].file_bytes < reports[0.0].file_bytes
    assert "95 % interval" in str(reports[2.0]) and reports[2.0].to_json()["drop"]["n_samples"] == 600


def test_nothing_is_written_if_an_accuracy_cannot_be_kept(model: Any, tmp_path: Any) -> None:
    answers = iter([0.9, *[0.5] * 20])
    with pytest.raises(
        ConversionError, match=r"at most 0\.5 points cannot be kept.*best of 2 tries.*drop 40\.000"
    ):
        nqconvert.convert(
            model,
            tmp_path / "m.nqz",
            calibration=inputs(20, 1),
            evaluate=lambda run: next(answers),
            max_drop=0.5,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"max_drop": 1.0}, "needs evaluate"),
        ({"max_drop": -1.0, "evaluate": lambda run: 1.0}, "negative"),
        ({"max_drop": 1.0, "evaluate": lambda run: 1.0, "target_size": 5}, "together"),
    ],
)
def test_contradictions_are_refused(model: Any, tmp_path: Any, keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nqconvert.convert(model, tmp_path / "m.nqz", **keywords)


def test_obs_without_calibration_data_or_graph_is_an_error(model: Any, tmp_path: Any) -> None:
    with pytest.raises(ConversionError, match="calibration inputs"):
        nqconvert.convert(model, tmp_path / "m.nqz", method="obs")
    weights = dict(nqconvert.load_source(model).tensors)
    with pytest.raises(ConversionError, match="a model with a graph"):
        nqconvert.convert(weights, tmp_path / "m.nqz", method="obs", calibration=inputs(5, 0))
    report = nqconvert.convert(weights, tmp_path / "m.nqz", calibration=inputs(5, 0))
    assert report.method == "kmeans"


def test_the_command_line_knows_the_preset_and_the_drop(model: Any, tmp_path: Any, capsys: Any) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", inputs(40, 1))
    command = ["convert", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "x.npy")]
    assert main([*command, "--preset", "post-training", "--rate-penalty", "0.01"]) == 0
    assert "(post-training," in capsys.readouterr().out
    assert main([*command, "--max-drop", "1"]) == 2
    assert "needs evaluate" in capsys.readouterr().err


def test_the_command_line_prints_each_try_and_ends_with_1(
    model: Any, tmp_path: Any, capsys: Any, monkeypatch: Any
) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", inputs(40, 1))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judge_of_tries.py").write_text(
        "import numpy as np\n\nseen = []\n\n\ndef evaluate(run):\n    seen.append(run)\n"
        "    return np.arange(400) % 4 > (len(seen) > 1)\n"
    )
    command = ["convert", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "x.npy")]
    command += ["--evaluate", "judge_of_tries:evaluate", "--max-drop", "1"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert told.count("evaluation") == 2 and told.count("too much") == 2
    assert "drop 25.000 points, 95 % interval" in told and "best of 2 tries" in told
    assert not (tmp_path / "m.nqz").exists()


def test_compare_has_obs_among_all_where_there_is_calibration_data(model: Any) -> None:
    found = nqconvert.compare(
        model, methods=["obs"], targets=["5kB"], calibration=inputs(60, 1), baselines=False
    )
    sizes = {row.method: row.file_bytes for row in found.rows}
    assert 4000 < sizes["obs"] <= 5000


def test_repairs_can_be_chosen_and_are_named(model: Any, tmp_path: Any, capsys: Any) -> None:
    keywords = {"calibration": inputs(600, 1), "example_inputs": inputs(100, 3), "rate_penalty": 0.1}
    found = {}
    for distillation in ("none", "weights"):
        repairs = RepairSettings(distillation=distillation, batch_norm=False)
        found[distillation] = nqconvert.convert(model, tmp_path / "m.nqz", repairs=repairs, **keywords)
    assert not any("distillation" in note for note in found["none"].notes)
    assert any("distillation: divergence" in note for note in found["weights"].notes)
    onnx.save(model, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", inputs(40, 1))
    command = ["convert", str(tmp_path / "m.onnx"), "--calibration", str(tmp_path / "x.npy")]
    assert (
        main([*command, "--distillation", "scales", "--distillation-epochs", "1", "--bias-correction"]) == 0
    )
    shown = capsys.readouterr().out
    assert "biases corrected" in shown and "of 1 kept" in shown
    assert main([*command, "--distillation", "none", "--no-batch-norm"]) == 0
    assert "distillation:" not in capsys.readouterr().out


def test_repairs_keep_to_a_bound(model: Any, tmp_path: Any) -> None:
    report = nqconvert.convert(model, tmp_path / "m.nqz", calibration=inputs(100, 1), target_size=4000)
    assert 3600 <= report.file_bytes <= 4000
    assert any("distillation: divergence" in note for note in report.notes)


def test_without_inputs_the_identity_must_be_asked_for(model: Any, tmp_path: Any) -> None:
    report = nqconvert.convert(model, tmp_path / "m.nqz", method="obs", hessian="identity", rate_penalty=1e-3)
    assert report.method == "obs" and any("identity" in note for note in report.notes)
    found = nqconvert.load_source(model).run
    assert found is not None and report.weight_snr_db > 5
    with pytest.raises(ConversionError, match="hessian 'identity', on request"):
        nqconvert.convert(model, tmp_path / "m.nqz", method="obs")
    with pytest.raises(ValueError, match="hessian must be one of"):
        nqconvert.convert(model, tmp_path / "m.nqz", method="obs", hessian="diagonal")


def test_a_density_is_kept_by_loss(model: Any, tmp_path: Any) -> None:
    import nqformat

    path = tmp_path / "m.nqz"
    nqconvert.convert(model, path, calibration=inputs(60, 1), density=0.3)
    tensors = nqformat.load_file(path)
    weights = [tensors[name] for name in ("conv", "hidden", "out")]
    density = sum(np.count_nonzero(w) for w in weights) / sum(w.size for w in weights)
    assert 0.25 < density <= 0.3


def test_the_command_line_takes_folders_and_loaders(
    model: Any, tmp_path: Any, capsys: Any, monkeypatch: Any
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "images").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)
        image_module.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    command = ["convert", str(tmp_path / "m.onnx"), "--distillation", "none"]
    images = ["--calibration", str(tmp_path / "images"), "--image-mean", "0.5", "--image-std", "0.25"]
    assert main([*command, *images, "--calibration-count", "15"]) == 0
    assert "Hessians of 3 layers" in capsys.readouterr().out
    (tmp_path / "loaders.py").write_text(
        "import numpy as np\n"
        "def loader():\n"
        "    for seed in range(3):\n"
        "        yield np.random.default_rng(seed).normal(size=(20, 1, 8, 8)).astype('float32')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main([*command, "--calibration", "loaders:loader"]) == 0
    assert "Hessians of 3 layers" in capsys.readouterr().out


def nested_model() -> Any:
    """A product inside an If, which no Hessian is measured for."""
    weight = np.random.default_rng(0).standard_normal((12, 40)).astype(np.float32)
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["made"])],
        "then",
        [],
        [helper.make_tensor_value_info("made", onnx.TensorProto.FLOAT, ["n", 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["kept"])],
        "else",
        [],
        [helper.make_tensor_value_info("kept", onnx.TensorProto.FLOAT, ["n", 40])],
        [numpy_helper.from_array(weight * 2, "v")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["chosen"]),
            helper.make_node("If", ["chosen"], ["y"], then_branch=inner, else_branch=other),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 40])],
        [numpy_helper.from_array(np.array(0, dtype=np.float32), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_auto_takes_another_method_where_no_product_has_a_hessian(tmp_path) -> None:
    x = np.random.default_rng(1).standard_normal((30, 12)).astype(np.float32)
    report = nqconvert.convert(nested_model(), tmp_path / "m.nqz", calibration=x)
    assert report.method == "kmeans"
    assert any("outside If, Loop and Scan" in note and "kmeans" in note for note in report.notes)


def test_hessians_that_were_asked_for_but_cannot_be_are_an_error(tmp_path) -> None:
    x = np.zeros((30, 12), dtype=np.float32)
    with pytest.raises(ConversionError, match="outside If, Loop and Scan"):
        nqconvert.convert(nested_model(), tmp_path / "m.nqz", preset="post-training", calibration=x)
    assert not (tmp_path / "m.nqz").exists()
