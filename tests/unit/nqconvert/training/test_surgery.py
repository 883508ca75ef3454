from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nqconvert.training.pruning.surgery import (  # noqa: E402
    Surgery,
    SurgerySettings,
    prune_by_surgery,
    surgery_thresholds,
)
from nqconvert.training.quantized.straight_through import (  # noqa: E402
    GridSettings,
    StraightThrough,
    on_grid,
)
from nqconvert.training.retraining import retrain  # noqa: E402
from nqconvert.training.technique import Place, Run  # noqa: E402

from .conftest import LOSS, InterruptedAfter, Shuffled, mean_loss, network, problem, same  # noqa: E402


def run_of(module, lr=0.01):
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    return Run(module=module, parameters=dict(module.named_parameters()), optimizer=optimizer)


def test_thresholds_are_those_of_the_paper():
    magnitudes = torch.tensor([0.1, 0.2, 0.9, 0.4])
    low, high = surgery_thresholds(magnitudes, 0.5)
    middle = np.mean([0.1, 0.2, 0.9, 0.4]) + 0.5 * np.std([0.1, 0.2, 0.9, 0.4])
    assert (low, high) == pytest.approx((0.9 * middle, 1.1 * middle), rel=1e-6)
    assert surgery_thresholds(magnitudes, -10.0) == (0.0, 0.0)


def test_between_the_thresholds_a_weight_stays_as_it_is():
    module = torch.nn.Linear(4, 1, bias=False)
    surgery = Surgery(["weight"], SurgerySettings(density=None, spread=0.0, decay=1.0))
    module.weight.data = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    run = run_of(module)
    surgery.begin(run, 0)  # thresholds 0.9 and 1.1
    place = Place(stage=0, step=0, fraction=0.0)
    expected = [([0.5, 1.0, 1.2, -0.95], [0, 1, 1, 1]), ([1.0, 0.8, 1.2, -0.95], [0, 0, 1, 1])]
    expected += [([1.2, 1.0, 0.95, -0.7], [1, 0, 1, 0])]
    for weights, kept in expected:
        module.weight.data = torch.tensor([weights])
        surgery.before_step(run, place)
        assert surgery.masks["weight"].astype(int).tolist() == [kept]


def test_the_ranking_is_by_loss_to_second_order():
    module = network()
    run = run_of(module)
    LOSS(module(problem()[0]), problem()[1]).backward()
    run.optimizer.step()
    surgery = Surgery(["0.weight", "3.weight"], SurgerySettings(density=0.25, margin=0.0, decay=1.0))
    surgery.begin(run, 0)
    surgery.before_step(run, Place(stage=0, step=0, fraction=1.0))
    scores = {}
    for name in ("0.weight", "3.weight"):
        weight = run.parameters[name]
        scores[name] = weight.detach() ** 2 * run.optimizer.state[weight]["exp_avg_sq"].mean()
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    threshold = flat.sort(descending=True).values[round(0.25 * flat.numel()) - 1]
    for name, score in scores.items():
        assert np.array_equal(surgery.masks[name], (score >= threshold).numpy())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_network_reaches_its_density_and_still_learns(scope):
    module = network()
    settings = SurgerySettings(density=0.3, scope=scope, every=2, per_layer=(("3.weight", 0.5),))
    result = prune_by_surgery(
        module, Shuffled(), LOSS, settings=settings, epochs=20, final_epochs=10, lr=0.02,
        validation=[problem(64, seed=5)],
    )  # fmt: skip
    assert result.masks["0.weight"].sum() == round(0.3 * 96) and result.masks["3.weight"].sum() == 24
    for name, mask in result.masks.items():
        assert not module.state_dict()[name].numpy()[~mask].any()
    assert mean_loss(module) < 0.75 < mean_loss(network())
    assert result.log.records[-1].density == pytest.approx((29 + 24) / 144)


def test_weights_come_back():
    module, seen = network(), []
    surgery = Surgery(["0.weight"], SurgerySettings(density=0.5, every=1, decay=1.0))
    run = run_of(module, lr=0.05)
    surgery.begin(run, 0)
    for step in range(30):
        surgery.before_step(run, Place(stage=0, step=step, fraction=1.0))
        seen.append(surgery.masks["0.weight"].copy())
        run.optimizer.zero_grad()
        LOSS(module(problem()[0]), problem()[1]).backward()
        run.optimizer.step()
    assert any((now & ~before).any() for before, now in pairwise(seen))


