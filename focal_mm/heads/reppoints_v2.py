"""RepPoints V2 (Chen et al., 2020, https://arxiv.org/abs/2007.08508) on mmdet's RepPoints.

RepPoints regresses boxes from points. V2 also verifies: it predicts maps that tell whether a
location is a corner of a box, and whether it lies within a box of each class. They help in three
ways: as further tasks of the shared features, as features for the regression, and, when testing,
as locations that regressed corners are moved to.

Parameters have the names of the authors' code. B is the batch size. Each level has its own stride,
in pixels, and maps of its own (H, W).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.ops import CornerPool, DeformConv2d
from mmdet.models.dense_heads import RepPointsHead
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.utils import multi_apply
from mmdet.structures.bbox import bbox_overlaps
from mmengine.model import BaseModule, bias_init_with_prob, normal_init
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

__all__ = ['BiFPN', 'RepPointsV2Head', 'SeparateFocalLoss']


class WeightedSum(nn.Module):
    """Fast normalized fusion (EfficientDet, section 3.3), followed by Swish.

    The learned weights are not negative and add up to one.

    Args:
        inputs (int): Number of maps.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(1, 1, 1, 1, inputs))

    def forward(self, *maps: Tensor) -> Tensor:
        """Return the weighted sum of maps of equal shape."""
        weights = self.weights.flatten().relu()
        weights = weights / (weights.sum() + 1e-4)
        return F.silu(sum(weight * x for weight, x in zip(weights, maps)))


class BiFPNLayer(BaseModule):
    """One top-down and one bottom-up path through the pyramid (EfficientDet, Figure 2d).

    Args:
        in_channels (list[int]): Channels of each input level, the finest first.
        out_channels (int): Channels of each output level.
        norm_cfg (dict or None): Norm after every convolution. None: no norm.
    """

    def __init__(self, in_channels: list[int], out_channels: int, norm_cfg: dict | None) -> None:
        super().__init__()

        def conv(channels: int, kernel: int) -> ConvModule:
            return ConvModule(
                channels, out_channels, kernel, padding=kernel // 2, norm_cfg=norm_cfg, act_cfg=None
            )

        levels = len(in_channels)
        self.lateral_convs = nn.ModuleList(
            nn.Identity() if channels == out_channels else conv(channels, 1)
            for channels in in_channels
        )
        self.lateral_combine = nn.ModuleList(WeightedSum(2) for _ in range(levels - 1))
        self.lateral_combine_conv = nn.ModuleList(conv(out_channels, 3) for _ in range(levels - 1))
        self.out_combine = nn.ModuleList(
            WeightedSum(3 if level < levels - 1 else 2) for level in range(1, levels)
        )
        self.out_combine_conv = nn.ModuleList(conv(out_channels, 3) for _ in range(levels - 1))

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """Fuse maps of shape (B, in_channels[i], H_i, W_i), each half as large as the one before.

        Returns:
            list[Tensor]: Maps of shape (B, out_channels, H_i, W_i).
        """
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        outs = list(laterals)
        top = len(outs) - 1
        for i in reversed(range(top)):
            coarser = F.interpolate(outs[i + 1], size=outs[i].shape[2:])
            outs[i] = self.lateral_combine_conv[i](self.lateral_combine[i](outs[i], coarser))
        for i in range(top):
            finer = F.max_pool2d(outs[i], 3, stride=2, padding=1)
            maps = [finer, outs[i + 1]] + ([laterals[i + 1]] if i + 1 < top else [])
            outs[i + 1] = self.out_combine_conv[i](self.out_combine[i](*maps))
        return outs


