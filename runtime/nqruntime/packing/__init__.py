"""Weights in the order in which the kernels of `nqruntime.machine_code` read them; NumPy only."""
