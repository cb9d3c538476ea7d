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
    (tmp_path / 'replacement.py').write_text('loaded = True\ndef function(): return 5\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compat, 'STAND_INS', {'absent': ('replacement', ('part',))})
    yield
    for name in ('absent', 'absent.part', 'replacement'):
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
