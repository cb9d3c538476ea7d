"""The command line itself; what each command does is tested beside the code behind it."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from focal_mm.cli import commands
from focal_mm.cli.arguments import PARTS
from focal_mm.cli.main import COMMANDS, main
from focal_mm.datasets import subsets

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command; returns its exit status, its text on stdout and its lines on stderr."""

    def run(*args):
        monkeypatch.setattr('sys.argv', ['focal-mm', *args])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err.splitlines()

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
