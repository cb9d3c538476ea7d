import math

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from focal_mm.heads.reppoints_v2 import (
    BiFPN,
    CornerPoolPack,
    RepPointsV2Head,
    SeparateFocalLoss,
    WeightedSum,
    gaussian_radius,
)

pytestmark = pytest.mark.stock
TRAIN = ConfigDict(
    init=dict(assigner=dict(type='PointAssigner', scale=4, pos_num=1)),
    refine=dict(assigner=dict(type='ATSSAssigner', topk=9)),
)
TEST = ConfigDict(
    nms_pre=1000,
    score_thr=0.05,
    nms=dict(type='nms', iou_threshold=0.6),
    max_per_img=100,
    min_bbox_size=0,
)


def small_head(**settings) -> RepPointsV2Head:
    init_default_scope('mmdet')
    head = RepPointsV2Head(
        **(
            dict(
                num_classes=3,
                in_channels=32,
                feat_channels=32,
                point_feat_channels=32,
                stacked_convs=1,
                corner_dim=32,
                point_strides=[8, 16],
                norm_cfg=dict(type='GN', num_groups=32),
                train_cfg=TRAIN,
                test_cfg=TEST,
            )
            | settings
        )
    )
    head.init_weights()
    return head


def features(size: int = 64) -> list[torch.Tensor]:
    return [torch.randn(1, 32, size // stride, size // stride) for stride in (8, 16)]


def grid(size: int, strides: tuple[int, ...] = (8, 16)) -> torch.Tensor:
    """The locations (x, y, stride, stride) of an image, rows first."""
    return torch.cat(
        [
            torch.stack(
                [
                    *torch.meshgrid(*[torch.arange(0.0, size, s)] * 2, indexing='xy'),
                    *[torch.full([size // s] * 2, float(s))] * 2,
                ],
                -1,
            ).flatten(0, 1)
            for s in strides
        ]
    )


def objects(*boxes: tuple[float, ...], labels: tuple[int, ...] = ()) -> InstanceData:
    return InstanceData(
        bboxes=torch.tensor(boxes).float().view(-1, 4),
        labels=torch.tensor(labels or [0] * len(boxes)).long(),
    )


META = dict(img_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0))


def iou(first: list[float], second: list[float]) -> float:
    sides = [max(0, min(first[i + 2], second[i + 2]) - max(first[i], second[i])) for i in (0, 1)]
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second)]
    both = math.prod(sides)
    return both / (sum(areas) - both)


def test_classes_are_registered_where_every_library_finds_them():
    for cls, settings in ((SeparateFocalLoss, {}), (BiFPN, dict(in_channels=[8], out_channels=8))):
        assert type(MODELS.build(dict(type=f'focal_mm.{cls.__name__}', **settings))) is cls
    with pytest.raises(TypeError, match='num_classes'):
        MODELS.build(dict(type='focal_mm.RepPointsV2Head'))


def test_weighted_sum_starts_as_the_mean_and_has_no_negative_weight():
    combine = WeightedSum(2)
    a, b = torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), 3.0)
    torch.testing.assert_close(combine(a, b), nn.functional.silu(a + 1), atol=1e-3, rtol=0)
    with torch.no_grad():
        combine.weights[..., 1] = -5
    torch.testing.assert_close(combine(a, b), nn.functional.silu(a), atol=1e-3, rtol=0)


