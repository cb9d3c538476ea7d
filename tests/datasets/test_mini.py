import copy

import pytest
from mmengine.config import Config

from focal_mm.config import datasets_of, dicts
from focal_mm.datasets import from_scratch, use_mini

pytestmark = pytest.mark.stock

DETECTORS = [
    'focal_mm::mask2former/focalnet_l_panoptic.py',
    'focal_mm::mask_rcnn/focalnet_t_1x.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py',
    'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
    'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
]
SEGMENTORS = [
    'focal_mm::mask2former/focalnet_l_ade20k.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
]
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def steps(node):
    """The names of all that a config builds, in order."""
    return [str(part['type']).split('.')[-1] for part in dicts(node) if 'type' in part]


def is_panoptic(cfg):
    return 'LoadPanopticAnnotations' in steps(cfg.train_dataloader)


@pytest.fixture(scope='module', params=DETECTORS + SEGMENTORS)
def pair(request):
    """A config as it is, and with --mini."""
    cfg = Config.fromfile(request.param)
    return copy.deepcopy(cfg), use_mini(cfg)


@pytest.fixture
def mask_rcnn():
    return Config.fromfile('focal_mm::mask_rcnn/focalnet_t_1x.py')


def test_keeps_pipelines_losses_and_wrappers(pair):
    cfg, mini = pair
    assert steps(mini.model) == steps(from_scratch(cfg).model)
    for key in LOADERS:
        for before, after in zip(datasets_of(cfg[key]), datasets_of(mini[key]), strict=True):
            assert steps(after.pipeline) == steps(before.pipeline)
        assert steps(mini[key])[0] == steps(cfg[key])[0]


def test_every_dataset_can_be_built(pair):
    from mmengine.registry import DATASETS, init_default_scope

    _, mini = pair
    init_default_scope(mini.default_scope)
    classes = 4 if mini.default_scope == 'mmseg' or is_panoptic(mini) else 3
    for key in LOADERS:
        dataset = DATASETS.build(mini[key].dataset)
        assert len(dataset.metainfo['classes']) == classes
        assert max(dataset[0]['inputs'].shape) <= 256


def test_every_head_has_the_classes_of_the_dataset(pair):
    _, mini = pair
    heads = [node for node in dicts(mini.model) if isinstance(node.get('num_classes'), int)]
    heads += [node for node in dicts(mini.model) if 'num_things_classes' in node]
    wanted, stuff = 4 if mini.default_scope == 'mmseg' else 3, int(is_panoptic(mini))
    assert heads
    for node in heads:
        assert node.get('num_classes', wanted) == wanted
        assert node.get('num_things_classes', wanted) == wanted
        assert node.get('num_stuff_classes', stuff) == stuff
    for node in dicts(mini.model):
        assert len(node.get('class_weight') or ()) in (0, wanted + stuff, wanted + stuff + 1)


def test_trains_from_scratch(pair):
    _, mini = pair
    text = mini.pretty_text
    assert 'Pretrained' not in text and "pretrained='" not in text
    assert mini.load_from is None
    for node in dicts(mini.model):
        assert node.get('frozen_stages', -1) == -1
        assert not node.get('norm_eval')


def test_schedule_ends_with_the_training(pair):
    _, mini = pair
    loop = mini.train_cfg
    iterations = loop.max_iters if 'max_iters' in loop else loop.max_epochs * 72
    assert iterations <= 200
    for scheduler in dicts(mini.param_scheduler):
        assert not scheduler.by_epoch
        moments = [
            scheduler.get('begin', 0),
            *scheduler.get('milestones', []),
            scheduler.get('end', iterations),
        ]
        assert moments == sorted(moments) and moments[-1] <= iterations


def test_leaves_its_argument_alone():
    cfg = Config.fromfile(DETECTORS[0])
    before = copy.deepcopy(cfg)
    use_mini(cfg)
    assert cfg.to_dict() == before.to_dict()


def test_scales_keep_their_order(mask_rcnn):
    mini = use_mini(mask_rcnn)
    resize = next(node for node in dicts(mini.val_dataloader) if node.get('type') == 'Resize')
    assert resize.scale == (145, 128)
    scales = next(node.scales for node in dicts(mini.train_dataloader) if 'scales' in node)
    assert scales[0] == (113, 145) and scales[-1] == (128, 145) and scales == sorted(scales)
    crop = next(node for node in dicts(mini.train_dataloader) if 'crop_size' in node)
    assert crop.crop_size == (107, 119)


def test_sliding_window_shrinks_too():
    cfg = Config.fromfile('mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py')
    mini = use_mini(cfg)
    assert mini.model.data_preprocessor.size == (128, 128)
    assert mini.model.test_cfg.crop_size == (128, 128)
    assert mini.model.test_cfg.stride == (119, 119)


def test_warm_up_takes_a_tenth_of_the_run(mask_rcnn):
    warm_up, steps = use_mini(mask_rcnn).param_scheduler
    assert warm_up.end == pytest.approx(steps.end / 10, abs=1)
    assert [round(moment / steps.end * 12) for moment in steps.milestones] == [9, 11]


def test_regions_are_few(mask_rcnn):
    model = use_mini(mask_rcnn).model
    assert model.train_cfg.rcnn.sampler.num == 16
    assert model.train_cfg.rpn.sampler.num == mask_rcnn.model.train_cfg.rpn.sampler.num
    assert model.train_cfg.rpn_proposal.max_per_img == model.test_cfg.rpn.max_per_img == 200


def test_no_data_for_a_task_is_an_error():
    cfg = Config.fromfile('mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py')
    with pytest.raises(ValueError, match='--mini has data for .* none for .*qdtrack'):
        use_mini(cfg)


def test_panoptic_segmentation_is_evaluated_as_the_config_asks():
    heads = [
        ('focal_mm::mask2former/focalnet_l_panoptic.py', ['CocoPanopticMetric', 'CocoMetric']),
        ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', ['CocoPanopticMetric']),
    ]
    for name, metrics in heads:
        mini = use_mini(Config.fromfile(name))
        assert steps(mini.val_evaluator) == steps(mini.test_evaluator) == metrics


def test_from_scratch_changes_only_the_start(mask_rcnn):
    scratch = from_scratch(mask_rcnn)
    assert mask_rcnn.model.backbone.init_cfg.checkpoint.startswith('focal://')
    del mask_rcnn.model.backbone.init_cfg
    mask_rcnn.load_from = None
    assert scratch.to_dict() == mask_rcnn.to_dict()


def test_from_scratch_keeps_other_initializations():
    cfg = Config.fromfile('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.neck.init_cfg = dict(type='Xavier', layer='Conv2d')
    assert from_scratch(cfg).model.neck.init_cfg.type == 'Xavier'


def test_types_may_be_classes_as_in_newer_configs():
    from mmdet.datasets.transforms import PackDetInputs

    cfg = Config.fromfile('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    for key in LOADERS:
        cfg[key].dataset.pipeline[-1].type = PackDetInputs
    assert 'mini_coco' in use_mini(cfg).train_dataloader.dataset.data_root
