from pathlib import Path

import pytest

from focal_mm.cache import cache_dir, whole_file

pytestmark = pytest.mark.stock


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv('FOCAL_MM_CACHE')
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    assert cache_dir() == Path.home() / '.cache' / 'focal_mm'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_dir() == tmp_path / 'focal_mm'
    monkeypatch.setenv('FOCAL_MM_CACHE', '~/mine')
    assert cache_dir() == Path.home() / 'mine'


def test_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'file'
    with whole_file(path) as part:
        part.write_text('all')
        assert not path.exists()
    assert path.read_text() == 'all'
    assert list(path.parent.iterdir()) == [path]


def test_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError), whole_file(path) as part:
        part.write_text('begun')
        1 / 0
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