class BiFPN(BaseModule):
    """Neck of EfficientDet (Tan et al., 2020, section 3), as in Swin Transformer's RepPoints V2.

    Levels that the backbone does not have are max-pooled from its last level.

    Args:
        in_channels (list[int]): Channels of the backbone's maps, the finest first.
        out_channels (int): Channels of each output level.
        num_outs (int): Number of output levels. Default: 5.
        num_repeat (int): Number of layers. Default: 2.
        norm_cfg (dict or None): Norm after every convolution. Default: None.
        init_cfg (dict or None): Initialization. Default: Xavier, uniform.
    """

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        num_outs: int = 5,
        num_repeat: int = 2,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = dict(type='Xavier', layer='Conv2d', distribution='uniform'),
    ) -> None:
        super().__init__(init_cfg)
        self.extra_levels = num_outs - len(in_channels)
        first = [*in_channels, *[in_channels[-1]] * self.extra_levels]
        self.bi_fpn = nn.ModuleList(
            BiFPNLayer(channels, out_channels, norm_cfg)
            for channels in [first, *[[out_channels] * num_outs] * (num_repeat - 1)]
        )

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Fuse maps of shape (B, in_channels[i], H_i, W_i).

        Returns:
            tuple[Tensor]: ``num_outs`` maps of shape (B, out_channels, H_i, W_i).
        """
        outs = list(inputs)
        for _ in range(self.extra_levels):
            outs.append(F.max_pool2d(outs[-1], 3, stride=2, padding=1))
        for layer in self.bi_fpn:
            outs = layer(outs)
        return tuple(outs)


class CornerPoolPack(nn.Module):
    """Corner pooling between convolutions, with a shortcut.

    As in CornerNet (Law and Deng, 2018, section 3.5), with fewer channels inside.

    Args:
        dim (int): Channels C.
        directions (tuple[str]): Two of ``'top'``, ``'left'``, ``'bottom'``, ``'right'``: the
            directions in which maxima are carried.
        corner_dim (int): Channels of the pooled maps.
        norm_cfg (dict): Norm after every convolution.
    """

    def __init__(
        self, dim: int, directions: tuple[str, str], corner_dim: int, norm_cfg: dict
    ) -> None:
        super().__init__()
        self.p1_conv1, self.p2_conv1 = (
            ConvModule(dim, corner_dim, 3, padding=1, norm_cfg=norm_cfg) for _ in directions
        )
        self.pool1, self.pool2 = map(CornerPool, directions)
        self.p_conv1 = nn.Conv2d(corner_dim, dim, 3, padding=1, bias=False)
        self.p_gn1 = nn.GroupNorm(32, dim)
        self.conv1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.gn1 = nn.GroupNorm(32, dim)
        self.conv2 = ConvModule(dim, dim, 1, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a map of shape (B, C, H, W) to one of the same shape."""
        pooled = self.pool1(self.p1_conv1(x)) + self.pool2(self.p2_conv1(x))
        return self.conv2(F.relu(self.p_gn1(self.p_conv1(pooled)) + self.gn1(self.conv1(x))))


class SeparateFocalLoss(nn.Module):
    """Focal loss (Lin et al., 2017) with separate averages over positives and negatives.

    The average over positives is weighted, so that small objects count as much as large ones.

    Args:
        gamma (float): Exponent of the probability of the wrong class. Default: 2.
        alpha (float): Weight of the positives; negatives have 1 - alpha. Default: 0.25.
        loss_weight (float): Weight of the loss. Default: 1.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, weight: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            pred (Tensor): Logits, of any shape.
            weight (Tensor): Weights of positives, 0 for negatives; same shape as ``pred``.
        """
        pred, positive = pred.float(), weight > 0
        loss = F.binary_cross_entropy_with_logits(pred, positive.float(), reduction='none')
        loss = loss * torch.where(positive, 1 - pred.sigmoid(), pred.sigmoid()) ** self.gamma
        positives = (weight * loss).sum() / weight.sum().clamp(min=torch.finfo(pred.dtype).tiny)
        negatives = loss[~positive].sum() / positive.sum().clamp(min=1)
        return self.loss_weight * (self.alpha * positives + (1 - self.alpha) * negatives)


