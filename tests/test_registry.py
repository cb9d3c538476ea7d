"""Names of our classes in configs, beside classes of the same name in somebody's project."""

import pytest
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope, Registry

from focal_mm import backbones, heads
from focal_mm.registry import MODELS, register_in_root

pytestmark = pytest.mark.stock

SMALL = dict(arch=dict(embed_dims=8, depths=(1, 1, 1, 1)))


class FocalNet:
    """A class of a project."""


@pytest.fixture
def root(monkeypatch):
    """mmengine's root registry; what a test registers is forgotten after it."""
    monkeypatch.setattr(ROOT, '_module_dict', dict(ROOT.module_dict))
    monkeypatch.setattr(Registry, '_register_module', Registry._register_module)
    return ROOT


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_names_are_found_from_every_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        for name in ('FocalNet', 'focal_mm.FocalNet'):
            assert type(ROOT.build(dict(SMALL, type=name))) is backbones.FocalNet
        head = dict(type='focal_mm.TokenClsHead', num_classes=2, in_channels=8)
        head['loss'] = dict(type='mmpretrain.CrossEntropyLoss')
        assert type(ROOT.build(head)).__module__ == 'focal_mm.heads.classifier'


def test_path_of_a_class_is_a_name_too():
    path = 'focal_mm.backbones.focalnet.FocalNet'  # as a dumped config has it
    assert ROOT.get(path) is backbones.FocalNet
    assert ROOT.get('focal_mm.heads.classifier.TokenClsHead').__name__ == 'TokenClsHead'


def test_only_backbones_are_in_the_root_registry():
    ours = {name for name, cls in ROOT.module_dict.items() if cls.__module__.startswith('focal_mm')}
    assert ours == set(backbones.__all__)
    assert set(MODELS.module_dict) == ours | {n for names in heads.CLASSES.values() for n in names}


def test_class_that_a_project_registers_later_gets_the_name(root):
    with pytest.warns(UserWarning, match=r"FocalNet.*write type='focal_mm\.FocalNet'$"):
        root.register_module(module=FocalNet)
    assert type(root.build(dict(type='FocalNet'))) is FocalNet
    assert type(root.build(dict(SMALL, type='focal_mm.FocalNet'))) is backbones.FocalNet


def test_name_that_two_projects_register_stays_an_error(root):
    root.module_dict['FocalNet'] = FocalNet
    with pytest.raises(KeyError, match='FocalNet is already registered'):
        root.register_module(name=['Other', 'FocalNet'], module=FocalNet)


def test_class_that_a_project_has_registered_keeps_the_name(root):
    root.module_dict['FocalNet'] = FocalNet
    with pytest.warns(UserWarning, match=r'test_registry.*focal_mm\.FocalNet') as caught:
        register_in_root('FocalNet', 'MixFormer')
    assert len(caught) == 1
    assert root.get('FocalNet') is FocalNet and root.get('MixFormer') is backbones.MixFormer


def test_registering_again_changes_nothing(root, recwarn):
    register_in_root('FocalNet')
    assert root.get('FocalNet') is backbones.FocalNet and not recwarn


@pytest.mark.parametrize('name', [name for names in heads.CLASSES.values() for name in names])
def test_names_of_heads_are_free(root, name):
    root.register_module(name, module=FocalNet)
    assert type(root.build(dict(type=name))) is FocalNet
    assert root.get(f'focal_mm.{name}') is not FocalNet


def test_class_in_the_registry_of_a_library_has_the_plain_name_there(root, monkeypatch):
    from mmdet.registry import MODELS as MMDET

    monkeypatch.setattr(MMDET, '_module_dict', dict(MMDET.module_dict))
    with pytest.warns(UserWarning, match=r"scope mmdet; .*type='focal_mm\.FocalNet'$"):
        MMDET.register_module(module=FocalNet)
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert type(root.build(dict(type='FocalNet'))) is FocalNet
        assert type(root.build(dict(SMALL, type='focal_mm.FocalNet'))) is backbones.FocalNet
    with pytest.warns(UserWarning, match='scope mmdet'):
        register_in_root('FocalNet')
    assert root.get('FocalNet') is backbones.FocalNet


@pytest.mark.parametrize(
    'read',
    [
        lambda table: table['FocalNet'],
        lambda table: table.get('FocalNet'),
        lambda table: dict(table)['FocalNet'],
        lambda table: dict(table.items())['FocalNet'],
        lambda table: next(iter(table.values())),
    ],
)
def test_backbone_is_imported_where_it_is_read(root, monkeypatch, read):
    monkeypatch.setattr(ROOT, '_module_dict', {})
    register_in_root('FocalNet')
    assert 'FocalNet' in root.module_dict and 'MixFormer' not in root.module_dict
    assert read(root.module_dict) is backbones.FocalNet


def test_registries_of_other_things_are_not_concerned(root, recwarn):
    Registry('pretrained nets').register_module(module=FocalNet)
    assert not recwarn
