"""Weights in the order in which the kernels of `nqruntime.kernels` read them; NumPy only."""
