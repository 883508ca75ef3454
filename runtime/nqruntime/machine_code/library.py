"""The object file of the compute kernels."""

from __future__ import annotations

from nqformat.kernels.objects import Part

COMPUTE = Part(
    name="compute",
    entry="nqruntime.machine_code.entry",
    helpers=(
        "blocks",
        "copies",
        "dense_planes",
        "depthwise",
        "emitter",
        "lanes",
        "planes",
        "pointwise",
        "pooling",
        "rows",
    ),
)