class RepPointsV2Head(RepPointsHead):
    """Head of RepPoints V2. The first two points of an object are opposite corners of its box.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels of the neck's maps.
        shared_stacked_convs (int): Convolutions of both verification branches, after the
            convolutions of the regression. Default: 1.
        corner_dim (int): Channels inside corner pooling. Default: 64.
        corner_iou (float): IoU with itself that a box keeps while its corners move within the
            radius of the Gaussian target of the corner maps. Default: 0.7.
        loss_cls (dict): Loss of the classes, :class:`FocalLoss` or :class:`QualityFocalLoss`.
            Default: :class:`FocalLoss`, as in the paper.
        loss_bbox_init (dict): Loss of the boxes of the first points. Default: GIoU.
        loss_bbox_refine (dict): Loss of the boxes of the refined points. Default: GIoU, weight 2.
        loss_heatmap (dict): Loss of the corner maps. Default: Gaussian focal loss, weight 0.25.
        loss_offset (dict): Loss of the offsets from cells to corners. Default: smooth L1.
        loss_sem (dict): Loss of the within-box maps. Default: :class:`SeparateFocalLoss`, weight
            0.1.
        kwargs: Arguments of mmdet's ``RepPointsHead`` (``num_points``, ``point_strides``,
            ``norm_cfg``, ``train_cfg``, ...).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        shared_stacked_convs: int = 1,
        corner_dim: int = 64,
        corner_iou: float = 0.7,
        loss_cls: dict = dict(
            type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0
        ),
        loss_bbox_init: dict = dict(type='GIoULoss', loss_weight=1.0),
        loss_bbox_refine: dict = dict(type='GIoULoss', loss_weight=2.0),
        loss_heatmap: dict = dict(type='GaussianFocalLoss', alpha=2.0, gamma=4.0, loss_weight=0.25),
        loss_offset: dict = dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0),
        loss_sem: dict = dict(
            type='focal_mm.SeparateFocalLoss', gamma=2.0, alpha=0.25, loss_weight=0.1
        ),
        **kwargs: Any,
    ) -> None:
        self.shared_stacked_convs = shared_stacked_convs
        self.corner_dim = corner_dim
        super().__init__(
            num_classes,
            in_channels,
            loss_cls=loss_cls,
            loss_bbox_init=loss_bbox_init,
            loss_bbox_refine=loss_bbox_refine,
            transform_method='exact_minmax',
            init_cfg=None,
            **kwargs,
        )
        self.corner_iou = corner_iou
        self.loss_heatmap = MODELS.build(loss_heatmap)
        self.loss_offset = MODELS.build(loss_offset)
        self.loss_sem = MODELS.build(loss_sem)

    def _init_layers(self) -> None:
        super()._init_layers()
        dim = self.feat_channels
        self.shared_convs = nn.ModuleList(
            ConvModule(dim, dim, 3, padding=1, norm_cfg=self.norm_cfg)
            for _ in range(self.shared_stacked_convs)
        )
        self.hem_tl = CornerPoolPack(dim, ('top', 'left'), self.corner_dim, self.norm_cfg)
        self.hem_br = CornerPoolPack(dim, ('bottom', 'right'), self.corner_dim, self.norm_cfg)
        for corner in ('tl', 'br'):
            self.add_module(f'reppoints_hem_{corner}_score_out', nn.Conv2d(dim, 1, 3, padding=1))
            self.add_module(f'reppoints_hem_{corner}_offset_out', nn.Conv2d(dim, 2, 3, padding=1))
        self.reppoints_sem_out = nn.Conv2d(dim, self.cls_out_channels, 1)
        self.reppoints_sem_embedding = ConvModule(dim, dim, 1, norm_cfg=self.norm_cfg)
        # Two scores and two offsets (x, y) of corners are concatenated to the features.
        self.reppoints_cls_conv, self.reppoints_pts_refine_conv = (
            DeformConv2d(dim + 6, self.point_feat_channels, self.dcn_kernel, 1, self.dcn_pad)
            for _ in range(2)
        )

    def init_weights(self) -> None:
        """Initialize weights with standard deviation 0.01, and biases for scores of 0.01.

        The verification branches keep PyTorch's initialization, except for their last convolutions.
        """
        super().init_weights()
        for name, module in self.named_modules():
            if isinstance(module, (nn.Conv2d, DeformConv2d)) and not name.startswith(
                ('hem_', 'reppoints_sem_embedding')
            ):
                scores = name.endswith(('cls_out', 'score_out', 'sem_out'))
                normal_init(module, std=0.01, bias=bias_init_with_prob(0.01) if scores else 0)

    def points2bbox(self, pts: Tensor, y_first: bool = True) -> Tensor:
        """Convert points to boxes (x1, y1, x2, y2).

        Args:
            pts (Tensor): Shape (N, 2 * points, ...).
            y_first (bool): True if a point is (y, x), False if it is (x, y). Default: True.

        Returns:
            Tensor: Shape (N, 4, ...), in the unit of the points.
        """
        return pts[:, [1, 0, 3, 2] if y_first else [0, 1, 2, 3]]

    def forward_single(self, x: Tensor) -> tuple[Tensor, ...]:
        """Predict the maps of one level.

        Args:
            x (Tensor): Shape (B, in_channels, H, W).

        Returns:
            tuple[Tensor]: Maps of shape (B, channels, H, W). Scores are logits. In training:

            - class scores: num_classes channels;
            - first points and refined points: 2 * points channels each, y before x, in strides
              from the location;
            - corner scores: 2 channels, top left and bottom right;
            - corner offsets: 4 channels, x and y of each corner, in strides;
            - within-box scores: num_classes channels.

            In testing: class scores, refined boxes (4 channels, in strides from the location),
            corner scores, corner offsets.
        """
        cls_feat = pts_feat = x
        for conv in self.cls_convs:
            cls_feat = conv(cls_feat)
        for conv in self.reg_convs:
            pts_feat = conv(pts_feat)
        shared_feat = pts_feat
        for conv in self.shared_convs:
            shared_feat = conv(shared_feat)

        sem_score = self.reppoints_sem_out(shared_feat)
        sem_feat = self.reppoints_sem_embedding(shared_feat)
        cls_feat, pts_feat, hem_feat = (f + sem_feat for f in (cls_feat, pts_feat, shared_feat))

        tl_feat, br_feat = self.hem_tl(hem_feat), self.hem_br(hem_feat)
        hm_score = torch.cat(
            [self.reppoints_hem_tl_score_out(tl_feat), self.reppoints_hem_br_score_out(br_feat)], 1
        )
        hm_offset = torch.cat(
            [self.reppoints_hem_tl_offset_out(tl_feat), self.reppoints_hem_br_offset_out(br_feat)],
            1,
        )

        pts_init = self.reppoints_pts_init_out(F.relu(self.reppoints_pts_init_conv(pts_feat)))
        slowed = (1 - self.gradient_mul) * pts_init.detach() + self.gradient_mul * pts_init
        dcn_offset = slowed - self.dcn_base_offset.type_as(x)
        cls_feat, pts_feat = (torch.cat([f, hm_score, hm_offset], 1) for f in (cls_feat, pts_feat))
        cls_score = self.reppoints_cls_out(F.relu(self.reppoints_cls_conv(cls_feat, dcn_offset)))
        pts_refine = pts_init.detach() + self.reppoints_pts_refine_out(
            F.relu(self.reppoints_pts_refine_conv(pts_feat, dcn_offset))
        )
        if self.training:
            return cls_score, pts_init, pts_refine, hm_score, hm_offset, sem_score
        return cls_score, self.points2bbox(pts_refine), hm_score, hm_offset

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        pts_preds_init: list[Tensor],
        pts_preds_refine: list[Tensor],
        hm_scores: list[Tensor],
        hm_offsets: list[Tensor],
        sem_scores: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: list[InstanceData] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the six losses of a batch.

        Args:
            cls_scores (list[Tensor]): Class scores of each level, see :meth:`forward_single`.
            pts_preds_init (list[Tensor]): First points of each level.
            pts_preds_refine (list[Tensor]): Refined points of each level.
            hm_scores (list[Tensor]): Corner scores of each level.
            hm_offsets (list[Tensor]): Corner offsets of each level.
            sem_scores (list[Tensor]): Within-box scores of each level.
            batch_gt_instances (list[InstanceData]): ``bboxes`` (K, 4), in pixels, and ``labels``
                (K, ) of each image.
            batch_img_metas (list[dict]): ``pad_shape`` of each image.
            batch_gt_instances_ignore (list[InstanceData], optional): Ignored.

        Returns:
            dict[str, Tensor]: Scalar losses.
        """
        sizes = [score.shape[2:] for score in cls_scores]
        points, flags = self.get_points(sizes, batch_img_metas, cls_scores[0].device)
        points, flags = torch.cat(points[0]), [torch.cat(image) for image in flags]
        centers, strides = points[:, :2], points[:, 2:3]

        def flat(maps: list[Tensor]) -> Tensor:
            """Flatten maps of shape (B, C, H, W) to (B, P, C) for the P locations of all levels."""
            return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1).float()

        boxes_init, boxes_refine = (
            flat(list(map(self.points2bbox, preds))) * strides + centers.repeat(1, 2)
            for preds in (pts_preds_init, pts_preds_refine)
        )
        per_level = [h * w for h, w in sizes]
        gt_inds_init, gt_inds_refine, corners = multi_apply(
            self._targets_single,
            boxes_init.detach(),
            flags,
            batch_gt_instances,
            points=points,
            per_level=per_level,
        )
        valid = torch.stack(flags)

        unit = self.point_base_scale * strides
        # The authors' IoU includes the last unit of a box, so that every box has an area.
        last = points.new_tensor([0, 0, 1, 1])
        losses = {}
        for name, loss, boxes, inds in (
            ('loss_pts_init', self.loss_bbox_init, boxes_init, gt_inds_init),
            ('loss_pts_refine', self.loss_bbox_refine, boxes_refine, gt_inds_refine),
        ):
            target = self._values_of_assigned([gt.bboxes for gt in batch_gt_instances], inds, 0.0)
            positive = torch.stack(inds) > 0
            weight = positive[..., None].expand_as(boxes).float()
            losses[name] = loss(
                *((b / unit + last).flatten(0, 1) for b in (boxes, target)),
                weight.flatten(0, 1),
                avg_factor=self._count_positives(positive),
            )
        # `target` and `positive` are those of the refined points, from the end of the loop.
        labels: Any = self._values_of_assigned(
            [gt.labels for gt in batch_gt_instances], gt_inds_refine, self.num_classes
        ).flatten()
        if isinstance(self.loss_cls, QualityFocalLoss):
            ious = bbox_overlaps(boxes_refine.detach(), target, is_aligned=True)
            labels = labels, (ious * positive).flatten()
        losses['loss_cls'] = self.loss_cls(
            flat(cls_scores).flatten(0, 1),
            labels,
            valid.flatten().float(),
            avg_factor=self._count_positives(positive),
        )

        heat, offsets = (torch.stack(target) for target in zip(*corners))
        hm_score, hm_offset = flat(hm_scores).sigmoid(), flat(hm_offsets).unflatten(2, (2, 2))
        losses['loss_heatmap'] = losses['loss_offset'] = 0.0
        for corner in range(2):
            positive = heat[..., corner] == 1
            count = self._count_positives(positive)
            losses['loss_heatmap'] += 0.5 * self.loss_heatmap(
                hm_score[..., corner], heat[..., corner], weight=valid.float(), avg_factor=count
            )
            losses['loss_offset'] += 0.5 * self.loss_offset(
                hm_offset[..., corner, :],
                offsets[..., corner, :],
                positive[..., None].expand_as(hm_offset[..., corner, :]).float(),
                avg_factor=count,
            )

        within = torch.stack([self._within_box_weights(gt, sizes[0]) for gt in batch_gt_instances])
        losses['loss_sem'] = self.loss_sem(
            flat(sem_scores), flat([F.interpolate(within, size) for size in sizes])
        )
        return losses

    @staticmethod
    def _count_positives(positive: Tensor) -> int:
        """Count the positives (B, P) of a batch, at least one per image, to divide a loss by."""
        return int(positive.sum(1).clamp(min=1).sum())

    @staticmethod
    def _values_of_assigned(values: list[Tensor], inds: list[Tensor], default: float) -> Tensor:
        """Look up a value of the object that each location is assigned to.

        Args:
            values (list[Tensor]): Values of the objects of each image, (K, ...).
            inds (list[Tensor]): Object of each location of each image, (P, ): 1 to K, 0 for none.
            default (float): Value of locations without an object.

        Returns:
            Tensor: Shape (B, P, ...).
        """
        return torch.stack(
            [
                torch.cat([v.new_full((1, *v.shape[1:]), default), v])[i]
                for v, i in zip(values, inds)
            ]
        )

    def _targets_single(
        self,
        boxes_init: Tensor,
        flags: Tensor,
        gt: InstanceData,
        points: Tensor,
        per_level: list[int],
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Assign the locations of an image to objects and compute the targets of its corners.

        Args:
            boxes_init (Tensor): Boxes of the first points, (P, 4), in pixels.
            flags (Tensor): True for locations on the image, (P, ) bool.
            gt (InstanceData): Objects of the image.
            points (Tensor): x, y, stride, stride of each location, (P, 4), in pixels.
            per_level (list[int]): Number of locations of each level.

        Returns:
            tuple: The object of each location, (P, ), 1 to K or 0 for none, for the first and for
            the refined points; and the result of :meth:`_corner_targets`.
        """
        init, refine = (flags.new_zeros(flags.shape, dtype=torch.long) for _ in range(2))
        init[flags] = self.init_assigner.assign(InstanceData(priors=points[flags]), gt).gt_inds
        refine[flags] = self.refine_assigner.assign(
            InstanceData(priors=boxes_init[flags]),
            [int(level.sum()) for level in flags.split(per_level)],
            gt,
        ).gt_inds
        return init, refine, self._corner_targets(points, flags, gt.bboxes)

    def _corner_targets(
        self, points: Tensor, flags: Tensor, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the targets of corner verification for an image.

        On every level the target is 1 at the location nearest to a corner. Around it the target is
        a Gaussian up to the radius of :func:`gaussian_radius` (CornerNet, section 3.2).

        Args:
            points (Tensor): x, y, stride, stride of each location, (P, 4), in pixels.
            flags (Tensor): True for locations on the image, (P, ) bool.
            boxes (Tensor): Boxes of the objects, (K, 4), in pixels.

        Returns:
            tuple[Tensor]: Targets of the scores of top left and bottom right corners, (P, 2); and
            offsets from the locations with target 1 to their corners, (P, 2, 2), (x, y) in strides.
        """
        heat, offsets = points.new_zeros(len(points), 2), points.new_zeros(len(points), 2, 2)
        if not len(boxes):
            return heat, offsets
        radius = gaussian_radius(boxes[:, 2:] - boxes[:, :2], self.corner_iou)
        sigma = (2 * radius + 1) / 6
        for stride in points[:, 2].unique():
            cells = (flags & (points[:, 2] == stride)).nonzero().flatten()
            if not len(cells):
                continue
            for corner in range(2):
                away = boxes[:, 2 * corner : 2 * corner + 2] - points[cells, None, :2]
                distance = away.norm(dim=2)
                gaussian = torch.exp(-(distance**2) / (2 * sigma**2)).where(distance < radius, 0)
                heat[cells, corner] = gaussian.amax(1)
                nearest = distance.argmin(0)
                heat[cells[nearest], corner] = 1
                offsets[cells[nearest], corner] = away[nearest, torch.arange(len(boxes))] / stride
        return heat, offsets

    def _within_box_weights(self, gt: InstanceData, size: Sequence[int]) -> Tensor:
        """Compute the targets of within-box verification on the finest level.

        Args:
            gt (InstanceData): Objects of an image.
            size (sequence of int): (H, W) of the level.

        Returns:
            Tensor: Shape (num_classes, H, W). Within a box of the class, 1 over the area in pixels
            of the smallest such box; elsewhere 0.
        """
        weights = gt.bboxes.new_zeros(self.num_classes, *size)
        areas = (gt.bboxes[:, 2:] - gt.bboxes[:, :2]).prod(1).clamp(min=1)
        cells = (gt.bboxes / self.point_strides[0]).int().tolist()
        for i in areas.argsort(descending=True).tolist():
            left, top, right, bottom = cells[i]
            weights[gt.labels[i], top : bottom + 1, left : right + 1] = 1 / areas[i]
        return weights

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        hm_scores: list[Tensor],
        hm_offsets: list[Tensor],
        batch_img_metas: list[dict],
        **kwargs: Any,
    ) -> list[InstanceData]:
        """Predict objects, after refining the corners of all levels except the finest.

        Args:
            cls_scores (list[Tensor]): Class scores of each level, see :meth:`forward_single`.
            bbox_preds (list[Tensor]): Refined boxes of each level.
            hm_scores (list[Tensor]): Corner scores of each level.
            hm_offsets (list[Tensor]): Corner offsets of each level.
            batch_img_metas (list[dict]): ``img_shape`` of each image.
            kwargs: Arguments of mmdet's heads (``cfg``, ``rescale``, ``with_nms``).

        Returns:
            list[InstanceData]: ``bboxes``, ``scores`` and ``labels`` of each image.
        """
        refined = [bbox_preds[0]]
        for level, preds in enumerate(bbox_preds[1:], 1):
            stride = self.point_strides[level]
            centers = self.prior_generator.single_level_grid_priors(
                preds.shape[2:], level, preds.dtype, preds.device
            ).repeat(1, 2)
            source = 0 if level < 3 else 1  # coarser levels use a coarser corner map
            moved = []
            for image, meta in enumerate(batch_img_metas):
                boxes = self._bbox_decode(
                    centers, preds[image].flatten(1).t(), stride, meta['img_shape']
                )
                moved.append(
                    torch.cat(
                        [
                            self._refine_corners(
                                boxes[:, 2 * corner : 2 * corner + 2],
                                hm_scores[source][image, corner],
                                hm_offsets[source][image, 2 * corner : 2 * corner + 2],
                                self.point_strides[source],
                            )
                            for corner in range(2)
                        ],
                        1,
                    )
                )
            boxes = (torch.stack(moved) - centers) / stride
            refined.append(boxes.transpose(1, 2).reshape(preds.shape))
        return super().predict_by_feat(
            cls_scores, refined, batch_img_metas=batch_img_metas, **kwargs
        )

    @staticmethod
    def _refine_corners(corners: Tensor, score: Tensor, offset: Tensor, stride: int) -> Tensor:
        """Move each corner to the corner predicted by the best of the four cells around it.

        Args:
            corners (Tensor): x, y of the corners, (N, 2), in pixels.
            score (Tensor): Corner scores, (H, W).
            offset (Tensor): Corner offsets, (2, H, W), x and y in strides.
            stride (int): Stride of the maps, in pixels.

        Returns:
            Tensor: Shape (N, 2), in pixels.
        """
        last = score.new_tensor(score.shape[::-1]).long() - 1
        cell = (corners / stride).floor().long().clamp(min=0).minimum((last - 1).clamp(min=0))
        around = cell[:, None] + cell.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
        x, y = around.minimum(last).unbind(2)
        best = score[y, x].argmax(1, keepdim=True)
        x, y = x.gather(1, best)[:, 0], y.gather(1, best)[:, 0]
        return (torch.stack([x, y], 1) + offset[:, y, x].t()) * stride


def gaussian_radius(sizes: Tensor, iou: float) -> Tensor:
    """Return the distance that corners can move while a box keeps an IoU (CornerNet, section 3.2).

    It is the minimum of three cases: both corners move the same way, both inwards, both outwards.

    Args:
        sizes (Tensor): Width and height of the boxes, (N, 2).
        iou (float): Minimum IoU.

    Returns:
        Tensor: Shape (N, ), in the unit of ``sizes``.
    """
    total, area = sizes.sum(1), sizes.prod(1)
    same = (total - (total**2 - 4 * area * (1 - iou) / (1 + iou)).sqrt()) / 2
    inwards = (total - (total**2 - 4 * area * (1 - iou)).sqrt()) / 4
    outwards = ((total**2 + 4 * area * (1 - iou) / iou).sqrt() - total) / 4
    return torch.stack([same, inwards, outwards]).amin(0)
