import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, load_checkpoint

from focal_mm import backbones, weights
from focal_mm.backbones import FocalNet, FocalTransformer
from focal_mm.config import CONFIGS
from focal_mm.weights import ZOO, CheckpointError, zoo

pytestmark = pytest.mark.stock
NAME = 'focalnet_tiny_lrf_in1k'
ARCH = dict(embed_dims=8, depths=(1, 1))
# The start of every answer that is no checkpoint is a line of the error.
ANSWERS = {
    'json': b'{"error": "Repository not found"}',
    'pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:4d14fe47\nsize 478697063\n',
    'page': b'<!doctype html>\n<html><body>Public access is not permitted</body></html>\n',
    'empty': b'',
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.delenv('FOCAL_MM_WEIGHTS', raising=False)
    return tmp_path / 'cache' / 'weights'


@pytest.fixture
def hub(tmp_path):
    """The folder of torch's hub cache, in which mmengine keeps files of addresses."""
    return tmp_path / 'torch/hub/checkpoints'


def small() -> FocalNet:
    return FocalNet(arch=ARCH, out_norm=False)


def other_family() -> FocalTransformer:
    return FocalTransformer(ARCH, num_heads=2, focal_windows=7, expand_sizes=3, out_norm=False)


def detector_of(net: torch.nn.Module) -> dict:
    """The file of a detector that has a network as its backbone."""
    state = {f'backbone.{key}': value for key, value in net.state_dict().items()}
    return {'state_dict': {**state, 'bbox_head.fc.weight': torch.zeros(1)}}


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
        if keyword == 'Content-Length' and 'cut' in self.path:  # promises nothing
            return
        super().send_header(keyword, value)

    def log_message(self, *_):
        pass


@pytest.fixture
def www(tmp_path, published) -> Path:
    """What the server has: folders with one file each, the published one or another answer."""
    wrong = {
        'deep': {'model': FocalNet(dict(ARCH, depths=(1, 2)), out_norm=False).state_dict()},
        'wide': {'model': FocalNet(dict(ARCH, embed_dims=16), out_norm=False).state_dict()},
        'levels': {'model': FocalNet(ARCH, focal_levels=4, out_norm=False).state_dict()},
        'family': {'model': other_family().state_dict()},
        'detector': detector_of(small()),
        'optimizer': {'optimizer': {'state': {0: torch.zeros(1)}}},
    }
    good = ('good', 'short')
    for folder in (*good, *wrong, *ANSWERS, 'cut'):
        path = tmp_path / 'www' / folder / ZOO[NAME].file
        path.parent.mkdir(parents=True)
        if folder in ANSWERS:
            path.write_bytes(ANSWERS[folder])
        else:
            torch.save(wrong.get(folder, published), path)
        if folder == 'cut':
            path.write_bytes(path.read_bytes()[:-1000])
    return tmp_path / 'www'


@pytest.fixture
def mirror(www):
    """Serves that on the loopback address; yields the URL of its folder."""
    Handler.requests = []
    handler = partial(Handler, directory=str(www))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def mirrors(monkeypatch, mirror):
    """Sets the mirrors of ``NAME``, given as paths on the server, and a small arch."""

    def set_to(*folders: str, dead: tuple[str, ...] = (), **fields: object) -> list[str]:
        living, gone = (
            [f'{mirror}/{folder}/{ZOO[NAME].file}' for folder in group] for group in (folders, dead)
        )
        entry = replace(
            ZOO[NAME], arch=ARCH, mirrors=tuple(living), dead=tuple(gone), sha256={}, **fields
        )
        monkeypatch.setitem(ZOO, NAME, entry)
        return living + gone

    return set_to


def asked() -> list[str]:
    """The folders that have been asked for."""
    return [path.split('/')[1] for path in Handler.requests]


# ---- names -------------------------------------------------------------------------------------


def test_name_in_a_config_loads_what_the_mirror_has(mirrors, published, cache):
    mirrors('good')
    net = FocalNet(
        arch=ARCH,
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


@pytest.mark.parametrize(
    'answer, reason',
    [
        ('absent', 'HTTP Error 404'),
        ('short', 'cut off after'),
        ('cut', 'cut off or not a checkpoint'),
        ('json', 'Repository not found'),
        ('pointer', 'version https://git-lfs'),
        ('page', '<!doctype html>'),
        ('empty', ''),
        ('optimizer', 'no FocalNet: it has optimizer'),
        ('family', 'modulation.f.weight is missing'),
        ('deep', 'it has 3 blocks instead of 2'),
        ('wide', 'is .16,.* instead of .8,'),
        ('levels', 'modulation.f.weight is'),
        ('detector', "no classifier: it is a backbone behind 'backbone.'"),
    ],
)
def test_answer_that_is_no_such_checkpoint_gives_way_to_the_next_mirror(
    mirrors, cache, answer, reason
):
    bad, _ = mirrors(answer, 'good')
    assert zoo.fetch(NAME).is_file()
    assert asked() == [answer, 'good']
    mirrors(answer)
    for path in cache.iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match=rf'mirrors: {bad} \(.*{reason}') as error:
        zoo.fetch(NAME)
    assert '\n' not in str(error.value) and '.part' not in str(error.value)
    assert not list(cache.iterdir())  # neither the file nor its hash


def test_error_has_every_mirror_and_its_reason(mirrors):
    first, second = mirrors('absent', 'json')
    with pytest.raises(CheckpointError, match=rf'{first} \(HTTP.*; {second} \(.*not found'):
        zoo.fetch(NAME)


def test_published_hash_is_required(mirrors, monkeypatch):
    living = mirrors('good', 'wide')
    sha256 = dict(zip(living, ('0' * 64, '1' * 64), strict=True))
    monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], sha256=sha256))
    with pytest.raises(CheckpointError, match='its sha256 is .*, not the published 0{64}.*1{64}'):
        zoo.fetch(NAME)
    mirrors('good')
    right = zoo.fetch(NAME)
    record = right.with_name(f'{right.name}.sha256').read_text().split()[0]
    right.unlink()
    monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], sha256={ZOO[NAME].mirrors[0]: record}))
    assert zoo.fetch(NAME) == right