@pytest.mark.parametrize('size', [(64, 64), (37, 51), (1, 1)])
def test_bifpn_keeps_the_sizes_and_adds_levels(size):
    shapes = [[-(-side // 2**level) for side in size] for level in range(5)]
    inputs = [torch.randn(1, 8 * 2**i, *shape) for i, shape in enumerate(shapes[:3])]
    outs = BiFPN([8, 16, 32], 16).eval()(inputs)
    assert [list(x.shape) for x in outs] == [[1, 16, *shape] for shape in shapes]


def test_every_level_of_bifpn_hears_of_every_input():
    inputs = [torch.randn(1, 8, side, side, requires_grad=True) for side in (16, 8, 4)]
    for out in BiFPN([8, 8, 8], 8, norm_cfg=dict(type='GN', num_groups=4))(inputs):
        grads = torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
        assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize(
    'directions, sees',
    [
        (('top', 'left'), (slice(2, None), slice(4, None))),
        (('bottom', 'right'), (slice(3), slice(5))),
    ],
)
def test_corner_pooling_looks_from_the_corner_into_the_box(directions, sees):
    pack = CornerPoolPack(32, directions, 32, dict(type='GN', num_groups=32))
    for conv in (pack.p1_conv1, pack.p2_conv1):
        conv.norm_name, conv.gn = 'gn', nn.Identity()  # which mixes all locations
    x = torch.randn(1, 32, 6, 8, requires_grad=True)
    pooled = pack.pool1(pack.p1_conv1.conv(x)), pack.pool2(pack.p2_conv1.conv(x))
    row, column = (
        torch.autograd.grad(p[0, :, 2, 4].sum(), x, retain_graph=True)[0][0].abs().sum(0)
        for p in pooled
    )
    seen = torch.zeros(6, 8, dtype=torch.bool)
    rows, columns = sees
    seen[rows, 4] = seen[2, columns] = True
    # A convolution of 3x3 comes first.
    near = nn.functional.max_pool2d(seen[None].float(), 3, 1, 1)[0] > 0
    touched = row + column > 0
    assert touched.any() and not touched[~near].any()


@pytest.mark.parametrize('size', [(40.0, 40.0), (80.0, 10.0), (7.0, 90.0)])
def test_corners_within_the_radius_keep_the_iou(size):
    radius = gaussian_radius(torch.tensor([size]), 0.7).item()
    box = [100.0, 100.0, 100 + size[0], 100 + size[1]]
    moved = [
        [box[0] + a, box[1] + a, box[2] + b, box[3] + b]
        for a, b in ((radius, radius), (radius, -radius), (-radius, radius))
    ]
    assert min(iou(box, other) for other in moved) == pytest.approx(0.7, abs=1e-5)


def test_targets_of_corners():
    """A box from (17, 9) to (45, 50): nearest are (16, 8), (48, 48) with stride 8 and (16, 16),
    (48, 48) with stride 16."""
    points = grid(64)
    heat, offsets = small_head()._corner_targets(
        points, torch.ones(80, dtype=torch.bool), objects((17, 9, 45, 50)).bboxes
    )
    places = [[8 + 2, 64 + 4 + 1], [6 * 8 + 6, 64 + 3 * 4 + 3]]
    for corner in range(2):
        assert (heat[:, corner] == 1).nonzero().flatten().tolist() == places[corner]
    expected = torch.tensor([[[1, 1], [-3, 2]]]) / 8, torch.tensor([[[1, -7], [-3, 2]]]) / 16
    for level in range(2):
        for corner in range(2):
            found = offsets[places[corner][level], corner]
            torch.testing.assert_close(found, expected[level][0, corner])
    assert offsets.abs().sum(2).count_nonzero() == 4


def test_corner_map_falls_off_as_a_gaussian_within_the_radius():
    box = objects((16, 16, 176, 176)).bboxes
    points = grid(192, (8,))
    heat, _ = small_head()._corner_targets(points, torch.ones(len(points), dtype=torch.bool), box)
    radius = gaussian_radius(box[:, 2:] - box[:, :2], 0.7).item()
    for distance in (8, 16, 24):
        index = 2 * 24 + 2 + distance // 8
        value = math.exp(-(distance**2) / (2 * ((2 * radius + 1) / 6) ** 2))
        assert heat[index, 0].item() == pytest.approx(value if distance < radius else 0, abs=1e-6)
    assert 8 < radius < 24


def test_locations_beyond_the_image_are_no_corners():
    points = grid(64)
    flags = points[:, 0] < 40
    heat, _ = small_head()._corner_targets(points, flags, objects((17, 9, 45, 50)).bboxes)
    assert not heat[~flags].any()


def test_of_nested_boxes_the_smaller_one_counts():
    head = small_head()
    weights = head._within_box_weights(
        objects((0, 0, 16, 16), (0, 0, 56, 40), (8, 8, 24, 16), labels=(1, 1, 2)), (8, 8)
    )
    expected = torch.zeros(3, 8, 8)
    expected[1, :6] = 1 / (56 * 40)
    expected[1, :3, :3] = 1 / 256
    expected[2, 1:3, 1:4] = 1 / 128
    torch.testing.assert_close(weights, expected)


def test_small_objects_count_as_much_as_large_ones():
    """Every probability is a half: the positives' mean, weighted, plus the negatives' sum over the
    number of positives."""
    weight = torch.tensor([0.1, 0.1, 0.1, 5.0, 0, 0])
    loss = SeparateFocalLoss(gamma=2, alpha=0.25, loss_weight=0.1)(torch.zeros(6), weight)
    one = math.log(2) / 4
    assert loss.item() == pytest.approx(0.1 * (0.25 * one + 0.75 * one * 2 / 4))


def test_loss_of_an_image_without_objects_is_finite():
    assert SeparateFocalLoss()(torch.randn(6) * 50, torch.zeros(6)).isfinite()
    head = small_head()
    losses = head.loss_by_feat(*head(features()), [objects()], [META])
    assert all(loss.isfinite() for loss in losses.values())


def test_box_is_spanned_by_the_first_two_points():
    points = torch.arange(18.0).view(1, 18)
    assert small_head().points2bbox(points).tolist() == [[1, 0, 3, 2]]
    assert small_head().points2bbox(points, y_first=False).tolist() == [[0, 1, 2, 3]]


def test_scores_start_low():
    head = small_head()
    cls_score, _, _, hm_score, _, sem_score = (maps[0] for maps in head(features()))
    for score in (cls_score, hm_score, sem_score):
        assert score.sigmoid().mean().item() == pytest.approx(0.01, abs=0.005)


@pytest.mark.parametrize('loss_cls', ['FocalLoss', 'QualityFocalLoss'])
def test_gradients_reach_every_parameter(loss_cls):
    head = small_head(loss_cls=dict(type=loss_cls, use_sigmoid=True))
    with torch.no_grad():  # boxes that overlap the object, so that there is a quality to learn
        head.reppoints_pts_init_out.bias[:4] = torch.tensor([-2.0, -2.0, 2.0, 2.0])
    losses = head.loss_by_feat(*head(features()), [objects((16, 16, 48, 48))], [META])
    sum(losses.values()).backward()
    assert not [
        name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum()
    ]


@pytest.mark.parametrize(
    'task, branch',
    [
        ('loss_sem', 'reppoints_sem_out'),
        ('loss_heatmap', 'hem_tl'),
        ('loss_heatmap', 'hem_br'),
        ('loss_offset', 'reppoints_hem_br_offset_out'),
    ],
)
def test_verification_teaches_its_branch_and_the_shared_features(task, branch):
    head = small_head()
    losses = head.loss_by_feat(*head(features()), [objects((16, 16, 48, 48))], [META])
    losses[task].backward()
    for module in (head.get_submodule(branch), head.shared_convs, head.reg_convs):
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(p.grad is None for p in head.reppoints_cls_out.parameters())


@pytest.mark.parametrize(
    'branch',
    ['reppoints_hem_tl_score_out', 'reppoints_hem_br_offset_out', 'reppoints_sem_embedding'],
)
def test_verification_is_heard_by_the_main_branch(branch):
    head, inputs = small_head().eval(), features()
    before = head(inputs)
    with torch.no_grad():
        for parameter in head.get_submodule(branch).parameters():
            parameter.add_(1)
    for maps in zip(before[:2], head(inputs)[:2]):  # classes and boxes
        assert not torch.equal(maps[0][0], maps[1][0])


def test_corner_moves_to_the_best_of_the_four_cells_around_it():
    score, offset = torch.zeros(8, 8), torch.zeros(2, 8, 8)
    score[3, 2], score[7, 7], score[0, 0] = 1, 2, 3
    offset[:, 3, 2] = torch.tensor([0.25, -0.5])
    corners = torch.tensor([[15.0, 30.0], [23.9, 23.9], [63.0, 70.0], [-3.0, 2.0], [33.0, 1.0]])
    refined = RepPointsV2Head._refine_corners(corners, score, offset, 8)
    assert refined[:4].tolist() == [[18, 20], [18, 20], [56, 56], [0, 0]]
    assert refined[4].tolist() == [32, 0]


def test_corner_on_a_map_of_one_cell_stays_there():
    refined = RepPointsV2Head._refine_corners(
        torch.tensor([[5.0, 9.0]]), torch.zeros(1, 1), torch.full((2, 1, 1), 0.5), 16
    )
    assert refined.tolist() == [[8, 8]]


def test_only_levels_above_the_finest_are_refined():
    """Both levels find the same box; the corner maps know better."""
    head = small_head().eval()
    cls_scores = [torch.full((1, 3, side, side), -9.0) for side in (8, 4)]
    bbox_preds = [torch.zeros(1, 4, side, side) for side in (8, 4)]
    for level, cell in ((0, (3, 3)), (1, (1, 1))):
        cls_scores[level][0, level, cell[0], cell[1]] = 5
        center = cell[0] * head.point_strides[level]
        box = (torch.tensor([12.0, 12, 36, 36]) - center) / head.point_strides[level]
        bbox_preds[level][0, :, cell[0], cell[1]] = box
    hm_scores = [torch.zeros(1, 2, side, side) for side in (8, 4)]
    hm_scores[0][0, 0, 2, 2] = hm_scores[0][0, 1, 5, 5] = 1
    hm_offsets = [torch.full((1, 4, side, side), 0.25) for side in (8, 4)]
    (found,) = head.predict_by_feat(
        cls_scores, bbox_preds, hm_scores, hm_offsets, batch_img_metas=[META]
    )
    boxes = dict(zip(found.labels.tolist(), found.bboxes))
    torch.testing.assert_close(boxes[0], torch.tensor([12.0, 12, 36, 36]))
    torch.testing.assert_close(boxes[1], torch.tensor([18.0, 18, 42, 42]))


def test_learns_an_image_by_heart():
    head, inputs = small_head(), features()
    truth = objects((8, 8, 40, 32), (24, 30, 60, 62), labels=(1, 2))
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, total_iters=150)
    for _ in range(150):
        losses = head.loss_by_feat(*head(inputs), [truth], [META])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
    head.eval()
    with torch.no_grad():
        (found,) = head.predict_by_feat(*head(inputs), batch_img_metas=[META])
    for box, label in zip(truth.bboxes, truth.labels):
        best = found[found.labels == label][:1]
        assert best.scores.item() > 0.5
        assert iou(box.tolist(), best.bboxes[0].tolist()) > 0.8
