import sys

import pytest

from nqformat.errors import MissingDependencyError
from nqformat.optional_packages import require_package


def test_a_package_or_a_module_of_it_is_imported():
    assert require_package("matplotlib").__name__ == "matplotlib"
    assert require_package("safetensors.numpy").__name__ == "safetensors.numpy"


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("onnxruntime", "onnxruntime", "ort"),
        ("torch", "torch", "convert"),
        ("matplotlib.figure", "matplotlib", "report"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=rf"{package} is not installed.*nqformat\[{extra}\]"):
        require_package(name)


def test_a_package_that_no_extra_brings_is_refused():
    with pytest.raises(KeyError, match="left_pad"):
        require_package("left_pad")
