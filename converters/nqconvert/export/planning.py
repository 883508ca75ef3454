"""Decide how each tensor of a model is written in a form, then write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqconvert.graphs.scope import count_uses, defined_names, walk_graphs
from nqformat import TensorInfo
from nqformat.errors import ConversionError
from nqformat.tensor import ViewTensor

from .building import Chain, GraphRewrite, is_gather_of, make_node
from .forms import Form, Subject, TensorEncoding
from .forms.form import GatheredEncoding, JoinedEncoding
from .forms.half import HalfEncoding
from .pending import PendingInitializer, dense_initializer
from .report import ExportedTensor
from .restore import StoredModel, TensorFile

_VIEW_OPSET = 13
_SHOWN_REASONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """How the tensors of a model are going to be written; those in no group are dense.

    Attributes
    ----------
    encodings : dict of str to TensorEncoding
        By the name in the file; tensors that only views need are among them.
    views : dict of str to ViewTensor
        Tensors that nodes make of encoded ones.
    reasons : dict of str to str
        Why each other tensor stays dense.
    gathered : frozenset of str
        Encoded tensors whose rows are decoded after they were gathered.
    """

    encodings: dict[str, TensorEncoding] = field(default_factory=dict)
    views: dict[str, ViewTensor] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    gathered: frozenset[str] = frozenset()

    @property
    def lowest_opset(self) -> int:
        """First opset at which everything can be written."""
        lowest = [encoding.lowest_opset for encoding in self.encodings.values()]
        return max([*lowest, _VIEW_OPSET if self.views else 0], default=0)

    @property
    def best_opset(self) -> int:
        """Opset from which on the model is smallest."""
        return max([e.best_opset for e in self.encodings.values()] + [self.lowest_opset])

    def rounded(self) -> dict[str, np.ndarray]:
        """Return the bits of tensors that the form rounds, widened to float32."""
        rounds = {n: e for n, e in self.encodings.items() if isinstance(e, HalfEncoding) and not e.exact}
        return {name: encoding.widened() for name, encoding in rounds.items()}


def plan_model(file: TensorFile, stored: StoredModel, form: Form | None, form_name: str) -> ModelPlan:
    """Encode all tensors of a model.

    Raises
    ------
    ConversionError
        If the form needs tensors of a kind that the model has none of.
    """
    if form is None:
        return ModelPlan()
    planner = _Planner(
        file=file,
        stored=stored,
        form=form,
        gathered=_gathered_names(stored),
        viewed=frozenset(_viewed_names(file, stored)) if form.keeps_views else frozenset(),
    )
    for info in stored.tensors:
        planner.add(info)
    plan = planner.plan()
    if form.required and not plan.encodings:
        shown = [f"{name}: {reason}" for name, reason in list(plan.reasons.items())[:_SHOWN_REASONS]]
        more = len(plan.reasons) - len(shown)
        raise ConversionError(
            f"form {form_name} needs {form.required}, and no tensor is of that kind ("
            + "; ".join([*shown, *([f"and {more} more"] if more > 0 else [])])
            + ")"
        )
    return plan


@dataclass(slots=True, kw_only=True)
class _Planner:
    """Encodings found so far."""

    file: TensorFile
    stored: StoredModel
    form: Form
    gathered: frozenset[str]
    viewed: frozenset[str]
    tried: dict[str, TensorEncoding | str] = field(default_factory=dict)
    views: dict[str, ViewTensor] = field(default_factory=dict)
    plain: list[str] = field(default_factory=list)

    def add(self, info: TensorInfo) -> None:
        """Plan one tensor of the graph."""
        view = self.file.view(info.name) if self.form.keeps_views else None
        if view is not None and self._are_encoded(view, info):
            self.views[info.name] = view
        else:
            self._encoded(info)
            self.plain.append(info.name)

    def plan(self) -> ModelPlan:
        """Return the plan of all tensors that were added."""
        needed = [source.name for view in self.views.values() for source in view.sources]
        found = {name: self.tried[name] for name in dict.fromkeys([*self.plain, *needed])}
        encodings = {name: e for name, e in found.items() if not isinstance(e, str)}
        return ModelPlan(
            encodings=encodings,
            views=self.views,
            reasons={name: reason for name, reason in found.items() if isinstance(reason, str)},
            gathered=frozenset(n for n, e in encodings.items() if n in self.gathered and _is_gathered(e)),
        )

    def _are_encoded(self, view: ViewTensor, info: TensorInfo) -> bool:
        """Tell whether all sources of a view can be encoded and are not much larger than it."""
        names = {source.name for source in view.sources}
        known = {tensor.name for tensor in self.stored.tensors}
        infos = [self.file.info(name) for name in names]
        extra = sum(source.n_elements for source in infos if source.name not in known)
        if extra > info.n_elements:
            return False
        return not any(isinstance(self._encoded(source), str) for source in infos)

    def _encoded(self, info: TensorInfo) -> TensorEncoding | str:
        if info.name not in self.tried:
            subject = Subject(
                file=self.file,
                stored=self.stored,
                info=info,
                gathered=info.name in self.gathered,
                viewed=info.name in self.viewed,
            )
            self.tried[info.name] = self.form.encode(subject)
        return self.tried[info.name]


def write_plan(
    file: TensorFile, stored: StoredModel, plan: ModelPlan, model: Any, opset: int
) -> tuple[list[PendingInitializer], tuple[ExportedTensor, ...]]:
    """Add the nodes of a plan to `model` and return the initializers that it then needs, and a report.

    Parameters
    ----------
    file : TensorFile
    stored : StoredModel
    plan : ModelPlan
    model : onnx.ModelProto
        Changed in place.
    opset : int
        Of `model`.
    """
    rewrite = GraphRewrite.of(model, opset)
    read = {info.name for info in stored.tensors}
    viewed = {source.name for view in plan.views.values() for source in view.sources}
    values: dict[str, str] = {}
    joined: dict[str, JoinedEncoding] = {}
    tensors: dict[str, ExportedTensor] = {}
    for name in [*(info.name for info in stored.tensors), *(n for n in plan.encodings if n not in read)]:
        info = file.info(name)
        encoding = plan.encodings.get(name)
        if name in plan.views:
            tensors[name] = _exported(info, f"view of {_sources(plan.views[name])}", 0)
        elif encoding is None:
            rewrite.pending.append(dense_initializer(file, info))
            tensors[name] = _exported(info, "dense", info.plain_bytes, plan.reasons.get(name, ""))
        elif isinstance(encoding, JoinedEncoding):
            values[name] = name if name in read else rewrite.name()
            joined[values[name]] = encoding
            tensors[name] = _exported(info, "", 0)
        else:
            values[name] = _write_encoding(
                rewrite, name, encoding, plan, is_read=name in read, is_viewed=name in viewed
            )
            tensors[name] = _exported(info, encoding.label(opset), encoding.n_bytes(opset))
    if joined:
        written = next(iter(joined.values())).write_together(rewrite, joined)
        by_value = {value: name for name, value in values.items()}
        for value, (label, n_bytes) in written.items():
            tensors[by_value[value]] = _exported(file.info(by_value[value]), label, n_bytes)
    for name, view in plan.views.items():
        _write_view(rewrite, name, view, values, file)
    rewrite.finish()
    return rewrite.pending, tuple(tensors.values())


def _write_encoding(
    rewrite: GraphRewrite,
    name: str,
    encoding: TensorEncoding,
    plan: ModelPlan,
    *,
    is_read: bool,
    is_viewed: bool,
) -> str:
    """Write one tensor; return the name of its decoded value."""
    if name in plan.gathered and isinstance(encoding, GatheredEncoding):
        whole = rewrite.name() if is_viewed else None
        encoding.write_gathered(rewrite, name, whole=whole)
        return whole or name
    value = name if is_read else rewrite.name()
    encoding.write(rewrite, value)
    return value


def _write_view(
    rewrite: GraphRewrite, name: str, view: ViewTensor, values: Mapping[str, str], file: TensorFile
) -> None:
    """Add the nodes that make a view of decoded tensors."""
    parts = []
    for source in view.sources:
        part = Chain(rewrite, values[source.name])
        if (source.start, source.stop) != (0, file.info(source.name).shape[0]):
            starts, stops = part.integers((source.start,)), part.integers((source.stop,))
            part.add("Slice", starts, stops, part.integers((0,)))
        rewrite.decoders.extend(part.nodes)
        parts.append(part.value)
    chain = Chain(rewrite, parts[0])
    if len(parts) > 1:
        chain.add("Concat", *parts[1:], axis=0)
    if view.permutation != tuple(range(len(view.permutation))):
        chain.add("Transpose", perm=list(view.permutation))
    if _unshaped(view, file) != view.shape:
        chain.reshape(view.shape)
    if not chain.nodes:
        rewrite.decoders.append(make_node("Identity", [chain.value], name))
    else:
        chain.end(name)


def _unshaped(view: ViewTensor, file: TensorFile) -> tuple[int, ...]:
    """Return the shape of a view before it is reshaped."""
    rows = sum(source.stop - source.start for source in view.sources)
    joined = (rows, *file.info(view.sources[0].name).shape[1:])
    return tuple(joined[axis] for axis in view.permutation)


def _sources(view: ViewTensor) -> str:
    return ", ".join(dict.fromkeys(source.name for source in view.sources))


def _exported(info: TensorInfo, form: str, stored_bytes: int, reason: str = "") -> ExportedTensor:
    return ExportedTensor(
        name=info.name, form=form, stored_bytes=stored_bytes, dense_bytes=info.plain_bytes, reason=reason
    )


def _is_gathered(encoding: TensorEncoding) -> bool:
    """Tell whether an encoding decodes after Gather nodes."""
    return isinstance(encoding, GatheredEncoding) and bool(getattr(encoding, "gathered", True))


def _viewed_names(file: TensorFile, stored: StoredModel) -> Iterator[str]:
    """Yield the tensors that views in the graph take elements from."""
    for info in stored.tensors:
        view = file.view(info.name)
        yield from () if view is None else (source.name for source in view.sources)


def _gathered_names(stored: StoredModel) -> frozenset[str]:
    """Return the tensors whose only consumers are Gather nodes that take rows of them."""
    graph = stored.model.graph
    uses = count_uses(graph)
    names = {info.name for info in stored.tensors}
    hidden = {name for scope in walk_graphs(graph) for name in defined_names(scope)} & names
    gathers: dict[str, int] = {}
    for name in _rows_taken(graph):
        gathers[name] = gathers.get(name, 0) + 1
    return frozenset(n for n, count in gathers.items() if n in names - hidden and count == uses[n])


def _rows_taken(graph: Any) -> Iterator[str]:
    """Yield what Gather nodes take rows of."""
    for scope in walk_graphs(graph):
        for node in scope.node:
            if node.input and is_gather_of(node, node.input[0]):
                yield node.input[0]
