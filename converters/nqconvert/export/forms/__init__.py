"""Export forms by name."""

from __future__ import annotations

from collections.abc import Callable

from nqconvert.form_names import DENSE_DTYPES, EXPORT_FORMS
from nqformat.dtypes import DType

from .auto import AutoForm
from .codebook import CodebookForm
from .form import Form, Subject, TensorEncoding
from .half import HalfForm
from .ort_nbits import NBitsForm
from .qdq import QdqForm
from .sparse import SparseForm

__all__ = ["DENSE_DTYPES", "EXPORT_FORMS", "Form", "Subject", "TensorEncoding", "form_of"]

_FORMS: dict[str, Callable[[], Form | None]] = {
    "dense": lambda: None,
    "codebook": CodebookForm,
    "sparse": SparseForm,
    "qdq": QdqForm,
    "ort-nbits": NBitsForm,
    "auto": AutoForm,
}


def form_of(name: str, dtype: str | None = None) -> Form | None:
    """Return a form; None for decoded weights as they are.

    Raises
    ------
    ValueError
        If form or dtype is unknown, or a dtype is given for a form that has none.
    """
    if name not in EXPORT_FORMS:
        raise ValueError(f"form must be one of {', '.join(EXPORT_FORMS)}, not {name!r}")
    if dtype is None:
        return _FORMS[name]()
    if dtype not in DENSE_DTYPES or name != "dense":
        raise ValueError(f"dtype must be one of {', '.join(DENSE_DTYPES)}, with form 'dense', not {dtype!r}")
    return HalfForm(DType[dtype.upper()])