def test_dead_address_is_never_opened(mirrors, cache):
    absent, gone = mirrors('absent', dead=('good',))
    with pytest.raises(CheckpointError, match=absent):
        zoo.fetch(NAME)
    mirrors(dead=('good',))
    with pytest.raises(CheckpointError) as error:
        zoo.fetch(NAME)
    assert asked() == ['absent']
    message = str(error.value)
    assert f'server is gone ({gone})' in message and 'its sha256 was not published' in message
    assert str(cache / ZOO[NAME].file) in message and '\n' not in message


def test_file_of_a_dead_server_has_its_published_hash_in_the_error(mirrors, monkeypatch):
    (gone,) = mirrors(dead=('good',))
    monkeypatch.setitem(ZOO, NAME, replace(ZOO[NAME], sha256={gone: '0' * 64}))
    with pytest.raises(CheckpointError, match='its sha256 is 0{64}'):
        zoo.fetch(NAME)


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
            str(cache / 'focalnet_tiny_lrf.pth'),
            'FOCAL_MM_WEIGHTS',
            '--from-scratch',
        )
    )
    assert '\n' not in message


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', '.bin', '.pdparams'])
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


@pytest.mark.parametrize('entry', [e for e in weights.list() if e.refused], ids=lambda e: e.name)
def test_detector_that_mmdet_lacks_is_refused_in_one_line(entry, tmp_path, monkeypatch):
    monkeypatch.setenv('FOCAL_MM_WEIGHTS', str(tmp_path))
    (tmp_path / entry.file).touch()
    with pytest.raises(CheckpointError, match='of PaddleDetection, another detector') as error:
        zoo.fetch(entry.name)
    assert '\n' not in str(error.value)


def test_detector_loads_whole_by_its_name(mirrors, tmp_path, www):
    detector = torch.nn.ModuleDict(
        dict(backbone=small(), bbox_head=torch.nn.ModuleDict(dict(fc=torch.nn.LayerNorm(1))))
    )
    torch.save({'state_dict': detector.state_dict()}, www / 'detector' / ZOO[NAME].file)
    mirrors('good', 'detector', kind='detector')  # the first is a backbone alone
    other = torch.nn.ModuleDict(
        dict(backbone=small(), bbox_head=torch.nn.ModuleDict(dict(fc=torch.nn.LayerNorm(1))))
    )
    load_checkpoint(other, f'focal://{NAME}', strict=True)
    torch.testing.assert_close(other.state_dict(), detector.state_dict())
    assert asked() == ['good', 'detector']


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


# ---- addresses ---------------------------------------------------------------------------------


def test_address_loads_an_official_file(mirror, published):
    net = small()
    load_checkpoint(net, f'{mirror}/good/{ZOO[NAME].file}')
    torch.testing.assert_close(net.state_dict(), published['model'])


@pytest.mark.parametrize('first', ['ours', "mmengine's"])
def test_address_shares_the_hub_cache_with_mmengine(mirror, hub, published, first):
    url = f'{mirror}/good/{ZOO[NAME].file}'
    loaders = dict(ours=zoo.load_from_url, theirs=torch.hub.load_state_dict_from_url)
    names = ['ours', 'theirs'] if first == 'ours' else ['theirs', 'ours']
    loaded = [loaders[name](url, map_location='cpu')['model'] for name in names]
    assert asked() == ['good']
    assert [path.name for path in hub.iterdir()] == [ZOO[NAME].file]
    for state in loaded:
        torch.testing.assert_close(dict(state), dict(published['model']))


