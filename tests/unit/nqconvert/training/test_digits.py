"""Pruning of two small networks on scikit-learn's digits."""

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("sklearn.datasets")

from nqconvert.training import prune_and_retrain, retrain  # noqa: E402

nn = torch.nn
LOSS = nn.functional.cross_entropy
SEEDS = (0, 1, 2)


class Digits:
    """Three quarters of the images in shuffled batches of 64, the rest for testing."""

    def __init__(self, shape):
        images, labels = datasets.load_digits(return_X_y=True)
        images = torch.from_numpy((images / 16).astype(np.float32)).reshape(-1, *shape)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
        train, test = order[:1347], order[1347:]
        labels = torch.from_numpy(labels)
        self.images, self.labels = images[train], labels[train]
        self.test_images, self.test_labels = images[test], labels[test]

    def __len__(self):
        return 22

    def __iter__(self):
        for part in torch.randperm(len(self.labels)).split(64):
            yield self.images[part], self.labels[part]

    def accuracy(self, module):
        with torch.no_grad():
            hits = module.eval()(self.test_images).argmax(1) == self.test_labels
        return 100 * float(hits.float().mean())


def lenet_300_100():
    layers = [nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def convolutional():
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(256, 320), nn.ReLU(), nn.Linear(320, 10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "shape", "schedule", "limit_seconds"),
    [
        (lenet_300_100, (64,), {"steps": 10, "epochs_per_step": 3, "final_epochs": 30}, 15),
        (convolutional, (1, 8, 8), {"steps": 8, "epochs_per_step": 2, "final_epochs": 12}, 30),
    ],
)
def test_five_percent_of_the_weights_lose_less_than_half_a_point(build, shape, schedule, limit_seconds):
    digits, drops, seconds = Digits(shape), [], []
    for seed in SEEDS:
        torch.manual_seed(seed)
        module = build()
        retrain(module, digits, LOSS, epochs=20, lr=2e-3, seed=seed)
        dense = digits.accuracy(module)
        began = time.perf_counter()
        result = prune_and_retrain(
            module, digits, LOSS, density=0.05, scope="global", lr=2e-3, seed=seed, **schedule
        )
        seconds.append(time.perf_counter() - began)
        assert result.density == pytest.approx(0.05, abs=1e-4)
        drops.append(dense - digits.accuracy(module))
    print(build.__name__, "drops", np.round(drops, 2), "seconds", np.round(seconds, 1))
    # one test image is 0.22 points, so single runs scatter; the mean of three seeds is held to the bound
    assert np.mean(drops) < 0.5
    assert min(seconds) < limit_seconds
