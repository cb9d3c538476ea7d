import shutil

import pytest

from focal_mm.datasets import mini_coco

pytestmark = pytest.mark.stock


@pytest.fixture
def focal_mm(command):
    """Runs the command; returns its exit status, its lines on stdout and those on stderr."""

    def run(*args):
        status, out, err = command(*args)
        return status, out.splitlines(), err.splitlines()

    return run


def test_part_is_made_and_the_option_named(focal_mm, tmp_path):
    root = shutil.copytree(mini_coco(), tmp_path / 'coco')
    status, lines, _ = focal_mm('data', 'coco-10pct', root)
    assert status == 0 and '--data 10pct' in lines[-1]
    path = root / 'annotations' / 'instances_train2017_10pct.json'
    assert path.is_file() and lines[0].startswith(f'{path}: 29 of 288 images, ')


def test_unknown_part_gets_one_line(focal_mm, tmp_path):
    status, _, (line,) = focal_mm('data', 'coco-5pct', tmp_path)
    assert status == 2 and 'coco-10pct' in line


def test_missing_files_get_one_line(focal_mm, tmp_path, monkeypatch):
    monkeypatch.setattr('focal_mm.datasets.subsets.COCO_ADDRESS', 'http://127.0.0.1:9/x.zip')
    status, _, (line,) = focal_mm('data', 'coco-1pct', tmp_path / 'coco')
    assert status == 2 and 'instances_train2017.json' in line and str(tmp_path / 'coco') in line