def test_address_is_loaded_to_the_device_that_is_asked_for(mirror):
    state = zoo.load_from_url(f'{mirror}/good/{ZOO[NAME].file}', map_location='meta')['model']
    assert all(value.is_meta for value in state.values())


def test_any_checkpoint_of_an_address_is_kept(mirror, www, hub):
    """As mmengine's loader, whatever is in it and whatever follows its name."""
    torch.save({'optimizer': {'state': {0: torch.ones(1)}}, 'meta': dict(epoch=1)}, www / 'a.bin')
    content = CheckpointLoader.load_checkpoint(f'{mirror}/a.bin?download=true')
    assert content['meta'] == dict(epoch=1) and (hub / 'a.bin').is_file()


@pytest.mark.parametrize('answer', ['absent', 'short', 'cut', 'json', 'pointer', 'page', 'empty'])
def test_broken_download_of_an_address_is_not_kept(mirror, hub, answer):
    url = f'{mirror}/{answer}/{ZOO[NAME].file}'
    with pytest.raises(CheckpointError, match=f'{url}: .*name the local file') as error:
        CheckpointLoader.load_checkpoint(url)
    assert not list(hub.iterdir()) and '\n' not in str(error.value)


def test_proxy_of_the_environment_is_asked(mirror, monkeypatch):
    monkeypatch.setenv('http_proxy', mirror)
    monkeypatch.delenv('no_proxy', raising=False)
    monkeypatch.setattr('urllib.request._opener', None)  # it has read the environment before
    with pytest.raises(CheckpointError, match='404'):
        CheckpointLoader.load_checkpoint('http://weights.invalid/net.pth')
    assert Handler.requests == ['http://weights.invalid/net.pth']


def test_other_schemes_stay_mmengines():
    for address in ('openmmlab://x', 'torchvision://x', 'mmcls://x', 'pavi://x'):
        loader = CheckpointLoader._get_checkpoint_loader(address)
        assert loader.__module__ == 'mmengine.runner.checkpoint'


def test_names_of_openmmlab_still_load(mirror, monkeypatch, published):
    url = f'{mirror}/good/{ZOO[NAME].file}'
    for function, name in (
        ('get_external_models', 'openmmlab://x'),
        ('get_torchvision_models', 'torchvision://x'),
    ):
        monkeypatch.setattr(f'mmengine.runner.checkpoint.{function}', lambda: dict(x=url))
        state = CheckpointLoader.load_checkpoint(name, map_location='cpu')['model']
        torch.testing.assert_close(dict(state), dict(published['model']))


# ---- what is in it -----------------------------------------------------------------------------


CLASSIFIERS = [entry for entry in weights.list() if entry.kind == 'classifier']
WHOLE = [entry for entry in weights.list() if entry.config]


@pytest.mark.parametrize('entry', CLASSIFIERS, ids=lambda entry: entry.name)
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
    assert (ZOO[name].results['top-1'], ZOO[name].params, ZOO[name].input_size) == (
        row['top1'],
        row['params_M'],
        row['input'],
    )


def test_every_file_has_one_name():
    assert len({entry.file for entry in weights.list()}) == len(ZOO)


def test_dead_server_is_no_mirror():
    assert not any('projects4jw' in url for entry in weights.list() for url in entry.mirrors)


def test_published_hashes_belong_to_mirrors():
    for entry in weights.list():
        assert entry.sha256.keys() <= {*entry.mirrors}
        assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in entry.sha256.values())


@pytest.mark.parametrize('entry', WHOLE, ids=lambda entry: entry.name)
def test_config_of_a_name_builds_its_backbone(entry):
    backbone = Config.fromfile(CONFIGS / entry.config).model.backbone
    assert (backbone.type, backbone.arch) == (entry.backbone, entry.arch)
    arch = getattr(backbones, entry.backbone).archs[entry.arch]
    for option, value in entry.options.items():
        assert backbone.get(option, arch.get(option)) == value


@pytest.mark.parametrize(
    'method, backbone, name',
    [
        *(
            ('mask_rcnn', f'focalnet_{size[0]}{suffix}', f'mask_rcnn_focalnet_{size}_{field}')
            for size in ('tiny', 'small', 'base')
            for suffix, field in (('', 'lrf'), ('_srf', 'srf'))
        ),
        *(
            (method, 'focalnet_t', f'{method}_focalnet_tiny_lrf')
            for method in ('cascade', 'atss', 'sparse_rcnn')
        ),
    ],
)
def test_figures_of_detectors_are_those_of_the_papers(method, backbone, name):
    rows = json.loads((Path(__file__).parents[1] / 'data/tables.json').read_text())['detection']
    row = next(r for r in rows if (r['method'], r['backbone']) == (method, backbone))
    for schedule, figures in row['schedules'].items():
        results = ZOO[f'{name}_{schedule}_coco'].results
        assert results['box AP'] == figures['box_AP']
        assert results.get('mask AP') in (None, figures.get('mask_AP'))
