"""deform_conv2d and modulated_deform_conv2d of mmcv.ops: (4, 4, 7, 9) inputs, kernels 1x1 to 3x2,
strides, paddings, dilations, groups and deform groups 1 and 2, and the golden (2, 6, 25, 31);
float32, float64 and, computed in float32, float16 and bfloat16."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)

pytestmark = pytest.mark.stock

# kernel, stride, padding, dilation, groups, deform groups
GEOMETRIES = [
    ((3, 3), 1, 1, 1, 1, 1),
    ((3, 2), (2, 1), (1, 0), 1, 1, 2),
    ((2, 3), 1, 2, 2, 2, 1),
    ((3, 3), 2, 0, 1, 2, 2),
    ((1, 1), 1, 0, 1, 1, 1),
]


def operands(
    kernel,
    stride,
    padding,
    dilation,
    groups,
    deform_groups,
    dtype=torch.float32,
    device='cpu',
    batch=4,
):
    """Input, offset, mask, weight and bias."""
    rng = torch.Generator().manual_seed(0)
    shape = F.conv2d(
        torch.zeros(1, 1, 7, 9), torch.zeros(1, 1, *kernel), None, stride, padding, dilation
    ).shape[2:]
    positions = deform_groups * math.prod(kernel)
    tensors = (
        torch.randn(batch, 4, 7, 9, generator=rng),
        torch.randn(batch, 2 * positions, *shape, generator=rng) * 1.5,
        torch.rand(batch, positions, *shape, generator=rng),
        torch.randn(6, 4 // groups, *kernel, generator=rng),
        torch.randn(6, generator=rng),
    )
    return [t.to(device, dtype) for t in tensors]


def interpolate(plane, y, x):
    height, width = len(plane), len(plane[0])
    y0, x0 = math.floor(y), math.floor(x)
    return sum(
        plane[r][c] * (1 - abs(y - r)) * (1 - abs(x - c))
        for r in (y0, y0 + 1)
        for c in (x0, x0 + 1)
        if 0 <= r < height and 0 <= c < width
    )


def naive(x, offset, mask, weight, kernel, stride, padding, dilation, groups, deform_groups):
    """Zhu et al., 2019, eq. 1, without bias."""
    (sy, sx), (py, px), (dy, dx) = (
        (v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)
    )
    planes = x.tolist()
    output = torch.zeros(len(x), len(weight), *offset.shape[2:], dtype=x.dtype)
    for n, o, i, j in torch.cartesian_prod(*map(torch.arange, output.shape)).tolist():
        first = o // (len(weight) // groups) * weight.shape[1]
        for c in range(weight.shape[1]):
            group = (first + c) // (x.shape[1] // deform_groups)
            for u in range(kernel[0]):
                for v in range(kernel[1]):
                    k = (group * kernel[0] + u) * kernel[1] + v
                    value = interpolate(
                        planes[n][first + c],
                        i * sy - py + u * dy + offset[n, 2 * k, i, j].item(),
                        j * sx - px + v * dx + offset[n, 2 * k + 1, i, j].item(),
                    )
                    output[n, o, i, j] += weight[o, c, u, v] * mask[n, k, i, j] * value
    return output


@pytest.mark.parametrize('modulated', [False, True])
def test_convolution_and_its_gradients_equal_compiled_mmcv(golden, modulated):
    names = ('feat', 'dcn_offset', 'dcn_mask', 'dcn_weight', 'dcn_bias')
    x, offset, mask, weight, bias = (golden[name].requires_grad_() for name in names)
    if modulated:
        output = modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1)
        expected = dict(mdcn_gx=x, mdcn_goff=offset, mdcn_gmask=mask, mdcn_gw=weight, mdcn_gb=bias)
    else:
        output = deform_conv2d(x, offset, weight, 1, 1)
        expected = dict(deform_conv2d_gx=x, deform_conv2d_goff=offset, deform_conv2d_gw=weight)
    name = 'modulated_deform_conv2d' if modulated else 'deform_conv2d'
    torch.testing.assert_close(output, golden[name], rtol=0, atol=1e-4)
    output.sum().backward()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensor.grad, golden[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize('modulated', [False, True])
def test_gradients_on_the_edge_of_the_map_equal_mmcvs(golden, modulated):
    """Exactly one pixel before the map, where torchvision's differ."""
    x, offset, mask, weight = (
        golden[f'edge_{name}'].requires_grad_() for name in ('x', 'offset', 'mask', 'weight')
    )
    if modulated:
        output = modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 2)
        name, expected = 'mdcn', dict(gx=x, goffset=offset, gmask=mask)
    else:
        output = deform_conv2d(x, offset, weight, 1, 1, 1, 1, 2)
        name, expected = 'dcn', dict(gx=x, goffset=offset)
    output.backward(golden['edge_cot'])
    for grad, tensor in expected.items():
        torch.testing.assert_close(tensor.grad, golden[f'edge_{name}_{grad}'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_offset_of_a_sample_one_pixel_before_the_map_has_no_gradient(device, geometry):
    """And the others have the one that they have a little further on."""
    x, offset, mask, weight, _ = operands(*geometry, torch.float64, device)
    grads = []
    for place in (offset.round(), offset.round() + 1e-9):
        place.requires_grad_()
        output = modulated_deform_conv2d(x, place, mask, weight, None, *geometry[1:])
        grads += torch.autograd.grad(output.sum(), place)
    _, stride, padding, dilation, *_ = geometry
    by_axis = offset.round().unflatten(1, (-1, *geometry[0], 2))
    before_map = torch.zeros_like(by_axis, dtype=torch.bool)
    for index in torch.cartesian_prod(*map(torch.arange, by_axis.shape)).tolist():
        _, _, *tap, axis, i, j = index
        step, pad, far = (v if isinstance(v, int) else v[axis] for v in (stride, padding, dilation))
        position = (i, j)[axis] * step - pad + tap[axis] * far + by_axis[tuple(index)].item()
        before_map[tuple(index)] = position == -1
    expected = grads[1].where(~before_map.view_as(offset), 0)
    assert before_map.any() or padding == 0
    torch.testing.assert_close(grads[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_zero_offsets_give_a_plain_convolution(device, dtype, geometry):
    x, offset, mask, weight, bias = operands(*geometry, dtype, device)
    expected = F.conv2d(x, weight, None, *geometry[1:5])
    zero = torch.zeros_like(offset)
    torch.testing.assert_close(
        deform_conv2d(x, zero, weight, *geometry[1:]), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        modulated_deform_conv2d(x, zero, torch.ones_like(mask), weight, bias, *geometry[1:]),
        expected + bias[:, None, None],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_convolution_equals_naive(device, geometry):
    x, offset, mask, weight, bias = operands(*geometry, device=device, batch=2)
    cpu = [t.cpu() for t in (x, offset, mask, weight)]
    output = modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry[1:])
    torch.testing.assert_close(
        (output - bias[:, None, None]).cpu(), naive(*cpu, *geometry), rtol=1e-4, atol=1e-5
    )
    cpu[2] = torch.ones_like(cpu[2])
    torch.testing.assert_close(
        deform_conv2d(x, offset, weight, *geometry[1:]).cpu(),
        naive(*cpu, *geometry),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_gradients_equal_finite_differences(device, geometry):
    tensors = operands(*geometry, torch.float64, device)
    x, offset, mask, weight, bias = (t.requires_grad_() for t in tensors)
    settings = dict(nondet_tol=1e-9, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *t: deform_conv2d(*t, *geometry[1:]), (x, offset, weight), **settings
    )
    assert torch.autograd.gradcheck(
        lambda *t: modulated_deform_conv2d(*t, *geometry[1:]),
        (x, offset, mask, weight, bias),
        **settings,
    )
    assert torch.autograd.gradcheck(
        lambda *t: modulated_deform_conv2d(*t, None, *geometry[1:]),
        (x, offset, mask, weight),
        **settings,
    )


@pytest.mark.parametrize('modulated', [False, True])
def test_samples_at_nan_are_outside_of_the_map(device, modulated):
    """As in mmcv. torchvision's kernel ends the process."""
    x, offset, mask, weight, _ = operands(*GEOMETRIES[0], device=device)
    outputs = []
    for value in (math.nan, 1e6, math.inf, -math.inf):
        offset = offset.clone()
        offset[1, 4, 2, 3] = value
        for tensor in (x, offset):
            tensor.requires_grad_().grad = None
        args = (offset, mask, weight, None) if modulated else (offset, weight)
        output = (modulated_deform_conv2d if modulated else deform_conv2d)(x, *args, 1, 1)
        output.sum().backward()
        outputs.append((output.detach(), x.grad))
        assert offset.grad.isfinite().all()
        offset = offset.detach()
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_the_weight_alone_may_need_a_gradient(device):
    x, offset, _, weight, _ = operands(*GEOMETRIES[0], torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda w: deform_conv2d(x, offset, w, 1, 1),
        weight.requires_grad_(),
        nondet_tol=1e-9,
        fast_mode=True,
    )


def test_a_second_backward_gives_the_same_gradients(device):
    x, offset, _, weight, _ = operands(*GEOMETRIES[0], device=device)
    output = deform_conv2d(x.requires_grad_(), offset, weight.requires_grad_(), 1, 1).sum()
    first = torch.autograd.grad(output, (x, weight), retain_graph=True)
    for once, again in zip(first, torch.autograd.grad(output, (x, weight))):
        torch.testing.assert_close(again, once)


def test_im2col_step_does_not_matter(device):
    x, offset, _, weight, _ = operands(*GEOMETRIES[0], device=device)
    stepwise = deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1, False, 2)
    torch.testing.assert_close(stepwise, deform_conv2d(x, offset, weight, 1, 1))


def test_a_map_smaller_than_the_kernel_is_padded(device):
    layer = DeformConv2d(4, 6, 3, padding=1).to(device)
    x = torch.randn(2, 4, 2, 1, device=device)
    expected = F.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x, x.new_zeros(2, 18, 2, 1)), expected, rtol=1e-4, atol=1e-5)


def test_a_larger_offset_and_mask_are_read_by_the_size_of_the_output(device):
    """As mmcv does, and mmdet's DyHead relies on."""
    x, offset, mask, weight, bias = operands(*GEOMETRIES[0], torch.float64, device)
    small = x[:, :, :4, :5].contiguous()
    read_offset = offset.flatten(1)[:, : 18 * 20].view(4, 18, 4, 5)
    read_mask = mask.flatten(1)[:, : 9 * 20].view(4, 9, 4, 5)
    output = modulated_deform_conv2d(
        small, offset.requires_grad_(), mask.requires_grad_(), weight, bias, 1, 1
    )
    expected = modulated_deform_conv2d(small, read_offset, read_mask, weight, bias, 1, 1)
    assert torch.equal(output, expected)
    grads = torch.autograd.grad(output.square().sum(), (offset, mask))
    read = (read_offset.requires_grad_(), read_mask.requires_grad_())
    output = modulated_deform_conv2d(small, *read, weight, bias, 1, 1)
    for grad, part in zip(grads, torch.autograd.grad(output.square().sum(), read)):
        read_values = part[0].numel()
        assert torch.equal(grad.flatten(1)[:, :read_values], part.flatten(1))
        assert not grad.flatten(1)[:, read_values:].any()


@pytest.mark.parametrize('layer', [DeformConv2dPack, ModulatedDeformConv2dPack])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_layers_train_under_autocast(device, dtype, layer):
    torch.manual_seed(0)
    layer = layer(4, 6, 3, padding=1).to(device)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(2, 4, 7, 9, device=device)
    with torch.autocast(device, dtype):
        output = layer(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), layer(x), rtol=5e-2, atol=5e-2)
    output.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())
