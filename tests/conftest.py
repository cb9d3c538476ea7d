"""What all tests share."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import cases
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image

os.environ['MPLBACKEND'] = 'Agg'

import focal_mm  # noqa: F401  before any test module imports mmcv.ops

# Tests that run at once share the processors.
torch.set_num_threads(
    max(1, (os.cpu_count() or 1) // int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1')))
)


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """Forgets the loggers of a test, since the stdout to which they write ends with it."""
    others = set(MMLogger._instance_dict)
    yield
    for name in MMLogger._instance_dict.keys() - others:
        del MMLogger._instance_dict[name]


@pytest.fixture
def train_and_test() -> Callable[[Config], tuple[set[str], BaseDataElement]]:
    """Trains a config's model on two images and tests it on one; returns the names of
    the parameters of the patch embedding that have changed, and the prediction.

    The model has its own widths and heads but few blocks: further ones are copies of these, and the
    tests of parameters and of FLOPs build each config with all of them.
    """

    def step(cfg: Config) -> tuple[set[str], BaseDataElement]:
        init_default_scope(cfg.default_scope)
        backbone = cfg.model.backbone
        if 'arch' in backbone:  # two blocks in one stage, since every second one may be shifted
            stages = len(MODELS.get(backbone.type).archs[backbone.arch]['depths'])
            backbone.depths = (2, 1, 1, 1)[:stages]
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = MODELS.build(cfg.model)
        model.init_weights()
        wrapper = build_optim_wrapper(model, dict(cfg.optim_wrapper, type='OptimWrapper'))
        train, val = (
            DATASETS.build(loader.dataset) for loader in (cfg.train_dataloader, cfg.val_dataloader)
        )
        own = {n: p for n, p in model.named_parameters() if n.startswith('backbone.patch_embed.')}
        before = {name: value.clone() for name, value in own.items()}
        losses = model.train_step(pseudo_collate([train[0], train[1]]), wrapper)
        assert losses['loss'].isfinite()
        (predicted,) = model.eval().test_step(pseudo_collate([val[0]]))
        return {name for name in own if not own[name].equal(before[name])}, predicted

    return step


@pytest.fixture(scope='session', autouse=True)
def cache_of_the_run(tmp_path_factory) -> None:
    """Keeps downloads and drawn datasets out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('FOCAL_MM_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.delenv('FOCAL_MM_WEIGHTS', raising=False)
        yield


@pytest.fixture(scope='session')
def browser() -> Iterator[Any]:
    """Headless Chromium, driven by selenium, which keeps the messages of its console."""
    webdriver = pytest.importorskip('selenium.webdriver')
    chromium, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not chromium or not driver:
        pytest.skip('no chromium and chromedriver (apt-get install chromium chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage'):
        options.add_argument(f'--{argument}')
    options.set_capability('goog:loggingPrefs', dict(browser='ALL'))
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.fixture
def golden():
    """Loads a case by name."""
    return cases.load


@pytest.fixture
def write_coco(tmp_path):
    """Writes pictures and a COCO file; returns its path, and its content to be changed."""

    def write(split='train', classes=('dog', 'кот'), count=4, ids=(7, 30)):
        folder = tmp_path / 'my pictures'
        content = dict(
            images=[],
            annotations=[],
            categories=[dict(id=ids[i], name=name) for i, name in enumerate(classes)],
        )
        for i in range(1, count + 1):
            name = f'{split} set/{i % 2}/фото {i}.jpg'
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng([i, len(split)]).integers(0, 255, (40, 60, 3), np.uint8)
            Image.fromarray(noise).save(path)
            content['images'].append(dict(id=i, file_name=name, width=60, height=40))
            content['annotations'].append(
                dict(
                    id=i,
                    image_id=i,
                    category_id=ids[i % len(classes)],
                    bbox=[5, 5, 20, 10],
                    area=200,
                    iscrowd=0,
                    segmentation=[[5, 5, 25, 5, 25, 15, 5, 15]],
                )
            )
        file = tmp_path / f'{split}.json'
        file.write_text(json.dumps(content))
        return file, folder, content

    return write


@pytest.fixture
def write_maps(tmp_path):
    """Writes pictures and label maps with some values; returns both folders."""

    def write(split='train', values=(0, 1, 2, 255), count=3, end='.png'):
        images, maps = tmp_path / 'images' / split, tmp_path / 'labels' / split
        for i in range(count):
            for folder in (images / 'a b', maps / 'a b'):
                folder.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (32, 24), (i, 0, 0)).save(images / 'a b' / f'{split} {i}.jpg')
            labels = np.resize(np.array(values, np.uint8), (24, 32))
            Image.fromarray(labels).save(maps / 'a b' / f'{split} {i}{end}')
        return images, maps

    return write
