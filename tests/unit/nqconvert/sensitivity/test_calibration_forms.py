"""Calibration inputs from folders of images, functions and iterators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nqconvert import ImageFolder, load_source
from nqconvert.sensitivity.calibration import calibration_batches, repeatable
from nqformat import ConversionError

onnx = pytest.importorskip("onnx")
image_module = pytest.importorskip("PIL.Image")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


def source(*shape: int | str, element_type: int = onnx.TensorProto.FLOAT) -> Any:
    n_features = 8
    weight = np.random.default_rng(0).normal(size=(n_features, 8)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Flatten", ["f"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", element_type, ["n", *shape])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return load_source(model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, 8 high and 16 wide: black left and right, one grey in the middle; and a text file."""
    for number in range(10):
        place = tmp_path / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, 2:14] = 20 * number
        image_module.fromarray(pixels).save(place / f"{number}.png")
    (tmp_path / "readme.txt").write_text("no image")
    return tmp_path


def test_images_are_cut_to_the_models_input_around_their_middle(folder: Path) -> None:
    made = ImageFolder(folder=folder).inputs(source(3, 4, 4), 100)
    assert made.shape == (10, 3, 4, 4) and made.dtype == np.float32
    expected = np.sort(np.arange(10) * 20 / 255)
    np.testing.assert_allclose(np.sort(made.mean((1, 2, 3))), expected, atol=0.02)
    last = ImageFolder(folder=folder).inputs(source(4, 6, 1), 100)
    assert last.shape == (10, 4, 6, 1)


def test_numbers_are_scaled_and_normalised_by_channel(folder: Path) -> None:
    plain = ImageFolder(folder=folder, full_scale=255.0).inputs(source(3, 4, 4), 100)
    assert plain.max() == 180
    normal = ImageFolder(folder=folder, full_scale=255.0, mean=(10, 20, 30), std=(2.0,))
    made = normal.inputs(source(3, 4, 4), 100)
    np.testing.assert_allclose(made, (plain - np.float32([10, 20, 30])[:, None, None]) / 2)
    octets = source(3, 4, 4, element_type=onnx.TensorProto.UINT8)
    assert ImageFolder(folder=folder, full_scale=255.0).inputs(octets, 100).dtype == np.uint8


def test_some_images_are_spread_over_all_folders(folder: Path) -> None:
    whole = ImageFolder(folder=folder).inputs(source(1, 4, 4), 10)
    some = ImageFolder(folder=folder).inputs(source(1, 4, 4), 4)
    np.testing.assert_array_equal(some, whole[[0, 3, 6, 9]])


def test_a_size_is_needed_where_the_model_has_none(folder: Path) -> None:
    with pytest.raises(ConversionError, match="no fixed size"):
        ImageFolder(folder=folder).inputs(source(3, "h", "w"), 4)
    assert ImageFolder(folder=folder, size=(6, 5)).inputs(source(3, "h", "w"), 4).shape == (4, 3, 6, 5)


def test_what_is_no_image_is_named(folder: Path, tmp_path_factory: Any) -> None:
    with pytest.raises(ConversionError, match="none for images"):
        ImageFolder(folder=folder).inputs(source(7, 4, 4), 4)
    with pytest.raises(ConversionError, match="2 numbers given as mean"):
        ImageFolder(folder=folder, mean=(0, 0)).inputs(source(3, 4, 4), 4)
    with pytest.raises(ConversionError, match="no image in the folder"):
        ImageFolder(folder=tmp_path_factory.mktemp("empty")).inputs(source(3, 4, 4), 4)
    (folder / "a.png").write_bytes(b"\x89PNG no image")
    with pytest.raises(ConversionError, match=r"a\.png is no image"):
        ImageFolder(folder=folder).inputs(source(3, 4, 4), 100)
    for wrong in ({"std": (0.0,)}, {"full_scale": 0.0}, {"size": (0, 4)}):
        with pytest.raises(ValueError, match="images must be"):
            ImageFolder(folder=folder, **wrong)


def test_functions_and_iterators_can_be_gone_through_again() -> None:
    def batches() -> Any:
        for number in range(5):
            yield np.full((4, 2), number, np.float32)

    for given in (batches, batches()):
        kept = repeatable(given, 10)
        for _ in range(2):
            made = [batch.args[0] for batch in calibration_batches(kept, batch_size=4, samples=10)]
            np.testing.assert_array_equal(np.concatenate(made)[:, 0], [0] * 4 + [1] * 4 + [2] * 2)
    array = np.zeros((3, 2))
    assert repeatable(array, 2) is array and repeatable(lambda: array, 2) is array
    assert repeatable(None, 2) is None
