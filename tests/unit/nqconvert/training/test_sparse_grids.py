import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nqconvert  # noqa: E402
import nqformat  # noqa: E402
from nqconvert.quantizers.grids import find_grid  # noqa: E402
from nqconvert.training import (  # noqa: E402
    GridSettings,
    SparseGridSettings,
    SurgerySettings,
    fold_batch_norms,
    train_sparse_on_grids,
)
from nqconvert.training.weight_names import vectors, weights_of_all_layers  # noqa: E402

from .conftest import LOSS, InterruptedAfter, Shuffled, mean_loss, network, problem, same, state  # noqa: E402

nn = torch.nn
SETTINGS = SparseGridSettings(surgery=SurgerySettings(density=0.5, every=2))


def retrained(module=None, loader=None, **more):
    module = network() if module is None else module
    more = {"settings": SETTINGS, "epochs": 4, "final_epochs": 3, "lr": 1e-2, **more}
    return module, train_sparse_on_grids(module, loader or Shuffled(), more.pop("loss", LOSS), **more)


def test_every_parameter_ends_on_a_grid_and_weights_are_sparse():
    module, result = retrained()
    assert result.density == pytest.approx(0.5, abs=0.01)
    for name in ("0.weight", "3.weight"):
        values = module.get_parameter(name).detach().numpy()
        assert np.count_nonzero(values) <= result.masks[name].sum() < values.size
        assert find_grid(np.unique(values)) is not None
    for name in ("0.bias", "3.bias"):
        values = module.get_parameter(name).detach().numpy()
        assert len(np.unique(values)) > 1 and find_grid(np.unique(values)) is not None


def test_the_network_still_does_what_it_learnt():
    module = network()
    nqconvert.training.retrain(module, Shuffled(), LOSS, epochs=40, lr=1e-2)
    before = mean_loss(module)
    retrained(module, epochs=12, final_epochs=12)
    assert mean_loss(module) < before + 0.1 < np.log(3)


def test_coarser_grids_leave_fewer_weights():
    fine, coarse = (
        retrained(settings=SparseGridSettings(surgery=SETTINGS.surgery, grids=GridSettings(coarseness=c)))[0]
        for c in (1.0, 4.0)
    )
    assert sum(int((p != 0).sum()) for p in coarse.parameters()) < sum(
        int((p != 0).sum()) for p in fine.parameters()
    )


def test_a_price_of_bits_leaves_fewer_weights():
    free, dear = (
        retrained(settings=SparseGridSettings(surgery=SETTINGS.surgery, bit_penalty=p), final_epochs=20)[0]
        for p in (0.0, 1.0)
    )
    n_free, n_dear = (sum(int((p != 0).sum()) for p in m.parameters() if p.ndim > 1) for m in (free, dear))
    assert n_dear < 0.9 * n_free


def test_a_teacher_is_used_for_logits_alone_unless_it_is_asked_for():
    alone = SparseGridSettings(surgery=SETTINGS.surgery, teacher_share=0.0)
    taught, plain = retrained()[0], retrained(settings=alone)[0]
    assert not same(state(taught), state(plain))
    inputs, targets = problem()
    batches = [(inputs, nn.functional.one_hot(targets, 3).float())]
    squares = nn.functional.mse_loss
    automatic = retrained(loader=batches, loss=squares)[0]
    assert same(state(automatic), state(retrained(loader=batches, loss=squares, settings=alone)[0]))
    wanted = SparseGridSettings(surgery=SETTINGS.surgery, teacher_share=0.5)
    with pytest.raises(ValueError, match="a teacher needs outputs that are logits"):
        retrained(loader=batches, loss=squares, settings=wanted)


def test_the_loss_that_was_given_stays_in_the_taught_one():
    heavy = nn.CrossEntropyLoss(weight=torch.tensor([5.0, 1.0, 1.0]))
    assert not same(state(retrained()[0]), state(retrained(loss=heavy)[0]))


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    whole, _ = retrained()
    module, path = network(), tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        retrained(module, InterruptedAfter(Shuffled(), 8), checkpoint=path)
    resumed, _ = retrained(checkpoint=path)
    assert same(state(whole), state(resumed))


@pytest.mark.parametrize(
    "bad",
    [
        {"teacher_share": 1.5},
        {"temperature": 0.0},
        {"bit_penalty": -1.0},
        {"grids": GridSettings(first_stage=0)},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError):
        SparseGridSettings(**bad)


def test_embeddings_and_recurrent_weights_count_as_weights_and_single_axes_do_not():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.cells = nn.Embedding(9, 4), nn.LSTM(4, 3)
            self.gain = nn.Parameter(torch.ones(4, 1, 1))
            self.register_parameter("counts", nn.Parameter(torch.zeros(2, 2).long(), requires_grad=False))

    module = Mixed()
    assert weights_of_all_layers(module) == ["table.weight", "cells.weight_ih_l0", "cells.weight_hh_l0"]
    assert vectors(module) == ["gain", "cells.bias_ih_l0", "cells.bias_hh_l0"]


class Images:
    def __init__(self):
        torch.manual_seed(1)
        self.images = torch.randn(48, 1, 6, 6)
        self.labels = (self.images.mean((1, 2, 3)) > 0).long()

    def __iter__(self):
        for part in torch.randperm(48).split(16):
            yield self.images[part], self.labels[part]


def normed(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2)
    )
    module(torch.randn(64, 1, 6, 6))
    return module.eval()


