"""``nqz`` as a user types it: results, exit codes, and nothing half-written."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nqformat
from nqconvert.cli import main

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FACTORY = """
import numpy as np, torch
from torch import nn
import nqconvert

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))

def training():
    torch.manual_seed(1)
    x = torch.randn(64, 20)
    return nqconvert.Training(
        loader=[(x, torch.arange(64) % 5)], loss=nn.functional.cross_entropy, steps=2, epochs_per_step=1
    )

def evaluate(run):
    x = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
    name = "input"
    return float((run({name: x})[0].argmax(1) == 0).mean())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def state_dict(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    path = folder / "weights.pt"
    arrays = {"fc.weight": rng.normal(size=(30, 40)), "fc.bias": rng.normal(size=30)}
    torch.save({n: torch.tensor(a, dtype=torch.float32) for n, a in arrays.items()}, path)
    return path


@pytest.fixture
def mlp_onnx(folder: Path) -> Path:
    """Two layers, sparse first weights, as an ONNX file."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    rng = np.random.default_rng(3)
    first = rng.normal(size=(120, 20)).astype(np.float32)
    first[np.abs(first) < 1.5] = 0
    arrays = {
        "w1": first,
        "b1": rng.normal(size=120),
        "w2": rng.normal(size=(6, 120)),
        "b2": rng.normal(size=6),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 20])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "mlp.onnx"
    save_model(model, path)
    np.save(folder / "x.npy", rng.normal(size=(64, 20)).astype(np.float32))
    return path


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["schema_version"] == 1
    return printed


def test_the_whole_path_from_onnx_and_back(
    mlp_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    report = run_json(capsys, "convert", str(mlp_onnx), "--example-input", "x.npy")
    file = folder / "mlp.nqz"
    assert report["file_bytes"] == file.stat().st_size
    assert report["outputs"]["n_samples"] == 64
    assert report["outputs"]["snr_db"] > 30
    inspected = run_json(capsys, "inspect", str(file))
    assert {t["name"] for t in inspected["tensors"]} == {"w1", "b1", "w2", "b2"}
    total = sum(t["stored_bytes"] for t in inspected["tensors"]) + inspected["overhead_bytes"]
    assert total == pytest.approx(file.stat().st_size, abs=1)
    assert run_json(capsys, "verify", str(file))["n_graph_tensors"] == 4
    outputs = {}
    for engine in ("native", "ort"):
        ran = run_json(capsys, "run", str(file), "-i", "x.npy", "--engine", engine, "-o", f"{engine}.npz")
        assert ran["engine"] == engine
        outputs[engine] = np.load(folder / f"{engine}.npz")["y"]
    np.testing.assert_allclose(outputs["native"], outputs["ort"], rtol=1e-5, atol=1e-5)
    for form in ("dense", "codebook", "auto"):
        options = ["-o", f"{form}.onnx", "--form", form, "-i", "x.npy"]
        exported = run_json(capsys, "export", str(file), *options)
        assert exported["max_difference"] == 0
        session = onnxruntime.InferenceSession(f"{form}.onnx", providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, {"x": np.load("x.npy")})[0], outputs["ort"])
    assert run_json(capsys, "decompress", str(file))["path"].endswith("mlp.safetensors")
    from safetensors.numpy import load_file

    decoded = nqformat.load_file(file)
    assert {n: a.tobytes() for n, a in load_file(folder / "mlp.safetensors").items()} == {
        n: a.tobytes() for n, a in decoded.items()
    }


def test_a_module_is_pruned_retrained_and_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    (folder / "nets.py").write_text(FACTORY)
    report = run_json(
        capsys,
        *(
            "convert",
            "nets:make",
            "-o",
            "net.nqz",
            "--example-input",
            "shape=8,20",
            "--preset",
            "deep-compression",
        ),
        *("--train", "nets:training", "--density", "0.2", "--evaluate", "nets:evaluate", "--full-metadata"),
    )
    assert len(report["accuracy"]) == 2
    weights = nqformat.load_file("net.nqz")
    assert np.count_nonzero(weights["0.weight"]) == 256
    with nqformat.safe_open("net.nqz") as file:
        assert file.metadata()["settings"]["density"] == 0.2


def test_lossless_weights_are_exact_and_the_table_says_so(
    state_dict: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    assert main(["convert", str(state_dict), "--preset", "lossless"]) == 0
    text = capsys.readouterr().out
    assert "every weight exact" in text
    assert "not quantized" in text
    original = torch.load(state_dict, weights_only=True)
    for name, array in nqformat.load_file(state_dict.with_suffix(".nqz")).items():
        assert np.array_equal(array, original[name].numpy())


def test_strict_names_what_stays_raw(state_dict: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(state_dict), "--preset", "lossless", "--strict"]) == 1
    assert "fc.weight" in capsys.readouterr().err
    assert not state_dict.with_suffix(".nqz").exists()


def test_equal_conversions_give_equal_bytes(state_dict: Path) -> None:
    for name in ("a.nqz", "b.nqz"):
        assert main(["convert", str(state_dict), "-o", name, "-q"]) == 0
    assert Path("a.nqz").read_bytes() == Path("b.nqz").read_bytes()


def bad_nan(folder: Path) -> list[str]:
    np.savez(folder / "x.npz", a=np.zeros(3))
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.full((20, 20), float("nan"))}, folder / "nan.pt")
    return ["convert", "nan.pt", "-o", "target.nqz"]


def truncated(folder: Path) -> list[str]:
    content = nqformat.save({"a": np.arange(5000, dtype=np.float32)})
    (folder / "cut.nqz").write_bytes(content[:-7])
    return ["inspect", "cut.nqz"]


def newer(folder: Path) -> list[str]:
    import zlib

    content = bytearray(nqformat.save({"a": np.float32(1)}))
    content[8] = 9
    content[28:32] = zlib.crc32(content[:28]).to_bytes(4, "little")
    (folder / "new.nqz").write_bytes(content)
    return ["verify", "new.nqz"]


def not_nqz(folder: Path) -> list[str]:
    (folder / "text.nqz").write_text("hello, this is no compressed network at all")
    return ["run", "text.nqz", "-i", "shape=1,2"]


def flipped(folder: Path) -> list[str]:
    content = bytearray(nqformat.save({"a": np.arange(5000, dtype=np.float32)}))
    content[-100] ^= 4
    (folder / "flip.nqz").write_bytes(content)
    return ["decompress", "flip.nqz", "-o", "target.safetensors"]


def graphless(folder: Path) -> list[str]:
    nqformat.save_file({"a": np.arange(5000, dtype=np.float32)}, folder / "tensors.nqz")
    return ["export", "tensors.nqz", "-o", "target.onnx"]


BAD: list[tuple[Callable[[Path], list[str]], int, str]] = [
    (bad_nan, 1, "'w': 400 of 400"),
    (lambda _: ["convert", "missing.onnx"], 1, "missing.onnx"),
    (lambda _: ["convert", "weights.pt", "--preset", "best"], 2, "unknown preset 'best'"),
    (lambda _: ["convert", "weights.pt", "--method", "magic"], 2, "unknown quantizer"),
    (lambda _: ["convert", "weights.pt", "-o", "no/such/folder/target.nqz"], 1, "no/such/folder"),
    (lambda _: ["convert", "nowhere:make"], 2, "cannot import"),
    (lambda _: ["inspect", "missing.nqz"], 1, "missing.nqz"),
    (truncated, 3, "declared"),
    (newer, 4, "version 9.0"),
    (not_nqz, 3, "not a .nqz file"),
    (flipped, 3, "checksum"),
    (graphless, 1, "graph"),
]


@pytest.mark.parametrize(("prepare", "code", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_has_its_exit_code_a_clear_line_and_leaves_nothing(
    prepare: Callable[[Path], list[str]],
    code: int,
    words: str,
    state_dict: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = prepare(folder)
    before = set(os.listdir(folder))
    assert main(argv) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 1
    assert set(os.listdir(folder)) == before


@pytest.mark.parametrize(
    ("input_text", "code", "words"),
    [
        ("shape=4,21", 2, "20"),
        ("shape=4,20:int64", 2, "float"),
        ("wrong.npz", 2, "z"),
        ("missing.npy", 1, "missing.npy"),
        ("shape=a", 2, "shape="),
    ],
)
def test_wrong_feeds_are_named(
    input_text: str, code: int, words: str, mlp_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(mlp_onnx), "-q"]) == 0
    np.savez(folder / "wrong.npz", z=np.zeros((4, 20), dtype=np.float32))
    capsys.readouterr()
    assert main(["run", "mlp.nqz", "-i", input_text]) == code
    assert words in capsys.readouterr().err


def test_a_run_is_explained_with_inputs_and_without(
    mlp_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(mlp_onnx), "-q"]) == 0
    for options in ([], ["-i", "x.npy"]):
        ran = run_json(capsys, "run", "mlp.nqz", "--explain", "--compare", "--engine", "native", *options)
        explained = ran["explain"]
        assert explained["run_seconds"] > 0 and explained["ort_seconds"] > 0
        assert all(row["kernel"] for row in explained["rows"])
    assert main(["run", "mlp.nqz", "--explain", "--engine", "ort"]) == 0
    assert "times and memory of nodes are not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"), [([], "--explain"), (["-i", "x.npy", "--compare"], "--explain")]
)
def test_a_run_needs_inputs_or_a_question(
    options: list[str], words: str, mlp_onnx: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(mlp_onnx), "-q"]) == 0
    assert main(["run", "mlp.nqz", *options]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_extra_is_named(
    mlp_onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(mlp_onnx), "-q"]) == 0
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["run", "mlp.nqz", "-i", "x.npy", "--engine", "ort"]) == 5
    assert "nqformat[ort]" in capsys.readouterr().err


def test_an_existing_file_survives_a_failed_conversion(state_dict: Path, folder: Path) -> None:
    (folder / "weights.nqz").write_bytes(b"precious")
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.full((20, 20), float("inf"))}, state_dict)
    assert main(["convert", str(state_dict)]) == 1
    assert (folder / "weights.nqz").read_bytes() == b"precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder_is_a_clear_failure(state_dict: Path, folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir()
    locked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert main(["convert", str(state_dict), "-o", str(locked / "target.nqz")]) == 1


def test_permission_bits_of_a_replaced_file_are_kept(state_dict: Path, folder: Path) -> None:
    target = folder / "weights.nqz"
    target.write_bytes(b"old")
    target.chmod(0o640)
    assert main(["convert", str(state_dict), "-q"]) == 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "options, shape",
    [
        (["--preset", "vq", "--clusters", "16", "--width", "2"], (1, 16, 2)),
        (["--method", "vq", "--clusters", "4", "--width", "10", "--product"], (2, 4, 10)),
        (["--scope", "channel", "--clusters", "4"], (120, 4, 1)),
    ],
)
def test_grouped_codebooks_from_conversion_to_export(
    options: list[str],
    shape: tuple[int, int, int],
    mlp_onnx: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = ["--preset", "deep-compression", *options] if "--preset" not in options else options
    assert main(["convert", str(mlp_onnx), "-o", "m.nqz", *settings]) == 0
    assert main(["verify", "m.nqz"]) == 0
    capsys.readouterr()
    assert main(["inspect", "m.nqz", "--json"]) == 0
    described = {t["name"]: t for t in json.loads(capsys.readouterr().out)["tensors"]}["w1"]
    found = tuple(described[f"codebook_{what}"] for what in ("groups", "entries", "width"))
    assert found[::2] == shape[::2] and found[1] <= shape[1]
    assert main(["export", "m.nqz", "-o", "m2.onnx", "--form", "codebook"]) == 0
    assert main(["decompress", "m.nqz", "-o", "m.safetensors"]) == 0
    assert (folder / "m2.onnx").exists() and (folder / "m.safetensors").exists()
