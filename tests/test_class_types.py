"""Configs with classes for types are changed as the same configs with names are."""

from copy import deepcopy
from typing import Any

import mmengine.registry
import pytest
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope

from focal_mm.cli.tables import input_size
from focal_mm.cli.testing import dump_predictions, use_tta
from focal_mm.config import dicts, library, type_name
from focal_mm.datasets import from_scratch, use_mini

pytestmark = pytest.mark.stock

REGISTRIES = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
CONFIGS = [
    'focal_mm::mask_rcnn/focalnet_t_1x.py',
    'focal_mm::upernet/focalnet_t.py',
    'focal_mm::imagenet/focalnet_t.py',
]


def with_classes(cfg: Config, scope: str) -> Config:
    """Return a config with the class for each name of one, and no scope to look names up in."""
    cfg = deepcopy(cfg)
    for node in dicts(cfg._cfg_dict):
        if isinstance(node.get('type'), str):
            found = (find(registry, node.type, scope) for registry in REGISTRIES)
            node.type = next((cls for cls in found if cls is not None), node.type)
    cfg.default_scope = None
    return cfg


def find(registry: Registry, name: str, scope: str) -> Any:
    with registry.switch_scope_and_registry(scope) as child:
        return child.get(name)


def same(named: Config, classes: Config) -> bool:
    """Return whether two configs are the same but for the spelling of types."""
    plain = []
    for cfg in (named, classes):
        cfg = with_classes(cfg, named.default_scope)
        for node in dicts(cfg._cfg_dict):
            if 'type' in node:
                node.type = type_name(node)
        plain.append(cfg._cfg_dict.to_dict())
    return plain[0] == plain[1]


@pytest.fixture(params=CONFIGS)
def pair(request) -> tuple[Config, Config]:
    named = Config.fromfile(request.param)
    init_default_scope(named.default_scope)
    classes = with_classes(named, named.default_scope)
    assert not isinstance(classes.model.type, str)
    return named, classes


@pytest.mark.parametrize('change', [from_scratch, use_mini])
def test_short_runs_are_made_of_both(pair, change):
    named, classes = map(change, pair)
    assert same(named, classes)


def test_both_are_tested_alike(pair):
    for change in (use_tta, lambda cfg: dump_predictions(cfg, 'found.pkl')):
        for cfg in pair:
            change(cfg)
    assert same(*pair)


def test_both_are_described_alike(pair):
    named, classes = pair
    assert library(named) == library(classes)
    assert input_size(named) == input_size(classes)
