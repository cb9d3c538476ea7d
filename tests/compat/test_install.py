"""Stand-ins for packages; more about ``mmcv._ext`` in test_mmcv_ext.py."""

import importlib
import subprocess
import sys

import pytest

from focal_mm import compat

pytestmark = pytest.mark.stock


@pytest.fixture
def missing(monkeypatch, tmp_path):
    """Makes a package that is not installed known as missing, with a module that replaces it."""
    (tmp_path / 'replacement.py').write_text(
        'loaded = True\ndef function(): return 5\nclass Base: pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compat, 'STAND_INS', {'absent': ('replacement', ('part',))})
    yield
    for name in ('absent', 'absent.part', 'replacement', 'early', 'other'):
        sys.modules.pop(name, None)


def test_missing_package_and_its_submodules_are_replaced(missing):
    assert compat.install() == ['absent']
    from absent.part import function

    absent = importlib.import_module('absent')
    assert function() == absent.function() == absent.part.function() == 5


def test_replacement_is_imported_on_first_use(missing):
    compat.install()
    import absent

    assert not hasattr(absent, '__path__') and 'replacement' not in sys.modules
    assert absent.loaded and 'replacement' in sys.modules


def test_name_that_the_replacement_lacks_is_an_attribute_error(missing):
    compat.install()
    import absent

    with pytest.raises(AttributeError, match='nothing'):
        absent.nothing


TRY = 'try:\n    {}\nexcept ImportError:\n    {}\n'
FALLBACKS = {
    'None': ('from absent import function', 'function = None'),
    'function': ('from absent.part import function', 'def function(): raise RuntimeError'),
    'class': ('from absent import function', 'class function: pass'),
    'other name': ('from absent import function as function, loaded as l', 'function = l = None'),
    'module': ('import absent.part; function = absent.part.function', 'function = None'),
    'flag': ('import absent; found = True', 'found = False'),
    'nothing': ('from absent.part import function', 'pass'),
}


@pytest.fixture
def early(missing, tmp_path):
    """Imports a module before there are stand-ins, and one that takes all it has."""

    def load(source):
        (tmp_path / 'early.py').write_text(source)
        (tmp_path / 'other.py').write_text('from early import *\nnot_ours = False\n')
        importlib.invalidate_caches()
        importlib.import_module('other')
        return importlib.import_module('early')

    return load


@pytest.mark.parametrize('fallback', FALLBACKS.values(), ids=FALLBACKS)
def test_module_whose_import_failed_before_gets_what_it_wanted(early, fallback):
    module = early(TRY.format(*fallback))
    assert not getattr(module, 'found', False)
    compat.install()
    assert getattr(module, 'found', False) or module.function() == 5
    assert importlib.import_module('other').not_ours is False


@pytest.mark.parametrize('fallback', ['def function(): pass', 'class function: pass'])
def test_module_that_took_a_placeholder_from_another_gets_it_too(early, fallback):
    early(TRY.format('from absent import function', fallback))
    compat.install()
    assert importlib.import_module('other').function() == 5


def test_module_that_wants_what_the_stand_in_lacks_keeps_its_own(early):
    module = early(TRY.format('from absent import nothing', 'nothing = 3'))
    compat.install()
    assert module.nothing == 3


def test_what_a_module_calls_beside_an_import_is_not_called_again(early):
    module = early('calls = []\n' + TRY.format('calls.append(1); from absent import x', 'x = 3'))
    compat.install()
    assert module.calls == [1]


def test_module_without_a_failed_import_is_not_touched(early):
    module = early('absent = "from absent import x"\ntry: import json\nexcept ImportError: pass\n')
    before = dict(vars(module))
    compat.install()
    assert vars(module) == before and 'replacement' not in sys.modules


LOST = 'early.*: imported before focal_mm, .*import focal_mm first$'


def test_class_that_extends_a_placeholder_is_named(early):
    early(TRY.format('from absent import Base', 'class Base: pass') + 'class Mine(Base): pass\n')
    with pytest.warns(UserWarning, match=LOST):
        compat.install()


def test_class_that_does_without_its_base_in_mmdet_is_named(early, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.setitem(sys.modules, 'mmdet.models', None)  # its import fails
    early(TRY.format('from mmdet.models.nothing import A as Base', 'Base = object'))
    monkeypatch.delitem(sys.modules, 'mmdet.models')
    with pytest.warns(UserWarning, match=LOST):
        compat.install()


def test_part_that_mmdet_does_not_have_is_no_loss(early, recwarn):
    pytest.importorskip('mmdet')
    early(TRY.format('from mmdet.nothing import A as Base', 'Base = object'))
    compat.install()
    assert not recwarn


@pytest.mark.parametrize('package', ['panopticapi', 'xtcocotools'])
def test_installed_package_is_left_alone(package, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / '__init__.py').touch()
    code = (
        f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import focal_mm, {package}; '
        f'print({package}.__file__)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(str(tmp_path / package / '__init__.py'))
