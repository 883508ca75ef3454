"""Small problems that the tests of retraining share."""

import math

import pytest

torch = pytest.importorskip("torch")

nn = torch.nn
LOSS = nn.functional.cross_entropy


def network(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def problem(n_items=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_items, 6, generator=generator)
    return inputs, (inputs[:, 0] + inputs[:, 1] ** 2 > 1).long() + (inputs[:, 2] > 0.5).long()


class Shuffled:
    """Batches in an order drawn from torch's global generator."""

    def __init__(self, batch=32):
        self.inputs, self.targets = problem()
        self.batch = batch

    def __len__(self):
        return math.ceil(len(self.inputs) / self.batch)

    def __iter__(self):
        order = torch.randperm(len(self.inputs))
        for part in order.split(self.batch):
            yield self.inputs[part], self.targets[part]


class InterruptedAfter:
    """Batches of another loader, cut short by Ctrl-C."""

    def __init__(self, loader, n_batches):
        self.loader, self.left = loader, n_batches

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def mean_loss(module, batch=None):
    inputs, targets = problem() if batch is None else batch
    with torch.no_grad():
        return float(LOSS(module.eval()(inputs), targets))
