import pytest

import nqconvert.training


def test_every_public_name_exists():
    pytest.importorskip("torch")
    assert nqconvert.training.__all__ == sorted(nqconvert.training.__all__)
    for name in nqconvert.training.__all__:
        assert getattr(nqconvert.training, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = nqconvert.training.magic
