"""Structured pruning of attention: whole heads go, and the projections around them become smaller."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["HeadGroup", "PrunedAttention", "find_heads", "head_scores", "heads_to_keep", "shrink_heads"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadGroup:
    """Attention written with linear layers: what goes into the heads, and what reads them.

    The module's ``forward`` must take the number of heads from the widths of these layers, such as by
    ``reshape(batch, places, -1, head_width)``, not from a constant.

    Attributes
    ----------
    inputs : tuple of str
        Names of the linear layers whose outputs are heads side by side: query, key and value, value last.
    output : str
        Name of the linear layer that reads the heads side by side.
    n_heads : int
    """

    inputs: tuple[str, ...]
    output: str
    n_heads: int


class PrunedAttention(torch.nn.Module):
    """:class:`torch.nn.MultiheadAttention` with fewer heads, in its place; head widths stay as they were.

    Parameters
    ----------
    attention : torch.nn.MultiheadAttention
        With one projection weight for query, key and value, without added keys.
    heads : tensor of int64
        Which to keep, ascending.
    """

    in_proj_bias = None  # torch's encoder layer asks for it, and then calls forward
    _qkv_same_embed_dim = False

    def __init__(self, attention: torch.nn.MultiheadAttention, heads: torch.Tensor) -> None:
        super().__init__()
        _check_attention(attention)
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self.head_dim, self.num_heads = attention.head_dim, heads.numel()
        places = _places(heads, attention.head_dim)
        width = attention.embed_dim
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.split(width)
        weights = attention.in_proj_weight.split(width)
        self.query, self.key, self.value = (
            _linear(weight[places], None if bias is None else bias[places])
            for weight, bias in zip(weights, biases, strict=True)
        )
        self.out_proj = _linear(attention.out_proj.weight[:, places], attention.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, None]:
        """Return what the heads found, in the shape of `query`, and None for the weights, which are not kept.

        Masks are as of :class:`torch.nn.MultiheadAttention`, `attn_mask` of shape (places, places).
        """
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        q, k, v = (
            layer(part).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, part in ((self.query, query), (self.key, key), (self.value, value))
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_joined_mask(attn_mask, key_padding_mask, query.dtype),
            dropout_p=self.dropout if self.training else 0.0,
        )
        found = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (found if self.batch_first else found.transpose(0, 1)), None


def _check_attention(attention: torch.nn.MultiheadAttention) -> None:
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError(
            "heads of an attention with other key or value widths or added keys cannot be pruned"
        )


def _joined_mask(
    attn_mask: torch.Tensor | None, padding: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor | None:
    """Return what is added to the scores, of shape (places, places) or (batch, 1, 1 or places, places)."""
    parts = [
        torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
        if mask.dtype is torch.bool
        else mask
        for mask in (attn_mask, None if padding is None else padding[:, None, None])
        if mask is not None
    ]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _places(heads: torch.Tensor, head_width: int) -> torch.Tensor:
    return (heads[:, None] * head_width + torch.arange(head_width)).flatten()


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = torch.nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().clone())
    return layer


def find_heads(module: torch.nn.Module) -> list[str]:
    """Return the names of the attention layers whose heads can be pruned without being told what they are.

    Examples
    --------
    >>> import torch
    >>> find_heads(torch.nn.TransformerEncoderLayer(16, 4, batch_first=True))
    ['self_attn']
    """
    kinds = torch.nn.MultiheadAttention
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]


def head_scores(module: torch.nn.Module, attention: str | HeadGroup) -> torch.Tensor:
    """Return how much each head may write: the root mean square of its value times its output projection.

    Parameters
    ----------
    module : torch.nn.Module
    attention : str or HeadGroup
        Name of a :class:`torch.nn.MultiheadAttention`, or layers that are one.

    Returns
    -------
    tensor, shape (n_heads,)
        Zero where a head writes nothing but a constant.

    Source : the linear map of a head, Elhage et al. 2021, "A mathematical framework for transformer
        circuits" (output-value circuit); Michel, Levy, Neubig 2019, "Are sixteen heads really better than
        one?", prune by gradients instead
    """
    value, output, n_heads = _value_and_output(module, attention)
    width = value.shape[0] // n_heads
    maps = torch.einsum(
        "ohw,hwi->hoi", output.unflatten(1, (n_heads, width)), value.unflatten(0, (n_heads, width))
    )
    return maps.square().mean((1, 2)).sqrt()


def _value_and_output(
    module: torch.nn.Module, attention: str | HeadGroup
) -> tuple[torch.Tensor, torch.Tensor, int]:
    modules: dict[str, Any] = dict(module.named_modules())
    if isinstance(attention, HeadGroup):
        unknown = [name for name in (*attention.inputs, attention.output) if name not in modules]
        if unknown or not attention.inputs:
            raise ValueError(f"a head group names no layers, or none of this module: {', '.join(unknown)}")
        value, output = (modules[name].weight.detach() for name in (attention.inputs[-1], attention.output))
        if value.shape[0] % attention.n_heads or output.shape[1] != value.shape[0]:
            raise ValueError(f"{value.shape[0]} values are not {attention.n_heads} heads that are read")
        return value, output, attention.n_heads
    layer = modules.get(attention)
    if not isinstance(layer, torch.nn.MultiheadAttention):
        raise ValueError(
            f"{attention!r} is no MultiheadAttention; these are: {', '.join(find_heads(module))}"
        )
    _check_attention(layer)
    value = layer.in_proj_weight.detach().split(layer.embed_dim)[2]
    return value, layer.out_proj.weight.detach(), layer.num_heads


def heads_to_keep(module: torch.nn.Module, attention: str | HeadGroup, count: int) -> torch.Tensor:
    """Return the `count` heads of highest score, ascending.

    Raises
    ------
    ValueError
        If there are fewer, or `count` is not positive.
    """
    scores = head_scores(module, attention)
    if not 1 <= count <= scores.numel():
        raise ValueError(f"there are {scores.numel()} heads, {count} cannot be kept")
    return scores.topk(count).indices.sort().values


def shrink_heads(
    module: torch.nn.Module, keep: Mapping[str | HeadGroup, Sequence[int] | torch.Tensor]
) -> torch.nn.Module:
    """Return a copy of `module` without some heads of its attention layers.

    Parameters
    ----------
    module : torch.nn.Module
    keep : mapping of str or HeadGroup to sequence of int
        Heads to keep, by the name of a :class:`torch.nn.MultiheadAttention`, whose place a
        :class:`PrunedAttention` takes, or by linear layers.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    ValueError
        If something is no attention, or has no such heads.

    Examples
    --------
    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(16, 4, batch_first=True)
    >>> small = shrink_heads(layer, {"self_attn": heads_to_keep(layer, "self_attn", 3)})
    >>> small.self_attn.num_heads, small(torch.zeros(1, 5, 16)).shape
    (3, torch.Size([1, 5, 16]))
    """
    small = copy.deepcopy(module)
    for attention, heads in keep.items():
        chosen = torch.as_tensor(heads, dtype=torch.int64)
        value, _, n_heads = _value_and_output(small, attention)
        if chosen.numel() == 0 or not bool(((chosen >= 0) & (chosen < n_heads)).all()):
            raise ValueError(f"heads must be some of 0 to {n_heads - 1}, not {chosen.tolist()}")
        if isinstance(attention, HeadGroup):
            _take_heads(small, attention, _places(chosen, value.shape[0] // n_heads))
        else:
            layer: Any = small.get_submodule(attention)
            parent, _, name = attention.rpartition(".")
            setattr(small.get_submodule(parent), name, PrunedAttention(layer, chosen))
    return small


def _take_heads(module: torch.nn.Module, group: HeadGroup, places: torch.Tensor) -> None:
    for name in group.inputs:
        layer: Any = module.get_submodule(name)
        layer.weight = torch.nn.Parameter(layer.weight.detach()[places].clone())
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer.bias.detach()[places].clone())
        layer.out_features = places.numel()
    output: Any = module.get_submodule(group.output)
    output.weight = torch.nn.Parameter(output.weight.detach()[:, places].clone())
    output.in_features = places.numel()
