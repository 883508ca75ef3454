from __future__ import annotations

import numpy as np
import pytest

from nqformat.kernels.objects import kernel_library
from nqruntime.kernels.blocks import DENSE_PLANES, DEPTHWISE_PLANES, OUTPUTS_TOGETHER, SPARSE_PLANES
from nqruntime.kernels.library import COMPUTE
from nqruntime.packing.areas import address, aligned, aligned_copy
from nqruntime.packing.dense_planes import pack_dense_planes
from nqruntime.packing.depthwise import pack_depthwise_planes
from nqruntime.packing.plane_layout import Area, PlaneLayout
from nqruntime.packing.plane_steps import PlanesCall, dense_planes, sparse_planes
from nqruntime.packing.planes import Taps, Window, pack_sparse_planes

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def library():
    found = kernel_library(COMPUTE, compile_missing=True)
    if found is None:
        pytest.skip("no compiled kernels")
    return found


def stored(images, layout, beyond=np.nan):
    """Return images as planes, with `beyond` in the 64 floats after them."""
    n_images, n_channels = images.shape[:2]
    area = aligned(n_images * n_channels * layout.size + 64, np.float32)
    area[-64:] = beyond
    layout.elements(area[:-64].reshape(n_images, n_channels, layout.size))[...] = images
    return area


class Convolution:
    """A random sparse convolution on planes and what it should give."""

    def __init__(
        self, channels, outputs, size, window, *, layout, n_images=1, density=0.3, seed=0, out_size=None
    ):
        rng = np.random.default_rng(seed)
        self.layout = layout
        self.outputs = outputs
        self.images = rng.normal(size=(n_images, channels, *size)).astype(np.float32)
        shape = outputs, channels, *window.kernel
        self.codebook = rng.normal(size=9).astype(np.float32)
        self.codebook[0] = 0
        kept = rng.random(shape) < density
        self.symbols = rng.integers(0, 9, shape).astype(np.uint8)
        self.kept = kept.reshape(outputs, -1)
        self.weights = np.where(kept, self.codebook[self.symbols], 0)
        self.bias = aligned_copy(rng.normal(size=outputs).astype(np.float32))
        self.out_layout = (
            layout
            if out_size is None
            else PlaneLayout(height=out_size[0], width=out_size[1], pitch=layout.pitch)
        )
        self.window = window
        self.source = stored(self.images, layout)
        self.out = aligned(n_images * outputs * self.out_layout.size, np.float32)
        self.out[:] = np.nan
        self.mask = self.out_layout.mask()

    def call(self, first=0, last=None, **further):
        return PlanesCall(
            first=first,
            last=self.outputs if last is None else last,
            n_images=len(self.images),
            source=Area.of(address(self.source), self.layout, self.images.shape[1]),
            out=Area.of(address(self.out), self.out_layout, self.outputs),
            layout=self.out_layout,
            mask=self.mask,
            bias=self.bias,
            **further,
        )

    def packed(self, copied=False):
        taps = Taps.of(self.window, self.layout, self.images.shape[1])
        rows, columns = np.nonzero(self.kept)
        return pack_sparse_planes(
            rows=rows,
            columns=columns,
            symbols=self.symbols.reshape(self.outputs, -1)[rows, columns],
            codebook=self.codebook,
            n_rows=self.outputs,
            taps=taps,
            copied=copied,
        )

    def planes(self):
        return self.out.reshape(len(self.images), self.outputs, self.out_layout.size)

    def expected(self):
        height, width = self.out_layout.height, self.out_layout.width
        (up, left), reach = (
            self.window.before,
            [(k - 1) * d for k, d in zip(self.window.kernel, self.window.dilation, strict=True)],
        )
        padded = np.pad(self.images.astype(np.float64), [(0, 0), (0, 0), (up, reach[0]), (left, reach[1])])
        total = np.zeros((len(self.images), self.outputs, height, width)) + self.bias[:, None, None]
        for y in range(self.window.kernel[0]):
            for x in range(self.window.kernel[1]):
                top, begin = y * self.window.dilation[0], x * self.window.dilation[1]
                part = padded[:, :, top : top + height, begin : begin + width]
                total += np.einsum("oc,nchw->nohw", self.weights[:, :, y, x], part)
        return total

    def check(self, expected):
        got = self.out_layout.elements(self.planes())
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)
        rest = self.planes().copy()
        self.out_layout.elements(rest)[...] = 0
        assert not rest.any()


