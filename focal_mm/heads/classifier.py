"""The head of the published classifiers, for mmpretrain's ``ImageClassifier``."""

from typing import Any

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from ..weights.loading import CheckpointError, current_load


class TokenClsHead(LinearClsHead):
    """Norm of every token, mean over the map, and a linear layer.

    MixFormer (section 3.2) projects every token to more channels before the mean. A published
    classifier loads completely into an ``ImageClassifier`` of a backbone with ``out_norm=False``,
    no neck, and this head.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels C of the backbone's last map.
        proj_channels (int, optional): Channels of the projection, 1280 in MixFormer. Default:
            None, no projection.
        act_cfg (dict): Activation of the projection. Default: GELU.
        norm_cfg (dict): Norm of the tokens. Default: LN with eps 1e-5.
        init_cfg (dict or list, optional): Initialization. Default: linear layers from a normal
            distribution with standard deviation 0.02, truncated at -2 and 2.
        **kwargs: ``loss``, ``topk`` and ``cal_acc``, as in mmpretrain's heads.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        proj_channels: int | None = None,
        act_cfg: dict = dict(type='GELU'),
        norm_cfg: dict = dict(type='LN', eps=1e-5),
        init_cfg: dict | list | None = dict(type='TruncNormal', layer='Linear', std=0.02),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, proj_channels or in_channels, init_cfg, **kwargs)
        self.norm = build_norm_layer(norm_cfg, in_channels)[1]
        self.last_proj = nn.Linear(in_channels, proj_channels) if proj_channels else None
        self.act = build_activation_layer(act_cfg)
        self._register_load_state_dict_pre_hook(self._before_load)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Reduce the last map, (N, C, H, W), to (N, C) or (N, proj_channels)."""
        tokens = self.norm(feats[-1].permute(0, 2, 3, 1))
        if self.last_proj is not None:
            tokens = self.act(self.last_proj(tokens))
        return tokens.mean((1, 2))

    def _before_load(
        self,
        state_dict: dict,
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # mmengine only warns of a missing head or of another number of classes, and would evaluate
        # an untrained head.
        file = current_load(state_dict, unexpected_keys, error_msgs).file
        for key, own in self.state_dict(prefix=prefix).items() if file else ():
            theirs = tuple(state_dict[key].shape) if key in state_dict else 'missing'
            if theirs != tuple(own.shape):
                raise CheckpointError(
                    f'{file}: {key} is {theirs}, and the config has {tuple(own.shape)}; to train a '
                    'new head on published weights, give them to the backbone, as '
                    "init_cfg=dict(type='Pretrained', checkpoint=...)"
                )
