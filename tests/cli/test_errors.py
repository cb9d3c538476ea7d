import pytest
from mmengine.registry import MODELS

from focal_mm.cli.errors import one_line_errors

pytestmark = pytest.mark.stock


def test_own_errors_end_in_one_line_even_wrapped_by_a_registry(capsys):
    with pytest.raises(SystemExit) as stop, one_line_errors('focal-mm train'):
        MODELS.build(dict(type='FocalNet', arch='tiny_lfr'))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'tiny_lfr' in line and 'class `' not in line


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors('focal-mm train'):
        1 / 0
