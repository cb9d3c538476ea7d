import json
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
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
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs' / 'study'
# Two steps on two images each, both validated.
TINY = {
    'train_cfg.max_iters': 2,
    'train_cfg.val_interval': 1,
    'train_dataloader.batch_size': 2,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'default_hooks.checkpoint.interval': 1,
}
STARTS = ['kernels zero-padded', 'from scratch']


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    """Few pictures and scenes, in a cache of their own, and configs that are not laid out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FOCAL_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.setattr(objects, 'NUM_PICTURES', {'train': 20, 'val': 20})
        patch.setattr(objects, 'NUM_SCENES', {'train': 4, 'val': 2})
        patch.setattr(Config, 'pretty_text', property(lambda cfg: f'cfg = {cfg.to_dict()!r}'))
        yield


@pytest.fixture(scope='module')
def repeat(few, tmp_path_factory):
    """Runs a tiny study in this process; returns its folder and what it prints."""
    folder, plan, execute = tmp_path_factory.mktemp('study'), study.plan, study.execute
    starts = {name: study.STARTS['focalnet'][name] for name in STARTS}
    argv = ['focal-mm', 'study', 'focalnet', '--seeds', '1', '--out', str(folder)]

    def tiny(*args):
        return [replace(run, options=run.options | TINY) for run in plan(*args)]

    def repeat():
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
            patch.setattr(study, 'plan', tiny)
            patch.setattr(study, 'execute', lambda runs: execute(runs, processes=1))
            patch.setitem(study.ABLATIONS, 'focalnet', {'1 level': dict(focal_levels=1)})
            patch.setitem(study.STARTS, 'focalnet', starts)
            patch.setattr(study, 'PEERS', {'swin': 'Swin'})
            patch.setattr('sys.argv', argv)
            main()
        return folder, out.getvalue().splitlines()

    return repeat


@pytest.fixture(scope='module')
def first(repeat):
    return repeat()


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*') if path.is_file()}


def test_study_reports_every_run(first):
    folder, lines = first
    assert lines[0].startswith('focalnet 1/8: pretraining, focal modulation, seed 1: top-1 ')
    content = json.loads((folder / 'focalnet.json').read_text())
    assert (folder / 'focalnet.png').stat().st_size > 10_000
    assert content['seeds'] == [1] and content['versions']['torch'] == torch.__version__
    assert content['configs']['focalnet'] == (CONFIGS / 'focalnet.py').read_text()
    assert str(Path.home()) not in json.dumps(content) and str(folder) not in json.dumps(content)
    rows = {task: list(about['variants']) for task, about in content['summary'].items()}
    assert rows == dict(
        pretraining=['focal modulation'],
        mask_rcnn=STARTS,
        upernet=STARTS,
        classifier=['focal modulation', '1 level', 'Swin'],
    )
    for run in content['runs']:
        assert run['steps'] == [1, 2] and run['seed'] == 1
        assert all(len(values) == 2 for values in run['metrics'].values())
    tables = (folder / 'focalnet.md').read_text()
    assert '| Mask R-CNN | parameters (M) | box AP at 1 | box AP at 2 | mask AP at 2 |' in tables
    for names in rows.values():
        assert all(f'| {name} | ' in tables for name in names)
    kept = {path.parents[2].name for path in folder.rglob('*.pth')}
    assert kept == {'pretraining'}


def test_second_call_trains_only_what_is_missing(first, repeat):
    folder, _ = first
    missing = folder / 'focalnet' / 'mask_rcnn' / 'from_scratch'
    content = json.loads((folder / 'focalnet.json').read_text())
    shutil.rmtree(missing)
    before = files(folder / 'peers') | files(folder / 'focalnet')
    repeat()
    after = files(folder / 'peers') | files(folder / 'focalnet')
    assert {path: after[path] for path in before} == before
    assert all(path.is_relative_to(missing) for path in after.keys() - before.keys())
    assert json.loads((folder / 'focalnet.json').read_text())['summary'] == content['summary']


@pytest.fixture
def moved(first, tmp_path):
    """The classifier of the first run, in another folder."""
    run = study.plan('focalnet', [1], first[0])[0]
    there = shutil.copytree(run.folder, tmp_path / 'run', copy_function=shutil.copy2)
    (there / 'last_checkpoint').unlink()  # names a file in the first folder
    return replace(run, folder=there, options=TINY)


def test_moved_run_is_recognized(moved):
    before = files(moved.folder)
    assert study.train(moved) == json.loads((moved.folder / 'result.json').read_text())
    assert files(moved.folder) == before


@pytest.mark.parametrize('checkpoint', [1, 2])
def test_interrupted_run_goes_on(moved, checkpoint):
    """From its last checkpoint, and from one whose validation is missing."""
    whole = study.train(moved)
    (moved.folder / 'result.json').unlink()
    (log,) = moved.folder.glob('*/vis_data/scalars.json')
    lines = [line for line in log.read_text().splitlines() if json.loads(line)['step'] == 1]
    log.write_text('\n'.join(lines) + '\n')
    if checkpoint == 1:
        (moved.folder / 'iter_2.pth').unlink()
    assert study.train(moved)['metrics'] == whole['metrics']
    session = max(moved.folder.glob('*/*.log'), key=lambda path: path.stat().st_mtime)
    assert f'resumed epoch: 0, iter: {checkpoint}' in session.read_text()


def test_changed_run_starts_over(moved):
    longer = replace(moved, options=moved.options | {'train_cfg.max_iters': 3})
    assert study.train(longer)['steps'] == [1, 2, 3]
    assert len(list(moved.folder.glob('*/vis_data'))) == 1


def test_processes_give_the_same_results(moved):
    whole = study.train(moved)
    shutil.rmtree(moved.folder)
    (pooled,) = study.execute([moved], processes=2)
    assert pooled['metrics'] == whole['metrics']


def test_failing_run_says_where_its_log_is(moved):
    wrong = replace(moved, options=moved.options | {'model.backbone.focal_windows': 2})
    with pytest.raises(ValueError, match=f'{wrong.folder}: .*focal_windows.*log.txt'):
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
    state = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in small.state_dict().items()
    }
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


@pytest.mark.parametrize('config', [path.stem for path in sorted(CONFIGS.glob('*.py'))])
def test_networks_run_and_classifiers_have_equal_sizes(config):
    _, net = build(config)
    is_classifier = '_' not in config
    if is_classifier:
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(0.82, rel=0.06)
    net.eval()
    maps = net(torch.randn(1, 3, *[48 if is_classifier else 96] * 2))
    assert maps[-1].shape[1] == (224 if config == 'convnext' else 192)
    assert len(maps) == (1 if is_classifier else 4)


@pytest.mark.parametrize(
    'family, variant', [(name, key) for name, about in study.ABLATIONS.items() for key in about]
)
def test_ablations_build_and_run(family, variant):
    changes = study.ABLATIONS[family][variant]
    _, net = build(family, {f'model.backbone.{key}': value for key, value in changes.items()})
    (last,) = net.eval()(torch.randn(2, 3, 48, 48))
    assert last.shape == (2, 192, 2, 2) and last.isfinite().all()


@pytest.mark.parametrize('family', FAMILIES)
def test_page_has_the_measured_tables(family):
    measured, page = ROOT / 'docs' / 'study' / family, (ROOT / 'docs' / 'study.md').read_text()
    content = json.loads(measured.with_suffix('.json').read_text())
    assert content['summary'] == study.summarize(content['runs'])
    for table in study.tables(content):
        assert study.markdown(table) in page
    assert f'](study/{family}.png)' in page and measured.with_suffix('.png').is_file()


def test_runs_of_other_seeds_and_families_have_other_folders(tmp_path):
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
    status, _, error = command('study', *args)
    assert status == 2 and hint in error and error.count('\n') == 1
