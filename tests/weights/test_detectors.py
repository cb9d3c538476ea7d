"""Detectors and segmentors of other code, in files of their exact layout.

The golden cases ``dino_*`` are outputs of detrex's and FocalNet-DINO's whole detectors, small, with
weights that follow from their names. ``detectors.json`` has the names and shapes of the published
files, as these codes build them; ``<0-5>`` stands for the numbers from 0 to 5.
"""

import json
import re
from pathlib import Path

import filler
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import Tensor, nn

from focal_mm.weights import ZOO, CheckpointError, zoo
from focal_mm.weights.formats import convert, read_checkpoint, recognise, to_official
from focal_mm.weights.resize import fit_sine_columns

pytestmark = pytest.mark.stock
DATA = Path(__file__).parents[1] / 'data'
CONFIGS = Path(__file__).parents[2] / 'configs'
LAYOUTS = json.loads((DATA / 'detectors.json').read_text())
COCO_IDS = [
    *range(1, 12),
    *range(13, 26),
    27,
    28,
    *range(31, 45),
    *range(46, 66),
    67,
    70,
    *range(72, 83),
    *range(84, 91),
]
# Golden case, config, and whether the names are detrex's.
CASES = {
    'dino_detrex_4scale': ('focalnet_l_fl4_4scale_12e', True),
    'dino_detrex_5scale': ('focalnet_l_fl4_5scale_12e', True),
    'dino_focalnet_dino_5scale': ('focalnet_l_fl4_o365_coco', False),
}
PUBLISHED = {
    'dino_focal_large_lrf_384_4scale_12ep': ('focalnet_l_4scale_12e', 'focalnet_l_fl3_4scale_36e'),
    'dino_focal_large_lrf_384_fl4_4scale_12ep': ('focalnet_l_fl4_4scale_12e',),
    'dino_focalnet_large_lrf_384_fl4_5scale_12ep': ('focalnet_l_fl4_5scale_12e',),
    'focalnet_large_fl4_pretrained_on_o365': ('focalnet_l_fl4_o365',),
    'focalnet_large_fl4_o365_finetuned_on_coco': ('focalnet_l_fl4_o365_coco',),
}


