"""``focal-mm run SCRIPT``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from focal_mm.cli.main import main

pytestmark = pytest.mark.stock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Calls the command within a folder; what it changes is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])

    def with_arguments(*args: str) -> None:
        monkeypatch.setattr(sys, 'argv', ['focal-mm', 'run', *args])
        main()

    return with_arguments


def test_script_runs_as_it_does_alone(call, tmp_path, capsys):
    (tmp_path / 'tools').mkdir()
    (tmp_path / 'tools' / 'beside_the_script.py').touch()
    (tmp_path / 'tools' / 'test.py').write_text(
        'import sys, beside_the_script\n'
        'assert __name__ == "__main__" and __file__ == sys.argv[0]\n'
        'print(sys.argv)\n'
        'sys.exit(3)\n'
    )
    with pytest.raises(SystemExit, match='3'):
        call('tools/test.py', 'config.py', '--help')
    assert capsys.readouterr().out.strip() == "['tools/test.py', 'config.py', '--help']"


@pytest.mark.parametrize(
    'args, message',
    [([], 'arguments are required: script'), (['train'], 'error: train: no such script')],
)
def test_missing_script_is_one_line(call, capsys, args, message):
    with pytest.raises(SystemExit, match='2'):
        call(*args)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_mmdets_own_test_tool_gets_past_its_imports(tmp_path):
    mmdet = pytest.importorskip('mmdet')
    tool = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'test.py'
    if not tool.is_file():
        pytest.skip('mmdet is installed without its tools')
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'focal_mm', 'run', tool, '--help'],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0 and 'MMDet test' in done.stdout, done.stderr
