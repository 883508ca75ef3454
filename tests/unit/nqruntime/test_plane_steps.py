from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from nqformat.kernels.objects import kernel_library
from nqruntime.kernels.blocks import (
    AVERAGE_CHANNELS,
    COPY_ROWS,
    DEPTHWISE_ROWS,
    POOL_AVERAGE,
    POOL_LARGEST,
    SCALE_PLANES,
    SPARSE_PLANES,
    TRANSPOSE,
)
from nqruntime.kernels.library import COMPUTE
from nqruntime.packing import copy_steps
from nqruntime.packing.areas import address, aligned, aligned_copy
from nqruntime.packing.copy_steps import ChannelsCall
from nqruntime.packing.depthwise import pack_depthwise_planes
from nqruntime.packing.plane_layout import Area, PlaneLayout
from nqruntime.packing.plane_steps import PlanesCall, scale_planes, sparse_planes
from nqruntime.packing.planes import Taps, Window, pack_sparse_planes
from nqruntime.packing.pooling import PoolWindow, pack_pool
from nqruntime.packing.strided import plan_strided

pytest.importorskip("numba")

SIZES = [(1, 1), (4, 7), (3, 16), (9, 33), (30, 28)]


@pytest.fixture(scope="module")
def library():
    found = kernel_library(COMPUTE, compile_missing=True)
    if found is None:
        pytest.skip("no compiled kernels")
    return found


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Planes:
    """Images in a layout, with NaN in the 64 bytes before and after."""

    def __init__(self, layout, n_images, n_channels, images=None):
        self.layout, self.shape = layout, (n_images, n_channels)
        self.memory = aligned(n_images * n_channels * layout.size + 32, np.float32)
        self.memory[:] = np.nan
        self.channels = self.memory[16:-16].reshape(n_images, n_channels, layout.size)
        if images is not None:
            self.channels[:] = 0
            self.images[...] = images

    @property
    def images(self):
        return self.layout.elements(self.channels)

    @property
    def area(self):
        return Area.of(address(self.channels), self.layout, self.shape[1])

    def check(self, expected, **tolerance):
        np.testing.assert_allclose(self.images, expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})
        rest = self.memory.copy()
        assert np.isnan(rest[:16]).all()
        assert np.isnan(rest[-16:]).all()
        self.layout.elements(rest[16:-16].reshape(self.channels.shape))[...] = 0
        assert not rest[16:-16].any()


def plain_area(images):
    height, width = images.shape[2:]
    return Area(address=address(images), channel_bytes=4 * height * width, image_bytes=4 * images[0].size)


def whole(source, out, n_images, n_channels):
    return ChannelsCall(first=0, last=n_channels, n_images=n_images, source=source, out=out)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("pad", "other_pad"), [(0, 0), (0, 1), (1, 3)])
def test_images_go_to_planes_and_back(library, size, pad, other_pad):
    images = random_images(2, 3, *size)
    first = Planes(PlaneLayout(height=size[0], width=size[1], pad=pad), 2, 3)
    block = copy_steps.copy_to_planes(
        whole(plain_area(images), first.area, 2, 3), source_pitch=size[1], layout=first.layout
    )
    assert library.run(COPY_ROWS, address(block)) == 0
    first.check(images)
    second = Planes(PlaneLayout(height=size[0], width=size[1], pad=other_pad), 2, 3)
    for part in ((1, 3), (0, 1)):
        call = ChannelsCall(first=part[0], last=part[1], n_images=2, source=first.area, out=second.area)
        block = copy_steps.copy_to_planes(call, source_pitch=first.layout.pitch, layout=second.layout)
        assert library.run(COPY_ROWS, address(block)) == 0
    second.check(images)
    back = np.full(images.size + 1, np.nan, dtype=np.float32)
    area = plain_area(back[:-1].reshape(images.shape))
    block = copy_steps.copy_from_planes(whole(second.area, area, 2, 3), layout=second.layout)
    assert library.run(COPY_ROWS, address(block)) == 0
    assert np.array_equal(back[:-1].reshape(images.shape), images)
    assert np.isnan(back[-1])


