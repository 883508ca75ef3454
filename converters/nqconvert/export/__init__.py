"""ONNX models from .nqz files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import nqformat
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .forms import DENSE_DTYPES, EXPORT_FORMS, form_of
from .model_file import ModelFiles, move_into_place, staging_folder, write_model
from .opset import with_opset
from .planning import ModelPlan, plan_model, write_plan
from .report import ExportedTensor, ExportReport
from .restore import StoredModel, TensorFile, opset_of, read_stored_model
from .verify import (
    ReferenceRun,
    check_exported,
    check_outputs,
    output_difference,
    reference_run,
    run_exported,
)

__all__ = ["DENSE_DTYPES", "EXPORT_FORMS", "ExportReport", "ExportedTensor", "export_onnx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What the attempts to write a model, at one opset after the other, share.

    Attributes
    ----------
    rounded : ReferenceRun or None
        What the exported model has to compute, if that is not what the decoded weights give.
    """

    file: TensorFile
    stored: StoredModel
    plan: ModelPlan
    folder: Path
    name: str
    external: bool | None
    comparison: ReferenceRun | None
    rounded: ReferenceRun | None


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
    dtype: str | None = None,
    opset: int | None = None,
    verify: bool = True,
    external_data: bool | None = None,
    feeds: Mapping[str, np.ndarray] | np.ndarray | None = None,
    limits: nqformat.Limits | None = None,
) -> ExportReport:
    """Write the model of a .nqz file as ONNX.

    Parameters
    ----------
    source : path-like
        A .nqz file with a graph.
    target : path-like
        The .onnx file; replaced only after everything succeeded.
    form : {"dense", "codebook", "sparse", "qdq", "ort-nbits", "auto"}
        ``dense`` holds the decoded weights. ``codebook`` holds indices and tables that the graph looks
        up: about as many bits a weight as the index takes, bit-exact, and as fast as dense once loaded.
        ``sparse`` holds gaps and values of nonzeros that the graph puts into zeros, bit-exact too. ``auto``
        takes the smallest of these for each tensor. ``qdq`` holds integers and DequantizeLinear, for weights
        on a grid; ``ort-nbits`` MatMulNBits of ONNX Runtime, for matrices on a grid of 16 steps. Tensors that
        a form cannot carry are dense; the report says why.
    dtype : {"float16", "bfloat16"}, optional
        With form ``dense``: float32 tensors are stored in 16 bits and widened in the graph. Where that rounds
        values, the report says so.
    opset : int, optional
        Opset to write; default the graph's own, or 21 where 4-bit integers help.
    verify : bool
        Run ONNX's checker, then compare outputs in ONNX Runtime with a run on the decoded weights.
    external_data : bool, optional
        Put large tensors into ``<target>.data``; default only for models over 2 GiB.
    feeds : mapping of str to ndarray, or ndarray, optional
        Inputs by name, or the only one, to compare on; random ones by default.
    limits : Limits, optional
        For reading the source.

    Returns
    -------
    ExportReport

    Raises
    ------
    ConversionError
        If the file has no graph, no tensor suits the form, the opset cannot be had or the outputs differ;
        nothing is written.
    ValueError
        If `form` or `dtype` is unknown.
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
    form_of(form, dtype)
    require_package("onnx")
    with nqformat.safe_open(source, limits=limits, bfloat16="uint16") as file:
        return export_model(
            file,
            Path(target),
            form=form,
            dtype=dtype,
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
    dtype: str | None = None,
    opset: int | None,
    verify: bool,
    external_data: bool | None,
    feeds: Mapping[str, np.ndarray] | np.ndarray | None,
) -> ExportReport:
    """Export an open file; see :func:`export_onnx`."""
    stored = read_stored_model(file)
    plan = plan_model(file, stored, form_of(form, dtype), form)
    opsets = list(_opsets(stored, plan, form, opset))
    comparison = reference_run(file, stored, feeds) if verify else None
    rounded = None
    if comparison is not None and (changed := plan.rounded()):
        rounded = reference_run(file, stored, comparison.feeds, changed=changed)
    with staging_folder(target) as folder:
        job = _Job(
            file=file,
            stored=stored,
            plan=plan,
            folder=folder,
            name=target.name,
            external=external_data,
            comparison=comparison,
            rounded=rounded,
        )
        result, notes = _first_success(opsets, job)
        if form != "dense" and all(tensor.form == "dense" for tensor in result.tensors):
            notes.append(f"no tensor takes the {form} form, so all are dense")
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


def _opsets(stored: StoredModel, plan: ModelPlan, form: str, opset: int | None) -> Iterator[int]:
    """Yield the opsets to try, best first."""
    if opset is not None:
        if opset < plan.lowest_opset:
            raise ConversionError(f"the {form} form needs opset {plan.lowest_opset} or later, not {opset}")
        yield opset
        return
    best, lowest = max(stored.opset, plan.best_opset), max(stored.opset, plan.lowest_opset)
    yield best
    if lowest < best:
        yield lowest


def _first_success(opsets: list[int], job: _Job) -> tuple[_Result, list[str]]:
    """Return the first opset's model that can be written and verified, and notes on those before it."""
    notes: list[str] = []
    for opset in opsets[:-1]:
        try:
            return _write_at(opset, job), notes
        except ConversionError as error:
            notes.append(f"opset {opset} was given up: {error}")
    return _write_at(opsets[-1], job), notes


def _write_at(opset: int, job: _Job) -> _Result:
    """Write the model at one opset into the staging folder and verify it."""
    model = with_opset(job.stored.model, opset, job.stored.tensors)
    pending, tensors = write_plan(job.file, job.stored, job.plan, model, opset)
    files = write_model(model, pending, job.folder, job.name, external=job.external)
    notes: tuple[str, ...] = ()
    difference = None
    if job.comparison is not None:
        notes = check_exported(files.model_path, job.stored)
        outputs = run_exported(files.model_path, job.comparison)
        check_outputs(outputs, job.rounded or job.comparison)
        difference = output_difference(outputs, job.comparison)
    return _Result(files=files, opset=opset_of(model), tensors=tensors, difference=difference, notes=notes)
