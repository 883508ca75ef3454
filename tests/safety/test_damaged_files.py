"""Any truncation, any flipped bit and any mutant of the golden files is answered with an error of our own."""

from __future__ import annotations

from collections import Counter

import pytest

import nqformat
from fuzz import campaign, target
from fuzz.container import plain_directory, resealed, take_apart
from fuzz.flat_input import from_input, to_input
from fuzz.golden import golden_files
from nqformat import Layout, TruncatedError
from nqformat.errors import CorruptError
from nqformat.streams import Codec, StreamKind, StreamRecord
from nqformat.tensor_records import PackedFields

GOLDEN = golden_files()
SEED = 5
N_STRUCTURED = 12_000
N_RANDOM = 8_000


def test_golden_files_are_read_and_hold_every_layout_codec_mapping_and_dtype() -> None:
    used: Counter[str] = Counter()
    for content in GOLDEN.values():
        found = target.read_everything(content)
        assert [item for item in found if isinstance(found[item], str)] in (
            [],
            ["model"],
        )  # graphs of no meaning
        with nqformat.from_bytes(content) as file:
            for stream in file.directory.streams:
                assert isinstance(stream, StreamRecord)
                used.update([repr(stream.codec), repr(stream.kind), type(stream.mapping).__name__])
            for record in file.directory.tensors:
                used.update([repr(record.layout), repr(record.dtype)])
                if isinstance(record.fields, PackedFields):
                    used.update([type(record.fields.rule).__name__, f"columns {record.fields.column_scan}"])
    wanted = {repr(member) for kind in (Layout, nqformat.DType, Codec, StreamKind) for member in kind}
    assert wanted - set(used) == {repr(Codec.CONTEXT)}
    assert len(GOLDEN) >= 60 and len(used) >= 35


def test_files_taken_apart_and_put_together_are_the_same() -> None:
    for content in GOLDEN.values():
        assert take_apart(content).to_bytes() == content == resealed(content)
        assert plain_directory(content) == plain_directory(from_input(to_input(take_apart(content))))


@pytest.mark.parametrize("name", GOLDEN)
def test_every_truncation_is_noticed(name: str) -> None:
    content = GOLDEN[name]
    for n_bytes in range(len(content)):
        with pytest.raises(TruncatedError):
            nqformat.load(content[:n_bytes], threads=1)


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param([c for c in GOLDEN.values() if len(c) < 200][::3], id="some"),
        pytest.param(list(GOLDEN.values()), id="all", marks=pytest.mark.slow),
    ],
)
def test_every_flipped_bit_is_noticed(contents: list[bytes]) -> None:
    n_flips = 0
    for content in contents:
        changed = bytearray(content)
        for place in range(len(changed)):
            for bit in range(8):
                changed[place] ^= 1 << bit
                try:
                    nqformat.load(changed, limits=target.LIMITS, threads=1)
                except target.ALLOWED:
                    n_flips += 1
                changed[place] ^= 1 << bit
    assert n_flips == 8 * sum(map(len, contents))


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize(("kind", "n_mutants"), [("structured", N_STRUCTURED), ("random", N_RANDOM)])
def test_mutants_raise_nothing_foreign_and_stay_within_memory(
    kind: str, n_mutants: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    start = 0 if kernels == "numpy" else n_mutants // 2
    found = campaign.run(kind, SEED, range(start, start + n_mutants // 2), lanes=(kernels,))
    assert found.failures == []
    assert sum(found.verdicts.values()) == n_mutants // 2
    assert all(found.verdicts[verdict] > 20 for verdict in ("partly", "CorruptError"))


def test_a_campaign_reports_what_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", "numpy")
    monkeypatch.setattr(campaign, "warm_up", lambda _: None)
    answers = iter([ValueError("foreign"), {"tensor a": (1,)}, {"file": "CorruptError"}])

    def read(content: bytes, *, verify: bool = True) -> dict[str, object]:
        answer = next(answers, {"file": "CorruptError"})
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(target, "read_everything", read)
    found = campaign.run("random", SEED, range(1, 4))
    assert [number for number, _ in found.failures] == [1, 2]
    assert "foreign" in found.failures[0][1] and "not noticed" in found.failures[1][1]
    assert found.verdicts == {"failed": 2, "CorruptError": 1}


def test_mutants_depend_on_seed_and_number_only() -> None:
    for kind in campaign.KINDS:
        again = [campaign.mutant(kind, SEED, number) for number in range(40)]
        assert again == [campaign.mutant(kind, SEED, number) for number in range(40)]
        assert len(set(again)) > 35


def test_bytes_before_and_behind_a_file_are_refused() -> None:
    content = GOLDEN["all"]
    zip_end = b"PK\x05\x06" + bytes(18)
    for foreign in (b"\0", zip_end, b"\x80\x04N.", b"GGUF\x03\0\0\0", b"\n", bytes(64), content):
        with pytest.raises(CorruptError, match="declared"):
            nqformat.load(content + foreign)
        with pytest.raises(nqformat.FormatError):
            nqformat.load(foreign + content)
