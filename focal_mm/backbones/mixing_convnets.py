"""Mixing blocks in convolutional networks (MixFormer, section 4.5 and Table 12).

mmdet is needed to build these, and imported only then.
"""

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from ..kernels.narrow import NarrowConv2d
from ..registry import MODELS
from ..weights.loading import FittedBackbone
from .arguments import drop_path_rates, stage_indices
from .base import Mlp, Stage, fix_statistics, tie_maps
from .mixformer import ConvMerging, MixingAttention, MixingBlock


class MixingConvNet(BaseModule, FittedBackbone):
    """A convolutional network with mixing blocks in place of its last stage.

    Args:
        convnet (nn.Module): The network up to stride 16. Returns maps of stride 4, 8 and 16.
        in_channels (int): Channels of its last map.
        dim (int): Channels of the mixing blocks.
        num_blocks (int): Number of mixing blocks.
        num_heads (int): Attention heads of a mixing block; a divisor of ``dim / 2``.
        window_size (int): Side of the attention windows.
        drop_path_rate (float): Stochastic depth of the mixing blocks.
        out_indices (int or Sequence[int]): Which of the maps of stride 4, 8, 16 and 32 are
            returned, in this order; negative ones count from the last.
        norm_eval (bool): Keeps the statistics of every BatchNorm fixed in training.
        with_cp (bool): Recomputes the mixing blocks in the backward pass to save memory.
        init_cfg (dict or list, optional): Initialization.

    Raises:
        ValueError: If ``out_indices`` names a map that is not there.
    """

    def __init__(
        self,
        convnet: nn.Module,
        in_channels: int,
        dim: int,
        num_blocks: int,
        num_heads: int,
        window_size: int,
        drop_path_rate: float,
        out_indices: int | Sequence[int],
        norm_eval: bool,
        with_cp: bool,
        init_cfg: dict | list | None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)  # type: ignore[call-arg]  # of BaseModule
        self.out_indices = stage_indices(type(self).__name__, out_indices, 4)
        self.norm_eval = norm_eval
        self.convnet = convnet
        self.downsample = ConvMerging(in_channels, dim)
        rates = drop_path_rates(type(self).__name__, drop_path_rate, [num_blocks])
        self.stage = Stage(
            [
                MixingBlock(
                    dim,
                    MixingAttention(dim, num_heads, window_size=window_size),
                    Mlp(dim, 4 * dim),
                    rate,
                )
                for rate in rates
            ],
            None,
            with_cp,
        )
        self.record_names()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> maps of ``out_indices``, (N, C_i, ~H / 2**(i + 2), ~W / 2**(i + 2))."""
        outs = list(self.convnet(x))
        x = self.stage(self.downsample(outs[-1]))
        outs.append(x.permute(0, 3, 1, 2).contiguous())
        return tie_maps([outs[i] for i in self.out_indices], self)

    def train(self, mode: bool = True) -> 'MixingConvNet':
        """Set the mode as :meth:`torch.nn.Module.train`; with ``norm_eval``, BatchNorms stay in
        eval mode.
        """
        super().train(mode)
        if self.norm_eval:
            fix_statistics(self)
        return self

    def fit_state_dict(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Also accept a checkpoint of the plain network: leave out its last stage and head, and
        keep the mixing blocks as initialized.
        """
        names = self.convnet.state_dict()
        keys = [key for key in state_dict if key.startswith(prefix)]
        if not any(key[len(prefix) :] in names for key in keys):
            return
        for key in keys:
            value = state_dict.pop(key)
            if key[len(prefix) :] in names:
                state_dict[f'{prefix}convnet.{key[len(prefix) :]}'] = value
            else:
                self.changes['tensor', 'of the last stage and the classifier left out'] += 1
        for part in ('downsample', 'stage'):
            own = getattr(self, part).state_dict(prefix=f'{prefix}{part}.')
            state_dict.update({key: value for key, value in own.items() if not value.is_meta})
            self.changes['part', 'not in the checkpoint, left as initialized'] += 1


