import pytest

from focal_mm.cli.runner import load_config
from focal_mm.cli.training import resume, scale_lr, skip_corrupt

pytestmark = pytest.mark.stock

CONFIG = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
SEGMENTOR = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'


@pytest.fixture
def cfg(tmp_path):
    return load_config(CONFIG, str(tmp_path), options=dict(load_from='start.pth'))


def test_newest_checkpoint_is_looked_for_and_the_weights_of_the_config_kept(cfg):
    resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == ('auto', 'start.pth')


def test_named_checkpoint_is_resumed(cfg, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    resume(cfg, '~/epoch_2.pth')
    assert (cfg.resume, cfg.load_from) == (True, '/home/me/epoch_2.pth')


def test_learning_rate_scales_only_from_a_known_batch():
    cfg = load_config(CONFIG)
    scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(ValueError, match='base_batch_size'):
        scale_lr(load_config(SEGMENTOR))


def test_every_transform_that_loads_may_skip():
    cfg = load_config(SEGMENTOR)
    skip_corrupt(cfg, 3)
    steps = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in steps[:2]] == ['focal_mm.SkipCorrupt'] * 2
    assert [step.transform.type for step in steps[:2]] == ['LoadImageFromFile', 'LoadAnnotations']
    assert steps[0].limit == 3 and steps[2].type != 'focal_mm.SkipCorrupt'
    with pytest.raises(ValueError, match='--skip-corrupt -1'):
        skip_corrupt(cfg, -1)


def test_sharded_training_needs_a_launcher_and_whole_models_are_not_averaged():
    from mmengine.config import Config

    from focal_mm.cli.training import shard

    def config(**fields) -> Config:
        wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
        return Config(dict(launcher='pytorch', optim_wrapper=wrapper, **fields))

    cfg = config()
    shard(cfg, 'fsdp')
    assert cfg.runner_type == 'focal_mm.DurableFlexibleRunner'
    assert cfg.strategy.type == 'focal_mm.ShardedStrategy'
    with pytest.raises(ValueError, match='EMAHook averages whole models'):
        shard(config(custom_hooks=[dict(type='EMAHook')]), 'fsdp')
    cfg.launcher = 'none'
    with pytest.raises(ValueError, match='--sharded fsdp needs a launcher'):
        shard(cfg, 'fsdp')


def test_deepspeed_takes_over_clipping_and_accumulation(monkeypatch):
    import inspect

    from mmengine._strategy import DeepSpeedStrategy
    from mmengine.config import Config

    from focal_mm.cli import training

    wrapper = dict(
        type='AmpOptimWrapper',
        dtype='bfloat16',
        optimizer=dict(type='AdamW', lr=1e-3),
        accumulative_counts=4,
        clip_grad=dict(max_norm=5.0),
    )
    cfg = Config(dict(launcher='pytorch', optim_wrapper=wrapper))
    for found, version in [(None, None), ('deepspeed', '0.19.8')]:
        monkeypatch.setattr(training, 'find_spec', lambda name, found=found: found)
        monkeypatch.setattr(training, 'version', lambda name, version=version: version)
        with pytest.raises(ModuleNotFoundError, match='pip install "deepspeed<0.19"'):
            training.shard(cfg, 'deepspeed')
    monkeypatch.setattr(training, 'version', lambda name: '0.18.9')
    training.shard(cfg, 'deepspeed')
    assert cfg.strategy.gradient_accumulation_steps == 4
    assert cfg.strategy.gradient_clipping == 5.0 and cfg.strategy.bf16.enabled
    assert cfg.optim_wrapper.type == 'DeepSpeedOptimWrapper'
    # The strategy takes any other argument, too, for a base class that refuses it.
    known = inspect.signature(DeepSpeedStrategy).parameters
    assert cfg.strategy.keys() - {'type'} <= known.keys() - {'kwargs'}
