"""The compute kernels read and write nothing but their areas: these end, or begin, at forbidden pages."""

from __future__ import annotations

import ctypes
import math
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import nqformat
from nqformat import Codebook, CodebookTensor
from nqformat.kernels import compiled
from nqruntime import InferenceSession
from nqruntime.kernels.library import COMPUTE

PAGE = mmap.PAGESIZE
ROOT = Path(__file__).parents[2]
PLANS = ("sparse", "palette", "bytes", "floats", "int8", "conv", "conv int8", "strided", "pointwise", "pool")
PLANS += ("depthwise", "sum", "wide")

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is None,
    reason="no compiled kernels or no mprotect on this machine",
)


class Guarded:
    """Makes arrays with a forbidden page right before or after them, and keeps them alive."""

    def __init__(self, *, at_end: bool) -> None:
        self._at_end = at_end
        self._areas: list[mmap.mmap] = []

    def __call__(self, n_elements: int, dtype: type[np.generic]) -> np.ndarray:
        """Return zeros, at a multiple of 64 bytes where kernels may count on that."""
        n_bytes = n_elements * np.dtype(dtype).itemsize
        n_pages = max(1, -(-n_bytes // PAGE))
        area = mmap.mmap(-1, (n_pages + 2) * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (0, n_pages + 1):
            assert libc.mprotect(ctypes.c_void_p(base + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
        start = PAGE if not self._at_end else PAGE * (n_pages + 1) - n_bytes
        self._areas.append(area)
        return np.frombuffer(area, dtype=np.uint8, count=n_bytes, offset=start).view(dtype)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """Return the elements between forbidden pages."""
        out = self(array.size, array.dtype.type).reshape(array.shape)
        out[...] = array
        return out


def weights(shape: tuple[int, ...], density: float, n_entries: int) -> CodebookTensor:
    rng = np.random.default_rng(3)
    values = np.append(0, rng.normal(size=n_entries - 1)).astype(np.float32)
    indices = np.where(rng.random(shape) < density, rng.integers(1, n_entries, shape), 0).astype(np.uint8)
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


def model_of(plan: str) -> tuple[bytes, dict[str, CodebookTensor], list[tuple[int, ...]]]:
    """Return a graph, its tensors and shapes of inputs."""
    shapes: list[tuple[int, ...]] = [(1, 6, 9, 11), (2, 6, 16, 16)]
    group = 1
    if plan in ("sparse", "palette", "bytes", "floats", "int8"):
        density, n_entries = {"sparse": (0.1, 9), "bytes": (1.0, 200)}.get(plan, (1.0, 16))
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        tensors = {"w": weights((133, 67), density, n_entries)}
        shapes = [(1, 133), (5, 133), (8, 133), (20, 133), (160, 133)]
        declared = ["n", 133]
    elif plan in ("sum", "wide"):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        if plan == "sum":
            nodes[0].output[0] = "a"
            nodes += [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Add", ["a", "b"], ["y"])]
        tensors = {"w": weights((133, 640), 1.0, 16)}
        shapes, declared = [(16, 133), (1, 133), (3, 133)], ["n", 133]
    else:
        declared = ["n", 6, "h", "w"]
        kernel, stride = (1, 1) if plan == "pointwise" else (3, 2 if plan == "strided" else 1)
        group = 6 if plan == "depthwise" else 1
        nodes = [
            helper.make_node(
                "Conv",
                ["x", "w"],
                ["a"],
                kernel_shape=[kernel] * 2,
                pads=[kernel // 2] * 4,
                strides=[stride] * 2,
                group=group,
            ),
            helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        ]
        if plan != "pool":
            nodes = [nodes[0]]
            nodes[0].output[0] = "y"
        tensors = {"w": weights((12, 6 // group, kernel, kernel), 0.2 if "int8" not in plan else 1.0, 9)}
    graph = helper.make_graph(
        nodes,
        "plan",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, declared)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(), tensors, shapes


def run_guarded(plan: str, folder: str, side: str) -> None:
    """Run a plan with every area of the kernels between forbidden pages; the process dies of any slip."""
    guarded = Guarded(at_end=side == "end")
    patched = pytest.MonkeyPatch()
    patched.setenv("NQFORMAT_KERNELS", "numba")
    patched.setattr("nqruntime.lowering.plan._COPIED_FLOATS", 0 if side == "end" else 1 << 15)
    patched.setattr("nqruntime.lowering.plan._DIRECT_FLOATS", 0)
    patched.setattr("nqruntime.lowering.measuring.recall", lambda *_: {})
    patched.setattr("nqruntime.lowering.measuring.keep", lambda *_: None)
    wanted = {"sparse": "slices", "palette": "palette", "bytes": "palette", "floats": "floats"}.get(plan, "")

    def seconds(library: object, append: object, forms: list[object]) -> list[float]:
        int8 = "int8" in plan
        return [
            0.1 if getattr(form, "is_int8", False) == int8 and wanted in getattr(form, "label", "") else 1.0
            for form in forms
        ]

    patched.setattr("nqruntime.lowering.measuring._plan_seconds", seconds)
    graph, tensors, shapes = model_of(plan)
    path = Path(folder) / "plan.nqz"
    nqformat.save_file(dict(tensors), path, graph=graph)
    feeds = [np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in shapes]
    expected = [InferenceSession(path, engine="native", threads=1).run(None, {"x": x})[0] for x in feeds]
    for module in ("lowering.context", "packing.areas"):
        patched.setattr(f"nqruntime.{module}.aligned", guarded)
    patched.setattr(
        "nqruntime.lowering.context.new_output",
        lambda shape: guarded(math.prod(shape), np.float32).reshape(shape),
    )
    for module in ("rows", "planes", "dense_planes", "depthwise", "int8_rows", "int8_planes", "plane_layout"):
        for name in ("aligned", "aligned_copy"):
            patched.setattr(
                f"nqruntime.packing.{module}.{name}",
                guarded if name == "aligned" else guarded.copy,
                raising=False,
            )
    precision = "int8" if "int8" in plan else "float32"
    session = InferenceSession(path, engine="native", threads=1, precision=precision)
    for x, reference in zip(feeds, expected, strict=True):
        found = session.run(None, {"x": guarded.copy(x)})[0]
        tolerance = 0.05 if precision == "int8" else 1e-4
        np.testing.assert_allclose(found, reference, atol=tolerance * np.abs(reference).max())
    assert ("int8" in session.explain()[0].kernel) == (precision == "int8")


@pytest.mark.parametrize("side", ["begin", "end"])
def test_kernels_stay_inside_their_memory(side: str, tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[:0] = {[str(ROOT), str(ROOT / "runtime"), str(Path(__file__).parent)]}
from test_guarded_memory import PLANS, run_guarded
for plan in PLANS:
    print(plan, flush=True)
    run_guarded(plan, {str(tmp_path)!r}, {side!r})
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), f"{done.stdout}\n{done.stderr[-2000:]}"
