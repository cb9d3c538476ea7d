"""The command line itself; what each command does is tested beside the code behind it."""

import json
import logging
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import mmengine.logging
import pytest
import torch
from mmengine.model import BaseModule

from focal_mm.cli import commands, output
from focal_mm.cli.arguments import PARTS
from focal_mm.cli.commands import completion
from focal_mm.cli.main import COMMANDS, build_parser
from focal_mm.datasets import subsets

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(command):
    """Runs the command; returns its exit status, its text on stdout and its lines on stderr."""

    def run(*args):
        status, out, err = command(*args)
        return status, out, err.splitlines()

    return run


def test_every_module_is_a_command():
    assert set(COMMANDS) == {module.name for module in pkgutil.iter_modules(commands.__path__)}
    assert tuple(subsets.PARTS) == PARTS


def test_help_lists_every_command(call):
    status, text, _ = call('--help')
    assert status == 0
    assert all(f'{name}  ' in text or f'{name}\n' in text for name in COMMANDS)
    assert all(summary in ' '.join(text.split()) for summary in COMMANDS.values())


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_each_has_an_example(call, name):
    status, text, _ = call(name, '--help')
    assert status == 0
    assert f'  focal-mm {name}' in text


def test_help_waits_for_nothing_heavy(tmp_path):
    code = (
        'import sys\n'
        'sys.argv = ["focal-mm", "--help"]\n'
        'from focal_mm.cli.main import COMMANDS, build_parser\n'
        'build_parser(set(COMMANDS)).format_help()\n'
        'print(sorted({name.partition(".")[0] for name in sys.modules}))\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
        check=True,
    )
    assert "'focal_mm'" in done.stdout
    for heavy in ('torch', 'numpy', 'mmengine', 'mmcv', 'mmdet', 'matplotlib', 'rich'):
        assert f"'{heavy}'" not in done.stdout


@pytest.mark.parametrize(
    'args, hint',
    [(['trian'], 'did you mean train?'), (['weigths', 'list'], 'weights'), ([], 'COMMAND')],
)
def test_wrong_command_is_one_line(call, args, hint):
    status, out, (line,) = call(*args)
    assert status == 2 and not out
    assert line.startswith('focal-mm: error: ') and hint in line


def test_installed_command_and_module_are_the_same(tmp_path):
    texts = [
        subprocess.run(
            [sys.executable, *words, 'weights', '--help'],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            env=os.environ | dict(PYTHONPATH=str(ROOT)),
            check=True,
        ).stdout
        for words in (['-m', 'focal_mm'], ['-c', 'from focal_mm.cli.main import main; main()'])
    ]
    assert texts[0] == texts[1]


def test_module_of_another_package_is_not_the_command(tmp_path):
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / '__init__.py').write_text('import focal_mm\n')
    (tmp_path / 'other' / '__main__.py').write_text(
        'from mmengine.registry import MODELS\nprint(MODELS.get("FocalNet").__name__)\n'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'other'],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert done.stdout.strip() == 'FocalNet', done.stderr


# ---- mistakes, and ends before the end ---------------------------------------------------------


@pytest.mark.parametrize(
    'words, hint',
    [
        (['train', 'x.py', '--epohcs'], '--epohcs'),
        (['train', 'x.py', '--work-dri', 'x'], 'did you mean --work-dir?'),
        (['weights', 'fetch', 'x', '--jsn'], 'focal-mm weights fetch: error:'),
        (['weights', 'list', '--jsn'], 'did you mean --json?'),
        (['train', 'x.py', '--cfg-options', 'a', 'b=1'], 'KEY=VALUE'),
        (['bench', 'FocalNet()', '--device', 'gpu'], "'cpu', 'cuda'"),
        (['weights', 'where', 'focalnet_tiny_lfr_in1k'], 'focalnet_tiny_lrf_in1k'),
        (['test', 'focal_mm::imagenet/focalnet_t.py', 'focalnet_tiny_in1k'], 'did you mean'),
        (['train', 'focal_mm::imagenet/focalnet_t.py', '--launcher', 'pytorch'], 'torchrun'),
        (['run', 'nowhere.py'], 'nowhere.py: no such script'),
        (['predict', 'x.py', 'x.pth', 'nowhere/'], 'nowhere'),
    ],
)
def test_mistake_is_one_line(call, monkeypatch, words, hint):
    monkeypatch.delenv('RANK', raising=False)
    status, out, (line,) = call(*words)
    assert status == 2 and not out
    assert hint in line


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('device', ['cuda', 'cuda:1', 'nonsense'])
def test_missing_gpu_is_one_line(call, tiny_models, tmp_path, device):
    picture = tmp_path / 'x.jpg'
    picture.touch()
    files = (str(tiny_models / f'classifier.{suffix}') for suffix in ('py', 'pth'))
    status, _, (line,) = call('predict', *files, str(picture), '--device', device)
    assert status == 2 and f'--device {device}: ' in line and 'cpu' in line


