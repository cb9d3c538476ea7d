import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.runner import load_checkpoint

from focal_mm import backbones, weights
from focal_mm.backbones import FocalNet
from focal_mm.weights import ZOO, CheckpointError, register, zoo

pytestmark = pytest.mark.stock
register()
NAME = 'focalnet_tiny_lrf_in1k'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('FOCAL_MM_WEIGHTS', raising=False)
    return tmp_path / 'cache' / 'weights'


def small() -> FocalNet:
    return FocalNet(arch=dict(embed_dims=8, depths=(1, 1)), out_norm=False)


@pytest.fixture
def published() -> dict:
    return {'model': small().state_dict()}


class Handler(SimpleHTTPRequestHandler):
    requests: ClassVar[list] = []

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def send_header(self, keyword, value):
        if keyword == 'Content-Length' and 'short' in self.path:  # promises more than it sends
            value = str(int(value) + 1)
        if keyword == 'Content-type' and 'page' in self.path:
            value = 'text/html; charset=utf-8'
        super().send_header(keyword, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, published):
    """Serves the published file on the loopback address; yields the URL of its folder."""
    for folder in ('good', 'short', 'page'):
        (tmp_path / 'www' / folder).mkdir(parents=True)
        torch.save(published, tmp_path / 'www' / folder / ZOO[NAME].file)
    Handler.requests = []
    handler = partial(Handler, directory=str(tmp_path / 'www'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirrors(monkeypatch, mirror):
    """Sets the mirrors of ``NAME``, given as paths on the server."""

    def set_to(*folders: str, dead: tuple[str, ...] = ()) -> list[str]:
        living, gone = (
            [f'{mirror}/{folder}/{ZOO[NAME].file}' for folder in group] for group in (folders, dead)
        )
        monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], mirrors=tuple(living), dead=tuple(gone)))
        return living + gone

    return set_to


def test_name_in_a_config_loads_what_the_mirror_has(mirrors, published, cache):
    mirrors('good')
    net = FocalNet(
        arch=dict(embed_dims=8, depths=(1, 1)),
        out_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=f'focal://{NAME}'),
    )
    net.init_weights()
    torch.testing.assert_close(net.state_dict(), published['model'])
    assert sorted(p.name for p in cache.iterdir()) == [
        'focalnet_tiny_lrf.pth',
        'focalnet_tiny_lrf.pth.sha256',
    ]


def test_second_use_comes_from_the_cache(mirrors):
    mirrors('good')
    assert zoo.fetch(NAME) == zoo.fetch(NAME)
    assert len(Handler.requests) == 1


def test_mirror_that_fails_gives_way_to_the_next(mirrors):
    mirrors('absent', 'short', 'page', 'good')
    assert zoo.fetch(NAME).is_file()
    assert len(Handler.requests) == 4


def test_dead_address_is_tried_last(mirrors):
    mirrors('absent', dead=('good',))
    assert zoo.fetch(NAME).is_file()
    assert [path.split('/')[1] for path in Handler.requests] == ['absent', 'good']


def test_error_says_which_address_is_dead(mirrors):
    absent, gone = mirrors('absent', dead=('gone',))
    with pytest.raises(CheckpointError, match=rf'{absent} \(HTTP.*{gone} \(dead: HTTP'):
        zoo.fetch(NAME)


def test_partial_download_is_never_taken_for_the_whole(mirrors, cache):
    mirrors('short')
    with pytest.raises(CheckpointError, match='cut off after'):
        zoo.fetch(NAME)
    assert not list(cache.iterdir())


def test_file_that_changed_since_its_download_is_refused(mirrors):
    mirrors('good')
    path = zoo.fetch(NAME)
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    with pytest.raises(CheckpointError, match='sha256.*delete both'):
        zoo.fetch(NAME)


def test_without_file_and_network_one_line_says_what_to_put_where(mirrors, cache):
    urls = mirrors('absent', 'gone')
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(small(), f'focal://{NAME}')
    message = str(error.value)
    assert all(
        word in message
        for word in (
            *urls,
            'focalnet_tiny_lrf.pth',
            str(cache),
            'FOCAL_MM_WEIGHTS',
            '--from-scratch',
        )
    )
    assert '\n' not in message


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.bin'])
def test_folder_for_machines_without_network(tmp_path, monkeypatch, published, suffix):
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(tmp_path))
    torch.save(published, tmp_path / f'focalnet_tiny_lrf{suffix}')
    net = small()
    load_checkpoint(net, f'focal://{NAME}')
    torch.testing.assert_close(net.state_dict(), published['model'])


