"""Names of export forms, for command lines that import nothing heavy."""

from __future__ import annotations

EXPORT_FORMS = ("dense", "codebook", "sparse", "qdq", "ort-nbits", "auto")
DENSE_DTYPES = ("float16", "bfloat16")
