"""Plans for elements that keep their bits, all of them or the nonzero ones, by byte planes (spec 7.2)."""

from __future__ import annotations

import numpy as np

from .block_elements import gaps_of
from .code_cost import Prefer
from .codings import byte_codings, gap_codings
from .layout_choice import Plan, PlannedSlice, planned_slice
from .planes import byte_plane
from .streams import StreamKind
from .tensor import Layout, RawTensor

_MIN_PLANE_GAIN = 0.005
_PLANE_TABLE_BYTES = 48
_MAX_RAW_DENSITY = 0.97


def raw_elements(tensor: RawTensor) -> np.ndarray:
    """Bits of all elements as unsigned integers, C order."""
    return np.ascontiguousarray(tensor.bits).reshape(-1).view(f"<u{tensor.dtype.itemsize}")


def stored_elements(tensor: RawTensor, plan: Plan) -> RawTensor:
    """Return the elements that a plan stores: those with nonzero bits, or all."""
    if plan.layout is not Layout.RAW_SPARSE:
        return tensor
    elements = raw_elements(tensor)
    kept = elements[np.flatnonzero(elements)].view(tensor.dtype.storage_dtype)
    return RawTensor(bits=kept, dtype=tensor.dtype)


def raw_plans(tensor: RawTensor, prefer: Prefer) -> list[Plan]:
    """Return the plan for all elements and, if many are zero, one for the others; best first."""
    elements = raw_elements(tensor)
    if elements.size and bool((elements == elements[0]).all()):
        return [Plan(layout=Layout.CONSTANT)]
    plans = [_with_planes(Plan(layout=Layout.RAW), tensor, prefer)]
    if 0 < np.count_nonzero(elements) < _MAX_RAW_DENSITY * elements.size:
        plan = Plan(layout=Layout.RAW_SPARSE)
        codings = gap_codings(gaps_of(np.flatnonzero(elements)), prefer)
        plan.slices.append(planned_slice("positions", StreamKind.GAPS, codings, prefer))
        plan.own_bytes = plan.slices[0].own_bytes
        plans.append(_with_planes(plan, stored_elements(tensor, plan), prefer))
    return sorted(plans, key=lambda plan: plan.own_bytes)


def _with_planes(plan: Plan, tensor: RawTensor, prefer: Prefer) -> Plan:
    """Add byte planes to a plan: those worth a code as slices, the bytes of the others to its cost."""
    slices, n_plain = plane_slices(tensor, "plane", prefer)
    plan.slices.extend(slices)
    plan.fixed_bytes += n_plain
    plan.own_bytes += n_plain + sum(min(item.own_bytes, tensor.bits.size) for item in slices)
    return plan


def plane_slices(raw: RawTensor, role: str, prefer: Prefer) -> tuple[list[PlannedSlice], int]:
    """Return the byte planes of raw elements that are worth a code, and the bytes of the others."""
    n_bytes, n_plain = raw.bits.size, 0
    slices = []
    for number in range(raw.dtype.itemsize):
        codings = byte_codings(byte_plane(raw.bits, raw.dtype, number))
        item = planned_slice(f"{role}{number}", StreamKind.PLANE, codings, prefer)
        coded = item.own_bytes < n_bytes + _PLANE_TABLE_BYTES
        if coded and codings.entropy_bytes() < (1 - _MIN_PLANE_GAIN) * n_bytes:
            slices.append(item)
        else:
            n_plain += n_bytes
    return slices, n_plain
