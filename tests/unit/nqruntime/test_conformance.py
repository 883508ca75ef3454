"""The node cases of the onnx package: the native engine computes them right or says why it does not."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

import nqformat
from nqformat.errors import UnsupportedFeatureError
from nqformat.kernels import compiled
from nqruntime import InferenceSession
from nqruntime.engines import builder
from nqruntime.kernels.library import COMPUTE
from nqruntime.lowering.known import Known
from nqruntime.lowering.moved import Moved
from nqruntime.lowering.reader import SegmentReader
from nqruntime.lowering.sequence_reader import READERS
from nqruntime.lowering.view import View

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.case.node import collect_testcases

HALF_PLACES = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
# Cases whose inputs the suite gives as protobuf messages, not arrays.
ARRAYS = (np.ndarray, np.generic, int, float)


@pytest.fixture(scope="module")
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


def agrees(found, expected, case):
    """Whether type, shape and elements are those that the suite expects, by its own tolerances.

    The suite rounds half precision after every operator, this engine at the outputs only: results may be two
    places of the type apart.
    """
    expected = np.asarray(expected)
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    place = HALF_PLACES.get(expected.dtype.name)
    if place is not None and expected.size and not np.array_equal(found, expected):
        found, expected = found.astype(np.float32), expected.astype(np.float32)
        largest = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        return np.allclose(found, expected, rtol=0, atol=2 * place * largest, equal_nan=True)
    if expected.dtype.kind != "f":
        return np.array_equal(found, expected)
    return np.allclose(found, expected, rtol=case.rtol or 1e-3, atol=case.atol or 1e-7, equal_nan=True)


def verdict(case, path):
    """Return ``passed``, ``declined`` or what is wrong."""
    nqformat.save_file({}, path, graph=case.model.SerializeToString())
    try:
        session = InferenceSession(path, engine="native")
    except UnsupportedFeatureError:
        return "declined"
    names = [value.name for value in case.model.graph.input]
    for inputs, outputs in case.data_sets:
        feeds = {name: value for name, value in zip(names, inputs, strict=False) if value is not None}
        if not all(isinstance(value, ARRAYS) for value in feeds.values()):
            return "not arrays"
        try:
            found = session.run(None, feeds)
        except UnsupportedFeatureError:
            return "declined"
        if not all(agrees(a, b, case) for a, b in zip(found, outputs, strict=True)):
            return f"wrong: {case.name}"
    return "passed"


def test_every_case_passes_or_is_declined_by_name(cases, tmp_path):
    found = Counter(verdict(case, tmp_path / "case.nqz") for case in cases)
    assert set(found) <= {"passed", "declined", "not arrays"}, found
    assert found["passed"] >= 960 and found["not arrays"] <= 20


def computes(reader):
    """Whether a segment has any step."""
    return any(not isinstance(operation, Known | Moved | View) for operation in reader.operations)


def test_the_same_with_machine_code_for_every_node_that_it_knows(cases, tmp_path, monkeypatch):
    library = compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0)
    if library is None:
        pytest.skip("no compiled kernels on this machine")
    monkeypatch.setattr(builder, "compute_library", lambda n_multiplications: library)
    monkeypatch.setattr(SegmentReader, "is_worth_it", property(computes))
    known = [case for case in cases if any(node.op_type in READERS for node in case.model.graph.node)]
    found = Counter(verdict(case, tmp_path / "case.nqz") for case in known)
    assert set(found) <= {"passed", "declined", "not arrays"}, found
    assert found["passed"] >= 300
