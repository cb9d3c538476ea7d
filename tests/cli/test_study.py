import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from focal_mm.cli import study
from focal_mm.cli.commands.study import FAMILIES
from focal_mm.cli.main import main
from focal_mm.datasets import objects

pytestmark = pytest.mark.stock
CONFIGS = Path(__file__).parents[2] / 'configs' / 'study'
# Two steps on two images each, both validated.
TINY = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 2,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'default_hooks.checkpoint.interval': 1,
}


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    """Few pictures and scenes, in a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FOCAL_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.setattr(objects, 'NUM_PICTURES', {'train': 20, 'val': 20})
        patch.setattr(objects, 'NUM_SCENES', {'train': 4, 'val': 2})
        yield


@pytest.fixture
def command(few, monkeypatch, capsys):
    """Runs a tiny study in this process; returns its status and its lines on both streams."""
    plan, execute = study.plan, study.execute
    monkeypatch.setattr(
        study,
        'plan',
        lambda *args: [replace(run, options=run.options | TINY) for run in plan(*args)],
    )
    monkeypatch.setattr(study, 'execute', lambda runs: execute(runs, processes=1))
    monkeypatch.setitem(study.ABLATIONS, 'focalnet', {'1 level': dict(focal_levels=1)})
    starts = study.STARTS['focalnet']
    kept = {name: starts[name] for name in ('kernels zero-padded', 'kernels resampled')}
    monkeypatch.setitem(study.STARTS, 'focalnet', kept | {'from scratch': starts['from scratch']})

    def run(*args):
        monkeypatch.setattr('sys.argv', ['focal-mm', 'study', *map(str, args)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    return run


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


def test_study_trains_reports_and_repeats_nothing(command, tmp_path):
    status, lines, errors = command('focalnet', '--seeds', 1, '--out', tmp_path)
    assert status == 0, errors
    assert lines[0].startswith('focalnet 1/11: pretraining, focal modulation, seed 1: top-1 ')
    assert any('kernels zero-padded' in line and '±' in line for line in lines)

    content = json.loads((tmp_path / 'focalnet.json').read_text())
    assert (tmp_path / 'focalnet.png').stat().st_size > 10_000
    assert content['seeds'] == [1] and content['versions']['torch'] == torch.__version__
    assert content['configs']['focalnet'] == (CONFIGS / 'focalnet.py').read_text()
    classifiers = ['focal modulation', '1 level', 'Swin', 'ConvNeXt']
    assert list(content['summary']['classifier']) == classifiers
    starts = ['kernels zero-padded', 'kernels resampled', 'from scratch']
    for task, metrics in (('mask_rcnn', ['box AP', 'mask AP']), ('upernet', ['mIoU'])):
        assert list(content['summary'][task]) == starts
        for figures in content['summary'][task].values():
            assert list(figures) == metrics
    for run in content['runs']:
        assert run['steps'] == [1, 2] and run['seed'] == 1
        assert all(len(values) == 2 for values in run['metrics'].values())
        scratch = run['task'] in ('pretraining', 'classifier') or run['variant'] == 'from scratch'
        assert scratch == (run['start'] is None)

    # A second call trains only what is missing.
    folder = tmp_path / 'focalnet' / 'mask_rcnn' / 'from_scratch'
    shutil.rmtree(folder)
    before = files(tmp_path / 'peers') | files(tmp_path / 'focalnet')
    assert command('focalnet', '--seeds', 1, '--out', tmp_path)[0] == 0
    after = files(tmp_path / 'peers') | files(tmp_path / 'focalnet')
    assert {path: after[path] for path in before} == before
    assert all(path.is_relative_to(folder) for path in after.keys() - before.keys())
    assert json.loads((tmp_path / 'focalnet.json').read_text())['summary'] == content['summary']


@pytest.fixture
def tiny_run(few, tmp_path):
    run = study.plan('mixformer', [0], tmp_path)[0]
    return replace(run, options=run.options | TINY)


def test_interrupted_run_goes_on(tiny_run):
    whole = study.train(tiny_run)
    (tiny_run.folder / 'result.json').unlink()
    (tiny_run.folder / 'iter_2.pth').unlink()
    (tiny_run.folder / 'last_checkpoint').write_text(str(tiny_run.folder / 'iter_1.pth'))
    assert study.train(tiny_run)['metrics'] == whole['metrics']
    assert 'resumed epoch: 0, iter: 1' in (tiny_run.folder / 'log.txt').read_text()


def test_run_interrupted_before_a_validation_starts_over(tiny_run):
    whole = study.train(tiny_run)
    (tiny_run.folder / 'result.json').unlink()
    for log in tiny_run.folder.glob('*/vis_data/scalars.json'):
        log.unlink()
    assert study.train(tiny_run)['metrics'] == whole['metrics']


def test_moved_folder_is_recognized(tiny_run):
    result = study.train(tiny_run)
    there = tiny_run.folder.rename(tiny_run.folder.parent / 'there')
    before = files(there)
    assert study.train(replace(tiny_run, folder=there)) == result
    assert files(there) == before


def test_changed_run_starts_over(tiny_run):
    study.train(tiny_run)
    longer = replace(tiny_run, options=tiny_run.options | {'train_cfg.max_iters': 3})
    assert study.train(longer)['steps'] == [1, 2, 3]
    assert 'resumed' not in (tiny_run.folder / 'log.txt').read_text()


def test_processes_give_the_same_results(tiny_run):
    other = replace(tiny_run, folder=tiny_run.folder.parent / 'other')
    (pooled,) = study.execute([other], processes=2)
    (alone,) = study.execute([tiny_run], processes=1)
    assert pooled['metrics'] == alone['metrics']


def test_failing_run_says_where_its_log_is(tiny_run):
    wrong = replace(tiny_run, options=tiny_run.options | {'model.backbone.window_size': 0})
    with pytest.raises(ValueError, match=f'{wrong.folder}: .*window_size.*log.txt'):
        next(study.execute([wrong], processes=1))


def build(config: str, options: dict | None = None):
    cfg = Config.fromfile(CONFIGS / f'{config}.py')
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict(options or {})
    return cfg, MODELS.build(
        {key: value for key, value in cfg.model.backbone.items() if key != 'init_cfg'}
    )


@pytest.mark.parametrize('family', FAMILIES)
def test_families_and_their_starts(family, tmp_path):
    """What an untouched checkpoint, and each rewritten one, become in the larger network."""
    assert tuple(study.STARTS) == tuple(study.BASES) == tuple(study.ABLATIONS) == FAMILIES
    _, small = build(family)
    cfg, large = build(f'{family}_mask_rcnn')
    torch.manual_seed(0)
    state = {key: torch.randn_like(value) for key, value in small.state_dict().items()}
    checkpoint = tmp_path / 'classifier.pth'
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state.items()}}, checkpoint)
    changed = {k for k, v in large.state_dict().items() if k in state and v.shape != state[k].shape}
    assert changed

    for name, start in study.STARTS[family].items():
        if start.fit is None:
            continue
        run = study.Run(tmp_path, f'{family}_mask_rcnn', 'mask_rcnn', name, 0, {}, start)
        study._write_start(run, cfg.model.backbone, checkpoint)
        written = torch.load(tmp_path / 'start.pth')['state_dict']
        for key, value in state.items():
            if key not in changed:
                assert value.equal(written[f'backbone.{key}'])
        large.load_state_dict(
            {key.removeprefix('backbone.'): value for key, value in written.items()}, strict=False
        )
        for key in changed:
            assert written[f'backbone.{key}'].shape == large.state_dict()[key].shape
            fitted, theirs = written[f'backbone.{key}'], state[key]
            if name == 'kernels resampled':
                assert torch.allclose(fitted.sum((2, 3)), theirs.sum((2, 3)), atol=0.5 * 9)
            elif name == 'biases cropped':
                inside = fitted[fitted != 0].sort().values
                assert inside.equal(theirs.flatten().sort().values)
            else:
                assert fitted.std() < 0.5  # the checkpoint's is 1


def test_cropped_biases_keep_their_offsets():
    table = torch.arange(25.0)[:, None]  # a window of 3: vertical offsets -2 to 2 in the rows
    (grown,) = study.crop({'table': table}, {'table': torch.zeros(49, 1)}).values()
    assert grown.view(7, 7)[1:6, 1:6].flatten().equal(table.flatten()) and grown[0] == 0
    (shrunk,) = study.crop({'table': grown}, {'table': torch.zeros(9, 1)}).values()
    assert shrunk.flatten().equal(table.view(5, 5)[1:4, 1:4].flatten())
    pooled = torch.arange(50.0).view(2, 25)  # of two heads, heads first
    (grown,) = study.crop({'table': pooled}, {'table': torch.zeros(2, 49)}).values()
    assert grown.view(2, 7, 7)[:, 1:6, 1:6].flatten(1).equal(pooled)


VARIANTS = [
    (family, variant) for family, variants in study.ABLATIONS.items() for variant in variants
]


@pytest.mark.parametrize('config', [path.stem for path in sorted(CONFIGS.glob('*.py'))])
def test_networks_of_the_study_have_about_equal_sizes(config):
    _, net = build(config)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(0.82, rel=0.06)
    side = 48 if '_' not in config else 96
    maps = net.eval()(torch.randn(1, 3, side, side))
    assert maps[-1].shape[1] == (224 if config == 'convnext' else 192)


@pytest.mark.parametrize('family, variant', VARIANTS)
def test_ablations_build_and_run(family, variant):
    changes = study.ABLATIONS[family][variant]
    _, net = build(family, {f'model.backbone.{key}': value for key, value in changes.items()})
    (last,) = net.eval()(torch.randn(2, 3, 48, 48))
    assert last.shape == (2, 192, 2, 2) and last.isfinite().all()


def test_runs_of_other_seeds_and_families_have_other_folders(few, tmp_path):
    runs = [run for family in FAMILIES for run in study.plan(family, [0, 7], tmp_path)]
    folders = [run.folder for run in runs if 'peers' not in run.folder.parts]
    assert len(set(folders)) == len(folders)
    assert all(run.folder.name == f'seed{run.seed}' for run in runs)
    assert {run.classifier for run in runs if run.classifier} <= {run.folder for run in runs}


@pytest.mark.parametrize(
    'args, hint',
    [
        (['resnet'], 'choose from focalnet, focal, mixformer'),
        (['--seeds', '-1'], 'a seed is 0 or more'),
        (['--out', __file__], 'is a file'),
        (['--seeds', 'x'], 'invalid int'),
    ],
)
def test_mistakes_get_one_line(command, args, hint):
    status, _, (line,) = command(*args)
    assert status == 2 and hint in line
