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
    done = retrain_by_method(method, module, training(), density=0.5, seed=0, tell=told.append)
    assert done.note and told
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
    assert all(np.unique(weight).size <= 17 for weight in stored.values() if weight.ndim == 2)


def test_a_file_of_hashed_weights_holds_shared_values_and_seeds(tmp_path):
    path, module = tmp_path / "hashed.nqz", network()
    report = nqconvert.convert(
        module,
        path,
        example_inputs=problem()[0][:4],
        preset="hashed",
        training=training(options={"share": 0.25}),
        strict=True,
        seed=3,
    )
    assert any("share 25.0 % as many values" in note for note in report.notes)
    assert report.retrained_outputs.snr_db > 100
    assert report.original_bytes == 4 * sum(parameter.numel() for parameter in module.parameters())
    stored = nqformat.load_file(path)
    assert stored["0.weight.values"].shape == (24,) and stored["0.weight"].shape == (16, 6)
    shared = np.abs(stored["0.weight.values"])
    assert np.isin(np.abs(stored["0.weight"]), shared).all()
    assert np.array_equal(shared, shared.astype(np.float16).astype(np.float32))


class Normed(torch.nn.Sequential):
    def __init__(self, *, traceable):
        torch.manual_seed(0)
        super().__init__(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Flatten())
        self.traceable = traceable

    def forward(self, x):
        # torch.fx stops where a value decides; the exporter follows the example
        return super().forward(x) if self.traceable or int(x.shape[0]) >= 0 else x


@pytest.mark.parametrize("preset", ["hashed", "soft-weight-sharing", "inq"])
def test_batch_norms_are_folded_before_weights_get_values_that_are_kept(tmp_path, preset):
    module, told = Normed(traceable=True), []
    batches = [(torch.randn(4, 1, 4, 4), torch.randn(4, 32))]
    report = nqconvert.convert(
        module.eval(),
        tmp_path / "a.nqz",
        example_inputs=batches[0][0],
        preset=preset,
        training=nqconvert.Training(loader=batches, loss=torch.nn.functional.mse_loss, epochs=4),
        progress=told.append,
    )
    assert "batch norms folded into the layers before them: 1" in told
    assert report.retrained_outputs.snr_db > 100


def test_hashed_weights_that_the_exporter_changes_are_refused(tmp_path):
    batches = [(torch.randn(4, 1, 4, 4), torch.randn(4, 32))]
    data = nqconvert.Training(loader=batches, loss=torch.nn.functional.mse_loss, epochs=1)
    with pytest.raises(ConversionError, match=r"not found in the exported graph as they are: 0\.weight"):
        nqconvert.convert(
            Normed(traceable=False).eval(),
            tmp_path / "a.nqz",
            example_inputs=batches[0][0],
            preset="hashed",
            training=data,
        )


@pytest.mark.parametrize("preset", ["soft-weight-sharing", "adaptive", "hashed"])
def test_preset_and_data_that_name_different_methods_are_refused(tmp_path, preset):
    module = torch.nn.Linear(4, 40)
    batches = [(torch.randn(4, 4), torch.randn(4, 40))]
    data = nqconvert.Training(loader=batches, loss=torch.nn.functional.mse_loss, method="surgery", epochs=1)
    with pytest.raises(ConversionError, match=f"preset {preset} retrains by its own method.*'surgery'"):
        nqconvert.convert(
            module, tmp_path / "a.nqz", example_inputs=batches[0][0], preset=preset, training=data
        )
    assert not (tmp_path / "a.nqz").exists()


def test_missing_data_and_unknown_methods_are_refused(tmp_path):
    for preset in ("adaptive", "hashed"):
        with pytest.raises(ConversionError, match="needs training data"):
            nqconvert.convert(network(), tmp_path / "a.nqz", example_inputs=problem()[0][:4], preset=preset)
    with pytest.raises(ValueError, match="unknown method of retraining 'magic'"):
        retrain_by_method("magic", network(), training(), density=0.5, seed=0, tell=print)