@MODELS.register_module()
class MixingResNet(MixingConvNet):
    """ResNet whose last stage consists of mixing blocks.

    The paper gives no sizes. The default blocks are those of MixFormer-B4's last stage, as many as
    ResNet-50's last stage has; ResNet-50 then costs 3.84 GFLOPs at 224x224 (Table 12, which counts
    a classifier: 3.9).

    Args:
        depth (int): 50, 101 or 152. Default: 50.
        mixing_dims (int): Channels of the mixing blocks. Default: 512.
        num_blocks (int): Number of mixing blocks. Default: 3.
        num_heads (int): Attention heads of a mixing block. Default: 32.
        window_size (int): Side of the attention windows. Default: 7.
        drop_path_rate (float): Stochastic depth of the mixing blocks. Default: 0.
        out_indices (Sequence[int]): Stages whose maps are returned. Default: (0, 1, 2, 3).
        norm_eval (bool): Keeps the statistics of BatchNorm fixed in training. Default: False.
        with_cp (bool): Recomputes blocks in the backward pass to save memory. Default: False.
        init_cfg (dict or list, optional): Initialization. A checkpoint of the plain ResNet
            (``torchvision://resnet50``) loads into the stages before the last.
        kwargs: Further arguments of mmdet's ResNet for those stages (``frozen_stages``, ...).
    """

    def __init__(
        self,
        depth: int = 50,
        mixing_dims: int = 512,
        num_blocks: int = 3,
        num_heads: int = 32,
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        if 'dcn' not in kwargs:  # beside which mmdet takes no other convolution
            kwargs.setdefault('conv_cfg', dict(type=NarrowConv2d))
        convnet = MODELS.build(
            dict(
                dict(
                    type='mmdet.ResNet',
                    depth=depth,
                    num_stages=3,
                    strides=(1, 2, 2),
                    dilations=(1, 1, 1),
                    out_indices=(0, 1, 2),
                    norm_eval=norm_eval,
                    with_cp=with_cp,
                ),
                **kwargs,
            )
        )
        super().__init__(
            convnet,
            convnet.inplanes,
            mixing_dims,
            num_blocks,
            num_heads,
            window_size,
            drop_path_rate,
            out_indices,
            norm_eval,
            with_cp,
            init_cfg,
        )


@MODELS.register_module()
class MixingMobileNetV2(MixingConvNet):
    """MobileNetV2 whose blocks of stride 32 are mixing blocks.

    The paper gives no sizes. The default blocks have the channels of the stage, 160, and are as
    many as the blocks that they replace. The network then costs 0.27 GFLOPs at 224x224; plain
    MobileNetV2 costs 0.28.

    Args:
        mixing_dims (int): Channels of the mixing blocks. Default: 160.
        num_blocks (int): Number of mixing blocks. Default: 4.
        num_heads (int): Attention heads of a mixing block. Default: 10.
        window_size (int): Side of the attention windows. Default: 7.
        drop_path_rate (float): Stochastic depth of the mixing blocks. Default: 0.
        out_indices (Sequence[int]): Which of the maps of stride 4, 8, 16 and 32 (24, 32, 96 and
            160 channels) are returned. Default: (0, 1, 2, 3).
        norm_eval (bool): Keeps the statistics of BatchNorm fixed in training. Default: False.
        with_cp (bool): Recomputes blocks in the backward pass to save memory. Default: False.
        init_cfg (dict or list, optional): Initialization. A checkpoint of the plain MobileNetV2
            loads into the layers before the last stage.
        kwargs: Further arguments of mmdet's MobileNetV2 for those layers (``widen_factor``, ...).
    """

    def __init__(
        self,
        mixing_dims: int = 160,
        num_blocks: int = 4,
        num_heads: int = 10,
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list | None = None,
        **kwargs: Any,
    ) -> None:
        convnet = MODELS.build(
            dict(
                dict(
                    type='mmdet.MobileNetV2',
                    conv_cfg=dict(type=NarrowConv2d),
                    out_indices=(1, 2, 4),
                    norm_eval=norm_eval,
                    with_cp=with_cp,
                ),
                **kwargs,
            )
        )
        while len(convnet.layers) > 5:  # layers of stride 32, and the classifier's last layer
            delattr(convnet, convnet.layers.pop())
        super().__init__(
            convnet,
            convnet.layer5[-1].linear_conv.out_channels,
            mixing_dims,
            num_blocks,
            num_heads,
            window_size,
            drop_path_rate,
            out_indices,
            norm_eval,
            with_cp,
            init_cfg,
        )
