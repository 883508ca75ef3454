"""The smallest of the exact forms, tensor by tensor."""

from __future__ import annotations

from .codebook import CodebookForm
from .form import Subject, TensorEncoding
from .sparse import SparseForm


class AutoForm:
    """Codebook or gaps and values, whichever is smaller; dense where neither is."""

    keeps_views = True
    required = ""

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return the smallest encoding, or the reason why there is none."""
        found = [form.encode(subject) for form in (CodebookForm(), SparseForm())]
        encodings = [encoding for encoding in found if not isinstance(encoding, str)]
        if encodings:
            return min(encodings, key=lambda encoding: encoding.n_bytes(encoding.best_opset))
        reason = found[0]
        assert isinstance(reason, str)
        return reason