def test_that_folder_is_the_only_place_looked_in(tmp_path, monkeypatch, mirrors):
    mirrors('good')
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(tmp_path))
    with pytest.raises(CheckpointError, match='focalnet_tiny_lrf.pth.*nothing is downloaded'):
        zoo.fetch(NAME)
    assert not Handler.requests


def test_unknown_name_gets_the_near_ones():
    with pytest.raises(ValueError, match='focalnet_tiny_lfr_in1k.*focalnet_tiny_lrf_in1k'):
        zoo.fetch('focalnet_tiny_lfr_in1k')


def test_weights_that_were_never_published_say_so():
    with pytest.raises(CheckpointError, match='never published'):
        zoo.fetch('focalnet_tiny_lrf_deep_in1k')


def test_plain_address_loads_an_official_file(mirror, published):
    net = small()
    load_checkpoint(net, f'{mirror}/good/{ZOO[NAME].file}')
    torch.testing.assert_close(net.state_dict(), published['model'])


def test_file_is_found_without_being_fetched(mirrors):
    mirrors('good')
    path, there = weights.find(NAME)
    assert not there and not Handler.requests
    assert zoo.fetch(NAME) == path
    assert weights.find(NAME) == (path, True)


def test_every_cached_file_is_verified(mirrors, cache):
    mirrors('good')
    path = zoo.fetch(NAME)
    (cache / 'mine.pth').write_bytes(b'mine')
    assert list(weights.verify()) == [(path, 'good'), (cache / 'mine.pth', 'unrecorded')]
    path.write_bytes(b'other')
    assert next(weights.verify()) == (path, 'changed')


def test_damaged_record_counts_as_a_change(mirrors):
    mirrors('good')
    path = zoo.fetch(NAME)
    path.with_name(f'{path.name}.sha256').write_text('')
    assert list(weights.verify()) == [(path, 'changed')]


def test_nothing_to_verify(cache):
    assert list(weights.verify()) == []


# ---- what is in it -----------------------------------------------------------------------------


@pytest.mark.parametrize('entry', weights.list(), ids=lambda entry: entry.name)
def test_every_name_belongs_to_an_arch_with_its_parameters(entry):
    with torch.device('meta'):
        net = getattr(backbones, entry.backbone)(entry.arch, out_norm=False)
        channels = net.layers[-1].blocks[-1].norm1.weight.numel()
        classifier = [torch.nn.LayerNorm(channels), torch.nn.Linear(channels, 1000)]
        if entry.backbone == 'MixFormer':
            classifier[1:] = torch.nn.Linear(channels, 1280), torch.nn.Linear(1280, 1000)
    count = sum(p.numel() for part in (net, *classifier) for p in part.parameters()) / 1e6
    # MixFormer's paper rounds to millions.
    assert count == pytest.approx(
        entry.params, rel=0.012, abs=0.5 if entry.backbone == 'MixFormer' else 0
    )


# The papers' names of nets that have one in the zoo.
PAPERS = {
    **{
        f'focalnet_{size[0]}{suffix}': f'focalnet_{size}_{kind}_in1k'
        for size in ('tiny', 'small', 'base')
        for suffix, kind in (('', 'lrf'), ('_srf', 'srf'), ('16', 'iso'))
    },
    **{f'focal_{size[0]}': f'focal_{size}_in1k' for size in ('tiny', 'small', 'base')},
    **{f'mixformer_b{i}': f'mixformer_b{i}_in1k' for i in (1, 2, 3, 4)},
}


@pytest.mark.parametrize('theirs, name', PAPERS.items())
def test_figures_are_those_of_the_papers(theirs, name):
    rows = json.loads((Path(__file__).parents[1] / 'data/tables.json').read_text())
    row = next(row for row in rows['classification'] if row['backbone'] == theirs)
    assert (ZOO[name].top1, ZOO[name].params, ZOO[name].input_size) == (
        row['top1'],
        row['params_M'],
        row['input'],
    )


def test_every_file_has_one_name():
    assert len({entry.file for entry in weights.list()}) == len(ZOO)


def test_dead_server_is_no_mirror():
    assert not any('projects4jw' in url for entry in weights.list() for url in entry.mirrors)
