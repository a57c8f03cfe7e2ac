"""A filter over few modes as skinny matrix products; ``plan`` says how tokens and modes fold.

Analysis reads x once and sums its modes, filtered on the way out; synthesis writes y once.

Channels are the rows of both products: tokens enter the first from the registers they fold in.

A tile is a block of channels of one sequence (and of modes, in the analysis). It takes steps of
L_BLOCK folded tokens. The analysis sums them in chunks, a program each; programs of the synthesis
share them evenly: program p takes PER of them, one more where p < EXTRA, of one tile or several.

Shapes: B batch, N tokens, D channels, L folded tokens. Spectra are [B, parities, 2, MP, D], real
and imaginary parts, float32, and filtered ones in x's dtype; the matrix is [parities, 2, MP, LP].
H = N / 2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashmix.ops.spectral.triton.kernels_modes import factor, store_modes


@triton.jit
def _begin(p, PER, EXTRA):
    """The first step of program p."""
    return p * PER + tl.minimum(p, EXTRA)


@triton.jit
def analysis_kernel(
    x,
    matrix,
    spectrum,
    partial_sums,
    weight,
    scale,
    stride_b,
    stride_n,
    stride_d,
    D,
    L,
    MP,
    LP,
    N,
    KEPT,
    CHANNELS,
    BLOCKS,
    STEPS,
    CHUNKS: tl.constexpr,
    PARITIES: tl.constexpr,
    FILTER: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    L_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sum a chunk of a tile: STEPS steps at most.

    The CHUNKS chunks of a tile depend on the length alone, so that a sequence's sums have the same
    bits in any batch. One chunk is the whole tile and is stored in ``spectrum``, filtered with
    ``FILTER``; several are stored in ``partial_sums`` [tiles, CHUNKS, parities, 2, M_BLOCK,
    D_BLOCK], for ``join_kernel``.
    """
    if PDL:
        gdc_launch_dependents()
    dtype = x.dtype.element_ty
    H = N // 2
    tile = tl.program_id(0) // CHUNKS
    d_local = tl.arange(0, D_BLOCK)[:, None]
    m_local = tl.arange(0, M_BLOCK)[None, :]
    d = (tile % CHANNELS) * D_BLOCK + d_local
    m = (tile // CHANNELS % BLOCKS) * M_BLOCK + m_local
    b = (tile // CHANNELS // BLOCKS).to(tl.int64)
    own = x + b * stride_b + d * stride_d
    step = tl.arange(0, L_BLOCK)
    even_re = tl.zeros((D_BLOCK, M_BLOCK), tl.float32)
    even_im = tl.zeros_like(even_re)
    odd_re = tl.zeros_like(even_re)
    odd_im = tl.zeros_like(even_re)
    first = (tl.program_id(0) % CHUNKS) * STEPS * L_BLOCK
    for start in range(first, tl.minimum(first + STEPS * L_BLOCK, L), L_BLOCK):
        n = start + step[None, :]
        kept = (n < L) & (d < D)
        twin = (n < H // 2) & (d < D)
        x_n = tl.load(own + n * stride_n, mask=kept, other=0.0)
        entry = matrix + m * LP + start + step[:, None]
        inside = start + step[:, None] < LP
        e_re = tl.load(entry, mask=inside, other=0.0)
        e_im = tl.load(entry + MP * LP, mask=inside, other=0.0)
        if PARITIES == 1:
            even_re = tl.dot(x_n, e_re, even_re, input_precision=PRECISION)
            even_im = tl.dot(x_n, e_im, even_im, input_precision=PRECISION)
        else:
            x_n = x_n.to(tl.float32)
            x_m = tl.load(own + (H - 1 - n) * stride_n, mask=twin, other=0.0).to(tl.float32)
            x_t = tl.load(own + (H + n) * stride_n, mask=twin, other=0.0).to(tl.float32)
            x_l = tl.load(own + (N - 1 - n) * stride_n, mask=kept, other=0.0).to(tl.float32)
            o_re = tl.load(entry + 2 * MP * LP, mask=inside, other=0.0)
            o_im = tl.load(entry + 3 * MP * LP, mask=inside, other=0.0)
            s = x_n + x_l
            t = x_m + x_t
            u = x_n - x_l
            v = x_m - x_t
            even_re = tl.dot((s + t).to(dtype), e_re, even_re, input_precision=PRECISION)
            odd_re = tl.dot((s - t).to(dtype), o_re, odd_re, input_precision=PRECISION)
            even_im = tl.dot((u - v).to(dtype), e_im, even_im, input_precision=PRECISION)
            odd_im = tl.dot((u + v).to(dtype), o_im, odd_im, input_precision=PRECISION)

    plane = MP * D
    to = spectrum + b * PARITIES * 2 * plane + m * D + d
    SIZE: tl.constexpr = M_BLOCK * D_BLOCK
    slot = tl.program_id(0).to(tl.int64) * (PARITIES * 2 * SIZE)
    own_sums = partial_sums + slot + m_local * D_BLOCK + d_local
    for k in tl.static_range(PARITIES):
        re = even_re if k == 0 else odd_re
        im = even_im if k == 0 else odd_im
        if CHUNKS > 1:
            tl.store(own_sums + k * 2 * SIZE, re)
            tl.store(own_sums + (k * 2 + 1) * SIZE, im)
        elif FILTER:
            mode = PARITIES * m + k
            kept = (mode < KEPT) & (d < D)
            w_re, w_im = factor(weight, mode, d, kept, scale, D, N, False, UNITARY)
            store_modes(to + k * 2 * plane, re, im, w_re, w_im, plane, d < D)
        else:
            tl.store(to + k * 2 * plane, re, mask=d < D)
            tl.store(to + (k * 2 + 1) * plane, im, mask=d < D)


@triton.jit
def join_kernel(
    partial_sums,
    spectrum,
    weight,
    scale,
    D,
    N,
    MP,
    KEPT,
    CHANNELS,
    BLOCKS,
    CHUNKS,
    PARITIES: tl.constexpr,
    FILTER: tl.constexpr,
    UNITARY: tl.constexpr,
    M_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    PDL: tl.constexpr,
):
    """ROWS modes and COLUMNS channels of a tile: the sums of its chunks in order, stored as one."""
    tile = tl.program_id(0)
    i = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    d_local = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    k = i // M_BLOCK
    SIZE: tl.constexpr = M_BLOCK * D_BLOCK
    slot = partial_sums + tile.to(tl.int64) * CHUNKS * (PARITIES * 2 * SIZE)
    slot += (k * M_BLOCK + i) * D_BLOCK + d_local
    d = (tile % CHANNELS) * D_BLOCK + d_local
    m = (tile // CHANNELS % BLOCKS) * M_BLOCK + i % M_BLOCK
    b = (tile // CHANNELS // BLOCKS).to(tl.int64)
    mode = PARITIES * m + k
    if FILTER:
        kept = (mode < KEPT) & (d < D)
        w_re, w_im = factor(weight, mode, d, kept, scale, D, N, False, UNITARY)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    re = tl.zeros((ROWS, COLUMNS), tl.float32)
    im = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(0, CHUNKS, AT_ONCE):
        for member in tl.static_range(AT_ONCE):
            at = slot + (group + member) * (PARITIES * 2 * SIZE)
            there = d < tl.where(group + member < CHUNKS, D, 0)
            re += tl.load(at, mask=there, other=0.0)
            im += tl.load(at + SIZE, mask=there, other=0.0)
    plane = MP * D
    to = spectrum + b * PARITIES * 2 * plane + (k * 2 * MP + m) * D + d
    if FILTER:
        store_modes(to, re, im, w_re, w_im, plane, d < D)
    else:
        tl.store(to, re, mask=d < D)
        tl.store(to + plane, im, mask=d < D)


@triton.jit
def _load_modes(filtered, m, MP, D, kept):
    at = filtered + m * D
    return tl.load(at, mask=kept, other=0.0), tl.load(at + MP * D, mask=kept, other=0.0)


@triton.jit
def _store_tokens(
    y, x, out, row, kept, stride_n, boost, D, BOOSTED: tl.constexpr, ADD_X: tl.constexpr
):
    """Tokens ``row`` of y, at channels whose addresses ``y`` and ``x`` are."""
    if BOOSTED:
        out *= 1.0 / boost
    if ADD_X:
        out += tl.load(x + row * stride_n, mask=kept, other=0.0).to(tl.float32)
    tl.store(y + row * D, out.to(y.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=("PER", "EXTRA"))
def synthesis_kernel(
    filtered,
    matrix,
    bias,
    x,
    y,
    stride_b,
    stride_n,
    stride_d,
    boost,
    N,
    D,
    L,
    MP,
    LP,
    CHANNELS,
    STEPS,
    PER,
    EXTRA,
    PARITIES: tl.constexpr,
    BLOCKS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ADD_X: tl.constexpr,
    BOOSTED: tl.constexpr,
    M_BLOCK: tl.constexpr,
    L_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Real signal of the filtered modes, which come times ``boost`` where ``BOOSTED``.

    The modes of a tile are read once where one block holds them all.
    """
    H = N // 2
    m = tl.arange(0, M_BLOCK)[None, :]
    odd = (PARITIES - 1) * 2 * MP * D
    begin = _begin(tl.program_id(0), PER, EXTRA)
    end = _begin(tl.program_id(0) + 1, PER, EXTRA)
    if PDL:
        gdc_wait()
    for tile in range(begin // STEPS, (end - 1) // STEPS + 1):
        d = (tile % CHANNELS) * D_BLOCK + tl.arange(0, D_BLOCK)[:, None]
        b = (tile // CHANNELS).to(tl.int64)
        z = filtered + b * PARITIES * 2 * MP * D + d
        to = y + b * N * D + d
        own = x + b * stride_b + d * stride_d
        add = tl.zeros((1, 1), tl.float32)
        if HAS_BIAS:
            add = tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)
            if BOOSTED:
                add *= boost
        if BLOCKS == 1:
            z_re, z_im = _load_modes(z, m, MP, D, d < D)
            v_re, v_im = _load_modes(z + odd, m, MP, D, d < D)
        first = tl.maximum(begin - tile * STEPS, 0) * L_BLOCK
        last = tl.minimum(end - tile * STEPS, STEPS) * L_BLOCK
        for start in range(first, tl.minimum(last, L), L_BLOCK):
            n = start + tl.arange(0, L_BLOCK)[None, :]
            even_re = tl.zeros((D_BLOCK, L_BLOCK), tl.float32)
            even_im = tl.zeros_like(even_re)
            odd_re = tl.zeros_like(even_re)
            odd_im = tl.zeros_like(even_re)
            for block in tl.static_range(BLOCKS):
                if BLOCKS > 1:
                    z_re, z_im = _load_modes(z, block * M_BLOCK + m, MP, D, d < D)
                row = block * M_BLOCK + tl.arange(0, M_BLOCK)[:, None]
                entry = matrix + row * LP + n
                e_re = tl.load(entry, mask=n < LP, other=0.0)
                e_im = tl.load(entry + MP * LP, mask=n < LP, other=0.0)
                even_re = tl.dot(z_re, e_re, even_re, input_precision=PRECISION)
                even_im = tl.dot(z_im, e_im, even_im, input_precision=PRECISION)
                if PARITIES == 2:
                    if BLOCKS > 1:
                        v_re, v_im = _load_modes(z + odd, block * M_BLOCK + m, MP, D, d < D)
                    o_re = tl.load(entry + 2 * MP * LP, mask=n < LP, other=0.0)
                    o_im = tl.load(entry + 3 * MP * LP, mask=n < LP, other=0.0)
                    odd_re = tl.dot(v_re, o_re, odd_re, input_precision=PRECISION)
                    odd_im = tl.dot(v_im, o_im, odd_im, input_precision=PRECISION)
            once = (n < L) & (d < D)
            twin = (n < H // 2) & (d < D)
            if HAS_BIAS:
                even_re += add
            sum_re = even_re + odd_re
            sum_im = even_im + odd_im
            if PARITIES == 1:
                _store_tokens(to, own, sum_re + sum_im, n, once, stride_n, boost, D, BOOSTED, ADD_X)
            else:
                # Two rows go through shared memory at once, on their way to whole lines of y.
                less_re = even_re - odd_re
                less_im = even_im - odd_im
                outer = tl.join(sum_re + sum_im, sum_re - sum_im)
                inner = tl.join(less_re - less_im, less_re + less_im)
                row = tl.join(n, N - 1 - n)
                _store_tokens(
                    to[:, :, None],
                    own[:, :, None],
                    outer,
                    row,
                    once[:, :, None],
                    stride_n,
                    boost,
                    D,
                    BOOSTED,
                    ADD_X,
                )
                row = tl.join(H - 1 - n, H + n)
                _store_tokens(
                    to[:, :, None],
                    own[:, :, None],
                    inner,
                    row,
                    twin[:, :, None],
                    stride_n,
                    boost,
                    D,
                    BOOSTED,
                    ADD_X,
                )
