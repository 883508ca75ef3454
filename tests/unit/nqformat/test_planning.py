"""What the writer chooses: classes of large tensors from samples, smoothed codes, mappings worth keeping."""

from __future__ import annotations

import numpy as np
import pytest

import nqformat
from nqformat import AffineTensor, Codebook, CodebookTensor, layout_choice, quantized_plans
from nqformat.code_cost import Prefer, choose_code, refine_code
from nqformat.codings import fitting, value_codings
from nqformat.escape import EscapeMapping
from nqformat.grouping import GroupMapping
from nqformat.hybrid import HybridMapping
from nqformat.line_classes import classify_lines, model_bytes, value_counts, value_edges
from nqformat.streams import Codec
from nqformat.tensor_records import PackedFields


def unlike_rows(n_rows: int, n_columns: int) -> CodebookTensor:
    """Rows of very different densities, some of them empty."""
    rng = np.random.default_rng(3)
    density = np.minimum(0.06 * np.exp(rng.normal(0, 1.2, n_rows)), 0.9) * (rng.random(n_rows) < 0.8)
    kept = rng.random((n_rows, n_columns)) < density[:, None]
    values = np.arange(6, dtype=np.float32) / 8
    indices = np.where(kept, rng.integers(1, 6, kept.shape), 0).astype(np.uint8)
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


def n_blocks(content: bytes) -> int:
    with nqformat.from_bytes(content) as file:
        fields = file.directory.tensors[0].fields
        assert isinstance(fields, PackedFields)
        return 1 if fields.partition is None else len(fields.partition.blocks)


def test_lines_of_a_sampled_tensor_are_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = unlike_rows(400, 500)
    whole = nqformat.save({"w": tensor})
    monkeypatch.setattr(quantized_plans, "_SAMPLE_FROM", 160_000)
    sampled = nqformat.save({"w": tensor})
    monkeypatch.setattr(quantized_plans, "_MIN_SAMPLED_ROWS", 1000)
    plain = nqformat.save({"w": tensor})
    assert nqformat.load(sampled)["w"].tobytes() == tensor.decode().tobytes()
    assert n_blocks(sampled) > 1
    assert n_blocks(plain) == 1
    assert len(sampled) < 1.02 * len(whole)
    assert len(sampled) < 0.97 * len(plain)


