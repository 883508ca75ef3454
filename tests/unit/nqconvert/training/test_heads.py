import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nqconvert.training.pruning.heads import (  # noqa: E402
    HeadGroup,
    PrunedAttention,
    find_heads,
    head_scores,
    heads_to_keep,
    shrink_heads,
)

WIDTH, N_HEADS, PLACES = 16, 4, 5


def encoder(*, batch_first=True, bias=True):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, N_HEADS, 24, dropout=0.0, batch_first=batch_first, bias=bias
    )
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def silence(attention, heads):
    """Make heads write nothing."""
    with torch.no_grad():
        for head in heads:
            attention.out_proj.weight[:, head * attention.head_dim : (head + 1) * attention.head_dim] = 0


class Linear(torch.nn.Module):
    """Attention of linear layers that takes the number of heads from their widths."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            layer(x).reshape(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v
        return self.o(mixed.transpose(1, 2).reshape(*x.shape[:2], -1))


@pytest.mark.parametrize(("batch_first", "bias"), [(True, True), (False, True), (True, False)])
def test_a_transformer_without_its_silent_heads_answers_the_same(batch_first, bias):
    module = encoder(batch_first=batch_first, bias=bias)
    names = find_heads(module)
    assert names == ["layers.0.self_attn", "layers.1.self_attn"]
    silence(module.layers[0].self_attn, [1, 3])
    silence(module.layers[1].self_attn, [0])
    assert (head_scores(module, names[0]) == 0).tolist() == [False, True, False, True]
    keep = {name: heads_to_keep(module, name, count) for name, count in zip(names, (2, 3), strict=True)}
    small = shrink_heads(module, keep)
    x = torch.randn(3, PLACES, WIDTH) if batch_first else torch.randn(PLACES, 3, WIDTH)
    mask = torch.full((PLACES, PLACES), -torch.inf).triu(1)
    with torch.no_grad():
        for masked in ({}, {"mask": mask}, {"mask": mask == -torch.inf}):
            assert torch.allclose(small(x, **masked), module(x, **masked), atol=1e-5)
    assert small.layers[0].self_attn.num_heads == 2 and small.layers[0].self_attn.value.out_features == 8
    assert find_heads(module) == names, "the module that was given stays as it was"


def test_padding_is_left_out_as_before():
    module = encoder()
    silence(module.layers[0].self_attn, [2])
    small = shrink_heads(module, {"layers.0.self_attn": [0, 1, 3]})
    padding = torch.zeros(2, PLACES, dtype=torch.bool)
    padding[1, 3:] = True
    x = torch.randn(2, PLACES, WIDTH)
    with torch.no_grad():
        difference = small(x, src_key_padding_mask=padding) - module(x, src_key_padding_mask=padding)
    assert float(difference[~padding].abs().max()) < 1e-5


def test_linear_layers_that_are_heads_become_smaller():
    torch.manual_seed(1)
    module = Linear()
    group = HeadGroup(inputs=("q", "k", "v"), output="o", n_heads=4)
    with torch.no_grad():
        module.v.weight[4:8] = 0
        module.v.bias[4:8] = 0
    small = shrink_heads(module, {group: heads_to_keep(module, group, 3)})
    x = torch.randn(2, PLACES, WIDTH)
    assert torch.allclose(small(x), module(x), atol=1e-6)
    assert [getattr(small, name).weight.shape for name in "qkvo"] == [(12, 16)] * 3 + [(16, 12)]


def test_a_smaller_transformer_trains_on_and_becomes_a_file(tmp_path):
    import nqconvert
    from nqruntime import InferenceSession

    module = shrink_heads(encoder(), {"layers.0.self_attn": [0, 2], "layers.1.self_attn": [1]})
    module.train()
    module(torch.randn(2, PLACES, WIDTH)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.eval()
    x = torch.randn(3, PLACES, WIDTH)
    nqconvert.convert(module, tmp_path / "a.nqz", example_inputs=x, preset="lossless")
    session = InferenceSession(tmp_path / "a.nqz")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-5)


def test_what_is_no_attention_and_heads_that_do_not_exist_are_refused():
    module = encoder()
    with pytest.raises(ValueError, match="is no MultiheadAttention; these are: layers"):
        head_scores(module, "layers.0.linear1")
    with pytest.raises(ValueError, match="there are 4 heads, 5 cannot be kept"):
        heads_to_keep(module, "layers.0.self_attn", 5)
    with pytest.raises(ValueError, match="heads must be some of 0 to 3"):
        shrink_heads(module, {"layers.0.self_attn": [4]})
    with pytest.raises(ValueError, match="names no layers, or none of this module: nothing"):
        head_scores(Linear(), HeadGroup(inputs=("q", "nothing"), output="o", n_heads=4))
    with pytest.raises(ValueError, match="16 values are not 3 heads"):
        head_scores(Linear(), HeadGroup(inputs=("v",), output="o", n_heads=3))
    other = torch.nn.MultiheadAttention(WIDTH, N_HEADS, kdim=8)
    with pytest.raises(ValueError, match="other key or value widths"):
        PrunedAttention(other, torch.arange(2))