@pytest.mark.parametrize("n_batches", [1, 7, 11])
def test_interrupted_surgery_with_grids_resumes_to_the_same_weights(tmp_path, n_batches):
    def run(module, loader, **options):
        settings = SurgerySettings(density=0.3, every=2)
        grids = StraightThrough(["0.weight", "3.weight"], ["0.bias", "3.bias"])
        return prune_by_surgery(
            module, loader, LOSS, settings=settings, epochs=2, final_epochs=3, lr=0.02, techniques=[grids],
            validation=[problem(50, seed=7)], **options,
        )  # fmt: skip

    whole = network(dropout=0.2)
    expected = run(whole, Shuffled())
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        run(network(dropout=0.2), InterruptedAfter(Shuffled(), n_batches), checkpoint=path)
    fresh = network(dropout=0.2, seed=1)
    result = run(fresh, Shuffled(), checkpoint=path)
    assert same(whole.state_dict(), fresh.state_dict()) and result.log.records == expected.log.records
    assert all(np.array_equal(mask, result.masks[name]) for name, mask in expected.masks.items())


def test_weights_end_on_grids_and_the_best_state_is_what_was_validated():
    module = network()
    grids = StraightThrough(["0.weight"], ["0.bias"], GridSettings(coarseness=1.5, vector_bits=4))
    validation = [problem(64, seed=5)]
    result = prune_by_surgery(
        module, Shuffled(), LOSS, settings=SurgerySettings(density=0.4, every=2), epochs=4, final_epochs=8,
        lr=0.05, techniques=[grids], validation=validation,
    )  # fmt: skip
    for name in ("0.weight", "0.bias"):
        values, step = module.state_dict()[name], grids.steps[name]
        assert torch.equal(values, on_grid(values, step))
        assert (values / step - (values / step).round()).abs().max() < 1e-4
    assert module[0].bias.abs().max() / grids.steps["0.bias"] < 16
    assert not module[0].weight.detach().numpy()[~result.masks["0.weight"]].any()
    assert mean_loss(module, validation[0]) == pytest.approx(result.log.best_validation_loss, abs=1e-6)


def test_training_on_known_steps_keeps_them_and_the_masks():
    module = network()
    step = float(np.float32(0.07))
    module[0].weight.data.copy_(on_grid(module[0].weight.detach(), step))
    mask = module[0].weight.detach() != 0
    before = module[0].weight.detach().clone()
    grids = StraightThrough(["0.weight"], ["0.bias"], GridSettings(first_stage=0), steps={"0.weight": step})
    retrain(module, Shuffled(), LOSS, masks={"0.weight": mask}, techniques=[grids], epochs=3, lr=0.02)
    after = module[0].weight.detach()
    assert grids.steps["0.weight"] == step and "0.bias" in grids.steps
    assert torch.equal(after, on_grid(after, step)) and not torch.equal(after, before)
    assert not after[~mask].any()


def test_grid_numbers_are_those_that_a_file_decodes_to():
    from nqformat.tensor import AffineTensor

    values, step = torch.randn(1000), float(np.float32(0.0371))
    k = (values / step).round().numpy().astype(np.int32)
    decoded = AffineTensor(k=k, step=step).decode()
    assert np.array_equal(on_grid(values, step).numpy(), decoded)


@pytest.mark.parametrize(
    "bad",
    [{"density": 0.0}, {"density": 1.5}, {"scope": "all"}, {"score": "random"}, {"every": 0}, {"until": 0.0},
     {"margin": -1.0}, {"decay": 2.0}, {"per_layer": (("w", 0.0),)}],
)  # fmt: skip
def test_bad_surgery_settings_are_refused(bad):
    with pytest.raises(ValueError):
        SurgerySettings(**bad)


def test_bad_grids_and_names_are_refused():
    for bad in ({"coarseness": 0.0}, {"vector_bits": 1}, {"vector_bits": 40}, {"first_stage": -1}):
        with pytest.raises(ValueError):
            GridSettings(**bad)
    with pytest.raises(ValueError, match="per_layer names 'x'"):
        Surgery(["w"], SurgerySettings(per_layer=(("x", 0.5),)))


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = torch.nn.LSTM(3, 8, batch_first=True), torch.nn.Linear(8, 3)

    def forward(self, inputs):
        return self.out(self.lstm(inputs.reshape(-1, 2, 3))[0][:, -1])


def test_recurrent_weights_are_pruned_and_put_on_grids_too():
    torch.manual_seed(0)
    module, names = Recurrent(), ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    grids = StraightThrough(names)
    result = prune_by_surgery(
        module, Shuffled(), LOSS, settings=SurgerySettings(density=0.4, every=2), epochs=8, final_epochs=8,
        lr=0.02, parameters=names, techniques=[grids],
    )  # fmt: skip
    assert result.density == pytest.approx(0.4, abs=0.01)
    assert result.log.records[-1].train_loss < result.log.records[0].train_loss - 0.1
    for name in names:
        weight = module.state_dict()[name]
        assert (
            torch.equal(weight, on_grid(weight, grids.steps[name]))
            and 0 < float((weight == 0).float().mean()) < 1
        )
