"""What users may rely on: a change of these lists is a change of the interface."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "nqformat": """
        AffineTensor BadMagicError Codebook CodebookTensor ConversionError CorruptError DType
        FormatError GroupedCodebook GroupedTensor HashedTensor Layout LimitExceededError Limits
        MissingDependencyError NqError NqzFile PackedTensor RawTensor Scales Tensor TensorInfo
        TruncatedError UnsupportedFeatureError UnsupportedVersionError ViewSource ViewTensor
        from_bytes load load_file safe_open save save_file
    """,
    "nqruntime": "InferenceSession compile_kernels",
    "nqconvert": """
        Comparison FineTuning ImageFolder ModelSource RepairSettings Report Training compare
        convert         export_onnx load_source measure_sensitivities
    """,
}


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_the_public_names_are_pinned_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package].split())
    for name in module.__all__:
        assert getattr(module, name) is not None