STRIDED = [
    (Window(kernel=(3, 3), before=(1, 1)), (2, 2)),
    (Window(kernel=(1, 1)), (2, 2)),
    (Window(kernel=(7, 7), before=(3, 3)), (2, 2)),
    (Window(kernel=(3, 3)), (2, 2)),
    (Window(kernel=(5, 4), before=(1, 0)), (3, 2)),
    (Window(kernel=(11, 11), before=(2, 2)), (4, 4)),
    (Window(kernel=(3, 3), dilation=(2, 3), before=(2, 3)), (2, 2)),
    (Window(kernel=(4, 4), before=(1, 1)), (1, 4)),
    (Window(kernel=(2, 2)), (5, 5)),
]


@pytest.mark.parametrize(("window", "strides"), STRIDED)
@pytest.mark.parametrize("size", [(15, 19), (32, 32)])
@pytest.mark.parametrize(("pad", "copied"), [(0, False), (1, False), (1, True)])
def test_strided_convolutions_are_those_of_phases(library, window, strides, size, pad, copied):
    rng = np.random.default_rng(1)
    images = random_images(2, 5, *size)
    out_size = tuple(
        (size[i] + 2 * window.before[i] - (window.kernel[i] - 1) * window.dilation[i] - 1) // strides[i] + 1
        for i in range(2)
    )
    plan = plan_strided(window, strides=strides, source=size, out=out_size, n_channels=5, pad=pad)
    source = Planes(PlaneLayout(height=size[0], width=size[1], pad=pad), 2, 5, images)
    phases = aligned(2 * 5 * plan.channel_size + 64, np.float32)
    phases[:] = np.nan
    for block in plan.copies(source.area, source.layout.pitch, address(phases), 2, 5):
        assert library.run(COPY_ROWS, address(block)) == 0
    assert np.isnan(phases[-64:]).all()
    assert not np.isnan(phases[:-64]).any()
    codebook = rng.normal(size=7).astype(np.float32)
    symbols = rng.integers(0, 7, (4, 5 * window.n_taps)).astype(np.uint8)
    rows, columns = np.nonzero(rng.random(symbols.shape) < 0.5)
    weights = pack_sparse_planes(
        rows=rows,
        columns=columns,
        symbols=symbols[rows, columns],
        codebook=codebook,
        n_rows=4,
        taps=plan.taps,
        copied=copied,
    )
    buffer = aligned(weights.buffer_floats, np.float32)
    layout = PlaneLayout(height=out_size[0], width=out_size[1], pad=pad, pitch=plan.layout.pitch)
    out = Planes(layout, 2, 4)
    mask, bias = layout.mask(), aligned(4, np.float32)
    call = PlanesCall(
        first=0,
        last=4,
        n_images=2,
        source=plan.area(address(phases)),
        out=out.area,
        layout=layout,
        mask=mask,
        bias=bias,
    )
    assert library.run(SPARSE_PLANES, address(sparse_planes(call, weights, address(buffer)))) == 0
    dense = np.zeros(symbols.shape)
    dense[rows, columns] = codebook[symbols[rows, columns]]
    out.check(
        strided_reference(images, dense.reshape(4, 5, *window.kernel), window, strides, out_size), atol=1e-4
    )


