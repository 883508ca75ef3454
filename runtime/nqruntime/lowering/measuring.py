"""Which way to store weights is fastest on this machine: timed, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from nqformat.kernels.objects import KernelLibrary
from nqruntime.remembering import keep, recall

from .context import Context
from .plan import PlanBuilder
from .plane_choice import PlaneChoice
from .racing import best_of_each, thread_clock

_LARGE_BYTES = 1 << 18
_SLOWER = 1.5
_SURE = 0.8
_WORTH_ROUNDING = 0.9
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

    @property
    def is_int8(self) -> bool:
        """Whether it rounds activations to bytes."""
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
    int8 : bool
        Whether forms that round activations to bytes may be chosen.
    """

    def __init__(self, library: KernelLibrary, *, low_memory: bool, key: str, int8: bool = False) -> None:
        self.low_memory = low_memory
        self.int8 = int8
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
        seconds = _plan_seconds(self._library, append, by_size)
        chosen = _best(by_size, seconds)
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
            full, other = _plan_seconds(self._library, append, (skipping, plain))
            known = self._known[question] = int(n_inputs * min(1.0, _SURE * other / full))
        return known

    def remember(self) -> None:
        """Keep the choices for later sessions."""
        if self._key and self._known:
            keep(_WHAT, self._key, self._known)


def _best(forms: Sequence[Form], seconds: Sequence[float]) -> Form:
    """Return the fastest form; of exact ones, one that is little slower and smaller than a large one.

    Forms are in the order of their sizes. One that rounds activations must be clearly faster than all others.
    """
    timed = list(zip(forms, seconds, strict=True))
    exact = [(form, taken) for form, taken in timed if not form.is_int8]
    if not exact:
        return min(timed, key=lambda pair: pair[1])[0]
    fastest, best = min(exact, key=lambda pair: pair[1])
    rounding = [(form, taken) for form, taken in timed if form.is_int8 and taken < _WORTH_ROUNDING * best]
    if rounding:
        return min(rounding, key=lambda pair: pair[1])[0]
    limit = best * (_SLOWER if fastest.weight_bytes > _LARGE_BYTES else 1)
    return next(form for form, taken in exact if taken <= limit)


def _plan_seconds(
    library: KernelLibrary, append: Callable[[PlanBuilder, Form], None], forms: Sequence[Form]
) -> list[float]:
    """Time the steps of forms, which take turns, on one thread."""
    contexts = []
    for form in forms:
        builder = PlanBuilder(PlaneChoice())
        append(builder, form)
        context = Context(builder.finish((), ()), (), library, shared=False)
        context.fill(1.0)
        contexts.append(context)
    return best_of_each([partial(context.run, ()) for context in contexts], clock=thread_clock())
