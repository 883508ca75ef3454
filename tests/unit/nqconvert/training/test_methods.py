import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nqconvert  # noqa: E402
import nqformat  # noqa: E402
from nqconvert.training.methods import METHODS, retrain_by_method  # noqa: E402
from nqformat.errors import ConversionError  # noqa: E402

from .conftest import LOSS, Shuffled, network, problem  # noqa: E402


def training(**more):
    return nqconvert.Training(
        loader=Shuffled(), loss=LOSS, **{"epochs": 4, "steps": 2, "epochs_per_step": 1, **more}
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_retrains_a_module_and_says_what_it_did(method):
    module, told = network(), []
    before = {name: value.clone() for name, value in module.state_dict().items()}
    note = retrain_by_method(method, module, training(), density=0.5, seed=0, tell=told.append)
    assert note and told
    assert not torch.equal(module[0].weight, before["0.weight"])


def test_a_file_of_shared_weights_holds_them_exactly(tmp_path):
    report = nqconvert.convert(
        network(),
        tmp_path / "shared.nqz",
        example_inputs=problem()[0][:4],
        preset="soft-weight-sharing",
        training=training(),
    )
    assert any("shared values" in note for note in report.notes)
    assert report.retrained_outputs.snr_db == np.inf or report.retrained_outputs.snr_db > 100
    stored = nqformat.load_file(tmp_path / "shared.nqz")
    assert np.unique(np.concatenate([w.reshape(-1) for w in stored.values() if w.ndim == 2])).size <= 17


def test_missing_data_and_unknown_methods_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="needs training data"):
        nqconvert.convert(network(), tmp_path / "a.nqz", example_inputs=problem()[0][:4], preset="adaptive")
    with pytest.raises(ValueError, match="unknown method of retraining 'magic'"):
        retrain_by_method("magic", network(), training(), density=0.5, seed=0, tell=print)