def test_folder_that_cannot_be_made_is_one_line(call, tiny_models, tmp_path):
    (tmp_path / 'file').touch()
    files = (str(tiny_models / f'classifier.{suffix}') for suffix in ('py', 'pth'))
    out = str(tmp_path / 'file' / 'out')
    status, _, (line,) = call('predict', *files, str(tmp_path / 'file'), '--out', out)
    assert status == 2 and line == f'focal-mm predict: error: {out}: Not a directory'


def test_home_folder_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    words = 'train ~/x.py --work-dir=~/w --resume=~/r --trust=~/t --cfg-options data_root=~/d n=1'
    args = build_parser(['train']).parse_args(words.split())
    home = str(tmp_path)
    assert (args.config, args.work_dir, args.resume) == (f'{home}/x.py', f'{home}/w', f'{home}/r')
    assert args.trust == [f'{home}/t']
    assert args.cfg_options == {'data_root': f'{home}/d', 'n': 1}


def test_interruption_is_one_line(call, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr('focal_mm.weights.list', interrupt)
    status, out, lines = call('weights', 'list')
    assert status == 130 and not out
    assert lines == ['', 'focal-mm: interrupted']


def test_closed_pipe_is_silent(tmp_path):
    done = subprocess.run(
        f'{sys.executable} -W ignore -m focal_mm weights list | head -n 1; echo ${{PIPESTATUS[0]}}',
        shell=True,
        executable='/bin/bash',
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert done.stdout.splitlines()[-1] in ('0', '141')  # 0 where the pipe takes it all
    assert done.stdout.startswith('name') and not done.stderr


# ---- what is printed ---------------------------------------------------------------------------


def test_weights_as_json(call, monkeypatch, tmp_path):
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(tmp_path))
    (tmp_path / 'focalnet_tiny_lrf.pth').touch()
    entries = {entry['name']: entry for entry in json.loads(call('weights', 'list', '--json')[1])}
    assert entries['focalnet_tiny_lrf_in1k']['state'] == 'here'
    assert entries['focalnet_tiny_lrf_in1k']['results'] == {'top-1': 82.3}
    where = json.loads(call('weights', 'where', 'focalnet_tiny_lrf_in1k', '--json')[1])
    assert where == entries['focalnet_tiny_lrf_in1k']
    states = json.loads(call('weights', 'verify', '--json')[1])
    assert states == {str(tmp_path / 'focalnet_tiny_lrf.pth'): 'unrecorded'}


@pytest.mark.parametrize('shell', ['bash', 'fish', 'tcsh', 'zsh'])
def test_completion_knows_commands_options_and_weights(call, tmp_path, shell):
    _, script, _ = call('completion', shell)
    assert 'predict' in script and 'tolerance' in script
    assert 'focalnet_tiny_lrf_in1k' in script
    if shell == 'bash':
        (tmp_path / 'script').write_text(script)
        subprocess.run(['bash', '-n', tmp_path / 'script'], check=True)


def test_progress_is_lines_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(output, 'SECONDS_PER_LINE', -1)
    assert list(output.track([4, 5], 'counting')) == [4, 5]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ['counting: 1 of 2, 0:00:00 left', 'counting: 2 of 2, 0:00:00 left']


def test_noise_of_mmengine_is_kept_from_a_command_alone(capsys):
    module = BaseModule()
    with output.without_noise():
        mmengine.logging.print_log('Could not import', level=logging.DEBUG)
        mmengine.logging.print_log('kept')
        assert module._dump_init_info() is None
    assert capsys.readouterr().out == 'kept\n'
    mmengine.logging.print_log('Could not import', level=logging.DEBUG)
    assert capsys.readouterr().out == 'Could not import\n'


def test_help_in_the_docs_is_that_of_the_commands():
    page = (ROOT / 'docs' / 'command_line.md').read_text()
    listed = set(re.findall(r'^## `focal-mm (\w+)', page, re.MULTILINE))
    assert listed == set(COMMANDS)
    parser = build_parser(COMMANDS)
    known = {word for action in completion._actions(parser) for word in action.option_strings}
    named = set(re.findall(r'`(--[\w-]+)', page))
    assert named <= known