def test_dense_rows_of_a_sampled_tensor_are_classified(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    spread = np.exp(rng.normal(0, 1, (300, 1)))
    k = np.rint(4 * spread * rng.normal(size=(300, 400))).astype(np.int32)
    monkeypatch.setattr(quantized_plans, "_SAMPLE_FROM", 118_000)
    content = nqformat.save({"w": AffineTensor(k=k, step=0.5)})
    assert n_blocks(content) > 1
    assert nqformat.load(content)["w"].tobytes() == (0.5 * k).astype(np.float32).tobytes()


@pytest.mark.parametrize("share_of_zeros", [0.001, 0.02, 0.2])
def test_few_zeros_of_a_large_tensor_cost_as_little_without_positions(
    monkeypatch: pytest.MonkeyPatch, share_of_zeros: float
) -> None:
    rng = np.random.default_rng(5)
    indices = rng.binomial(14, 0.5, size=(120, 500)) + 1
    indices[rng.random(indices.shape) < share_of_zeros] = 0
    codebook = Codebook(values=np.arange(16, dtype=np.float32) / 8)
    tensor = CodebookTensor(indices=indices.astype(np.uint8), codebook=codebook)
    compared = nqformat.save({"w": tensor})
    monkeypatch.setattr(layout_choice, "_KEPT_POSITIONS", 1000)
    quickly = nqformat.save({"w": tensor})
    assert len(quickly) <= 1.001 * len(compared)
    assert nqformat.load(quickly)["w"].tobytes() == tensor.decode().tobytes()


def test_the_model_prefers_the_classes_that_lines_were_drawn_from() -> None:
    rng = np.random.default_rng(5)
    n_stored = np.where(np.arange(200) % 2, rng.binomial(500, 0.02, 200), rng.binomial(500, 0.3, 200))
    two = classify_lines(n_stored, 500, None, 2, dense=False)
    assert np.array_equal(two, (np.arange(200) % 2 == 0).astype(np.uint8))
    one = np.zeros(200, dtype=np.uint8)
    assert model_bytes(n_stored, 500, None, two, dense=False) < model_bytes(
        n_stored, 500, None, one, dense=False
    )


def test_wide_alphabets_are_counted_in_equally_frequent_classes() -> None:
    numbers = np.random.default_rng(6).integers(0, 256, 4000)
    edges = value_edges(numbers, 256)
    assert edges is not None
    assert value_edges(numbers, 64) is None
    counts = value_counts(np.sort(np.arange(4000) % 10) * 7, 7, numbers, 10, width=256, edges=edges)
    assert counts.shape == (10, 32)
    assert counts.sum() == 4000
    assert counts.sum(axis=0).max() < 2 * counts.sum(axis=0).min()


@pytest.mark.parametrize("prefer", [Prefer.SIZE, Prefer.SPEED])
@pytest.mark.parametrize("n_symbols", [300, 5000, 40_000])
def test_smoothed_codes_never_take_more_bytes(prefer: Prefer, n_symbols: int) -> None:
    rng = np.random.default_rng(n_symbols)
    symbols = np.clip(np.rint(rng.normal(128, 30, n_symbols)), 0, 255).astype(np.int64)
    counts = np.bincount(symbols, minlength=256)
    chosen = choose_code(counts, prefer)
    refined = refine_code(counts, chosen, prefer)
    assert refined.code is not None
    assert refined.n_bytes < chosen.n_bytes
    assert refined.n_bytes >= refined.code.payload_bits(counts) / 8 + len(refined.code.to_bytes())
    assert prefer is Prefer.SIZE or refined.codec is Codec.HUFFMAN


def test_large_files_take_tans_for_two_percent_only() -> None:
    counts = np.bincount(np.random.default_rng(8).geometric(0.1, 50_000), minlength=256)[:256]
    assert choose_code(counts, Prefer.SIZE).codec is Codec.TANS
    assert choose_code(counts, Prefer.SIZE, large_file=True).codec is Codec.HUFFMAN


def test_far_mappings_are_dropped_and_the_best_is_kept() -> None:
    numbers = (np.random.default_rng(9).geometric(0.9, 30_000) % 8).astype(np.uint8)
    codings = value_codings(numbers, 8, (), Prefer.SIZE)
    kept, n_bytes = codings.near_best(Prefer.SIZE)
    assert 0 < len(kept.mappings) < len(codings.mappings)
    assert n_bytes == codings.best_bytes(Prefer.SIZE) == kept.best_bytes(Prefer.SIZE)


def test_a_mapping_of_a_sample_is_widened_for_the_whole() -> None:
    escape = EscapeMapping(3, 5, 4)
    assert fitting(escape, escape.max_value) is escape
    assert fitting(escape, escape.max_value + 1) == EscapeMapping(3, 5, 5)
    assert isinstance(fitting(escape, 1 << 30), HybridMapping)
    assert fitting(GroupMapping(3, 5), 4) == GroupMapping(3, 5)
    assert fitting(GroupMapping(3, 5), 7) == GroupMapping(2, 8)
    assert isinstance(fitting(GroupMapping(1, 200), 300), HybridMapping)
    assert fitting(HybridMapping(4, 1), 1 << 40) == HybridMapping(4, 1)


@pytest.mark.parametrize("prefer", ["size", "speed"])
def test_numbers_outside_the_sample_come_back(prefer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps and integers far larger than any in the sampled pieces."""
    rng = np.random.default_rng(10)
    k = (rng.random(60_000) < 0.4).astype(np.int32) * rng.integers(1, 3, 60_000).astype(np.int32)
    k[30_100:33_000] = 0
    wide = k.copy()
    wide[30_200] = 90
    monkeypatch.setattr(quantized_plans, "_SAMPLE_FROM", 8_000)
    tensors = {"gaps": AffineTensor(k=k, step=1.0), "values": AffineTensor(k=wide, step=1.0)}
    loaded = nqformat.load(nqformat.save(tensors, prefer=prefer))
    assert loaded["gaps"].tolist() == k.tolist()
    assert loaded["values"].tolist() == wide.tolist()
