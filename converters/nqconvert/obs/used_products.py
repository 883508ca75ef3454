"""Which weights of a graph have products whose Hessians can be measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nqconvert.graphs.products import Product, find_products
from nqformat.tensor import ViewTensor

__all__ = ["NO_PRODUCTS", "used_products"]

NO_PRODUCTS = "method 'obs': no weight outside If, Loop and Scan is multiplied with an activation"


def used_products(
    graph: Any,
    arrays: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    views: Mapping[str, ViewTensor],
) -> dict[str, list[Product]]:
    """Return products by stored weight; where several see it differently, those that see it as the first."""
    by_weight: dict[str, list[Product]] = {}
    found = list(find_products(graph, {name: array.shape for name, array in arrays.items()}))
    shared = Counter(product.bias for product in found)
    for product in found:
        name = _stored_name(product.weight, arrays, views)
        if name not in weights or not product.is_matrix:
            continue
        alone = (
            shared[product.bias] == 1 and product.operator != "ConvTranspose" and product.bias not in views
        )
        known = by_weight.setdefault(name, [])
        if not known or _same_view(known[0], product):
            known.append(product if alone else replace(product, bias=None))
    return {
        name: products if len(products) == 1 else [replace(p, bias=None) for p in products]
        for name, products in by_weight.items()
    }


def _same_view(one: Product, other: Product) -> bool:
    return (one.weight, one.operator, one.weight_axis, one.n_groups) == (
        other.weight,
        other.operator,
        other.weight_axis,
        other.n_groups,
    )


def _stored_name(name: str, arrays: Mapping[str, np.ndarray], views: Mapping[str, ViewTensor]) -> str:
    """Return the stored tensor that a graph's tensor is or is a permutation of; empty for other views."""
    view = views.get(name)
    if view is None:
        return name
    stored = arrays[view.sources[0].name]
    if len(view.sources) > 1 or view.shape != tuple(stored.shape[axis] for axis in view.permutation):
        return ""
    return view.sources[0].name
