"""The published classifiers, whole, in mmpretrain's ``ImageClassifier``."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint

from focal_mm.weights import CheckpointError

pytestmark = pytest.mark.stock
IMAGENET = Path(__file__).parents[2] / 'configs' / 'imagenet'
# The golden cases, and the config whose model each is.
CASES = {
    'focalnet_tiny_lrf_logits': 'focalnet_t',
    'focal_tiny_224': 'focal_t',
    'mixformer_b1_224x288': 'mixformer_b1',
    'mixformer_b4_256x256': 'mixformer_b4',
}


@pytest.fixture
def classifier():
    """Builds the model of a config for so many classes."""

    def build(name, num_classes=1000):
        cfg = Config.fromfile(IMAGENET / f'{name}.py')
        cfg.model.head.num_classes = num_classes
        init_default_scope(cfg.default_scope)
        return MODELS.build(cfg.model).eval()

    return build


@pytest.fixture
def file(golden, tmp_path):
    """Writes a golden checkpoint as the authors do; returns the file and the case."""

    def write(name):
        case = golden(name)
        torch.save({'model': case.checkpoint}, tmp_path / 'classifier.pth')
        return tmp_path / 'classifier.pth', case

    return write


@pytest.mark.parametrize('name', CASES)
def test_logits_of_a_published_classifier_are_the_official_ones(name, classifier, file):
    path, case = file(name)
    model = classifier(CASES[name], len(case.checkpoint['head.bias']))
    load_checkpoint(model, str(path), strict=True)
    with torch.no_grad():
        logits = model(case.image)
    assert list(logits.shape) == case.shapes[-1]
    assert abs(logits.numpy() - case.outputs[-1]).max() < 2e-4


def test_plain_mmpretrain_head_loads_a_classifier_without_projection(file):
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='FocalNet', arch='tiny_lrf', out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=768),
        )
    ).eval()
    path, case = file('focalnet_tiny_lrf_logits')
    load_checkpoint(model, str(path), strict=True)
    with torch.no_grad():
        assert abs(model(case.image).numpy() - case.outputs[-1]).max() < 2e-4


def test_own_checkpoint_loads_again(classifier, tmp_path):
    torch.manual_seed(0)
    saved, model = classifier('mixformer_b1', 3), classifier('mixformer_b1', 3)
    torch.save({'state_dict': saved.state_dict()}, tmp_path / 'epoch_1.pth')
    load_checkpoint(model, str(tmp_path / 'epoch_1.pth'), strict=True)
    assert all(a.equal(b) for a, b in zip(saved.parameters(), model.parameters()))


def test_head_of_other_classes_is_an_error(classifier, file):
    path, _ = file('focalnet_tiny_lrf_logits')
    with pytest.raises(
        CheckpointError,
        match=r'classifier.pth: head.fc.weight is \(1000, 768\), '
        r'and the config has \(10, 768\)',
    ):
        load_checkpoint(classifier('focalnet_t', 10), str(path))


def test_missing_head_is_an_error(classifier, golden, tmp_path):
    weights = golden('focalnet_tiny_lrf_logits').checkpoint
    torch.save(
        {key: value for key, value in weights.items() if not key.startswith('head.')},
        tmp_path / 'backbone.pth',
    )
    with pytest.raises(CheckpointError, match='backbone.pth: head.fc.weight is missing'):
        load_checkpoint(classifier('focalnet_t'), str(tmp_path / 'backbone.pth'))


def test_backbone_of_a_published_classifier_takes_a_new_head(classifier, file):
    path, case = file('focalnet_tiny_lrf_logits')
    model = classifier('focalnet_t', 10)
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model.init_weights()
    weight = case.checkpoint['layers.0.blocks.0.mlp.fc1.weight']
    assert model.backbone.layers[0].blocks[0].mlp.fc1.weight.equal(weight)