def test_a_file_made_with_the_preset_keeps_the_grids_of_a_network_with_batch_norms(tmp_path):
    path = tmp_path / "sparse.nqz"
    report = nqconvert.convert(
        normed(),
        path,
        example_inputs=Images().images[:8],
        preset="sparse-grids",
        density=0.3,
        training=nqconvert.Training(loader=Images(), loss=LOSS, epochs=5, options={"coarseness": 2.0}),
    )
    assert any("then trained on grids" in note for note in report.notes)
    assert report.retrained_outputs.snr_db > 100
    stored = {name: value for name, value in nqformat.load_file(path).items() if value.ndim > 1}
    assert len(stored) == 2
    for weight in stored.values():
        assert find_grid(np.unique(weight)) is not None and np.count_nonzero(weight) < 0.5 * weight.size


def test_the_preset_needs_training_data(tmp_path):
    with pytest.raises(nqformat.ConversionError, match="preset sparse-grids retrains the network"):
        nqconvert.convert(
            normed(), tmp_path / "a.nqz", example_inputs=Images().images[:8], preset="sparse-grids"
        )


def test_unknown_options_are_refused(tmp_path):
    with pytest.raises(TypeError, match="magic"):
        nqconvert.convert(
            network(),
            tmp_path / "a.nqz",
            example_inputs=problem()[0][:4],
            preset="sparse-grids",
            training=nqconvert.Training(loader=Shuffled(), loss=LOSS, epochs=2, options={"magic": 1}),
        )


class TestFolding:
    def test_outputs_in_evaluation_mode_stay_and_norms_go(self):
        module = normed()
        inputs, before = torch.randn(5, 1, 6, 6), state(module)
        folded, names = fold_batch_norms(module)
        assert names == ("0", "4") and same(state(module), before)
        assert torch.allclose(folded(inputs), module(inputs), atol=1e-5)
        assert not any("running" in name for name in state(folded))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_transposed_convolutions(self, groups):
        torch.manual_seed(0)
        module = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=groups), nn.BatchNorm2d(6))
        module(torch.randn(16, 4, 3, 3))
        module.eval()
        inputs = torch.randn(2, 4, 3, 3)
        folded, names = fold_batch_norms(module)
        assert names == (("0",) if groups == 1 else ())
        assert torch.allclose(folded(inputs), module(inputs), atol=1e-5)

    def test_layers_that_are_read_twice_used_twice_or_tied_keep_their_norms(self):
        class Reused(nn.Module):
            def __init__(self, kind):
                super().__init__()
                self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
                self.norm, self.kind = nn.BatchNorm1d(3), kind
                if kind == "tied":
                    self.second.weight = self.first.weight

            def forward(self, x):
                y = self.first(x)
                if self.kind == "read twice":
                    return self.norm(y) + y
                if self.kind == "used twice":
                    return self.norm(self.first(y))
                return self.second(self.norm(y))

        for kind in ("read twice", "used twice", "tied"):
            assert fold_batch_norms(Reused(kind).eval())[1] == (), kind
        assert fold_batch_norms(Reused("plain").eval())[1] == ("first",)

    def test_what_cannot_be_traced_or_has_no_statistics_stays(self):
        class Branching(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

            def forward(self, x):
                return self.norm(self.layer(x)) if x.sum() > 0 else x

        assert fold_batch_norms(Branching())[1] == ()
        free = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
        assert fold_batch_norms(free)[1] == ()

    def test_a_norm_over_another_axis_than_the_layers_stays_in_a_conversion(self, tmp_path):
        class Places(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.norm, self.out = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(16, 2)

            def forward(self, x):
                return self.out(self.norm(self.layer(x)).flatten(1))

        torch.manual_seed(0)
        module, inputs = Places(), torch.randn(32, 4, 5)
        module(inputs + torch.arange(4.0)[:, None])
        told = []
        nqconvert.convert(
            module.eval(),
            tmp_path / "places.nqz",
            example_inputs=inputs[:4],
            preset="sparse-grids",
            training=nqconvert.Training(loader=[(inputs, torch.zeros(32).long())], loss=LOSS, epochs=2),
            progress=told.append,
        )
        assert told and not any("folded" in text for text in told)
