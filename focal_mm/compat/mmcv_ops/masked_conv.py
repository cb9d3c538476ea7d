"""Convolution of a single image at the pixels of a mask only, as two steps around a product.

mmcv's ``MaskedConv2d`` gathers the patches, multiplies them by its weight, and scatters the
results. It has stride 1 and no gradient.
"""

import torch.nn.functional as F
from torch import Tensor


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the patches of some output pixels to ``col``.

    Args:
        im (Tensor): (1, C, H, W).
        mask_h_idx (Tensor): (M,), rows of the output pixels.
        mask_w_idx (Tensor): (M,), columns of the output pixels.
        col (Tensor): (C * kernel_h * kernel_w, M), written.
        kernel_h (int): Height of the kernel.
        kernel_w (int): Width of the kernel.
        pad_h (int): Rows of zeros above and below the image.
        pad_w (int): Columns of zeros left and right of it.

    Raises:
        IndexError: If an output pixel is outside of the output.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    patches = padded.unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    col.copy_(patches[:, mask_h_idx, mask_w_idx].permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Write each column of ``col``, (channels, M), to its pixel of ``im``.

    ``im`` has shape (1, channels, height, width). Its other pixels are not written.
    """
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im.dtype)
