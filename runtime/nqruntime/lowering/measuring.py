"""Which way to store weights is fastest on this machine: timed, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from nqformat.kernels.objects import KernelLibrary
from nqruntime.remembering import keep, recall

from .context import Context, best_seconds
from .plan import PlanBuilder
from .plane_choice import PlaneChoice

_LARGE_BYTES = 1 << 18
_SLOWER = 1.5
_SURE = 0.8
_WHAT = "kernels"


class Stored(Protocol):
    """Weights in the order of a kernel.

    Attributes
    ----------
    label : str
        Tells the forms of the same weights apart.
    """

    @property
    def label(self) -> str:
        """Name of the form."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        ...


Form = TypeVar("Form", bound=Stored)


class Chooser:
    """Chooses among forms of weights, once for each operation and layout on a machine.

    Parameters
    ----------
    library : KernelLibrary
    low_memory : bool
        Take the smallest form, without timing.
    key : str
        What choices depend on besides the operation; empty to remember none.
    """

    def __init__(self, library: KernelLibrary, *, low_memory: bool, key: str) -> None:
        self.low_memory = low_memory
        self._library = library
        self._key = key
        self._known = recall(_WHAT, key) if key else {}

    @property
    def entry(self) -> int:
        """Address of the entry of the kernels."""
        return self._library.entry

    def fastest(
        self, forms: Sequence[Form], append: Callable[[PlanBuilder, Form], None], question: str
    ) -> Form:
        """Return the form whose steps are fastest, or one that is little slower and smaller than a large one.

        Parameters
        ----------
        forms : sequence of Form
        append : callable
            Appends the steps of a form to a plan, all areas being scratch memory.
        question : str
            Names the operation and the layout of its values.
        """
        by_size = sorted(forms, key=lambda form: form.weight_bytes)
        if len(by_size) == 1 or self.low_memory:
            return by_size[0]
        question = f"{question}: {' or '.join(form.label for form in by_size)}"
        known = self._known.get(question)
        for form in by_size:
            if form.label == known:
                return form
        seconds = [_plan_seconds(self._library, append, form) for form in by_size]
        best = min(seconds)
        large = by_size[seconds.index(best)].weight_bytes > _LARGE_BYTES
        limit = best * (_SLOWER if large else 1)
        chosen = next(form for form, taken in zip(by_size, seconds, strict=True) if taken <= limit)
        self._known[question] = chosen.label
        return chosen

    def most_nonzeros(
        self,
        n_inputs: int,
        skipping: Stored,
        plain: Stored,
        append: Callable[[PlanBuilder, Any], None],
        question: str,
    ) -> int:
        """Return the nonzero inputs up to which a form that skips the zero ones is faster than a plain one.

        Parameters
        ----------
        n_inputs : int
        skipping, plain : Form
        append, question
            As of `fastest`.
        """
        if self.low_memory:
            return 0
        known = self._known.get(question)
        if not isinstance(known, int) or not 0 <= known <= n_inputs:
            full, other = (_plan_seconds(self._library, append, form) for form in (skipping, plain))
            known = self._known[question] = int(n_inputs * min(1.0, _SURE * other / full))
        return known

    def remember(self) -> None:
        """Keep the choices for later sessions."""
        if self._key and self._known:
            keep(_WHAT, self._key, self._known)


def _plan_seconds(library: KernelLibrary, append: Callable[[PlanBuilder, Form], None], form: Form) -> float:
    """Time the steps of a form."""
    builder = PlanBuilder(PlaneChoice())
    append(builder, form)
    context = Context(builder.finish((), ()), (), library, shared=False)
    context.fill(1.0)
    return best_seconds(lambda: context.run(()))
