import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nqconvert.training import PruningResult, prunable_weights, prune_and_retrain, retrain  # noqa: E402
from nqformat.errors import ConversionError, MissingDependencyError  # noqa: E402

from .conftest import LOSS, InterruptedAfter, Shuffled, network, problem, same, state  # noqa: E402

nn = torch.nn


def random_masks(module, density=0.4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: rng.random(tuple(p.shape)) < density for name, p in module.named_parameters() if p.ndim == 2
    }


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_masked_weights_are_zero_in_every_step_and_the_rest_learns(optimizer):
    module, masks = network(), random_masks(network())
    before = state(module)
    zero_at_each_call = []

    def watch(layer, _):
        zero_at_each_call.append(not layer.weight[~torch.from_numpy(masks["0.weight"])].any())

    module[0].register_forward_pre_hook(watch)
    log = retrain(
        module, Shuffled(), LOSS, masks=masks, epochs=20, lr=0.02, optimizer=optimizer, weight_decay=0.01
    )
    assert len(zero_at_each_call) == 60 and all(zero_at_each_call)
    for name, mask in masks.items():
        weight = module.state_dict()[name]
        assert not weight[~torch.from_numpy(mask)].any()
        assert not torch.signbit(weight[~torch.from_numpy(mask)]).any()
        assert (weight != before[name])[torch.from_numpy(mask)].all()
    assert log.records[-1].train_loss < log.records[0].train_loss - 0.05
    assert log.records[0].density == pytest.approx(np.concatenate([m.ravel() for m in masks.values()]).mean())


def test_the_seed_decides_the_result_and_the_callers_generator_is_left_alone():
    results = []
    for seed in (1, 1, 2):
        module = network(dropout=0.3)
        torch.manual_seed(99)
        retrain(module, Shuffled(), LOSS, epochs=3, seed=seed)
        results.append((state(module), torch.rand(1)))
    assert same(results[0][0], results[1][0]) and not same(results[0][0], results[2][0])
    assert results[0][1] == results[2][1]


def test_cosine_schedule_falls_and_constant_stays():
    rates = {}
    for schedule in ("cosine", "constant"):
        log = retrain(network(), Shuffled(), LOSS, epochs=4, lr=0.1, schedule=schedule)
        rates[schedule] = [record.lr for record in log.records]
    assert rates["constant"] == [0.1] * 4
    assert rates["cosine"] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-5)


def test_the_best_state_on_validation_data_is_restored():
    module = network()
    validation = [problem(64, seed=5)]
    log = retrain(module, Shuffled(), LOSS, epochs=12, lr=0.3, schedule="constant", validation=validation)
    losses = [record.validation_loss for record in log.records]
    with torch.no_grad():
        now = float(LOSS(module.eval()(validation[0][0]), validation[0][1]))
    assert now == pytest.approx(min(losses)) == pytest.approx(log.best_validation_loss)
    assert losses[-1] > min(losses)


def test_training_stops_when_validation_gets_no_better_for_a_while(tmp_path):
    options = {
        "epochs": 40,
        "lr": 0.3,
        "schedule": "constant",
        "validation": [problem(64, seed=5)],
        "patience": 3,
    }
    module = network()
    log = retrain(module, Shuffled(), LOSS, **options)
    losses = [record.validation_loss for record in log.records]
    assert 3 < len(losses) < 40 and int(np.argmin(losses)) == len(losses) - 4
    fresh, path = network(), tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        retrain(fresh, InterruptedAfter(Shuffled(), 3 * len(losses) - 4), LOSS, checkpoint=path, **options)
    assert retrain(fresh, Shuffled(), LOSS, checkpoint=path, **options).records == log.records
    assert same(module.state_dict(), fresh.state_dict())
    with pytest.raises(ValueError, match="patience"):
        retrain(network(), Shuffled(), LOSS, epochs=2, patience=0)


def test_training_that_only_harms_ends_where_it_began():
    module = network()
    retrain(module, Shuffled(), LOSS, epochs=30, lr=0.02)
    before, inputs = state(module), problem(64, seed=5)[0]
    with torch.no_grad():
        labels = module.eval()(inputs).argmax(1)
    retrain(module, Shuffled(), LOSS, epochs=2, lr=5.0, optimizer="sgd", validation=[(inputs, labels)])
    assert same(before, module.state_dict())


