import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from mmengine.runner import load_checkpoint

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
    requests: list = []

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def send_header(self, keyword, value):  # a mirror that promises more than it sends
        if keyword == 'Content-Length' and 'short' in self.path:
            value = str(int(value) + 1)
        super().send_header(keyword, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, published):
    """Serves the published file on the loopback address; yields the URL of its folder."""
    for folder in ('good', 'short'):
        (tmp_path / 'www' / folder).mkdir(parents=True)
        torch.save(published, tmp_path / 'www' / folder / ZOO[NAME].file)
    Handler.requests = []
    handler = partial(Handler, directory=str(tmp_path / 'www'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirrors(monkeypatch, mirror):
    """Sets the mirrors of ``NAME``, given as paths on the server."""

    def set_to(*folders: str) -> list[str]:
        urls = [f'{mirror}/{folder}/{ZOO[NAME].file}' for folder in folders]
        monkeypatch.setitem(ZOO, NAME, zoo.Weights(NAME, ZOO[NAME].file, tuple(urls), 28.6, 82.3))
        return urls

    return set_to


def test_name_in_a_config_loads_what_the_mirror_has(mirrors, published, cache):
    mirrors('good')
    net = FocalNet(arch=dict(embed_dims=8, depths=(1, 1)), out_norm=False,
                   init_cfg=dict(type='Pretrained', checkpoint=f'focal://{NAME}'))
    net.init_weights()
    torch.testing.assert_close(net.state_dict(), published['model'])
    assert sorted(p.name for p in cache.iterdir()) == [
        'focalnet_tiny_lrf.pth', 'focalnet_tiny_lrf.pth.sha256']


def test_second_use_comes_from_the_cache(mirrors):
    mirrors('good')
    assert zoo.fetch(NAME) == zoo.fetch(NAME)
    assert len(Handler.requests) == 1


def test_mirror_that_fails_gives_way_to_the_next(mirrors):
    mirrors('absent', 'short', 'good')
    assert zoo.fetch(NAME).is_file()
    assert len(Handler.requests) == 3


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
    assert all(word in message for word in (
        *urls, 'focalnet_tiny_lrf.pth', str(cache), 'FOCAL_MM_WEIGHTS', '--from-scratch'))
    assert '\n' not in message


@pytest.mark.parametrize('suffix', ['.pth', '.bin'])
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


@pytest.mark.parametrize('weights', ZOO.values(), ids=ZOO)
def test_every_name_belongs_to_an_arch(weights):
    arch = weights.name.removeprefix('focalnet_').rsplit('_', 1)[0]
    assert arch in FocalNet.archs
