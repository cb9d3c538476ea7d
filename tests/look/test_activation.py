"""Class-activation maps, beside Grad-CAM by its formula."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope

from focal_mm import look

pytestmark = pytest.mark.stock
pytest.importorskip('pytorch_grad_cam')


@pytest.fixture(scope='module')
def classifiers(nets):
    """Builds a classifier of a family of :func:`nets`, with a class that wins."""
    init_default_scope('mmpretrain')

    def build(name):
        net = nets(name)
        net.out_norm = False
        width = net.num_features[-1]
        head = dict(type='focal_mm.TokenClsHead', num_classes=4, in_channels=width)
        model = MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=net, head=head))
        torch.nn.init.normal_(model.head.fc.weight, std=1)
        model.dataset_meta = dict(classes=('ape', 'bee', 'cat', 'dog'))
        return model

    return build


def test_map_is_grad_cam_by_its_formula(classifiers, image):
    model = classifiers('focalnet')
    model.head.fc.weight.grad = torch.ones_like(model.head.fc.weight)
    found = look.class_activation(model, image)
    assert model.head.fc.weight.grad.eq(1).all()
    assert all(one.requires_grad for one in model.parameters())

    model.eval()
    (feats,) = (model.backbone(image)[-1:],)
    logits = model.head(feats)[0]
    label = int(logits.argmax())
    assert (found.label, found.name) == (label, model.dataset_meta['classes'][label])
    assert found.layer == 'backbone.layers.3'
    grad = torch.autograd.grad(logits[label], feats[0])[0]
    cam = (grad.mean((2, 3), keepdim=True) * feats[0]).sum(1)[0].clamp(min=0)
    cam = (cam - cam.min()) / (cam.max() - cam.min())
    expected = F.interpolate(cam[None, None], size=(90, 130), mode='bilinear')[0, 0]
    assert found.map.shape == (90, 130)
    np.testing.assert_allclose(found.map, expected.detach(), atol=0.03)
    assert look.class_activation(model, image, label=1).name == 'bee'
    model.train()


@pytest.mark.parametrize('name', ['focalnet', 'focal', 'mixformer'])
def test_every_layer_with_a_map_has_an_activation(classifiers, name):
    model = classifiers(name)
    image = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    ran = {}
    hooks = [
        module.register_forward_hook(lambda m, a, out, key=key: ran.setdefault(key, out))
        for key, module in model.named_modules()
    ]
    with torch.no_grad():
        model(image, mode='tensor')
    for hook in hooks:
        hook.remove()
    last = f'backbone.layers.{len(model.backbone.layers) - 1}'
    shown = 0
    # One layer of each kind in the last stage and the head.
    parts = (last, 'backbone.patch_embed', 'head')
    kinds = {type(module): key for key, module in model.named_modules() if key.startswith(parts)}
    for key in kinds.values():
        try:
            found = look.class_activation(model, image, key)
        except ValueError as error:
            assert 'is no map' in str(error)  # noqa: PT017  of some layers only
            out = ran.get(key)
            # A layer that ran gives a map unless it gives vectors.
            assert not isinstance(out, torch.Tensor) or out.ndim < 3 or out.shape[2:].numel() == 1
            continue
        shown += 1
        assert found.map.shape == (40, 56)
        assert np.isfinite(found.map).all()
        assert 0 <= found.map.min() <= found.map.max() <= 1
    assert shown > 5


def test_backbone_alone_has_an_activation_without_a_class(nets, image):
    found = look.class_activation(nets('mixing'), image)
    assert found.map.shape == (90, 130)
    assert (found.label, found.layer) == (None, 'stage')
    with pytest.raises(ValueError, match='label 3: MixingMobileNetV2 has no classes'):
        look.class_activation(nets('mixing'), image, label=3)


@pytest.mark.parametrize(
    'options, words',
    [
        (dict(layer='backbone.layer.3'), 'did you mean backbone.layers.3'),
        (dict(label=4), 'classes 0 to 3'),
        (dict(layer='head.fc'), 'is no map'),
        (dict(layer='backbone.layers'), 'none in this run'),
    ],
)
def test_wrong_layer_or_class_is_one_line(classifiers, image, options, words):
    with pytest.raises(ValueError, match=words) as error:
        look.class_activation(classifiers('focalnet'), image, **options)
    assert '\n' not in str(error.value)
