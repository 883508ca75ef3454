"""ONNX models from .nqz files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nqformat
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .codebook import UINT4_OPSET, CodebookPlan, apply_codebooks, plan_codebooks
from .model_file import ModelFiles, move_into_place, staging_folder, write_model
from .opset import with_opset
from .pending import PendingInitializer, dense_initializer
from .report import ExportedTensor, ExportReport
from .restore import StoredModel, TensorFile, opset_of, read_stored_model
from .verify import ReferenceRun, check_exported, largest_difference, reference_run

__all__ = ["EXPORT_FORMS", "ExportReport", "ExportedTensor", "export_onnx"]

EXPORT_FORMS = ("dense", "codebook")
_LOWEST_CODEBOOK_OPSET = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One way to write the model: an opset, and how to make its initializers."""

    opset: int
    build: Callable[[Any], tuple[list[PendingInitializer], tuple[ExportedTensor, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What all attempts share."""

    stored: StoredModel
    folder: Path
    name: str
    external: bool | None
    comparison: ReferenceRun | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """A model written into the staging folder."""

    files: ModelFiles
    opset: int
    tensors: tuple[ExportedTensor, ...]
    difference: float | None
    notes: tuple[str, ...]


def export_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    form: str = "dense",
    opset: int | None = None,
    verify: bool = True,
    external_data: bool | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    limits: nqformat.Limits | None = None,
) -> ExportReport:
    """Write the model of a .nqz file as ONNX.

    Parameters
    ----------
    source : path-like
        A .nqz file with a graph.
    target : path-like
        The .onnx file; replaced only after everything succeeded.
    form : {"dense", "codebook"}
        ``dense`` holds the decoded weights. ``codebook`` holds indices and tables that the graph looks
        up: about as many bits a weight as the index takes, bit-exact, and as fast as dense once loaded.
    opset : int, optional
        Opset to write; default the graph's own, for ``codebook`` 21 where 4-bit indices help.
    verify : bool
        Run ONNX's checker, then compare outputs in ONNX Runtime with a run on the decoded weights.
    external_data : bool, optional
        Put large tensors into ``<target>.data``; default only for models over 2 GiB.
    feeds : mapping of str to ndarray, optional
        Inputs to compare on; random ones by default.
    limits : Limits, optional
        For reading the source.

    Returns
    -------
    ExportReport

    Raises
    ------
    ConversionError
        If the file has no graph, the opset cannot be had or the outputs differ; nothing is written.
    ValueError
        If `form` is unknown.
    OSError, FormatError
        If the source cannot be read or the target not be written.

    Examples
    --------
    >>> import tempfile
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, (2, 3)) for name in "xy")
    >>> graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y])
    >>> model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    >>> path = os.path.join(tempfile.mkdtemp(), "m.nqz")
    >>> n_bytes = nqformat.save_file({"w": np.eye(3, dtype="f4")[:2]}, path, graph=model.SerializeToString())
    >>> export_onnx(path, path.replace(".nqz", ".onnx")).max_difference
    0.0
    """
    if form not in EXPORT_FORMS:
        raise ValueError(f"form must be one of {', '.join(EXPORT_FORMS)}, not {form!r}")
    require_package("onnx")
    with nqformat.safe_open(source, limits=limits, bfloat16="uint16") as file:
        return export_model(
            file,
            Path(target),
            form=form,
            opset=opset,
            verify=verify,
            external_data=external_data,
            feeds=feeds,
        )


def export_model(
    file: TensorFile,
    target: Path,
    *,
    form: str,
    opset: int | None,
    verify: bool,
    external_data: bool | None,
    feeds: Mapping[str, np.ndarray] | None,
) -> ExportReport:
    """Export an open file; see :func:`export_onnx`."""
    stored = read_stored_model(file)
    attempts = list(_attempts(file, stored, form, opset))
    comparison = reference_run(file, stored, feeds) if verify else None
    with staging_folder(target) as folder:
        job = _Job(
            stored=stored, folder=folder, name=target.name, external=external_data, comparison=comparison
        )
        result, notes = _first_success(attempts, job)
        placed = move_into_place(result.files, target)
    return ExportReport(
        path=placed.model_path,
        data_path=placed.data_path,
        form=form,
        opset=result.opset,
        total_bytes=placed.total_bytes,
        tensors=result.tensors,
        max_difference=result.difference,
        notes=(*notes, *result.notes),
    )


def _first_success(attempts: list[_Attempt], job: _Job) -> tuple[_Result, list[str]]:
    """Return the first attempt that can be written and verified, and notes on those before it."""
    notes: list[str] = []
    for attempt in attempts[:-1]:
        try:
            return _write_attempt(attempt, job), notes
        except ConversionError as error:
            notes.append(f"opset {attempt.opset} was given up: {error}")
    return _write_attempt(attempts[-1], job), notes


def _write_attempt(attempt: _Attempt, job: _Job) -> _Result:
    """Write one form of the model into the staging folder and verify it."""
    model = with_opset(job.stored.model, attempt.opset, job.stored.tensors)
    pending, tensors = attempt.build(model)
    files = write_model(model, pending, job.folder, job.name, external=job.external)
    notes: tuple[str, ...] = ()
    difference = None
    if job.comparison is not None:
        notes = check_exported(files.model_path, job.stored)
        difference = largest_difference(files.model_path, job.comparison)
    return _Result(files=files, opset=opset_of(model), tensors=tensors, difference=difference, notes=notes)


def _attempts(file: TensorFile, stored: StoredModel, form: str, opset: int | None) -> Iterator[_Attempt]:
    """Yield the ways to write the model, best first."""
    if form == "dense":
        yield _Attempt(opset=opset or stored.opset, build=lambda _: _dense(file, stored))
        return
    plan = plan_codebooks(file, stored)
    if opset is not None:
        yield _codebook_attempt(file, stored, plan, opset)
        return
    own = max(stored.opset, _LOWEST_CODEBOOK_OPSET) if plan.tables else stored.opset
    if plan.wants_uint4 and own < UINT4_OPSET:
        yield _codebook_attempt(file, stored, plan, UINT4_OPSET)
    yield _codebook_attempt(file, stored, plan, own)


def _codebook_attempt(file: TensorFile, stored: StoredModel, plan: CodebookPlan, opset: int) -> _Attempt:
    """Return the attempt to write codebooks at one opset."""
    if plan.tables and opset < _LOWEST_CODEBOOK_OPSET:
        raise ConversionError(f"the codebook form needs opset {_LOWEST_CODEBOOK_OPSET} or later, not {opset}")
    uint4 = opset >= UINT4_OPSET
    return _Attempt(
        opset=opset, build=lambda model: apply_codebooks(file, stored.tensors, model, plan, uint4=uint4)
    )


def _dense(
    file: TensorFile, stored: StoredModel
) -> tuple[list[PendingInitializer], tuple[ExportedTensor, ...]]:
    """Return all tensors of the model as dense initializers."""
    pending = [dense_initializer(file, info) for info in stored.tensors]
    tensors = tuple(
        ExportedTensor(name=p.name, form="dense", stored_bytes=p.n_bytes, dense_bytes=p.n_bytes)
        for p in pending
    )
    return pending, tensors