def run_sparse(library, convolution, *, copied=False, **further):
    weights = convolution.packed(copied)
    buffer = aligned(weights.buffer_floats + 1, np.float32)
    buffer[:] = np.nan
    block = sparse_planes(convolution.call(**further), weights, address(buffer))
    assert library.run(SPARSE_PLANES, address(block)) == 0
    assert np.isnan(buffer[-1])


WINDOWS = [
    (Window(kernel=(1, 1)), 0),
    (Window(kernel=(3, 3), before=(1, 1)), 1),
    (Window(kernel=(5, 5), before=(2, 2)), 2),
    (Window(kernel=(3, 1), before=(1, 0)), 1),
    (Window(kernel=(3, 3), dilation=(2, 2), before=(2, 2)), 2),
    (Window(kernel=(1, 1)), 1),
]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(("window", "pad"), WINDOWS)
@pytest.mark.parametrize("size", [(1, 1), (1, 8), (5, 3), (7, 7), (9, 30), (28, 28)])
def test_sparse_planes_convolve_every_size(library, window, pad, size, copied):
    layout = PlaneLayout(height=size[0], width=size[1], pad=pad)
    convolution = Convolution(11, 5, size, window, layout=layout, n_images=2)
    run_sparse(library, convolution, copied=copied)
    convolution.check(convolution.expected())


@pytest.mark.parametrize("n_vectors", range(1, 14))
def test_sparse_planes_have_a_tile_of_every_length(library, n_vectors):
    layout = PlaneLayout(height=1, width=16 * n_vectors - 3)
    convolution = Convolution(70, 3, (1, layout.width), Window(kernel=(1, 1)), layout=layout)
    run_sparse(library, convolution)
    convolution.check(convolution.expected())


@pytest.mark.parametrize("entry", [0, 1])
def test_nonzeros_of_one_vector_need_no_zero_in_the_codebook(library, entry):
    layout = PlaneLayout(height=1, width=8)
    convolution = Convolution(300, 9, (1, 8), Window(kernel=(1, 1)), layout=layout)
    convolution.codebook[0] = entry
    convolution.weights[convolution.kept.reshape(9, 300, 1, 1) & (convolution.symbols == 0)] = entry
    run_sparse(library, convolution)
    convolution.check(convolution.expected())


@pytest.mark.parametrize("copied", [False, True])
def test_blocks_of_input_channels_add_up(library, copied):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=6, width=6, pad=1)
    convolution = Convolution(101, 4, (6, 6), window, layout=layout)
    assert convolution.packed(copied).n_blocks > 2
    run_sparse(library, convolution, copied=copied)
    convolution.check(convolution.expected())


def test_a_kernel_of_more_than_256_taps_is_cut(library):
    window = Window(kernel=(17, 19), before=(8, 9))
    layout = PlaneLayout(height=12, width=12, pad=9)
    convolution = Convolution(3, 2, (12, 12), window, layout=layout)
    run_sparse(library, convolution)
    convolution.check(convolution.expected())


def test_the_output_of_a_kernel_without_padding_keeps_the_pitch(library):
    window = Window(kernel=(5, 5))
    layout = PlaneLayout(height=28, width=28)
    convolution = Convolution(1, 6, (28, 28), window, layout=layout, out_size=(24, 24))
    run_sparse(library, convolution)
    convolution.check(convolution.expected())


def test_residual_and_limits_follow_the_sum(library):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=5, width=9, pad=1)
    convolution = Convolution(40, 7, (5, 9), window, layout=layout, n_images=2)
    other = np.random.default_rng(1).normal(size=(2, 7, 5, 9)).astype(np.float32)
    residual = stored(other, layout)
    run_sparse(library, convolution, low=0, high=6, residual=Area.of(address(residual), layout, 7))
    convolution.check(np.clip(convolution.expected() + other, 0, 6))


def test_the_residual_may_be_the_output(library):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=5, width=9, pad=1)
    convolution = Convolution(90, 7, (5, 9), window, layout=layout)
    other = np.random.default_rng(1).normal(size=(1, 7, 5, 9)).astype(np.float32)
    convolution.out[:] = stored(other, layout)[:-64]
    run_sparse(library, convolution, residual=Area.of(address(convolution.out), layout, 7))
    convolution.check(convolution.expected() + other)


