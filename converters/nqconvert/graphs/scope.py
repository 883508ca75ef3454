"""Names and scopes of an ONNX graph and of the If, Loop and Scan bodies inside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from itertools import count
from typing import Any

from nqformat.optional_packages import require_package

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def node_attributes(node: Any) -> dict[str, Any]:
    """Return the values of a node's attributes by name."""
    helper = require_package("onnx").helper
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def node_subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs held by the attributes of `node`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def walk_graphs(graph: Any) -> Iterator[Any]:
    """Yield `graph` and every graph nested in it, outermost first."""
    yield graph
    for node in graph.node:
        for body in node_subgraphs(node):
            yield from walk_graphs(body)


def walk_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of `graph` and of every graph nested in it."""
    for scope in walk_graphs(graph):
        yield from scope.node


def defined_names(graph: Any) -> list[str]:
    """Return the names that `graph` itself defines, nested graphs left out, in order."""
    names = [value.name for value in graph.input]
    names += [tensor.name for tensor in graph.initializer]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    names += [name for node in graph.node for name in node.output]
    return [name for name in dict.fromkeys(names) if name]


def all_names(graph: Any) -> set[str]:
    """Return every value name that occurs anywhere in `graph`."""
    names: set[str] = set()
    for scope in walk_graphs(graph):
        names.update(defined_names(scope))
        names.update(value.name for value in scope.output)
        names.update(name for node in scope.node for name in node.input)
    names.discard("")
    return names


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, with a number appended if it is taken, and add it to `taken`."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


def short_names(taken: Container[str]) -> Iterator[str]:
    """Yield a, b, ..., z, aa, ab, ... without the names that are in `taken` when their turn comes."""
    for number in count():
        name, rest = "", number
        while True:
            name = _LETTERS[rest % 26] + name
            rest = rest // 26 - 1
            if rest < 0:
                break
        if name not in taken:
            yield name


def count_uses(graph: Any) -> Counter[str]:
    """Count node inputs and graph outputs by name, over all scopes.

    Scopes are not told apart, so a name defined twice counts for both: never too few uses.
    """
    uses: Counter[str] = Counter()
    for scope in walk_graphs(graph):
        uses.update(name for node in scope.node for name in node.input if name)
        uses.update(value.name for value in scope.output)
    return uses


def free_names(graph: Any) -> list[str]:
    """Return the names that nodes or outputs use and nothing in scope defines, in order of first use."""
    found: dict[str, None] = {}
    _collect_free(graph, frozenset(), found)
    return list(found)


def _collect_free(graph: Any, outer: frozenset[str], found: dict[str, None]) -> None:
    """Add the free names of `graph` to `found`; `outer` holds what enclosing graphs define."""
    scope = outer | set(defined_names(graph))
    for node in graph.node:
        found.update((name, None) for name in node.input if name and name not in scope)
        for body in node_subgraphs(node):
            _collect_free(body, scope, found)
    found.update((value.name, None) for value in graph.output if value.name not in scope)


def rename_uses(graph: Any, renames: Mapping[str, str]) -> None:
    """Rename what nodes read, here and in nested graphs that do not define the name themselves.

    Outputs of a nested graph are renamed too; those of `graph` itself and all definitions stay.
    """
    if not renames:
        return
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in renames:
                node.input[position] = renames[name]
        for body in node_subgraphs(node):
            own = set(defined_names(body))
            visible = {old: new for old, new in renames.items() if old not in own}
            rename_uses(body, visible)
            for value in body.output:
                value.name = visible.get(value.name, value.name)
