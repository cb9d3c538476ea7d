"""Our configs for ImageNet beside the authors', field by field.

``official_imagenet.json`` holds what the programs of microsoft/Focal-Transformer,
microsoft/FocalNet and microsoft/Swin-Transformer and the yaml files of PaddleClas set. Each field
of a file is read from our config in the file's words and units, and must be equal, unless
``EXPLAINED`` gives the reason; a reason for a field that is equal fails as well.

The programs scale their learning rates from batches of 512 to 1024 images, so that ours are twice
theirs.
"""

import json
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

pytestmark = pytest.mark.stock
ROOT = Path(__file__).parents[1]
SOURCES = json.loads((ROOT / 'tests' / 'data' / 'official_imagenet.json').read_text())['sources']
CLASSIFIERS = sorted(
    path.stem
    for path in (ROOT / 'configs' / 'imagenet').glob('*.py')
    if not path.stem.endswith('_in22k')  # pre-training, which the papers describe in no file
)
ERASING = dict.fromkeys(
    ('AUG.REPROB', 'AUG.REMODE', 'AUG.RECOUNT'),
    'the paper excludes random erasing (section 4.1); config.py has the default of Swin',
)
OTHER_RUN = {
    'TRAIN.WARMUP_EPOCHS': 'config.py stands at 5, with the 20 of ImageNet-1K in a comment',
    'TRAIN.BASE_LR': 'config.py stands at 1e-4, with the 5e-4 of ImageNet-1K in a comment',
}
# For each pattern of config names: why fields differ from the official ones.
EXPLAINED = {
    'focal*': {
        'AUG.COLOR_JITTER': 'timm leaves color jitter out where there is an AUTO_AUGMENT',
    },
    'focal_*': ERASING,
    'focalnet_*[!0-9k]': OTHER_RUN,  # all but those from ImageNet-22K
    'focalnet_?16': OTHER_RUN,
    'focalnet_*_384': {'TEST.CROP': "FocalNet's code crops 7/8 of the image; the file is Swin's"},
}


@cache
def ours(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / 'imagenet' / f'{name}.py')


def official_file(name: str) -> str:
    """Path of the authors' file for one of our configs."""
    backbone = ours(name).model.backbone
    arch = backbone.arch
    if '_22k' in name:
        size, shape = arch.split('_')[0], '12_384' if name.endswith('_384') else '7_224'
        return f'configs/swin/swin_{size}_patch4_window{shape}_22kto1k_finetune.yaml'
    if backbone.type == 'FocalNet':  # a deeper net, with no file, has the recipe of its size
        return f'configs/focalnet_{arch.removesuffix("_deep")}.yaml'
    if backbone.type == 'MixFormer':
        return f'ppcls/configs/ImageNet/MixFormer/mixformer_{arch}.yaml'
    family = 'focalv2' if arch.startswith('fast_') else 'focal'
    size = arch.removeprefix('fast_').removesuffix('_conv')
    overlap = '' if size == arch else '_useconv'
    return f'configs/{family}_{size}{overlap}_patch4_window7_224.yaml'


def official(name: str) -> dict[str, Any]:
    file = official_file(name)
    (source,) = (source for source in SOURCES if file in source['files'])
    return source['defaults'] | source['files'][file]


def explained(name: str) -> set[str]:
    return {
        field for pattern, fields in EXPLAINED.items() if fnmatch(name, pattern) for field in fields
    }


def step(cfg: Config, kind: str, loader: str = 'train_dataloader') -> ConfigDict:
    """The transform of a type; empty if the pipeline has none."""
    found = [step for step in cfg[loader].dataset.pipeline if step.type == kind]
    return found[0] if found else ConfigDict()


def drop_path_rate(cfg: Config) -> float:
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        net = MODELS.build(cfg.model.backbone)
    path = net.layers[-1].blocks[-1].drop_path
    return getattr(path, 'drop_prob', 0.0)


