import math

import pytest

torch = pytest.importorskip("torch")

from nqconvert.training import Taught, distillation_loss  # noqa: E402
from nqconvert.training.distillation import answers_are_logits  # noqa: E402


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


def test_logits_of_places_give_the_mean_over_them():
    torch.manual_seed(0)
    logits, teacher = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    labels = torch.randint(0, 5, (2, 3))
    found = distillation_loss()(logits, (labels, teacher))
    flat = [value.transpose(1, 2).flatten(0, 1) for value in (logits, teacher)]
    assert torch.allclose(found, distillation_loss()(flat[0], (labels.flatten(), flat[1])))


def test_another_loss_takes_the_place_of_the_cross_entropy():
    logits, targets = torch.randn(4, 3), torch.rand(4, 3)
    squares = torch.nn.functional.mse_loss
    found = distillation_loss(share=0.25, told=squares)(logits, (targets, logits))
    assert torch.allclose(found, 0.75 * squares(logits, targets))
    assert torch.equal(distillation_loss(told=squares)(logits, targets), squares(logits, targets))


def test_a_teacher_answers_batches_of_one_and_of_several_inputs():
    single = Taught([(torch.ones(2, 3), torch.zeros(2))], torch.nn.Flatten())
    assert len(single) == 1
    ((_, (targets, logits)),) = single
    assert torch.equal(targets, torch.zeros(2)) and torch.equal(logits, torch.ones(2, 3))
    torch.manual_seed(0)
    pairs = torch.nn.Bilinear(2, 2, 4)
    ((inputs, (_, logits)),) = Taught([((torch.ones(3, 2), torch.ones(3, 2)), torch.zeros(3))], pairs)
    assert torch.equal(logits, pairs(*inputs)) and not logits.requires_grad


def test_logits_are_told_from_other_outputs():
    labels = torch.tensor([0, 1])
    assert answers_are_logits(torch.zeros(2, 5), labels)
    assert answers_are_logits(torch.zeros(2, 5, 7), torch.zeros(2, 7).long())
    others = [torch.zeros(2, 1), torch.zeros(2, 5, 7), torch.zeros(2), torch.zeros(2, 5).long(), (labels,)]
    assert not any(answers_are_logits(outputs, labels) for outputs in others)
    assert not answers_are_logits(torch.zeros(2, 5), [labels])


def test_bad_settings_are_refused():
    for bad in ({"temperature": 0.0}, {"share": 1.5}):
        with pytest.raises(ValueError):
            distillation_loss(**bad)
