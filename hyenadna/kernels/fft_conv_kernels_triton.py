"""The kernels of the long convolution: rows on chip, and the inner transforms of those that have an outer stage.

`factors` are the tables of an inner transform, H is the spectrum of the filter with skip at tap 0, u = v pre and
g = grad post. Signals are addressed by the strides of their batch and channels.
"""

import triton
import triton.language as tl

from hyenadna.kernels.right_angle_triton import (
    inverse_real,
    inverse_to_scratch,
    load_complex,
    load_product,
    load_scratch,
    load_tables,
    product,
    store_product,
    transform,
    transform_real,
)


@triton.jit
def _load_filter(spectra, skip, d, at, SIZE: tl.constexpr):
    """H at some frequencies: the transform of an impulse is 1."""
    hr, hi = load_complex(spectra + d * (2 * SIZE) + at, SIZE)
    return hr + tl.load(skip + d), hi


@triton.jit
def _store_spectrum(re, im, spectra, row, at, adds, SIZE: tl.constexpr):
    """Store what belongs into a row of spectra, or add it to what this program has stored there."""
    pointers = spectra + row * (2 * SIZE) + at
    if adds:
        tl.debug_barrier()  # another thread may have stored it: nothing else synchronises the lanes of a single warp
        re += tl.load(pointers)
        im += tl.load(pointers + SIZE)
    tl.store(pointers, re)
    tl.store(pointers + SIZE, im)