def test_progress_hears_of_each_epoch_and_training_mode_comes_back():
    module, heard = network().eval(), []
    log = retrain(module, Shuffled(), LOSS, epochs=3, progress=heard.append)
    assert tuple(heard) == log.records and [record.epoch for record in heard] == [0, 1, 2]
    assert not module.training


@pytest.mark.parametrize("n_batches", [0, 1, 7, 8])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, n_batches):
    options = {"epochs": 5, "lr": 0.05, "seed": 3, "validation": [problem(50, seed=7)]}
    whole = network(dropout=0.4)
    masks = random_masks(whole)
    expected_log = retrain(whole, Shuffled(), LOSS, masks=masks, **options)

    module, path = network(dropout=0.4), tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        retrain(
            module, InterruptedAfter(Shuffled(), n_batches), LOSS, masks=masks, checkpoint=path, **options
        )
    assert not module[0].weight[~torch.from_numpy(masks["0.weight"])].any()
    fresh = network(dropout=0.4, seed=1)
    log = retrain(fresh, Shuffled(), LOSS, masks=masks, checkpoint=path, **options)
    assert log.n_resumed == n_batches // 3
    assert same(whole.state_dict(), fresh.state_dict())
    assert (
        log.records == expected_log.records and log.best_validation_loss == expected_log.best_validation_loss
    )


@pytest.mark.parametrize("n_batches", [2, 9, 10, 20, 26])
def test_interrupted_pruning_resumes_to_the_same_masks_and_weights(tmp_path, n_batches):
    options = {"density": 0.2, "steps": 3, "epochs_per_step": 2, "final_epochs": 3, "lr": 0.02}
    whole = network(dropout=0.2)
    expected = prune_and_retrain(whole, Shuffled(), LOSS, **options)

    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        prune_and_retrain(
            network(dropout=0.2), InterruptedAfter(Shuffled(), n_batches), LOSS, checkpoint=path, **options
        )
    fresh = network(dropout=0.2)
    result = prune_and_retrain(fresh, Shuffled(), LOSS, checkpoint=path, **options)
    assert same(whole.state_dict(), fresh.state_dict())
    assert all(np.array_equal(mask, result.masks[name]) for name, mask in expected.masks.items())
    assert result.log.records == expected.log.records


def test_a_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "run.ckpt"
    module = network()
    retrain(module, Shuffled(), LOSS, epochs=2, checkpoint=path)
    again = network(seed=4)
    log = retrain(again, InterruptedAfter(Shuffled(), 0), LOSS, epochs=2, checkpoint=path)
    assert log.n_resumed == 2 and same(module.state_dict(), again.state_dict())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.ckpt"]


def test_a_checkpoint_of_another_run_or_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    masks = random_masks(network())
    retrain(network(), Shuffled(), LOSS, masks=masks, epochs=1, checkpoint=path)
    for changed in ({"epochs": 2, "masks": masks}, {"epochs": 1}, {"epochs": 1, "masks": masks, "seed": 5}):
        with pytest.raises(ConversionError, match="another model or other settings"):
            retrain(network(), Shuffled(), LOSS, checkpoint=path, **changed)
    log = retrain(network(), Shuffled(), LOSS, epochs=2, checkpoint=path, resume=False)
    assert log.n_resumed == 0 and len(log.records) == 2
    for content in (b"", b"not a checkpoint", path.read_bytes()[:-40]):
        path.write_bytes(content)
        with pytest.raises(ConversionError, match="not a training checkpoint"):
            retrain(network(), Shuffled(), LOSS, epochs=2, checkpoint=path)


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "made"), "w"))

    torch.save({"format": 1, "payload": Evil()}, tmp_path / "run.ckpt")
    with pytest.raises(ConversionError, match="not a training checkpoint"):
        retrain(network(), Shuffled(), LOSS, epochs=1, checkpoint=tmp_path / "run.ckpt")
    assert not (tmp_path / "made").exists()