def test_sums_do_not_depend_on_the_split(library):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=5, width=9, pad=1)
    convolution = Convolution(90, 7, (5, 9), window, layout=layout, n_images=2)
    run_sparse(library, convolution)
    whole = convolution.out.copy()
    convolution.out[:] = np.nan
    for first, last in ((4, 7), (0, 1), (1, 4)):
        run_sparse(library, convolution, first=first, last=last)
    assert np.array_equal(convolution.out, whole)


def test_values_that_overflow_leave_the_pads_zero(library):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=4, width=4, pad=1)
    convolution = Convolution(3, 2, (4, 4), window, layout=layout, density=1.0)
    layout.elements(convolution.source[:-64].reshape(1, 3, layout.size))[...] = 3e38
    run_sparse(library, convolution)
    rest = convolution.planes().copy()
    layout.elements(rest)[...] = 0
    assert not rest.any()


def test_nonzeros_take_little_more_than_two_bytes():
    taps = Taps.of(Window(kernel=(3, 3)), PlaneLayout(height=28, width=28, pad=1), 128)
    kept = np.random.default_rng(0).random((128, 128 * 9)) < 0.1
    rows, columns = np.nonzero(kept)
    symbols = np.ones(rows.size, dtype=np.uint8)
    packed = pack_sparse_planes(
        rows=rows, columns=columns, symbols=symbols, codebook=np.arange(2.0), n_rows=128, taps=taps
    )
    assert packed.weight_bytes < 2.5 * rows.size


def test_windows_of_kernels_with_many_taps_are_refused():
    window = Window(kernel=(17, 19), before=(8, 9))
    convolution = Convolution(3, 2, (12, 12), window, layout=PlaneLayout(height=12, width=12, pad=9))
    with pytest.raises(ValueError, match="windows of 323 taps"):
        convolution.packed(copied=True)


def test_taps_at_distances_of_whole_vectors_share_a_copy():
    layout = PlaneLayout(height=14, width=14, pad=1, pitch=16)
    convolution = Convolution(3, 2, (14, 14), Window(kernel=(3, 3), before=(1, 1)), layout=layout)
    windows = convolution.packed(copied=True).windows
    assert sorted(windows.copies[:, 0].tolist()) == [-68, -64, -60]
    assert windows.copies[:, 1].tolist() == [2, 2, 2]


def test_large_codebooks_are_refused():
    taps = Taps.of(Window(kernel=(1, 1)), PlaneLayout(height=4, width=4), 3)
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="257 codebook entries"):
        pack_sparse_planes(rows=none, columns=none, symbols=none, codebook=np.zeros(257), n_rows=1, taps=taps)


@pytest.mark.parametrize("wrong", [{"height": 0}, {"pad": -1}, {"pitch": 4}])
def test_impossible_layouts_are_refused(wrong):
    with pytest.raises(ValueError, match="planes of"):
        PlaneLayout(**{"height": 4, "width": 4, "pad": 1, **wrong})


def run_dense(library, convolution, form="floats", **further):
    taps = Taps.of(convolution.window, convolution.layout, convolution.images.shape[1])
    symbols = np.where(convolution.kept, convolution.symbols.reshape(convolution.outputs, -1), 9)
    codebook = np.append(convolution.codebook, np.float32(0))
    if form == "bytes":
        codebook = np.append(codebook, np.full(246, np.nan, dtype=np.float32))
    matrix = codebook[symbols] if form == "floats" else symbols
    weights = pack_dense_planes(matrix, None if form == "floats" else codebook, taps)
    buffer = aligned(weights.buffer_floats, np.float32)
    block = dense_planes(convolution.call(**further), weights, address(buffer))
    assert library.run(DENSE_PLANES, address(block)) == 0


@pytest.mark.parametrize("form", ["floats", "nibbles", "bytes"])
@pytest.mark.parametrize(("window", "pad"), WINDOWS)
@pytest.mark.parametrize("size", [(1, 1), (5, 3), (7, 7), (9, 30)])
def test_dense_planes_convolve_every_size(library, window, pad, size, form):
    layout = PlaneLayout(height=size[0], width=size[1], pad=pad)
    convolution = Convolution(7, 11, size, window, layout=layout, n_images=2, density=0.9)
    run_dense(library, convolution, form)
    convolution.check(convolution.expected())