@triton.jit
def on_chip(
    v, pre, post, out, spectrum, skip, tables, B, L, v_b, v_d, pre_b, pre_d, post_b, post_d, out_b, out_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The convolution of one channel, for every num_programs(1)-th of the batch."""
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = n < L
    factors = load_tables(tables, 0, ROWS, COLUMNS)
    for b in range(tl.program_id(1).to(tl.int64), B, tl.num_programs(1)):
        u = load_product(v, pre, b * v_b + d * v_d, b * pre_b + d * pre_d, n, inside)
        ur, ui = transform_real(u, factors, EXACT)
        # from the L2 cache, but for the first time: there are not registers enough to keep it
        hr, hi = _load_filter(spectrum, skip, d, n, ROWS * COLUMNS)
        yr, yi = product(ur, ui, hr, hi)
        y = inverse_real(yr, yi, factors, EXACT)
        store_product(y, post, b * post_b + d * post_d, out, b * out_b + d * out_d, n, inside)


@triton.jit
def on_chip_backward(
    grad, v, pre, post, grad_v, grad_pre, grad_post, grad_spectra, spectrum, skip, tables, B, L,
    grad_b, grad_d, v_b, v_d, pre_b, pre_d, post_b, post_d, out_b, out_d,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """All gradients, that of the filter as a spectrum (num_programs(1), D, 2, N) for each part of the batch."""
    SIZE: tl.constexpr = ROWS * COLUMNS
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = n < L
    factors = load_tables(tables, 0, ROWS, COLUMNS)
    part = tl.program_id(1).to(tl.int64)
    for b in range(part, B, tl.num_programs(1)):
        v_row = b * v_b + d * v_d
        pre_row = b * pre_b + d * pre_d
        grad_row = b * grad_b + d * grad_d
        out_row = b * out_b + d * out_d
        u = load_product(v, pre, v_row, pre_row, n, inside)
        ur, ui = transform_real(u, factors, EXACT)
        if grad_post is not None:
            hr, hi = _load_filter(spectrum, skip, d, n, SIZE)
            yr, yi = product(ur, ui, hr, hi)
            y = inverse_real(yr, yi, factors, EXACT)
            store_product(y, grad, grad_row, grad_post, out_row, n, inside)
        g = load_product(grad, post, grad_row, b * post_b + d * post_d, n, inside)
        gr, gi = transform_real(g, factors, EXACT)
        if grad_spectra is not None:
            sr, si = product(gr, gi, ur, -ui)
            _store_spectrum(sr, si, grad_spectra, part * tl.num_programs(0) + d, n, b >= tl.num_programs(1), SIZE)
        hr, hi = _load_filter(spectrum, skip, d, n, SIZE)
        gr, gi = product(gr, gi, hr, -hi)
        grad_u = inverse_real(gr, gi, factors, EXACT)
        store_product(grad_u, pre, pre_row, grad_v, out_row, n, inside)
        store_product(grad_u, v, v_row, grad_pre, out_row, n, inside)


@triton.jit
def on_chip_spectrum(
    h, spectrum, tables, L, h_d, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """The spectrum of one channel's filter."""
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    taps = tl.load(h + d * h_d + n, mask=n < L, other=0)
    hr, hi = transform_real(taps, load_tables(tables, 0, ROWS, COLUMNS), EXACT)
    _store_spectrum(hr, hi, spectrum, d, n, False, ROWS * COLUMNS)


@triton.jit
def on_chip_taps(
    spectra, h, tables, parts, L, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr
):  # fmt: skip
    """The first L taps (D, L) of which the sum of (parts, D, 2, N) is the spectrum, of one channel."""
    d = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    hr = tl.zeros((ROWS, COLUMNS), tl.float32)
    hi = tl.zeros((ROWS, COLUMNS), tl.float32)
    for part in range(parts):
        pr, pi = load_complex(spectra + (part * tl.num_programs(0) + d) * (2 * ROWS * COLUMNS) + n, ROWS * COLUMNS)
        hr += pr
        hi += pi
    taps = inverse_real(hr, hi, load_tables(tables, 0, ROWS, COLUMNS), EXACT)
    tl.store(h + d * L + n, taps, mask=n < L)


@triton.jit
def _frequencies(k1, OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where a spectrum holds [p, q] of one k1."""
    p = k1 + OUTER * tl.arange(0, ROWS)
    return p[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit(do_not_specialize=["first_d", "batches"])
def inner(
    scratch, exponents, inverse_exponents, spectrum, skip, tables, first_d, batches,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, HEADROOM: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Inner transforms of one channel and k1, the product with the filter's spectrum, and back, in the scratch."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    d = first_d + channel
    factors = load_tables(tables, k1, ROWS, COLUMNS)
    at = _frequencies(k1, OUTER, ROWS, COLUMNS)
    for row in range(channel * batches, (channel + 1) * batches):
        ur, ui = load_scratch(scratch, exponents, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        ur, ui = transform(ur, ui, factors, EXACT)
        hr, hi = _load_filter(spectrum, skip, d, at, OUTER * ROWS * COLUMNS)
        yr, yi = product(ur, ui, hr, hi)
        inverse_to_scratch(yr, yi, factors, scratch, inverse_exponents, row, k1, OUTER, ROWS, COLUMNS, HEADROOM, EXACT)


@triton.jit(do_not_specialize=["first_b", "first_d", "batches"])
def inner_backward(
    u_scratch, u_exponents, u_inverse_exponents, g_scratch, g_exponents, g_inverse_exponents, grad_spectrum,
    spectrum, skip, tables, first_b, first_d, batches,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, HEADROOM: tl.constexpr,
    WITH_Y: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The same of u, if y is asked for, and of g, and the spectrum of the filter's gradient, summed over the batch."""
    SIZE: tl.constexpr = OUTER * ROWS * COLUMNS
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    d = first_d + channel
    factors = load_tables(tables, k1, ROWS, COLUMNS)
    at = _frequencies(k1, OUTER, ROWS, COLUMNS)
    first = channel * batches
    for row in range(first, first + batches):
        ur, ui = load_scratch(u_scratch, u_exponents, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        ur, ui = transform(ur, ui, factors, EXACT)
        if WITH_Y:
            hr, hi = _load_filter(spectrum, skip, d, at, SIZE)
            yr, yi = product(ur, ui, hr, hi)
            inverse_to_scratch(
                yr, yi, factors, u_scratch, u_inverse_exponents, row, k1, OUTER, ROWS, COLUMNS, HEADROOM, EXACT
            )
        gr, gi = load_scratch(g_scratch, g_exponents, row, k1, OUTER, ROWS, COLUMNS, WIDTH)
        gr, gi = transform(gr, gi, factors, EXACT)
        if grad_spectrum is not None:
            sr, si = product(gr, gi, ur, -ui)
            _store_spectrum(sr, si, grad_spectrum, channel, at, row - first + first_b > 0, SIZE)
        hr, hi = _load_filter(spectrum, skip, d, at, SIZE)
        gr, gi = product(gr, gi, hr, -hi)
        inverse_to_scratch(
            gr, gi, factors, g_scratch, g_inverse_exponents, row, k1, OUTER, ROWS, COLUMNS, HEADROOM, EXACT
        )


@triton.jit(do_not_specialize=["first_d"])
def inner_spectrum(
    scratch, exponents, spectrum, tables, first_d,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Inner transforms of one channel and k1 into the spectrum."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    hr, hi = load_scratch(scratch, exponents, channel, k1, OUTER, ROWS, COLUMNS, WIDTH)
    hr, hi = transform(hr, hi, load_tables(tables, k1, ROWS, COLUMNS), EXACT)
    at = _frequencies(k1, OUTER, ROWS, COLUMNS)
    _store_spectrum(hr, hi, spectrum, first_d + channel, at, False, OUTER * ROWS * COLUMNS)


@triton.jit(do_not_specialize=["first_d"])
def inner_taps(
    spectrum, scratch, inverse_exponents, tables, first_d,
    OUTER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HEADROOM: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Inverse inner transforms of one channel and k1 of a spectrum."""
    k1 = tl.program_id(0)
    channel = tl.program_id(1).to(tl.int64)
    SIZE: tl.constexpr = OUTER * ROWS * COLUMNS
    at = _frequencies(k1, OUTER, ROWS, COLUMNS)
    hr, hi = load_complex(spectrum + (first_d + channel) * (2 * SIZE) + at, SIZE)
    factors = load_tables(tables, k1, ROWS, COLUMNS)
    inverse_to_scratch(hr, hi, factors, scratch, inverse_exponents, channel, k1, OUTER, ROWS, COLUMNS, HEADROOM, EXACT)
