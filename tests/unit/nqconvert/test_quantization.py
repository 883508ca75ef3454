from __future__ import annotations

import numpy as np
import pytest

from nqconvert.presets import PRESETS, ConvertSettings, preset_settings
from nqconvert.quantization import quantize_tensors
from nqconvert.verification import compare_outputs, signal_to_noise_db
from nqformat import CodebookTensor, ConversionError, RawTensor


def model(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(size=(40, 50)).astype(np.float32),
        "bias": rng.normal(size=40).astype(np.float32),
        "steps": np.arange(100, dtype=np.int64),
        "tiny": rng.normal(size=(3, 3)).astype(np.float32),
    }


def test_only_weight_matrices_are_quantized_and_the_rest_is_named() -> None:
    made = quantize_tensors(model(), preset_settings("deep-compression"))
    weight = made.tensors["weight"]
    assert isinstance(weight, CodebookTensor)
    assert weight.codebook.values.size == 16
    assert set(made.exact) == {"bias", "steps", "tiny"}
    for name in made.exact:
        assert made.tensors[name].decode().tobytes() == model()[name].tobytes()


def test_auto_keeps_a_tensor_losslessly_where_that_is_smaller() -> None:
    tensors = model()
    tensors["few"] = np.round(tensors["weight"] * 2).astype(np.float32)
    made = quantize_tensors(tensors, preset_settings("auto"))
    assert np.array_equal(made.tensors["few"].decode(), tensors["few"])
    assert not np.array_equal(made.tensors["weight"].decode(), tensors["weight"])
    assert made.tensors["weight"].codebook.values.size == 256


def test_lossless_keeps_every_bit_even_of_nan() -> None:
    tensors = model()
    tensors["weight"][3, 4] = np.nan
    tensors["weight"][0, 0] = -0.0
    made = quantize_tensors(tensors, preset_settings("lossless"))
    for name, array in tensors.items():
        assert made.tensors[name].decode().tobytes() == array.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_lossy_presets_refuse_numbers_that_are_not_finite(bad: float, name: str) -> None:
    tensors = model()
    tensors[name].reshape(-1)[5] = bad
    with pytest.raises(ConversionError, match=f"'{name}': 1 of .* lossless"):
        quantize_tensors(tensors, preset_settings("auto"))


def test_small_tensors_can_be_rounded_to_bfloat16() -> None:
    made = quantize_tensors(model(), preset_settings("deep-compression", rest="bfloat16"))
    bias = made.tensors["bias"].decode()
    assert bias.dtype == np.float32
    assert not (bias.view(np.uint32) & 0xFFFF).any()
    assert np.abs(bias - model()["bias"]).max() <= np.abs(bias).max() / 256
    assert isinstance(made.tensors["steps"], RawTensor) or np.array_equal(
        made.tensors["steps"].decode(), model()["steps"]
    )


def test_presets_are_named_and_checked() -> None:
    assert set(PRESETS) >= {"auto", "lossless", "deep-compression"}
    with pytest.raises(ValueError, match="unknown preset 'best'; known: auto"):
        preset_settings("best")
    with pytest.raises(ValueError, match="density"):
        preset_settings("auto", density=0.0)
    with pytest.raises(ValueError, match="clusters"):
        ConvertSettings(clusters=0)
    with pytest.raises(ValueError, match="unknown quantizer 'magic'"):
        quantize_tensors(model(), preset_settings("auto", method="magic"))


def test_signal_to_noise_is_in_decibels() -> None:
    a = np.full(1000, 2.0)
    assert signal_to_noise_db([a], [a]) == np.inf
    assert signal_to_noise_db([a], [a + 0.2]) == pytest.approx(20.0)
    assert signal_to_noise_db([a], [np.full(1000, np.nan)]) == -np.inf


def test_agreement_counts_rows_and_warnings_name_both_bounds() -> None:
    logits = np.eye(4) * 10
    other = logits.copy()
    other[0] = [0, 9, 0, 0]
    found = compare_outputs([logits], [other])
    assert found.agreement == 0.75
    assert found.n_samples == 4
    assert len(found.warnings) == 2
    assert compare_outputs([logits], [logits]).warnings == ()
