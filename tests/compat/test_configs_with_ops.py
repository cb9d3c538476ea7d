"""Configs of mmdet and mmseg that need one of the ops: a training step and a test step on images of
64 pixels, and the ops that they reach."""

from copy import deepcopy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

from focal_mm.compat import mmcv_ops
from focal_mm.config import dicts

pytestmark = pytest.mark.stock

CARAFE = {'carafe_forward', 'carafe_backward'}
MASKED = {'masked_im2col_forward', 'masked_col2im_forward'}
DEFORM = {'deform_conv_forward', 'deform_conv_backward_input', 'deform_conv_backward_parameters'}
POOL = {'deform_roi_pool_forward', 'deform_roi_pool_backward'}

# config: ops of the training step, ops of the test step
CONFIGS = {
    'mmdet::carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py': (CARAFE, {'carafe_forward'}),
    'mmdet::guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py': (DEFORM, MASKED),
    'mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py': ({'nms_match'}, set()),
    'mmdet::dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py': (POOL, {'deform_roi_pool_forward'}),
    'mmdet::dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py': (POOL, {'deform_roi_pool_forward'}),
    'mmdet::strong_baselines/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco.py': (
        set(),  # MMSyncBN is PyTorch's own in one process
        set(),
    ),
    'mmseg::psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512.py': (
        {'psamask_forward', 'psamask_backward'},
        {'psamask_forward'},
    ),
}
SIDE = 64


def small(name: str) -> Config:
    """The config with an eighth of the channels, few proposals and samples, and no downloads."""
    cfg = Config.fromfile(name)
    cfg.model.backbone.base_channels = 64
    for node in list(dicts(cfg.model)):
        for key, value in list(node.items()):
            if key.endswith('channels'):
                node[key] = [n // 8 for n in value] if isinstance(value, list) else value // 8
            elif key in ('num', 'nms_pre', 'max_per_img'):
                node[key] = min(value, 48)
            elif key in ('pretrained', 'init_cfg'):
                node[key] = None
            elif key in ('score_thr', 'loc_filter_thr'):  # an untrained network's scores are low
                node[key] = 0.0
        if node.get('type') == 'ScoreHLRSampler':
            node.update(num=8, score_thr=0.0)
        elif node.get('type') == 'PSAHead':
            node.mask_size = (7, 7)
        elif node.get('type') == 'SyncBN':
            node.type = 'BN'
    if 'batch_augments' in cfg.model.data_preprocessor:
        del cfg.model.data_preprocessor['batch_augments']
    return cfg


def batch(scope: str) -> dict:
    """Two images with their annotations."""
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(2, [[3, SIDE, SIDE]] * 2, num_items=[2, 2], with_mask=True)
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        shape = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (SIDE, SIDE))
        sample = SegDataSample(metainfo=dict(shape, padding_size=[0] * 4))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 19, (1, SIDE, SIDE)))
        samples.append(sample)
    images = [torch.randint(0, 255, (3, SIDE, SIDE), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


@pytest.fixture
def reached(monkeypatch) -> set[str]:
    """The names of the ops that have run."""
    names = set()

    def recorded(name):
        op = getattr(mmcv_ops, name)

        def run(*args, **kwargs):
            names.add(name)
            return op(*args, **kwargs)

        return run

    for name in mmcv_ops.__all__:
        monkeypatch.setattr(mmcv_ops, name, recorded(name))
    return names


@pytest.mark.parametrize('name', CONFIGS)
def test_config_takes_a_training_and_a_test_step(name, reached):
    scope = name.partition('::')[0]
    cfg = small(name)
    init_default_scope(scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    data = batch(scope)
    one = {key: values[:1] for key, values in data.items()}
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    losses = model.train_step(deepcopy(data), optimizer)
    assert losses['loss'].isfinite()
    train_ops, test_ops = CONFIGS[name]
    assert reached >= train_ops
    reached.clear()
    (result,) = model.eval().test_step(deepcopy(one))  # guided anchoring takes one image
    assert reached >= test_ops
    found = result.pred_instances.bboxes if scope == 'mmdet' else result.seg_logits.data
    assert found.isfinite().all()
