"""Contextualization and gated aggregation of FocalNet (Eq. 4 and 5) in Triton, for maps on a GPU.

A level is one launch: depth-wise convolution, GELU, and the gated sum so far. The backward pass has
two launches for each level: one sums the gradient of z^l (from the convolution above and through
its gate) and passes it through GELU, one computes the gradient of the kernels. Sums are in fp32 and
without atomics, so that their order never changes.

Checked in Triton's interpreter, and compiled for sm_80, sm_90 and sm_100; not run or timed on a
GPU.

In this file a map is (N, H, W, C), the gate of a level (N, H, W), its kernels (k * k, C).
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# A tile has 4 rows, so that a value is loaded once for four sums, and up to 32 columns of 16
# channels: 16 sums a thread. Its 4 x 16 weights are fewer than the 128 threads; from there on
# Triton would take each value through shared memory to where the weights are. Compiled for
# C = 96, a thread has at most 127 registers, and 12 bytes are spilled at most.
ROWS, COLUMNS, CHANNELS = 4, 32, 16

# Programs that make a kernel's gradient: some waves on the largest GPU, and few sums to add.
PROGRAMS = 4096


@triton.jit
def normal(x):
    """Return the normal distribution function at x; GELU(x) is x times it."""
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@triton.jit
def tile(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """Locate the tile of this program: image, first row, columns, channels; tokens, and which of
    them are on the map.

    Of the axes of a grid only the first one can have more than 65535 programs. The number of the
    image has 64 bits, and so have all offsets, which are computed from it.
    """
    image, across = tl.program_id(2).to(tl.int64), tl.cdiv(width, COLUMNS)
    top = tl.program_id(0) // across * ROWS
    row = top + tl.arange(0, ROWS)[:, None, None]
    column = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)[None, :, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    token = (image * height + row) * width + column
    return image, top, column, channel, token, (row < height) & (column < width)


@triton.jit
def convolve(
    x,
    weight,
    image,
    top,
    column,
    channel,
    height,
    width,
    channels,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Return a tile of the depth-wise convolution, (ROWS, COLUMNS, CHANNELS) in fp32."""
    column -= K // 2
    known = channel < channels
    total = tl.full([ROWS, COLUMNS, CHANNELS], 0, tl.float32)
    for row in range(max(top - K // 2, 0), min(top + ROWS + K // 2, height)):
        i = row + K // 2 - top - tl.arange(0, ROWS)[:, None, None]
        values = x + ((image * height + row) * width + column) * channels + channel
        weights = weight + i * K * channels + channel
        seen = (i >= 0) & (i < K) & known
        for j in range(K):
            value = tl.load(values, (column + j >= 0) & (column + j < width) & known, 0)
            total += value.to(tl.float32) * tl.load(weights, seen, 0)
            values += channels
            weights += channels
    return total


@triton.jit(do_not_specialize=['gate', 'height', 'width'])
def level_forward(
    x,
    weight,
    gate,
    before,
    z,
    out,
    height,
    width,
    channels,
    FIRST: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute before = dwconv(x), z = GELU(before), out = out + gate * z."""
    image, top, column, channel, token, on_map = tile(height, width, ROWS, COLUMNS, CHANNELS)
    at, mask = token * channels + channel, on_map & (channel < channels)

    value = convolve(
        x, weight, image, top, column, channel, height, width, channels, K, ROWS, COLUMNS, CHANNELS
    )
    value = value.to(z.dtype.element_ty)  # rounded as stored, for the backward pass
    if before is not None:
        tl.store(before + at, value, mask)
    value = value.to(tl.float32)
    value *= normal(value)
    tl.store(z + at, value, mask)
    value *= tl.load(gate + token, on_map, 0).to(tl.float32)
    if not FIRST:
        value += tl.load(out + at, mask, 0).to(tl.float32)
    tl.store(out + at, value, mask)


@triton.jit(do_not_specialize=['gate', 'height', 'width'])
def level_backward(
    above,
    weight,
    grad,
    gate,
    before,
    below,
    z,
    gate_grad,
    height,
    width,
    channels,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Propagate the gradient of a level's output through its gate and GELU.

    ``above`` is the gradient of the next level's convolution, ``weight`` its flipped kernels; with
    K = 0, ``above`` is the gradient of the global context, (N, C). ``below`` becomes the gradient
    of this level's convolution, or, without ``before``, of the context z^0. Each block of channels
    has a sum of its own in ``gate_grad``.
    """
    image, top, column, channel, token, on_map = tile(height, width, ROWS, COLUMNS, CHANNELS)
    at, mask = token * channels + channel, on_map & (channel < channels)

    if K == 0:
        carry = tl.full([ROWS, COLUMNS, CHANNELS], 0, tl.float32)
        carry += tl.load(above + image * channels + channel, channel < channels, 0).to(tl.float32)
    else:
        carry = convolve(
            above,
            weight,
            image,
            top,
            column,
            channel,
            height,
            width,
            channels,
            K,
            ROWS,
            COLUMNS,
            CHANNELS,
        )
    if before is not None:
        value = tl.load(before + at, mask, 0).to(tl.float32)
        part = normal(value)
        out_grad = tl.load(grad + at, mask, 0).to(tl.float32)
        sums = tl.sum(out_grad * value * part, 2)[:, :, None]
        block = tl.program_id(1).to(tl.int64) * tl.num_programs(2) * height * width
        tl.store(gate_grad + block + token, sums, on_map)
        carry += out_grad * tl.load(gate + token, on_map, 0).to(tl.float32)
        carry *= part + value * tl.exp(-0.5 * value * value) * 0.3989422804014327
        if z is not None:
            tl.store(z + at, value * part, mask)
    tl.store(below + at, carry, mask)


@triton.jit(do_not_specialize=['rows', 'strip', 'height', 'width'])
def kernel_gradient(
    x,
    grad,
    parts,
    rows,
    strip,
    height,
    width,
    channels,
    K: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute row i of the gradient of a channel block's kernels, summed over ``strip`` rows of all
    N * H.
    """
    i = tl.program_id(1)
    j = tl.arange(0, TAPS)[:, None, None]
    column = tl.arange(0, COLUMNS)[None, :, None].to(tl.int64)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    known = channel < channels
    seen = (j < K) & known
    total = tl.full([TAPS, COLUMNS, CHANNELS], 0, tl.float32)
    start = tl.program_id(2) * strip
    for row in range(start, min(start + strip, rows)):
        shift = i - K // 2
        if (row % height + shift >= 0) & (row % height + shift < height):
            for left in range(0, width, COLUMNS):
                to = left + column
                out_grad = tl.load(
                    grad + (row * width + to) * channels + channel, (to < width) & known, 0
                )
                to += j - K // 2
                value = tl.load(
                    x + ((row + shift) * width + to) * channels + channel,
                    (to >= 0) & (to < width) & seen,
                    0,
                )
                total += out_grad.to(tl.float32) * value.to(tl.float32)
    at = ((tl.program_id(2) * K + i) * K + j) * channels + channel
    tl.store(parts + at, tl.sum(total, 1)[:, None, :], seen)


def columns(width: int) -> int:
    """Return the columns of a tile of maps of this width."""
    return min(COLUMNS, max(8, triton.next_power_of_2(width)))


def launch(level, kernel_size: int, x: Tensor, *args: Tensor | None, **constants: bool) -> None:
    """Run a level on every tile of maps like x."""
    count, height, width, channels = x.shape
    across = columns(width)
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(width, across)
    level[tiles, triton.cdiv(channels, CHANNELS), count](
        *args,
        height,
        width,
        channels,
        K=kernel_size,
        ROWS=ROWS,
        COLUMNS=across,
        CHANNELS=CHANNELS,
        **constants,
    )


def forward(
    context: Tensor, gates: Tensor, *kernels: Tensor, stored: list[Tensor] | None = None
) -> Tensor:
    """Compute :func:`.gated_context.gated_context` in fp32, fp16 or bf16; ``stored`` collects the
    arguments of GELU, level by level, and the global average.
    """
    x = context.permute(0, 2, 3, 1).contiguous()
    gates = gates.transpose(0, 1).contiguous()
    out = torch.empty_like(x)
    befores: list[Tensor | None] = []
    for level, kernel in enumerate(kernels):
        z = torch.empty_like(x)
        before = None if stored is None else torch.empty_like(x)
        befores.append(before)
        weight = kernel.flatten(1).t().float().contiguous()
        launch(
            level_forward,
            kernel.shape[-1],
            x,
            x,
            weight,
            gates[level],
            before,
            z,
            out,
            FIRST=level == 0,
        )
        x = z
    mean = x.mean((1, 2), keepdim=True)
    whole, gate = F.gelu(mean), gates[-1, ..., None]
    out = out.addcmul_(whole, gate) if kernels else whole * gate
    if stored is not None:
        stored += (t.permute(0, 3, 1, 2) for t in (*befores, mean) if t is not None)
    return out.permute(0, 3, 1, 2)


def backward(grad: Tensor, context: Tensor, gates: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of the arguments of :func:`forward`.

    Args:
        grad (Tensor): Gradient of its output, shape (N, C, H, W).
        context (Tensor): z^0, of the same shape.
        gates (Tensor): Shape (N, L + 1, H, W).
        rest (Tensor): The kernels, then the tensors that were stored.
    """
    kernels, stored, mean = rest[: len(rest) // 2], rest[len(rest) // 2 : -1], rest[-1]
    grad, x, *befores = (
        tensor.permute(0, 2, 3, 1).contiguous() for tensor in (grad, context, *stored)
    )
    count, height, width, channels = x.shape
    gates = gates.transpose(0, 1).contiguous()
    grad_gates, grad_kernels = torch.empty_like(gates), list(kernels)

    rows = grad.flatten(1, 2)
    grad_gates[-1] = (rows @ F.gelu(mean).flatten(2)).view(count, height, width)
    carry = (gates[-1].view(count, 1, -1) @ rows).view_as(mean)
    carry = torch.ops.aten.gelu_backward(carry, mean) / (height * width)
    turned, kernel_size = None, 0
    for level in reversed(range(len(kernels) + 1)):
        # z^level; its gradient is what the convolution above, kernels[level], passes down.
        gate = before = z = sums = None
        if level:
            gate, before = gates[level - 1], befores[level - 1]
            sums = gates.new_empty(triton.cdiv(channels, CHANNELS), *gate.shape, dtype=torch.float)
            z = torch.empty_like(x) if kernel_size else None
        below = torch.empty_like(x)
        launch(level_backward, kernel_size, x, carry, turned, grad, gate, before, below, z, sums)
        if kernel_size:
            z = x if z is None else z
            grad_kernels[level] = weight_gradient(z, carry, kernel_size)
        if level:
            assert sums is not None
            grad_gates[level - 1] = sums.sum(0)
            kernel_size = kernels[level - 1].shape[-1]
            turned = kernels[level - 1].flatten(1).t().flip(0).float().contiguous()
        carry = below
    return carry.permute(0, 3, 1, 2), grad_gates.transpose(0, 1), *grad_kernels


def weight_gradient(x: Tensor, grad: Tensor, kernel_size: int) -> Tensor:
    """Return the gradient of a depth-wise convolution of x with respect to its kernels.

    Args:
        x (Tensor): Its input, shape (N, H, W, C).
        grad (Tensor): Gradient of its output, of the same shape.
        kernel_size (int): Side k of the kernels.

    Returns:
        Tensor: Shape (C, 1, k, k).
    """
    count, height, width, channels = x.shape
    rows, blocks = count * height, triton.cdiv(channels, CHANNELS)
    strip = max(1, triton.cdiv(rows, max(1, PROGRAMS // (blocks * kernel_size))))
    strips = triton.cdiv(rows, strip)
    parts = x.new_empty(strips, kernel_size, kernel_size, channels, dtype=torch.float)
    taps = triton.next_power_of_2(kernel_size)
    kernel_gradient[blocks, kernel_size, strips](
        x,
        grad,
        parts,
        rows,
        strip,
        height,
        width,
        channels,
        K=kernel_size,
        TAPS=taps,
        COLUMNS=min(columns(width), 256 // taps),
        CHANNELS=CHANNELS,
    )
    return parts.sum(0).permute(2, 0, 1)[:, None].to(x.dtype)
