"""Compute kernels as machine code: whole networks run in one call, without arrays and without Numba loaded.

The modules `entry`, `emitter`, `matrices`, `planes` and what they import are compiled by Numba into an object
file (``nqformat.kernels.objects``) and never imported otherwise; `blocks` says how kernels and callers talk.
"""