@pytest.mark.parametrize(("window", "strides"), STRIDED)
@pytest.mark.parametrize("size", [(15, 19), (32, 32)])
def test_strided_depthwise_convolutions_go_row_by_row(library, window, strides, size):
    rng = np.random.default_rng(1)
    images = random_images(2, 3, *size)
    out_size = tuple(
        (size[i] + 2 * window.before[i] - (window.kernel[i] - 1) * window.dilation[i] - 1) // strides[i] + 1
        for i in range(2)
    )
    source = Planes(PlaneLayout(height=size[0], width=size[1], pad=3), 2, 3, images)
    out = Planes(PlaneLayout(height=out_size[0], width=out_size[1], pad=1), 2, 6)
    matrix = rng.normal(size=(6, window.n_taps)).astype(np.float32)
    weights = pack_depthwise_planes(matrix, Taps.of(window, source.layout, 3))
    bias = aligned_copy(random_images(6, seed=2))
    for part in ((2, 6), (0, 2)):
        call = ChannelsCall(first=part[0], last=part[1], n_images=2, source=source.area, out=out.area)
        block = weights.rows_block(
            call, source_pitch=source.layout.pitch, layout=out.layout, strides=strides, bias=bias, low=-1
        )
        assert library.run(DEPTHWISE_ROWS, address(block)) == 0
    dense = np.zeros((6, 3, window.n_taps))
    dense[np.arange(6), np.arange(6) // 2] = matrix
    expected = strided_reference(images, dense.reshape(6, 3, *window.kernel), window, strides, out_size)
    out.check(np.maximum(expected + bias[:, None, None], -1), atol=1e-4)


def strided_reference(images, weights, window, strides, out_size):
    before = [(b, 64) for b in window.before]
    padded = np.pad(images.astype(np.float64), [(0, 0), (0, 0), *before])
    total = np.zeros((len(images), len(weights), *out_size))
    for tap in product(*map(range, window.kernel)):
        total += np.einsum(
            "oc,nchw->nohw", weights[:, :, *tap], window_part(padded, tap, window, strides, out_size)
        )
    return total


def window_part(padded, tap, window, strides, out_size):
    """Return what each output reads at a tap."""
    cuts = tuple(
        slice(
            tap[i] * window.dilation[i],
            tap[i] * window.dilation[i] + strides[i] * (out_size[i] - 1) + 1,
            strides[i],
        )
        for i in range(2)
    )
    return padded[:, :, *cuts]


POOLS = [
    (PoolWindow(kernel=(2, 2), strides=(2, 2)), 0),
    (PoolWindow(kernel=(3, 3), strides=(2, 2), before=(1, 1), after=(1, 1)), 0),
    (PoolWindow(kernel=(3, 3), before=(1, 1), after=(1, 1)), 0),
    (PoolWindow(kernel=(3, 2), strides=(3, 1), before=(1, 0), after=(2, 1)), 0),
    (PoolWindow(kernel=(3, 3), strides=(1, 3), dilation=(2, 2), before=(2, 2), after=(2, 2)), 0),
    (PoolWindow(kernel=(3, 3), strides=(2, 2)), 1),
]


@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize(("window", "ceiling"), POOLS)
@pytest.mark.parametrize("size", [(5, 6), (14, 16), (9, 40)])
def test_pooling_equals_its_definition(library, window, ceiling, size, counts_padding):
    window = PoolWindow(
        kernel=window.kernel,
        strides=window.strides,
        dilation=window.dilation,
        before=window.before,
        after=window.after,
        counts_padding=counts_padding,
    )
    images = random_images(2, 3, *size)
    spans = [(window.kernel[i] - 1) * window.dilation[i] + 1 for i in range(2)]
    rest = [size[i] + window.before[i] + window.after[i] - spans[i] for i in range(2)]
    out_size = tuple((rest[i] + ceiling * (window.strides[i] - 1)) // window.strides[i] + 1 for i in range(2))
    source = Planes(PlaneLayout(height=size[0], width=size[1], pad=1), 2, 3, images)
    parts = {"largest": [], "sum": [], "count": []}
    for name, fill, values in (
        ("largest", -np.inf, images),
        ("sum", 0, images),
        ("count", 0, np.ones_like(images)),
    ):
        inner = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
        padded = np.pad(values, inner, constant_values=1 if name == "count" and counts_padding else fill)
        padded = np.pad(padded, [(0, 0), (0, 0), (0, 64), (0, 64)], constant_values=fill)
        for tap in product(*map(range, window.kernel)):
            parts[name].append(window_part(padded, tap, window, window.strides, out_size))
    expected = {
        POOL_LARGEST: np.max(parts["largest"], axis=0),
        POOL_AVERAGE: np.sum(parts["sum"], axis=0) / np.sum(parts["count"], axis=0),
    }
    packed = pack_pool(window, source.layout, PlaneLayout(height=out_size[0], width=out_size[1], pad=1))
    buffer = aligned(packed.buffer_floats + 1, np.float32)
    buffer[:] = np.nan
    for kernel, values in expected.items():
        out = Planes(packed.out, 2, 3)
        block = packed.block(whole(source.area, out.area, 2, 3), address(buffer))
        assert library.run(kernel, address(block)) == 0
        out.check(values)
        assert np.isnan(buffer[-1])


def test_the_largest_of_a_window_with_nan_is_nan(library):
    images = random_images(1, 1, 4, 4)
    images[0, 0, 1, 1] = np.nan
    source = Planes(PlaneLayout(height=4, width=4), 1, 1, images)
    packed = pack_pool(
        PoolWindow(kernel=(2, 2), strides=(2, 2)), source.layout, PlaneLayout(height=2, width=2)
    )
    out = Planes(packed.out, 1, 1)
    buffer = aligned(packed.buffer_floats, np.float32)
    block = packed.block(whole(source.area, out.area, 1, 1), address(buffer))
    assert library.run(POOL_LARGEST, address(block)) == 0
    expected = images[0, 0].reshape(2, 2, 2, 2).max(axis=(1, 3))
    assert np.array_equal(out.images[0, 0], expected, equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
def test_channels_are_averaged(library, size):
    images = random_images(2, 3, *size)
    source = Planes(PlaneLayout(height=size[0], width=size[1], pad=1), 2, 3, images)
    out = np.full((2, 4), np.nan, dtype=np.float32)
    area = Area(address=address(out), channel_bytes=4, image_bytes=16)
    block = copy_steps.average_channels(whole(source.area, area, 2, 3), source.layout)
    assert library.run(AVERAGE_CHANNELS, address(block)) == 0
    np.testing.assert_allclose(out[:, :3], images.mean(axis=(2, 3)), rtol=1e-5, atol=1e-6)
    assert np.isnan(out[:, 3]).all()


@pytest.mark.parametrize("size", SIZES)
def test_channels_are_scaled_shifted_added_and_clamped(library, size):
    layout = PlaneLayout(height=size[0], width=size[1], pad=1)
    images, others = random_images(2, 3, *size), random_images(2, 3, *size, seed=1)
    source, second = Planes(layout, 2, 3, images), Planes(layout, 2, 3, others)
    factors, bias, mask = random_images(2, 3, seed=2), aligned_copy(random_images(3, seed=3)), layout.mask()
    call = PlanesCall(
        first=0,
        last=3,
        n_images=2,
        source=source.area,
        out=source.area,
        layout=layout,
        mask=mask,
        bias=bias,
        residual=second.area,
        low=0.5,
        high=2,
    )
    assert library.run(SCALE_PLANES, address(scale_planes(call, address(factors), 12))) == 0
    expected = images * factors[:, :, None, None] + bias[:, None, None] + others
    source.check(np.clip(expected, 0.5, 2))


@pytest.mark.parametrize("shape", [(1, 1), (8, 784), (64, 33), (17, 16), (300, 8)])
def test_rows_become_columns(library, shape):
    rows, columns = shape
    source = random_images(rows, columns + 3)
    written = -(-rows // 16) * 16
    out = np.full((columns + 1, written + 2), np.nan, dtype=np.float32)
    block = copy_steps.transpose(
        source=address(source),
        source_pitch=columns + 3,
        shape=shape,
        out=address(out),
        out_pitch=written + 2,
        written=written,
    )
    assert library.run(TRANSPOSE, address(block)) == 0
    assert np.array_equal(out[:columns, :rows], source[:, :columns].T)
    assert not out[:columns, rows:written].any()
    assert np.isnan(out[columns]).all()
    assert np.isnan(out[:, written:]).all()
