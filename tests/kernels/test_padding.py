import torch
from torch.autograd import gradcheck, gradgradcheck

from focal_mm.kernels.padding import pad_by_token


def test_map_is_padded_at_the_right_and_at_the_bottom():
    x, token = torch.randn(2, 3, 5, 4), torch.randn(1, 1, 1, 4)
    out = pad_by_token(x, token, 4)
    assert out.shape == (2, 4, 8, 4)
    assert out[:, :3, :5].equal(x)
    assert out[:, 3:].equal(token.expand(2, 1, 8, 4))
    assert out[:, :3, 5:].equal(token.expand(2, 3, 3, 4))


def test_gradients_of_padding_are_right():
    x = torch.randn(1, 2, 3, 2, dtype=torch.double, requires_grad=True)
    token = torch.randn(1, 1, 1, 2, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda *args: pad_by_token(*args, 2).sin(), (x, token))
    assert gradgradcheck(lambda *args: pad_by_token(*args, 2).sin(), (x, token))