def auto_augment(cfg: Config) -> str:
    found = step(cfg, 'RandAugment')
    assert (found.num_policies, found.total_level) == (2, 10)  # those of timm's notation
    increasing = int(found.policies == 'timm_increasing')
    return f'rand-m{found.magnitude_level}-mstd{found.magnitude_std}-inc{increasing}'


def erasing_mode(cfg: Config) -> str | None:
    return dict(rand='pixel').get(step(cfg, 'RandomErasing').get('mode'))


def mixing(cfg: Config, kind: str) -> float:
    (found,) = (augment for augment in cfg.model.train_cfg.augments if augment.type == kind)
    return found.alpha


def mixing_probability(cfg: Config) -> float:
    """How likely each of the augments is: mmpretrain chooses evenly where nothing is said."""
    assert 'probs' not in cfg.model.train_cfg
    return 1 / len(cfg.model.train_cfg.augments)


def decay(cfg: Config) -> str:
    """The parameters that do not decay, in PaddleClas's words."""
    keys = cfg.optim_wrapper.paramwise_cfg
    found = [
        key.removeprefix('.') for key, value in keys.custom_keys.items() if value.decay_mult == 0
    ]
    found += ['.bias'] * (keys.bias_decay_mult == 0) + ['norm'] * (keys.norm_decay_mult == 0)
    return ' '.join(found)


def optimizer(cfg: Config) -> ConfigDict:
    return cfg.optim_wrapper.optimizer


def crop(cfg: Config) -> int:
    return step(cfg, 'CenterCrop', 'test_dataloader').crop_size


def shorter_side(cfg: Config) -> ConfigDict:
    found = step(cfg, 'ResizeEdge', 'test_dataloader')
    assert found.edge == 'short'
    return found


def fraction(cfg: Config, key: str) -> list[float]:
    return [value / 255 for value in cfg.data_preprocessor[key]]


