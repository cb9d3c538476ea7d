import pytest
import torch
from mmengine.registry import MODELS

import focal_mm  # noqa: F401
from focal_mm.backbones.mixing_convnets import MixingMobileNetV2, MixingResNet

pytestmark = pytest.mark.stock

CHANNELS = {MixingResNet: [256, 512, 1024, 512], MixingMobileNetV2: [24, 32, 96, 160]}
PLAIN = {
    MixingResNet: dict(type='mmdet.ResNet', depth=50),
    MixingMobileNetV2: dict(type='mmdet.MobileNetV2'),
}
both = pytest.mark.parametrize('cls', CHANNELS)


@both
def test_maps_have_strides_4_to_32(cls):
    net = MODELS.build(dict(type=cls.__name__)).eval()
    with torch.no_grad():
        outs = net(torch.zeros(1, 3, 65, 96))
    shapes = zip(CHANNELS[cls], (17, 9, 5, 3), (24, 12, 6, 3))
    assert [out.shape[1:] for out in outs] == list(shapes)


def test_wrong_out_indices_give_the_way_out():
    with pytest.raises(ValueError, match='MixingResNet: out_indices=.4,. .* choose from 0 to 3'):
        MixingResNet(out_indices=(4,))


@both
def test_checkpoint_of_the_plain_network_loads_up_to_the_last_stage(cls):
    plain, net = MODELS.build(PLAIN[cls]), cls()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith(('downsample', 'stage')) for key in missing)
    for name, value in net.convnet.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])


@both
def test_own_checkpoint_loads(cls):
    net, again = cls(), cls()
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.state_dict(), net.state_dict())


@both
def test_norm_eval_holds_for_every_batchnorm(cls):
    net = cls(norm_eval=True)
    assert net.train() is net
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    assert net.stage.blocks[0].norm1.training