def test_gradual_pruning_reaches_the_density_of_each_layer():
    module = network()
    result = prune_and_retrain(
        module,
        Shuffled(),
        LOSS,
        density=0.1,
        per_layer={"3.weight": 0.5},
        scope="layer",
        steps=4,
        epochs_per_step=1,
        lr=0.01,
    )
    assert isinstance(result, PruningResult)
    assert result.masks["0.weight"].sum() == round(0.1 * 96) and result.masks["3.weight"].sum() == 24
    for name, mask in result.masks.items():
        assert not module.state_dict()[name][~torch.from_numpy(mask)].any()
    assert module[0].bias.ne(0).all()
    densities = [record.density for record in result.log.records]
    assert densities == sorted(densities, reverse=True) and densities[-1] == pytest.approx(result.density)
    kept = [round((0.1 + 0.9 * x) * 96) + round((0.5 + 0.5 * x) * 48) for x in (27 / 64, 8 / 64, 1 / 64, 0)]
    assert densities[:4] == pytest.approx([n_kept / 144 for n_kept in kept])
    assert len(densities) == 8


def test_global_scope_has_one_threshold():
    module = network()
    with torch.no_grad():
        module[3].weight.mul_(100)
    result = prune_and_retrain(
        module, Shuffled(), LOSS, density=0.3, scope="global", steps=1, epochs_per_step=0, final_epochs=0
    )
    assert sum(mask.sum() for mask in result.masks.values()) == round(0.3 * 144)
    assert result.masks["3.weight"].sum() >= 40 and not result.log.records


def test_prunable_weights_are_those_of_linear_and_convolution_layers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.conv = nn.Conv1d(4, 4, 1)
            self.norm = nn.LayerNorm(4)
            self.up = nn.ConvTranspose2d(2, 2, 3)
            self.head = nn.Linear(4, 5, bias=False)
            self.again = nn.Linear(4, 5)
            self.again.weight = self.head.weight

    assert prunable_weights(Tied()) == ["conv.weight", "up.weight", "head.weight"]


def test_tuples_of_inputs_frozen_layers_and_batch_norm_work():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.norm = nn.Linear(6, 3), nn.Linear(6, 3), nn.BatchNorm1d(3)
            self.left.weight.requires_grad_(False)

        def forward(self, first, second):
            return self.norm(self.left(first) + self.right(second))

    inputs, targets = problem()
    module, batches = Sum(), [((inputs, inputs), targets)] * 2
    frozen = module.left.weight.clone()
    mask = torch.ones(3, 6, dtype=torch.bool).tril()
    retrain(module, batches, LOSS, masks={"left.weight": mask}, epochs=2, validation=batches)
    assert torch.equal(module.left.weight, frozen * mask)
    assert module.norm.num_batches_tracked in (0, 2, 4)


def test_divergence_is_an_error_and_spares_the_weights():
    module = network()
    batches = [(torch.full((4, 6), float("nan")), torch.zeros(4, dtype=torch.long))]
    with pytest.raises(ConversionError, match="loss is nan in epoch 0"):
        retrain(module, batches, LOSS, epochs=1)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_bad_arguments_are_refused():
    module, loader = network(), Shuffled()
    with pytest.raises(TypeError, match="exhausted after one pass"):
        retrain(module, iter(loader), LOSS, epochs=1)
    with pytest.raises(TypeError, match="validation must be an iterable"):
        retrain(module, loader, LOSS, epochs=1, validation=3)
    with pytest.raises(ValueError, match="gave no batch"):
        retrain(module, [], LOSS, epochs=1)
    with pytest.raises(ValueError, match="no parameters"):
        retrain(nn.ReLU(), loader, LOSS, epochs=1)
    with pytest.raises(ValueError, match="'9'"):
        retrain(module, loader, LOSS, epochs=1, masks={"9": np.ones(3, bool)})
    with pytest.raises(ValueError, match=r"bool of shape \(16, 6\)"):
        retrain(module, loader, LOSS, epochs=1, masks={"0.weight": np.ones((16, 6))})
    wrong = [("epochs", -1), ("lr", 0.0), ("optimizer", "lion"), ("schedule", "step"), ("seed", -1)]
    for option, value in wrong:
        with pytest.raises(ValueError, match=option):
            retrain(module, loader, LOSS, **{"epochs": 1, option: value})
    wrong = [("density", 0.0), ("scope", "row"), ("steps", 0), ("parameters", []), ("parameters", ["x"])]
    for option, value in [*wrong, ("per_layer", {"0.bias": 0.5}), ("per_layer", {"0.weight": 2.0})]:
        with pytest.raises(ValueError, match=r"density|scope|steps|prune|parameters|per_layer"):
            prune_and_retrain(module, loader, LOSS, **{"density": 0.5, option: value})


def test_missing_torch_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"nqformat\[convert\]"):
        retrain(None, [], LOSS, epochs=1)
