"""Linear algebra in one order of summation, whatever number of threads is set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

__all__ = ["one_blas_thread"]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's linear algebra use one thread: sums of several differ in their last bits.

    Needs threadpoolctl, which the extra ``convert`` brings; without it nothing changes, and equal bytes need
    equal settings of ``OMP_NUM_THREADS``.

    Examples
    --------
    >>> import numpy as np
    >>> with one_blas_thread():
    ...     print(np.eye(2) @ np.ones(2))
    [1. 1.]
    """
    try:
        limits = import_module("threadpoolctl").threadpool_limits
    except ImportError:
        yield
        return
    with limits(limits=1, user_api="blas"):
        yield
