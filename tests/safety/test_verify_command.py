"""``nqz verify``, its depths, and the limit that commands take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nqformat
from fuzz.container import take_apart
from fuzz.golden import golden_files
from nqconvert.cli import main
from nqformat.errors import CorruptError
from nqformat.reencoding import check_streams


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "m.nqz"
    target.write_bytes(golden_files()["all"])
    return target


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_every_golden_file_encodes_to_itself(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    n_streams = 0
    for content in golden_files().values():
        with nqformat.from_bytes(content) as file:
            n_streams += check_streams(file)
    assert n_streams > 100


def test_a_stream_that_decodes_but_is_not_what_an_encoder_writes_is_noticed() -> None:
    made = take_apart(golden_files()["dense-stored-1"])
    (stream,) = [record for record in made.records if record.kind == 5]
    made.records.insert(made.records.index(stream) + 1, stream.copy())  # a stream that nobody uses
    with nqformat.from_bytes(made.to_bytes()) as file:
        assert len(dict(file.tensors())) == 1
        with pytest.raises(CorruptError, match="stream 1 has other bytes"):
            check_streams(file)


@pytest.mark.parametrize(
    ("options", "decoded", "encoded"),
    [([], True, False), (["--fast"], False, False), (["--deep"], True, True)],
)
def test_a_good_file_is_verified_to_each_depth(
    options: list[str], decoded: bool, encoded: bool, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(path), "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] and said["decoded"] is decoded
    assert (said["n_streams_encoded_again"] is not None) is encoded
    assert said["n_graph_tensors"] == 1
    assert main(["verify", str(path), *options]) == 0
    assert ("encoded again" in capsys.readouterr().out) is encoded


def test_a_damaged_file_ends_with_exit_code_3(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for options in ([], ["--fast"], ["--deep"]):
        assert main(["verify", str(path), *options]) == 3
        assert "PAGE" in capsys.readouterr().err


def test_a_graph_that_needs_other_tensors_is_noticed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = take_apart(path.read_bytes())
    with nqformat.from_bytes(path.read_bytes()) as file:
        graph = file.graph()
    assert graph is not None
    path.write_bytes(nqformat.save({"another": np.zeros(3, np.float32)}, graph=graph))
    assert main(["verify", str(path)]) == 3
    assert "weight" in capsys.readouterr().err
    assert made.records


@pytest.mark.parametrize("command", ["verify", "inspect", "decompress", "export"])
def test_commands_keep_the_limit(command: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(path), "--max-bytes", "100"]) == 3
    assert "limit" in capsys.readouterr().err
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_a_limit_that_is_no_number_is_a_mistake_of_usage(path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(path), "--max-bytes", "lots"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        main(["verify", str(path), "--fast", "--deep"])
