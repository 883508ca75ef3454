"""Which way to store weights is fastest on this machine: timed, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from nqformat.kernels.objects import KernelLibrary

from .context import Context, best_seconds
from .plan import PlanBuilder
from .plane_choice import PlaneChoice

_LARGE_BYTES = 1 << 18
_SLOWER = 1.5


class Stored(Protocol):
    """Weights in the order of a kernel."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        ...


Form = TypeVar("Form", bound=Stored)


def fastest(
    library: KernelLibrary,
    forms: Sequence[Form],
    append: Callable[[PlanBuilder, Form], None],
    *,
    low_memory: bool,
) -> Form:
    """Return the form whose steps are fastest, or one that is little slower and smaller than a large one.

    Parameters
    ----------
    forms : sequence of Form
    append : callable
        Appends the steps of a form to a plan, all areas being scratch memory.
    low_memory : bool
        Take the smallest.
    """
    by_size = sorted(forms, key=lambda form: form.weight_bytes)
    if len(by_size) == 1 or low_memory:
        return by_size[0]
    seconds = [_plan_seconds(library, partial(_append_form, append, form)) for form in by_size]
    best = min(seconds)
    large = by_size[seconds.index(best)].weight_bytes > _LARGE_BYTES
    limit = best * (_SLOWER if large else 1)
    return next(form for form, taken in zip(by_size, seconds, strict=True) if taken <= limit)


def _append_form(append: Callable[[PlanBuilder, Form], None], form: Form, plan: PlanBuilder) -> None:
    append(plan, form)


def _plan_seconds(library: KernelLibrary, append: Callable[[PlanBuilder], None]) -> float:
    """Time the steps of a form."""
    builder = PlanBuilder(PlaneChoice())
    append(builder)
    context = Context(builder.finish((), ()), (), library, shared=False)
    return best_seconds(lambda: context.run(()))
