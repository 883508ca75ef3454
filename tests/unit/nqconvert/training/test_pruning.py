from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from nqconvert.training.pruning import apply_masks, magnitude_masks
from nqformat.errors import ConversionError


def layers():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(20, 30)), "b": 10 * rng.normal(size=(7, 5, 3)), "c": rng.normal(size=50)}


def test_each_layer_keeps_its_largest_weights():
    weights = layers()
    for name, mask in magnitude_masks(weights, 0.2).items():
        kept, dropped = np.abs(weights[name][mask]), np.abs(weights[name][~mask])
        assert mask.shape == weights[name].shape and kept.size == round(0.2 * weights[name].size)
        assert kept.min() > dropped.max()


def test_one_global_threshold_serves_all_layers():
    weights = layers()
    masks = magnitude_masks(weights, 0.15, scope="global")
    assert list(masks) == list(weights)
    kept = np.concatenate([np.abs(weights[name][mask]) for name, mask in masks.items()])
    dropped = np.concatenate([np.abs(weights[name][~mask]) for name, mask in masks.items()])
    assert kept.size == round(0.15 * (kept.size + dropped.size)) and kept.min() > dropped.max()
    assert masks["b"].mean() > 0.5 > masks["a"].mean()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_single_layers_can_be_gentler(scope):
    weights = layers()
    masks = magnitude_masks(weights, 0.1, scope=scope, per_layer={"c": 0.5})
    assert masks["c"].sum() == 25
    assert masks["a"].sum() + masks["b"].sum() == pytest.approx(0.1 * 705, abs=1)


def test_ties_keep_the_first():
    mask = magnitude_masks({"w": np.array([[1.0, -1.0, 2.0], [1.0, -1.0, 1.0]])}, 0.5)["w"]
    assert mask.tolist() == [[True, True, True], [False, False, False]]
    equal = {"x": np.ones(4), "y": -np.ones(4)}
    masks = magnitude_masks(equal, 0.75, scope="global")
    assert masks["x"].all() and masks["y"].tolist() == [True, True, False, False]


def test_smaller_densities_keep_subsets():
    weights = {"w": np.round(np.random.default_rng(1).normal(size=500), 1)}
    masks = [magnitude_masks(weights, density)["w"] for density in (0.9, 0.5, 0.2, 0.01)]
    for larger, smaller in pairwise(masks):
        assert (larger | ~smaller).all()


def test_densities_one_and_zero_keep_all_and_nothing():
    weights = {"w": np.array([0.0, 1.0, 0.0]), "empty": np.empty((0, 4))}
    assert magnitude_masks(weights, 1.0)["w"].all()
    assert not magnitude_masks(weights, 0.0)["w"].any()
    assert magnitude_masks(weights, 0.001)["w"].tolist() == [False, True, False]
    assert magnitude_masks(weights, 0.5)["empty"].shape == (0, 4)


def test_half_precision_weights_are_pruned_in_their_own_dtype():
    for dtype in (np.float16, ml_dtypes.bfloat16):
        array = np.array([0.5, -4.0, 1.0, 0.25], dtype=dtype)
        pruned = apply_masks({"w": array}, magnitude_masks({"w": array}, 0.5))["w"]
        assert pruned.dtype == dtype and pruned.astype(float).tolist() == [0.0, -4.0, 1.0, 0.0]


def test_applied_masks_leave_positive_zeros_and_other_tensors_alone():
    weights = {"w": np.array([-1.0, -2.0]), "bias": np.array([3.0])}
    pruned = apply_masks(weights, {"w": np.array([False, True])})
    assert pruned["w"].tolist() == [0.0, -2.0] and not np.signbit(pruned["w"][0])
    assert pruned["bias"] is weights["bias"] and weights["w"][0] == -1.0


def test_bad_arguments_are_refused():
    weights = {"w": np.ones(4)}
    with pytest.raises(ValueError, match="density must be 0 to 1"):
        magnitude_masks(weights, 1.5)
    with pytest.raises(ValueError, match="density must be 0 to 1, but w"):
        magnitude_masks(weights, 0.5, per_layer={"w": -0.1})
    with pytest.raises(ValueError, match="'v'"):
        magnitude_masks(weights, 0.5, per_layer={"v": 0.1})
    with pytest.raises(ValueError, match="scope"):
        magnitude_masks(weights, 0.5, scope="row")
    with pytest.raises(ConversionError, match="'w' holds NaN"):
        magnitude_masks({"w": np.array([1.0, np.nan])}, 0.5)
    with pytest.raises(ValueError, match="none of the weights"):
        apply_masks(weights, {"v": np.ones(4, bool)})
    with pytest.raises(ValueError, match="not bool"):
        apply_masks(weights, {"w": np.ones(4)})
    with pytest.raises(ValueError, match="shape"):
        apply_masks(weights, {"w": np.ones(3, bool)})
