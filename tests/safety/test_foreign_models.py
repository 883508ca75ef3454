"""Models from strangers: external data stays in the model's folder, pickles are never executed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nqconvert.cli import main
from nqformat.errors import ConversionError

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from nqconvert.sources import load_source  # noqa: E402 (after the optional packages)

VALUES = np.arange(12, dtype=np.float32)


def external_model(folder: Path, location: str, **entries: str) -> Path:
    """A model whose only weight lies at `location`."""
    helper = onnx.helper
    weight = onnx.TensorProto(name="w", data_type=1, dims=(3, 4), data_location=1)
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, (1, 3))],
        [helper.make_tensor_value_info("y", 1, (1, 4))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with data in it, beside it and above it."""
    inside = tmp_path / "models" / "mine"
    (inside / "sub").mkdir(parents=True)
    for path in (
        tmp_path / "secret",
        tmp_path / "models" / "secret",
        inside / "w.bin",
        inside / "sub" / "w.bin",
    ):
        path.write_bytes(VALUES.tobytes())
    return inside


def test_data_inside_the_folder_is_read(folder: Path) -> None:
    for location in ("w.bin", "sub/w.bin", "./w.bin"):
        source = load_source(external_model(folder, location))
        assert np.array_equal(source.tensors["w"], VALUES.reshape(3, 4))


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "../../secret",
        "sub/../../secret",
        "sub/../w.bin",
        "..",
        "a/../../secret",
        "..\\secret",
        "sub\\..\\..\\secret",
        "/etc/passwd",
        "//etc/passwd",
        "\\\\server\\share",
        "C:\\secret",
        "file:///etc/passwd",
        "",
        ".",
        "sub",
        "w.bin\0.txt",
        "missing",
    ],
)
def test_data_elsewhere_is_refused(location: str, folder: Path) -> None:
    with pytest.raises(ConversionError, match="w"):
        load_source(external_model(folder, location))


def test_links_to_data_are_refused(folder: Path) -> None:
    secret = folder.parent / "secret"
    (folder / "link").symlink_to(secret)
    (folder / "inner").symlink_to("w.bin")
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    os.link(secret, folder / "hard")
    for location in ("link", "inner", "linked/secret", "linked/mine/w.bin", "hard"):
        with pytest.raises(ConversionError, match="link"):
            load_source(external_model(folder, location))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "48"},
        {"offset": "49"},
        {"offset": "-4"},
        {"offset": str(1 << 62)},
        {"length": "49"},
        {"length": "47"},
        {"length": "-2"},
        {"length": str(1 << 62)},
        {"offset": "4", "length": "48"},
        {"offset": "x"},
        {"offset": "1e3"},
        {"length": ""},
    ],
)
def test_ranges_outside_the_data_are_refused(entries: dict[str, str], folder: Path) -> None:
    with pytest.raises(ConversionError):
        load_source(external_model(folder, "w.bin", **entries))


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


class Builds:
    """Pickles as an object whose state is a call."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (), None, None, iter([("key", self._inner)]))


def by_name(module: str, name: str, argument: str) -> bytes:
    """Protocol 0: a call of a global of one string, with no class of ours."""
    return f"c{module}\n{name}\n(S{argument!r}\ntR.".encode()


def malicious(mark: Path) -> dict[str, bytes]:
    """Pickles that create the file `mark` if they are executed."""
    import runpy
    import subprocess

    touch, code = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    script = mark.with_suffix(".py")
    script.write_text(code)
    nested = pickle.dumps(Calls(os.system, touch))
    found = {
        "os.system": nested,
        "posix.system by name": by_name("posix", "system", touch),
        "eval by name": by_name("builtins", "eval", code),
        "exec by name": by_name("__builtin__", "exec", code),
        "exec": pickle.dumps(Calls(exec, code)),
        "subprocess": pickle.dumps(Calls(subprocess.call, ["touch", str(mark)])),
        "runpy": pickle.dumps(Calls(runpy.run_path, str(script))),
        "pickle in pickle": pickle.dumps(Calls(pickle.loads, nested)),
        "open": pickle.dumps(Calls(open, str(mark), "w")),
        "a value of a dict": pickle.dumps({"w": Calls(os.system, touch), "b": 1}),
        "a key of a built dict": pickle.dumps(Builds(Calls(os.system, touch))),
        "torch.load": pickle.dumps(Calls(torch.load, str(script), None)),
        "a partial": pickle.dumps(Calls(map, os.system, [touch])),
        "an old protocol": pickle.dumps(Calls(os.system, touch), protocol=0),
    }
    return found


def as_torch_zip(content: bytes) -> bytes:
    """The zip that torch.save writes, around other bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrap", [bytes, as_torch_zip])
def test_pickles_are_refused_and_leave_no_trace(
    wrap: Callable[[bytes], bytes], suffix: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    pickles = malicious(mark)
    assert len(pickles) >= 10
    for name, content in pickles.items():
        path = tmp_path / f"model{suffix}"
        path.write_bytes(wrap(content))
        with pytest.raises((ConversionError, ValueError)):
            load_source(path)
        assert main(["convert", str(path), "-o", str(tmp_path / "out.nqz"), "--quiet"]) in (1, 2)
        assert not mark.exists() and not (tmp_path / "out.nqz").exists(), name


def test_the_pickles_would_do_harm(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    harmful = 0
    for content in malicious(mark).values():
        try:
            pickle.loads(content)
        except Exception:
            continue
        harmful += mark.exists()
        mark.unlink(missing_ok=True)
    assert harmful >= 10


def test_arrays_of_objects_are_refused_as_inputs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    objects = np.array([Calls(os.system, f"touch {mark}")], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=objects)
    from nqconvert.cli.console import read_arrays

    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="plain arrays"):
            read_arrays(str(tmp_path / name))
    assert not mark.exists()