READERS: dict[str, Callable[[Config], Any]] = {
    # microsoft/Focal-Transformer, microsoft/FocalNet, microsoft/Swin-Transformer
    'DATA.BATCH_SIZE': lambda cfg: cfg.train_dataloader.batch_size,
    'DATA.IMG_SIZE': lambda cfg: step(cfg, 'RandomResizedCrop').scale,
    'DATA.INTERPOLATION': lambda cfg: step(cfg, 'RandomResizedCrop').interpolation,
    'MODEL.NUM_CLASSES': lambda cfg: cfg.model.head.get('num_classes', 1000),
    'MODEL.DROP_RATE': lambda cfg: cfg.model.backbone.get('drop_rate', 0),
    'MODEL.DROP_PATH_RATE': drop_path_rate,
    'MODEL.LABEL_SMOOTHING': lambda cfg: cfg.model.head.loss.label_smooth_val,
    'TRAIN.EPOCHS': lambda cfg: cfg.train_cfg.max_epochs,
    'TRAIN.WARMUP_EPOCHS': lambda cfg: cfg.param_scheduler[0].end,
    'TRAIN.WEIGHT_DECAY': lambda cfg: optimizer(cfg).weight_decay,
    'TRAIN.BASE_LR': lambda cfg: optimizer(cfg).lr / 2,
    'TRAIN.WARMUP_LR': lambda cfg: cfg.param_scheduler[0].start_factor * optimizer(cfg).lr / 2,
    'TRAIN.MIN_LR': lambda cfg: cfg.param_scheduler[1].eta_min / 2,
    'TRAIN.CLIP_GRAD': lambda cfg: cfg.optim_wrapper.clip_grad.max_norm,
    'TRAIN.LR_SCHEDULER.NAME': lambda cfg: cfg.param_scheduler[1].type[:6].lower(),
    'TRAIN.LR_SCHEDULER.WARMUP_PREFIX': (
        lambda cfg: cfg.param_scheduler[1].begin == cfg.param_scheduler[0].end
    ),
    'TRAIN.OPTIMIZER.NAME': lambda cfg: optimizer(cfg).type.lower(),
    'TRAIN.OPTIMIZER.EPS': lambda cfg: optimizer(cfg).eps,
    'TRAIN.OPTIMIZER.BETAS': lambda cfg: list(optimizer(cfg).betas),
    'AUG.COLOR_JITTER': lambda cfg: step(cfg, 'ColorJitter').get('brightness', 0),
    'AUG.AUTO_AUGMENT': auto_augment,
    'AUG.REPROB': lambda cfg: step(cfg, 'RandomErasing').get('erase_prob', 0),
    'AUG.REMODE': erasing_mode,
    'AUG.RECOUNT': lambda cfg: int('type' in step(cfg, 'RandomErasing')),
    'AUG.MIXUP': lambda cfg: mixing(cfg, 'Mixup'),
    'AUG.CUTMIX': lambda cfg: mixing(cfg, 'CutMix'),
    'AUG.CUTMIX_MINMAX': lambda cfg: None,  # mmpretrain's CutMix has such a key, and ours not
    'AUG.MIXUP_PROB': lambda cfg: mixing_probability(cfg) * len(cfg.model.train_cfg.augments),
    'AUG.MIXUP_SWITCH_PROB': mixing_probability,
    'AUG.MIXUP_MODE': lambda cfg: 'batch',  # mmpretrain mixes whole batches
    'TEST.CROP': lambda cfg: crop(cfg) < shorter_side(cfg).scale,
    'AMP_OPT_LEVEL': lambda cfg: dict(AmpOptimWrapper='O1').get(cfg.optim_wrapper.type),
    'AMP_ENABLE': lambda cfg: cfg.optim_wrapper.type == 'AmpOptimWrapper',
    # PaddlePaddle/PaddleClas
    'Global.epochs': lambda cfg: cfg.train_cfg.max_epochs,
    'Arch.name': lambda cfg: f'{cfg.model.backbone.type}_{cfg.model.backbone.arch.upper()}',
    'Arch.class_num': lambda cfg: cfg.model.head.get('num_classes', 1000),
    'drop_path_rate': drop_path_rate,
    'Loss.Train.CELoss.epsilon': lambda cfg: cfg.model.head.loss.label_smooth_val,
    'Optimizer.name': lambda cfg: optimizer(cfg).type,
    'Optimizer.beta1': lambda cfg: optimizer(cfg).betas[0],
    'Optimizer.beta2': lambda cfg: optimizer(cfg).betas[1],
    'Optimizer.epsilon': lambda cfg: optimizer(cfg).eps,
    'Optimizer.weight_decay': lambda cfg: optimizer(cfg).weight_decay,
    'Optimizer.no_weight_decay_name': decay,
    'Optimizer.one_dim_param_no_weight_decay': (
        lambda cfg: cfg.optim_wrapper.paramwise_cfg.flat_decay_mult == 0
    ),
    'Optimizer.lr.name': lambda cfg: cfg.param_scheduler[1].type[:6],
    'Optimizer.lr.learning_rate': lambda cfg: optimizer(cfg).lr,
    'Optimizer.lr.eta_min': lambda cfg: cfg.param_scheduler[1].eta_min,
    'Optimizer.lr.warmup_epoch': lambda cfg: cfg.param_scheduler[0].end,
    'Optimizer.lr.warmup_start_lr': (
        lambda cfg: cfg.param_scheduler[0].start_factor * optimizer(cfg).lr
    ),
    'DataLoader.Train.DecodeImage.to_rgb': lambda cfg: cfg.data_preprocessor.to_rgb,
    'DataLoader.Train.RandCropImage.size': lambda cfg: step(cfg, 'RandomResizedCrop').scale,
    'DataLoader.Train.RandCropImage.interpolation': (
        lambda cfg: step(cfg, 'RandomResizedCrop').interpolation
    ),
    'DataLoader.Train.RandCropImage.backend': (
        lambda cfg: step(cfg, 'RandomResizedCrop').backend[:3]
    ),
    'DataLoader.Train.RandFlipImage.flip_code': (
        lambda cfg: dict(horizontal=1)[step(cfg, 'RandomFlip').direction]
    ),
    'DataLoader.Train.TimmAutoAugment.config_str': auto_augment,
    'DataLoader.Train.TimmAutoAugment.interpolation': (
        lambda cfg: step(cfg, 'RandAugment').hparams.interpolation
    ),
    'DataLoader.Train.NormalizeImage.mean': lambda cfg: fraction(cfg, 'mean'),
    'DataLoader.Train.NormalizeImage.std': lambda cfg: fraction(cfg, 'std'),
    'DataLoader.Train.RandomErasing.EPSILON': lambda cfg: step(cfg, 'RandomErasing').erase_prob,
    'DataLoader.Train.RandomErasing.sl': lambda cfg: step(cfg, 'RandomErasing').min_area_ratio,
    'DataLoader.Train.RandomErasing.sh': (
        lambda cfg: f'1.0/{1 / step(cfg, "RandomErasing").max_area_ratio}'
    ),
    'DataLoader.Train.RandomErasing.r1': (
        lambda cfg: step(cfg, 'RandomErasing').get('aspect_range', (3 / 10, 10 / 3))[0]
    ),
    'DataLoader.Train.RandomErasing.mode': erasing_mode,
    'DataLoader.Train.OpSampler.MixupOperator.alpha': lambda cfg: mixing(cfg, 'Mixup'),
    'DataLoader.Train.OpSampler.MixupOperator.prob': mixing_probability,
    'DataLoader.Train.OpSampler.CutmixOperator.alpha': lambda cfg: mixing(cfg, 'CutMix'),
    'DataLoader.Train.OpSampler.CutmixOperator.prob': mixing_probability,
    'DataLoader.Train.batch_size': lambda cfg: cfg.train_dataloader.batch_size,
    'DataLoader.Train.drop_last': lambda cfg: cfg.train_dataloader.get('drop_last', False),
    'DataLoader.Train.shuffle': lambda cfg: cfg.train_dataloader.sampler.shuffle,
    'DataLoader.Eval.DecodeImage.to_rgb': lambda cfg: cfg.data_preprocessor.to_rgb,
    'DataLoader.Eval.ResizeImage.resize_short': lambda cfg: shorter_side(cfg).scale,
    'DataLoader.Eval.ResizeImage.interpolation': lambda cfg: shorter_side(cfg).interpolation,
    'DataLoader.Eval.ResizeImage.backend': lambda cfg: shorter_side(cfg).backend[:3],
    'DataLoader.Eval.CropImage.size': crop,
    'DataLoader.Eval.NormalizeImage.mean': lambda cfg: fraction(cfg, 'mean'),
    'DataLoader.Eval.NormalizeImage.std': lambda cfg: fraction(cfg, 'std'),
}


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_every_field_is_the_official_one_or_explained(name):
    differing = {
        field
        for field, value in official(name).items()
        if READERS[field](ours(name)) != approx(value)
    }
    assert differing == explained(name)


def approx(value: Any) -> Any:
    return pytest.approx(value) if isinstance(value, (float, list)) else value


def test_batch_is_that_of_eight_gpus():
    assert all(ours(name).auto_scale_lr.base_batch_size == 8 * 128 for name in CLASSIFIERS)


@pytest.mark.parametrize('name', [name for name in CLASSIFIERS if name.startswith('mixformer')])
def test_paddleclas_has_no_amp_and_clips_nothing(name):
    """No key of these yaml files is for either."""
    wrapper = ours(name).optim_wrapper
    assert wrapper.get('type', 'OptimWrapper') == 'OptimWrapper' and 'clip_grad' not in wrapper
