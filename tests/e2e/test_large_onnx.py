"""A model over 2 GB through .onnx -> .nqz -> .onnx (slow; needs 8 GB of memory and of disk)."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

N_LAYERS = 9
MESSAGE_BYTES = 1 << 31


def test_a_model_over_2_gb_comes_back_bit_identical(tmp_path: Path) -> None:
    from onnx_large import STEPS, run_step

    rows = {step: run_step(step, tmp_path, N_LAYERS) for step in STEPS}
    model_bytes = rows["make"]["bytes"]
    assert model_bytes > MESSAGE_BYTES and rows["export dense"]["bytes"] > MESSAGE_BYTES
    assert rows["compare"] | {"tensors": N_LAYERS, "equal": N_LAYERS} == rows["compare"]
    assert rows["export dense"]["max_difference"] == rows["export codebook"]["max_difference"] == 0
    assert (
        rows["export codebook"]["bytes"] < 0.13 * model_bytes
        and rows["convert"]["bytes"] < 0.13 * model_bytes
    )
    assert max(row["peak_bytes"] for row in rows.values()) < 3.4 * model_bytes
