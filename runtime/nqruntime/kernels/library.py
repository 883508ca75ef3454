"""The object file of the compute kernels, and when it is used."""

from __future__ import annotations

from nqformat.kernels import compiled
from nqformat.kernels.objects import KernelLibrary, Part

COMPUTE = Part(
    name="compute",
    entry="nqruntime.kernels.entry",
    helpers=(
        "arrays",
        "batched",
        "blocks",
        "coefficients",
        "copies",
        "dense_planes",
        "depthwise",
        "elementwise",
        "emitter",
        "functions",
        "gaps",
        "int8_planes",
        "int8_rows",
        "integers",
        "lanes",
        "planes",
        "pointwise",
        "pooling",
        "quantizing",
        "recurrent",
        "rows",
        "sequence_entry",
        "skipping",
        "statistics",
        "threads",
    ),
)

_WORTH_LOADING = 20_000
_WORTH_COMPILING = 1_000_000


def compute_library(n_multiplications: int) -> KernelLibrary | None:
    """Return the compute kernels if a network of so many multiplications in a run shall use them, else None.

    They are loaded from the cache folder; a machine that has none compiles them (some seconds, once) for
    networks of a million multiplications and more, or when :func:`compile_kernels` is called.
    """
    return compiled(
        COMPUTE,
        n_multiplications,
        worth_loading=_WORTH_LOADING,
        worth_compiling=_WORTH_COMPILING,
    )


def compile_kernels() -> bool:
    """Compile the compute kernels for this machine and keep them in the cache folder.

    Returns
    -------
    bool
        Whether there are any: False without Numba or where it is switched off.
    """
    return compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is not None
