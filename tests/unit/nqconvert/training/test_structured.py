import pytest

torch = pytest.importorskip("torch")

from nqconvert.training.pruning.structured import (  # noqa: E402
    Link,
    find_links,
    shrink,
    unit_scores,
    units_to_keep,
)
from nqformat.errors import ConversionError  # noqa: E402

nn = torch.nn


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6 * 3 * 3, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.c1(x)), 2)
        return self.fc2(torch.relu(self.fc1(torch.flatten(self.c2(x), 1))))


def images():
    return torch.randn(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))


def test_links_are_found_behind_pooling_flattening_and_norms():
    links = find_links(Plain())
    assert links == [
        Link(layer="c1", reader="c2", norms=(), n_places=1),
        Link(layer="c2", reader="fc1", norms=(), n_places=9),
        Link(layer="fc1", reader="fc2", norms=(), n_places=1),
    ]
    stack = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3))
    assert find_links(stack) == [Link(layer="0", reader="3", norms=("1",), n_places=1)]


def test_outputs_that_do_not_matter_go_without_a_change_of_answers():
    torch.manual_seed(0)
    module = Plain().eval()
    for parameter in (module.c1.weight, module.c1.bias, module.fc1.weight, module.fc1.bias):
        parameter.data[1] = 0.0
    module.fc1.weight.data[:, 9:18] = 0.0  # the second output of c2 is not read
    module.fc2.weight.data[:, [3, 4]] = 0.0
    small = shrink(module)
    assert small.c1.weight.shape == (3, 1, 3, 3) and small.c2.weight.shape == (5, 3, 3, 3)
    assert small.fc1.weight.shape == (7, 45) and small.fc2.weight.shape == (3, 7)
    assert (small.fc1.in_features, small.fc1.out_features, small.c2.in_channels) == (45, 7, 3)
    with torch.no_grad():
        assert torch.allclose(small(images()), module(images()), atol=1e-6)
    assert module.c1.weight.shape == (4, 1, 3, 3)


def test_norms_lose_their_channels_too():
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    stack[1].running_mean.copy_(torch.arange(4.0))
    small = shrink(stack, {"0": [0, 2, 3]})
    silent = nn.Sequential(*stack)
    silent[3].weight.data[:, 1] = 0.0
    with torch.no_grad():
        assert torch.allclose(small(images()), silent(images()), atol=1e-6)
    assert small[1].num_features == 3 and small[1].running_mean.tolist() == [0.0, 2.0, 3.0]


def test_units_are_ranked_by_what_goes_in_and_out():
    module = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    module[0].weight.data = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    module[2].weight.data = torch.tensor([[0.1, 2.0, 5.0]])
    (link,) = find_links(module)
    expected = [(12.5 * 0.01) ** 0.5, (0.5 * 4.0) ** 0.5, 0.0]
    assert unit_scores(module, link).tolist() == pytest.approx(expected)
    assert units_to_keep(module, {"0": 2})["0"].tolist() == [0, 1]


def test_what_cannot_be_shrunk_is_refused():
    module = Plain()
    with pytest.raises(ValueError, match="'fc2' cannot be shrunk"):
        shrink(module, {"fc2": [0]})
    with pytest.raises(ValueError, match="4 outputs, 5 cannot be kept"):
        units_to_keep(module, {"c1": 5})

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    with pytest.raises(ConversionError, match="cannot trace"):
        find_links(Branching())


def test_outputs_that_others_read_are_left_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            return self.c(torch.relu(self.b(y))) + y

    assert [link.layer for link in find_links(Residual())] == ["b"]
    twice = nn.Linear(4, 4)
    assert find_links(nn.Sequential(twice, nn.ReLU(), twice)) == []
    folded = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 2))
    assert find_links(folded) == []
    rows = nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(8, 2))
    assert find_links(rows) == []