def model_config(config: str) -> dict:
    cfg = Config.fromfile(CONFIGS / config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = None
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    return cfg.model


def small(config: str, queries: int = 10, classes: int = 80) -> nn.Module:
    """A detector of a config with the sizes of the golden cases."""
    model = model_config(f'dino/{config}.py')
    backbone = model.backbone
    backbone.update(embed_dims=8, depths=(1, 1, 1, 1))
    model.neck.in_channels = [8 * 2**i for i in backbone.out_indices]
    model.num_queries, model.bbox_head.num_classes = queries, classes
    for coder in (model.encoder, model.decoder):
        coder.num_layers = 2
        coder.layer_cfg.ffn_cfg.feedforward_channels = 32
    return MODELS.build(model).eval()


def checkpoint(case: str) -> dict[str, Tensor]:
    """The file of a golden case: some tensors are in it under several names."""
    spec = json.loads((DATA / 'golden' / f'{case}.json').read_text())['checkpoint']
    values = {key: torch.from_numpy(value) for key, value in filler.state_dict(spec).items()}
    detrex, unused = CASES[case][1], sorted({*range(91)} - {*COCO_IDS})
    for key in values:
        own = re.sub(r'^transformer\.decoder\.(?=(class|bbox)_embed)', '', key)
        if not detrex:  # its decoder layers share their heads
            own = re.sub(r'^((?:class|bbox)_embed)\.\d+\.', r'\1.1.', own)
        values[key] = values[own]
    for key, value in values.items():
        if not detrex and re.search(r'class_embed\.(\d+\.)?bias$', key):
            value[unused] = -20  # as in a trained file: nothing has such a category
    return values


@pytest.fixture
def save(tmp_path):
    """Writes a state dict as its authors do."""

    def save(state_dict: dict, key: str = 'model') -> str:
        torch.save({key: state_dict, 'epoch': 11}, tmp_path / 'file.pth')
        return str(tmp_path / 'file.pth')

    return save


@pytest.fixture
def lines(monkeypatch):
    """The lines that loading logs."""
    logged: list[str] = []
    monkeypatch.setattr(
        'focal_mm.weights.loading.print_log', lambda text, logger: logged.append(text)
    )
    return logged


def hollow(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    """Tensors of these shapes that take no space on the disk."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def expand(spec: dict[str, str]) -> dict[str, tuple]:
    """Write out the names and shapes of ``detectors.json``."""
    names = {}
    for name, shape in spec.items():
        found = re.search(r'<(\d+)-(\d+)>', name)
        numbers = range(int(found[1]), int(found[2]) + 1) if found else ['']
        for number in numbers:
            names[re.sub('<.*>', str(number), name)] = tuple(map(int, shape.split('x')))
    return names


# ---- whole detectors ---------------------------------------------------------------------------


@pytest.mark.parametrize('case', CASES)
def test_detector_computes_what_its_authors_code_computes(save, case):
    from mmdet.structures import DetDataSample

    net = small(CASES[case][0])
    load_checkpoint(net, save(checkpoint(case)), strict=True)
    image = torch.from_numpy(filler.image(case, (1, 3, 72, 100)))
    sample = DetDataSample(metainfo=dict(img_shape=(72, 100), batch_input_shape=(72, 100)))
    with torch.no_grad():
        hidden = net.forward_transformer(net.extract_feat(image), [sample])
        logits, boxes = net.bbox_head(**hidden)
    golden = np.load(DATA / 'golden' / f'{case}.npz')
    np.testing.assert_allclose(logits[-1], golden['logits'], atol=1e-4)
    np.testing.assert_allclose(boxes[-1], golden['boxes'], atol=1e-5)


@pytest.mark.parametrize(
    'file, config', [(file, config) for file in PUBLISHED for config in PUBLISHED[file]]
)
def test_published_detector_has_all_that_its_config_builds(file, config):
    with torch.device('meta'):
        net = MODELS.build(model_config(f'dino/{config}.py'))
    converted = to_official(hollow(expand(LAYOUTS[file])))
    # OneDL's mmdet has more columns, see below.
    narrow = 'decoder.ref_point_head.layers.0.weight'
    converted[narrow] = fit_sine_columns(converted[narrow], net.state_dict()[narrow].shape[1])
    assert {key: value.shape for key, value in converted.items()} == {
        key: value.shape for key, value in net.state_dict().items()
    }


@pytest.mark.parametrize(
    'case, origin',
    [('dino_detrex_4scale', 'detrex DINO'), ('dino_focalnet_dino_5scale', 'FocalNet-DINO')],
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_detector_is_recognized_and_converted(save, tmp_path, case, origin, prefix):
    file = {prefix + key: value for key, value in checkpoint(case).items()}
    assert recognise(file) == origin
    target = tmp_path / 'new.safetensors'
    assert convert(save(file), target)[0] == origin
    assert recognise(read_checkpoint(target)) == 'official FocalNet in an mmdet detector'
    load_checkpoint(small(CASES[case][0]), str(target), strict=True)


def test_backbone_of_a_detector_loads_by_prefix(save):
    path = save(checkpoint('dino_focalnet_dino_5scale'))
    backbone = small('focalnet_l_fl4_o365_coco').backbone
    backbone.init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    backbone.init_weights()
    expected = checkpoint('dino_focalnet_dino_5scale')['backbone.0.norm2.weight']
    assert backbone.norm2.weight.equal(expected)


# ---- classes, queries, levels ------------------------------------------------------------------


@pytest.mark.parametrize('rows, kept', [(91, COCO_IDS), (366, range(1, 366)), (5, range(5))])
def test_rows_of_category_ids_become_classes(rows, kept):
    file = checkpoint('dino_focalnet_dino_5scale')
    for key in file:
        if 'class_embed' in key:
            file[key] = torch.arange(rows).view(-1, *[1] * (file[key].ndim - 1)).clone()
    file['label_enc.weight'] = torch.arange(rows + 1)[:, None].clone()
    converted = to_official(file)
    for layer in range(3):
        for name in ('weight', 'bias'):
            rows_kept = converted[f'bbox_head.cls_branches.{layer}.{name}'].flatten()
            assert rows_kept.tolist() == list(kept)
    labels = converted['dn_query_generator.label_embedding.weight']
    assert labels.flatten().tolist() == list(kept)


def test_rows_are_those_of_the_classes_of_mmdet():
    """COCO's names of a few category ids."""
    from mmdet.datasets import CocoDataset, Objects365V2Dataset

    classes = CocoDataset.METAINFO['classes']
    names = {1: 'person', 13: 'stop sign', 44: 'bottle', 67: 'dining table', 90: 'toothbrush'}
    assert len(classes) == len(COCO_IDS)
    assert {i: classes[COCO_IDS.index(i)] for i in names} == names
    assert len(Objects365V2Dataset.METAINFO['classes']) == 365


def test_label_embedding_with_too_few_rows_is_refused_in_one_line(save):
    file = checkpoint('dino_focalnet_dino_5scale')
    file['label_enc.weight'] = file['label_enc.weight'][:50]
    with pytest.raises(CheckpointError, match=r'label_enc.weight has 50 rows for 91 classes') as e:
        read_checkpoint(save(file))
    assert '\n' not in str(e.value)


def test_other_number_of_classes_is_told_in_one_line_and_left_to_training(save, lines):
    net = small('focalnet_l_fl4_5scale_12e', classes=3)
    before = net.bbox_head.cls_branches[0].weight.clone()
    file = save(checkpoint('dino_detrex_5scale'))
    load_checkpoint(net, file, strict=True)
    what = 'left as initialized: 80 classes in the checkpoint, 3 in the model'
    assert lines == [f'1 classifier and label embedding {what}']
    assert net.bbox_head.cls_branches[0].weight.equal(before)
    assert net.query_embedding.weight.equal(
        checkpoint('dino_detrex_5scale')['transformer.tgt_embed.weight']
    )


@pytest.mark.parametrize(
    'config, queries, message',
    [
        ('focalnet_l_fl4_5scale_12e', 20, r'query_embedding.weight is \(10, 256\).*num_queries'),
        ('focalnet_l_fl4_4scale_12e', 10, r'where the model has.* of the checkpoint'),
    ],
)
def test_other_queries_or_levels_are_an_error_of_one_line(save, config, queries, message):
    net = small(config, queries)
    before = net.memory_trans_fc.weight.clone()
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(net, save(checkpoint('dino_detrex_5scale')), strict=False)
    assert 'file.pth' in str(error.value) and '\n' not in str(error.value)
    assert net.memory_trans_fc.weight.equal(before)


def test_sine_columns_keep_the_product():
    """128 features a coordinate in the original code, 256 in OneDL's mmdet."""
    boxes, weight = torch.rand(7, 4), torch.randn(5, 512)

    def embed(features):
        frequency = 10000 ** (-2 * (torch.arange(features) // 2) / features)
        angles = boxes[..., None] * 2 * torch.pi * frequency
        return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(1)

    wide = fit_sine_columns(weight, 1024)
    torch.testing.assert_close(embed(256) @ wide.T, embed(128) @ weight.T, atol=1e-4, rtol=0)
    assert fit_sine_columns(weight, 512).equal(weight)
    with pytest.raises(ValueError, match='512 features does not fit one of 700'):
        fit_sine_columns(weight, 700)


# ---- detectors that mmdet does not have --------------------------------------------------------


@pytest.mark.parametrize(
    'mark, detector',
    [
        ('yolo_head.pred_cls.0.weight', r'PP-YOLOE\+'),
        ('transformer.enc_score_head.weight', 'RT-DETR'),
    ],
)
def test_detectors_of_paddle_are_refused_in_one_line(save, mark, detector):
    file = {
        'backbone.layers.0.blocks.0.modulation.f.weight': torch.zeros(8, 20),
        mark: torch.ones(1),
    }
    with pytest.raises(CheckpointError, match=f'{detector}.*another detector') as error:
        read_checkpoint(save(file))
    assert '\n' not in str(error.value)


# ---- the names of mmdet 2 and mmseg 0 ----------------------------------------------------------


def weighted(*names: str) -> list[str]:
    return [f'{name}.{part}' for name in names for part in ('weight', 'bias')]


def normed(*names: str) -> list[str]:
    """A convolution without bias and its BatchNorm."""
    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    return [
        key
        for name in names
        for key in (
            f'{name}.conv.weight',
            *weighted(f'{name}.bn'),
            *(f'{name}.bn.{statistic}' for statistic in statistics),
        )
    ]


def each(name: str, count: int, end: str = '') -> list[str]:
    return [f'{name}.{i}{end}' for i in range(count)]


FPN = weighted(
    *each('neck.lateral_convs', 4, '.conv'),
    *each('neck.fpn_convs', 4, '.conv'),
)
RPN = weighted('rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg')


def mask_head(name: str) -> list[str]:
    return weighted(*each(f'{name}.convs', 4, '.conv'), f'{name}.upsample', f'{name}.conv_logits')


def dynamic_head(name: str) -> list[str]:
    conv = f'{name}.instance_interactive_conv'
    return [
        f'{name}.attention.attn.in_proj_weight',
        f'{name}.attention.attn.in_proj_bias',
        *weighted(
            f'{name}.attention.attn.out_proj',
            f'{name}.attention_norm',
            *(
                f'{conv}.{x}'
                for x in ('dynamic_layer', 'norm_in', 'norm_out', 'fc_layer', 'fc_norm')
            ),
            f'{conv}_norm',
            f'{name}.ffn.layers.0.0',
            f'{name}.ffn.layers.1',
            f'{name}.ffn_norm',
            f'{name}.fc_cls',
            f'{name}.fc_reg',
        ),
        # Linear layers without bias, their norms and activations.
        *(f'{name}.{x}.weight' for x in ('cls_fcs.0', 'reg_fcs.0', 'reg_fcs.3', 'reg_fcs.6')),
        *weighted(*(f'{name}.{x}' for x in ('cls_fcs.1', 'reg_fcs.1', 'reg_fcs.4', 'reg_fcs.7'))),
    ]


box_head = 'roi_head.bbox_head'
NAMES = {
    'mask_rcnn': [
        *FPN,
        *RPN,
        *weighted(*each(f'{box_head}.shared_fcs', 2), f'{box_head}.fc_cls', f'{box_head}.fc_reg'),
        *mask_head('roi_head.mask_head'),
    ],
    'cascade': [
        *FPN,
        *RPN,
        *(
            key
            for head in each(box_head, 3)
            for key in (
                *normed(*each(f'{head}.shared_convs', 4)),
                *weighted(f'{head}.shared_fcs.0', f'{head}.fc_cls', f'{head}.fc_reg'),
            )
        ),
        *(key for head in each('roi_head.mask_head', 3) for key in mask_head(head)),
    ],
    'atss': [
        *weighted(*each('neck.lateral_convs', 3, '.conv'), *each('neck.fpn_convs', 5, '.conv')),
        *(
            key
            for tower in ('cls', 'reg')
            for conv in each(f'bbox_head.{tower}_convs', 4)
            for key in (f'{conv}.conv.weight', *weighted(f'{conv}.gn'))
        ),
        *weighted('bbox_head.atss_cls', 'bbox_head.atss_reg', 'bbox_head.atss_centerness'),
        *each('bbox_head.scales', 5, '.scale'),
    ],
    'sparse_rcnn': [
        *FPN,
        'rpn_head.init_proposal_bboxes.weight',
        'rpn_head.init_proposal_features.weight',
        *(key for head in each(box_head, 6) for key in dynamic_head(head)),
    ],
    'upernet': [
        *weighted('decode_head.conv_seg', 'auxiliary_head.conv_seg'),
        *normed(
            *each('decode_head.psp_modules', 4, '.1'),
            *each('decode_head.lateral_convs', 3),
            *each('decode_head.fpn_convs', 3),
            'decode_head.bottleneck',
            'decode_head.fpn_bottleneck',
            'auxiliary_head.convs.0',
        ),
    ],
}
# The 20 configs of the detectors and segmentors in microsoft/FocalNet's READMEs.
OFFICIAL = [
    *(
        f'mask_rcnn/focalnet_{size}{field}_{schedule}.py'
        for size in 'tsb'
        for field in ('', '_srf')
        for schedule in ('1x', '3x')
    ),
    'cascade/focalnet_t_3x.py',
    'atss/focalnet_t_3x.py',
    *(f'upernet/focalnet_{size}{field}.py' for size in 'tsb' for field in ('', '_srf')),
]
SPARSE_RCNN = 'sparse_rcnn/focalnet_t_3x.py'


def official_backbone(net: nn.Module) -> set[str]:
    """Names of the official detection backbone without layer scale and overlapped patches."""
    names = {*weighted('patch_embed.proj', 'patch_embed.norm')}
    for i, stage in enumerate(net.layers):
        for block in each(f'layers.{i}.blocks', len(stage.blocks)):
            names |= {
                *weighted(
                    *(f'{block}.{x}' for x in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')),
                    *(f'{block}.modulation.{x}' for x in ('f', 'h', 'proj')),
                ),
                *(
                    f'{layer}.0.weight'
                    for layer in each(
                        f'{block}.modulation.focal_layers',
                        len(stage.blocks[0].modulation.focal_layers),
                    )
                ),
            }
        if i < 3:
            names |= {*weighted(f'layers.{i}.downsample.proj', f'layers.{i}.downsample.norm')}
    return names | {*weighted(*(f'norm{i}' for i in net.out_indices))}


@pytest.mark.parametrize('config', [*OFFICIAL, SPARSE_RCNN])
def test_detector_of_mmdet_2_has_all_that_its_config_builds(config):
    with torch.device('meta'):
        net = MODELS.build(model_config(config))
    backbone = {f'backbone.{name}' for name in official_backbone(net.backbone)}
    assert {*NAMES[config.split('/')[0]]} | backbone == net.state_dict().keys()
    assert to_official(net.state_dict()).keys() == net.state_dict().keys()


@pytest.fixture
def one_value_a_tensor(monkeypatch):
    """Lets files be read that would be far larger in memory, which are refused otherwise."""
    monkeypatch.setattr('focal_mm.weights.files._FREE', 10**10)


def test_sparse_rcnn_of_the_release_loads_whole(tmp_path, one_value_a_tensor):
    """It is a file of mmdet 2, with the state of its optimizer and of apex."""
    net = MODELS.build(model_config(SPARSE_RCNN))
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    content = {
        'meta': {'epoch': 36, 'CLASSES': ('person', 'bicycle'), 'mmdet_version': '2.11.0'},
        'state_dict': hollow(shapes),
        'optimizer': {'state': {}, 'param_groups': []},
        'amp': {'loss_scaler0': {'loss_scale': 65536.0, 'unskipped': 1}},
    }
    torch.save(content, tmp_path / 'focalnet_tiny_lrf_sparsercnn_3x.pth')
    load_checkpoint(net, str(tmp_path / 'focalnet_tiny_lrf_sparsercnn_3x.pth'), strict=True)
    assert not any(parameter.any() for parameter in net.parameters())


@pytest.mark.parametrize('file', LAYOUTS)
def test_file_is_what_its_name_in_the_zoo_asks_for(file, tmp_path, one_value_a_tensor):
    """The check that a download has to pass; it refuses the file for names of other networks."""
    path = tmp_path / f'{file}.pth'
    state = {key: torch.zeros(1).expand(shape) for key, shape in expand(LAYOUTS[file]).items()}
    torch.save({'model': state}, path)
    (entry,) = (entry for entry in ZOO.values() if entry.file == path.name)
    zoo._require(entry, path)
    for other in ('mask_rcnn_focalnet_tiny_lrf_1x_coco', f'focalnet_{entry.arch}_in22k'):
        with pytest.raises(CheckpointError):
            zoo._require(ZOO[other], path)
