"""The command as a function, and tiny models of random weights for it to load."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from focal_mm.cli.main import main
from focal_mm.cli.runner import load_config

BACKBONE = {'model.backbone.embed_dims': 8, 'model.backbone.depths': [1, 1, 1, 1]}
WIDTHS = [8, 16, 32, 64]
MODELS_OF = {
    'detector': (
        'focal_mm::mask_rcnn/focalnet_t_1x.py',
        BACKBONE
        | {
            'model.neck.in_channels': WIDTHS,
            'model.roi_head.bbox_head.fc_out_channels': 16,
            'model.roi_head.mask_head.num_convs': 1,
            'model.test_cfg.rpn.max_per_img': 20,
            'model.test_cfg.rcnn.score_thr': 0.001,
            'model.test_cfg.rcnn.max_per_img': 5,
            'test_dataloader.dataset.pipeline.1.scale': (96, 96),
        },
    ),
    'segmentor': (
        'focal_mm::upernet/focalnet_t.py',
        BACKBONE
        | {
            'model.decode_head.in_channels': WIDTHS,
            'model.decode_head.channels': 16,
            'model.auxiliary_head.in_channels': WIDTHS[2],
            'test_dataloader.dataset.pipeline.1.scale': (96, 96),
        },
    ),
    'classifier': ('focal_mm::imagenet/focalnet_t.py', BACKBONE | {'model.head.in_channels': 64}),
}


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``focal-mm`` in this process; returns its exit status, stdout and stderr."""

    def run(*args: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr('sys.argv', ['focal-mm', *map(str, args)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='session')
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each kind a config file and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp('models')
    torch.manual_seed(0)
    for kind, (config, options) in MODELS_OF.items():
        cfg = load_config(config, scratch=True, options=options)
        init_default_scope(cfg.default_scope)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, folder / f'{kind}.pth')
        cfg.dump(folder / f'{kind}.py')
    return folder
