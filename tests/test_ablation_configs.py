"""The configs of the papers' ablations, each its base but for what its row changes."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS

from focal_mm.datasets import use_mini

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / 'configs' / 'ablation').glob('*.py'))
TASKS = {'_mask_rcnn_1x': 'mask_rcnn/{}_1x', '_upernet': 'upernet/{}', '': 'imagenet/{}'}
METAFILE = yaml.safe_load((ROOT / 'configs/ablation/metafile.yml').read_text())['Models']
TYPED = json.loads((ROOT / 'tests/data/tables.json').read_text())
# What a row may change beside the arguments of its backbone.
WIDTHS = {'in_channels', 'proj_channels'}


@cache
def read(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'{name}.py')


def split(name: str) -> tuple[str, str]:
    """Name of the classifier, and the end of the name that stands for the task."""
    suffix = next(suffix for suffix in TASKS if name.endswith(suffix))
    return name.removesuffix(suffix), suffix


def base_of(name: str) -> Config:
    classifier, suffix = split(name)
    backbone = 'mixformer_b1' if 'mixing' in name else '_'.join(classifier.split('_')[:2])
    return read(TASKS[suffix].format(backbone))


def changes(ours: Any, theirs: Any, path: str = '') -> dict[str, Any]:
    """Dotted keys at which two configs differ, with our values."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return {} if ours == theirs else {path: ours}
    return {
        key: value
        for name in {*ours, *theirs}
        for key, value in changes(
            ours.get(name), theirs.get(name), f'{path}.{name}'.lstrip('.')
        ).items()
    }


@pytest.mark.stock
@pytest.mark.parametrize('name', NAMES)
def test_row_changes_only_its_backbone_and_what_follows_from_it(name):
    ours, theirs = read(f'ablation/{name}')._cfg_dict, base_of(name)._cfg_dict
    found = changes(ours.to_dict(), theirs.to_dict())
    if split(name)[0].startswith('mixformer') and not split(name)[1]:
        assert found.pop('train_cfg.max_epochs') == 200  # section 4.4
    for key in found:
        assert key.startswith('model.backbone') or key.rsplit('.')[-1] in WIDTHS, key


@pytest.mark.parametrize('name', [name for name in NAMES if split(name)[1]])
def test_dense_prediction_starts_from_the_classifier_of_the_row(name):
    classifier, backbone = (
        read(f'ablation/{split(name)[0]}'),
        read(f'ablation/{name}').model.backbone,
    )
    last = f'epoch_{classifier.train_cfg.max_epochs}.pth'
    assert backbone.init_cfg.checkpoint == f'work_dirs/ablation/{split(name)[0]}/{last}'


@pytest.mark.stock
@pytest.mark.parametrize('name', [name for name in NAMES if split(name)[1]])
def test_weights_of_the_classifier_fit(name):
    with torch.device('meta'):
        small, large = (
            MODELS.build(read(f'ablation/{stem}').model.backbone) for stem in (split(name)[0], name)
        )
    theirs = {key: torch.zeros(value.shape) for key, value in small.state_dict().items()}
    large.to_empty(device='cpu').load_state_dict(theirs)


@pytest.mark.parametrize('name', [name for name in NAMES if not split(name)[1]])
def test_takes_a_step_of_training_and_testing(train_and_test, name):
    _, predicted = train_and_test(use_mini(read(f'ablation/{name}')))
    assert 'pred_score' in predicted


@pytest.mark.parametrize('model', METAFILE, ids=lambda model: model['Name'])
def test_index_gives_the_papers_figures(model):
    about = model['Metadata']
    (row,) = (
        row
        for row in TYPED['ablation_rows']
        if (row['table'], f'configs/{row["config"]}.py') == (about['Paper Table'], model['Config'])
    )
    figures = {
        name.replace(' ', '_'): value
        for result in model.get('Results', ())
        for name, value in result['Metrics'].items()
    }
    assert figures == {key: row[key] for key in row if key[0].isupper() or key[-2:] in ('AP', 'oU')}
    for key, name in (
        ('Parameters (M)', 'params_M'),
        ('FLOPs (G)', 'flops_G'),
        ('Throughput (images/s, V100)', 'throughput_V100'),
    ):
        assert about.get(key) == row[name]


def test_rows_agree_with_those_typed_before():
    """``ablations`` was typed from the papers' text on its own."""
    rows = {(row['table'], row['config'].split('/')[1]): row for row in TYPED['ablation_rows']}
    shared = dict(flops_G='flops_G', params_M='params_M', throughput='throughput_V100')
    shared |= dict(top1='Top_1_Accuracy', box_AP='box_AP', mask_AP='mask_AP')
    before = TYPED['ablations']
    levels = ['focalnet_t_srf', 'focalnet_t', 'focalnet_t_global_pooling', 'focalnet_t_1_level']
    levels += ['focalnet_t_4_levels', 'focalnet_t_1_level_kernel_13']
    focal = 'Focal Transformer, Table {}'.format
    pairs = [
        *zip([('FocalNet, Table 12', name) for name in levels], before['focalnet_levels']),
        *(
            (('FocalNet, Table 11', f'focalnet_t{"" if name == "base" else "_" + name}'), figures)
            for name, figures in before['focalnet_components'].items()
        ),
        *zip([(focal(7), 'focal_t'), (focal(7), 'focal_t_window_14')], before['focal_window']),
        *zip([(focal(8), 'focal_t'), (focal(8), 'focal_t_shift')], before['focal_shift']),
        *zip(
            [(focal(9), f'focal_t{end}') for end in ('_depth_2', '_depth_4', '')],
            before['focal_depths'],
        ),
        *((('MixFormer, Table 12', row['model']), row) for row in before['mixformer_convnets']),
    ]
    assert len(pairs) == 20
    for (table, name), figures in pairs:
        detector = rows.get((table, f'{name}_mask_rcnn_1x')) or rows.get((table, f'{name}_1x'), {})
        together = {**detector, **{k: v for k, v in rows[table, name].items() if v is not None}}
        for key, ours in shared.items():
            if figures.get(key) is not None:
                assert together[ours] == figures[key], (table, name, key)