@pytest.mark.parametrize("form", ["floats", "nibbles", "bytes"])
def test_dense_blocks_of_input_channels_add_up(library, form):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=9, width=9, pad=1)
    convolution = Convolution(71, 10, (9, 9), window, layout=layout, density=1.0)
    other = np.random.default_rng(1).normal(size=(1, 10, 9, 9)).astype(np.float32)
    residual = stored(other, layout)
    run_dense(library, convolution, form, low=-3, high=4, residual=Area.of(address(residual), layout, 10))
    convolution.check(np.clip(convolution.expected() + other, -3, 4))


def test_dense_sums_do_not_depend_on_the_split(library):
    window = Window(kernel=(3, 3), before=(1, 1))
    layout = PlaneLayout(height=5, width=9, pad=1)
    convolution = Convolution(90, 21, (5, 9), window, layout=layout, n_images=2)
    run_dense(library, convolution)
    whole = convolution.out.copy()
    convolution.out[:] = np.nan
    for first, last in ((16, 21), (0, OUTPUTS_TOGETHER), (OUTPUTS_TOGETHER, 16)):
        run_dense(library, convolution, first=first, last=last)
    assert np.array_equal(convolution.out, whole)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize(("window", "pad"), WINDOWS)
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (9, 30)])
def test_depthwise_planes_convolve_every_size(library, window, pad, size, repeats):
    layout = PlaneLayout(height=size[0], width=size[1], pad=pad)
    convolution = Convolution(6, 6 * repeats, size, window, layout=layout, n_images=2, density=0.9)
    own = np.arange(6 * repeats)[:, None] // repeats == np.arange(6)
    convolution.weights = convolution.weights * own[:, :, None, None]
    matrix = convolution.weights[own].reshape(6 * repeats, -1)
    weights = pack_depthwise_planes(matrix, Taps.of(window, layout, 6))
    for first, last in ((3, 6 * repeats), (0, 3)):
        block = weights.planes_block(convolution.call(first=first, last=last, low=0))
        assert library.run(DEPTHWISE_PLANES, address(block)) == 0
    convolution.check(np.maximum(convolution.expected(), 0))


def test_groups_are_convolved_one_after_the_other(library):
    rng = np.random.default_rng(5)
    layout = PlaneLayout(height=7, width=9, pad=1)
    window = Window(kernel=(3, 3), before=(1, 1))
    convolution = Convolution(6, 10, (7, 9), window, layout=layout, n_images=2)
    matrix = rng.normal(size=(10, 3 * 9)).astype(np.float32)
    taps = Taps.of(window, layout, 3)
    convolution.weights = np.zeros((10, 6, 3, 3))
    for group in range(2):
        outputs = slice(5 * group, 5 * group + 5)
        convolution.weights[outputs, 3 * group : 3 * group + 3] = matrix[outputs].reshape(5, 3, 3, 3)
        weights = pack_dense_planes(matrix[outputs], None, taps)
        buffer = aligned(weights.buffer_floats, np.float32)
        call = PlanesCall(
            first=0,
            last=5,
            n_images=2,
            source=Area.of(address(convolution.source), layout, 6, first_channel=3 * group),
            out=Area.of(address(convolution.out), layout, 10, first_channel=5 * group),
            layout=layout,
            mask=convolution.mask,
            bias=convolution.bias[outputs],
        )
        block = dense_planes(call, weights, address(buffer))
        assert library.run(DENSE_PLANES, address(block)) == 0
    convolution.check(convolution.expected())


def test_what_is_read_after_the_planes_is_known():
    layout = PlaneLayout(height=28, width=28)
    taps = Taps.of(Window(kernel=(5, 5)), layout, 3)
    out = PlaneLayout(height=24, width=24, pitch=28)
    last_tap = layout.origin + 16 * out.n_vectors - 1 + 4 * 28 + 4
    assert taps.slack(out) == last_tap + 1 - layout.size
    assert Taps.of(Window(kernel=(1, 1)), layout, 3).slack(layout) == 0


def test_channels_too_far_apart_are_refused():
    taps = Taps.of(Window(kernel=(1, 1)), PlaneLayout(height=1 << 15, width=1 << 15), 1)
    with pytest.raises(ValueError, match="too far apart"):
        taps.table(2)
