from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from nqconvert.sources import load_source
from nqformat.errors import ConversionError


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "fc.weight": torch.randn(20, 10, generator=generator),
        "fc.bias": torch.randn(20, generator=generator),
        "half": torch.randn(9, generator=generator).to(torch.bfloat16),
    }


def assert_holds(source, expected):
    assert set(source.tensors) == set(expected)
    for name, tensor in expected.items():
        array = source.tensors[name]
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == ml_dtypes.bfloat16
            array, tensor = array.view(np.uint16), tensor.view(torch.uint16)
        np.testing.assert_array_equal(array, tensor.numpy())


def test_safetensors_are_read_with_bfloat16(tmp_path):
    safetensors.torch.save_file(weights(), tmp_path / "m.safetensors")
    source = load_source(tmp_path / "m.safetensors")
    assert_holds(source, weights())
    assert source.graph is None and source.run is None


@pytest.mark.parametrize("suffix", ["pt", "pth", "th", "bin"])
def test_pickled_state_dicts_are_read(tmp_path, suffix):
    torch.save(weights(), tmp_path / f"m.{suffix}")
    assert_holds(load_source(str(tmp_path / f"m.{suffix}")), weights())


def test_checkpoint_wrappers_and_name_prefixes_are_removed(tmp_path):
    wrapped = {"module." + name: tensor for name, tensor in weights().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "best": 0.5}, tmp_path / "m.pt")
    assert_holds(load_source(tmp_path / "m.pt"), weights())


def test_a_prefix_that_only_some_names_have_is_part_of_the_name():
    assert set(load_source({"module.a": np.zeros(3), "b": np.ones(3)}).tensors) == {"module.a", "b"}


def test_mappings_of_arrays_and_tensors_are_taken():
    source = load_source({"a": np.arange(3), "b": torch.ones(2, dtype=torch.float16), "step": 7})
    assert source.tensors["a"].tolist() == [0, 1, 2] and source.tensors["b"].dtype == np.float16
    assert source.notes == ("left out, not tensors: step",)


def test_tied_tensors_are_stored_once(tmp_path):
    tied = torch.randn(30, 10, generator=torch.Generator().manual_seed(1))
    torch.save({"embed": tied, "head": tied, "other": tied + 1}, tmp_path / "m.pt")
    source = load_source(tmp_path / "m.pt")
    assert set(source.tensors) == {"embed", "other"} and set(source.views) == {"head"}
    np.testing.assert_array_equal(source.views["head"].assemble(source.tensors), tied.numpy())


def test_constant_tensors_are_not_tied():
    source = load_source({"a": np.ones((40, 40)), "b": np.ones((40, 40))})
    assert set(source.tensors) == {"a", "b"}


def test_sliced_tensors_are_read_as_they_look(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    torch.save({"slice": base[1:3, ::2].T}, tmp_path / "m.pt")
    np.testing.assert_array_equal(
        load_source(tmp_path / "m.pt").tensors["slice"], [[6, 12], [8, 14], [10, 16]]
    )


class Intruder:
    ran = False

    def __reduce__(self):
        return (setattr, (Intruder, "ran", True))


def test_a_pickle_with_code_is_refused_and_never_executed(tmp_path):
    torch.save({"w": torch.ones(3), "x": Intruder()}, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match="not executed"):
        load_source(tmp_path / "m.pt")
    assert not Intruder.ran


def test_a_pickled_module_is_refused_with_advice(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(ConversionError, match="state_dict"):
        load_source(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [[torch.ones(2)], {"epoch": 3}, {}])
def test_files_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(ConversionError, match="tensors"):
        load_source(tmp_path / "m.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx"])
def test_damaged_files_are_refused(tmp_path, suffix):
    (tmp_path / f"m.{suffix}").write_bytes(b"\x93nothing of the kind" * 3)
    with pytest.raises(ConversionError, match=r"m\."):
        load_source(tmp_path / f"m.{suffix}")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(3, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.ones(3, dtype=torch.float8_e4m3fn),
    ],
)
def test_tensors_without_a_counterpart_are_refused_by_name(tensor):
    with pytest.raises(ConversionError, match="'odd'"):
        load_source({"odd": tensor, "even": np.ones(2)})


def test_safetensors_types_without_a_counterpart_are_refused_by_name(tmp_path):
    safetensors.torch.save_file({"odd": torch.ones(3, dtype=torch.float8_e4m3fn)}, tmp_path / "m.safetensors")
    with pytest.raises(ConversionError, match=r"'odd'.*F8"):
        load_source(tmp_path / "m.safetensors")


def test_missing_unknown_and_misused_sources_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        load_source(tmp_path / "absent.pt")
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(ConversionError, match=r"m\.h5"):
        load_source(tmp_path / "m.h5")
    with pytest.raises(ConversionError, match="not a file"):
        load_source(tmp_path)
    with pytest.raises(TypeError, match="int"):
        load_source(3)
    with pytest.raises(TypeError, match="weights"):
        load_source({"a": np.ones(2)}, weights={"a": np.ones(2)})
