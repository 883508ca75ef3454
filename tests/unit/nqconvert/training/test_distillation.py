import math

import pytest

torch = pytest.importorskip("torch")

from nqconvert.training import distillation_loss  # noqa: E402


def test_the_loss_is_the_tempered_divergence_and_the_cross_entropy():
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    found = float(distillation_loss(temperature=2.0, share=0.6)(logits, (labels, teacher)))
    expected = 0.0
    for row, told, label in zip(logits.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        q, p = ([math.exp(v / 2) for v in values] for values in (row, told))
        q, p = [v / sum(q) for v in q], [v / sum(p) for v in p]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        entropy = -row[label] + math.log(sum(math.exp(v) for v in row))
        expected += (0.6 * 4 * divergence + 0.4 * entropy) / 5
    assert found == pytest.approx(expected, rel=1e-5)


def test_labels_alone_give_the_cross_entropy():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = distillation_loss(share=0.9)(logits, labels)
    assert torch.equal(found, torch.nn.functional.cross_entropy(logits, labels))


def test_bad_settings_are_refused():
    for bad in ({"temperature": 0.0}, {"share": 1.5}):
        with pytest.raises(ValueError):
            distillation_loss(**bad)
