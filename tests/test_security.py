"""What SECURITY.md promises, on every road by which a file comes into the process."""

import copy
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from mmpretrain.apis import get_model
from torch import nn

from focal_mm.backbones import FocalNet
from focal_mm.weights import CheckpointError, convert, read_checkpoint

sys.path.insert(0, str(Path(__file__).parent / 'engine'))  # for tiny_run
from tiny_run import Net, make_runner

pytestmark = pytest.mark.stock
ARCH = dict(embed_dims=8, depths=(1, 1))


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def attack(folder: Path) -> Calls:
    """A value that makes the folder ``ran`` when it is loaded as code."""
    return Calls(os.mkdir, str(folder / 'ran'))


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path, monkeypatch):
    """Every file of these tests would make this folder, or change this file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside' / 'kept.pth').write_text('kept')
    (tmp_path / 'outside' / 'kept.pth').chmod(0o600)
    yield
    assert not (tmp_path / 'ran').exists()
    kept = tmp_path / 'outside' / 'kept.pth'
    assert kept.read_text() == 'kept' and kept.stat().st_mode & 0o777 == 0o600


# ---- the roads ---------------------------------------------------------------------------------


CONFIG = dict(
    default_scope='mmpretrain',
    model=dict(
        type='ImageClassifier',
        backbone=dict(type='FocalNet', arch=ARCH, out_indices=(1,)),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
    ),
)


def by_init_cfg(file: str, folder: Path) -> None:
    FocalNet(ARCH, init_cfg=dict(type='Pretrained', checkpoint=file)).init_weights()


def by_load_from(file: str, folder: Path) -> None:
    make_runner(folder / 'run', load_from=file).train()


def by_resume(file: str, folder: Path) -> None:
    make_runner(folder / 'run', load_from=file, resume=True).train()


def by_resume_of_a_folder(file: str, folder: Path) -> None:
    os.link(file, folder / 'run' / 'epoch_1.pth')
    make_runner(folder / 'run', resume='auto').train()


def by_mmengine(file: str, folder: Path) -> None:
    load_checkpoint(nn.Linear(1, 1), file)


def by_address(file: str, folder: Path) -> None:
    read_checkpoint(Path(file).as_uri())


def by_mmpretrain(file: str, folder: Path) -> None:
    get_model(Config(CONFIG), pretrained=file)


def by_inferencer(file: str, folder: Path) -> None:
    BaseInferencer._init_model(None, {}, file)


def by_torchvisions_name(file: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            'mmengine.runner.checkpoint.get_external_models', lambda: dict(x=os.path.abspath(file))
        )
        if not hasattr(sys.modules['mmengine.runner.checkpoint'], 'get_torch_safe_globals'):
            pytest.skip('stock mmengine loads it by torch.load, which refuses it')
        CheckpointLoader.load_checkpoint('openmmlab://x')


ROADS = {
    name.removeprefix('by_'): road for name, road in globals().items() if name.startswith('by_')
}


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.pkl', '.bin', '.safetensors'])
@pytest.mark.parametrize('road', ROADS)
def test_code_in_a_file_is_refused_on_every_road(tmp_path, road, suffix):
    (tmp_path / 'run').mkdir()
    file = tmp_path / f'x{suffix}'
    state = {'meta': {'iter': 1, 'epoch': 1}, 'state_dict': {'w': attack(tmp_path)}}
    if suffix in ('.pkl', '.bin'):
        file.write_bytes(pickle.dumps(state['state_dict']))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=suffix != '.pt')
    with pytest.raises(CheckpointError, match=r'mkdir.*FOCAL_MM_TRUST') as error:
        ROADS[road](str(file), tmp_path)
    assert str(error.value).isprintable()


def test_its_tensors_can_be_taken_out(tmp_path):
    file = tmp_path / 'x.pth'
    torch.save({'state_dict': {'w': torch.ones(1)}, 'meta': attack(tmp_path)}, file)
    assert convert(file, tmp_path / 'new.pth') == (None, 1)


# ---- kinds of files ----------------------------------------------------------------------------


def torchscript(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), str(path))


def old_tar(path: Path) -> None:
    """A file of torch before 0.2, which torch.load unpacks: a link to a file out of it."""
    magic = torch.serialization.MAGIC_NUMBER.to_bytes(10, 'little')
    for name in (b'\x80\x02\x8a\x0a' + magic + b'.', b'storages', b'tensors', b'pickle'):
        with tarfile.open(path, 'a', format=tarfile.USTAR_FORMAT, encoding='latin1') as archive:
            member = tarfile.TarInfo(name.decode('latin1'))
            if name == b'storages':
                member.type, member.mode = tarfile.LNKTYPE, 0o777
                member.linkname = str(path.parent / 'outside' / 'kept.pth')
            archive.addfile(member)


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x/data.pkl', bytes(80_000_000))


def zip_of_one_part(path: Path) -> None:
    """Tensors that share the bytes of one, by its entry in the table of contents."""
    torch.save({'state_dict': {f'w{i}': torch.ones(250_000) for i in range(120)}}, path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        small = {name: archive.read(name) for name in names if '/data/' not in name}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in small.items():
            archive.writestr(name, content)
        archive.writestr(names[0].replace('data.pkl', 'data/0'), bytes(1_000_000))
        for number in range(1, 120):
            member = copy.copy(archive.filelist[len(small)])
            member.filename = names[0].replace('data.pkl', f'data/{number}')
            archive.filelist.append(member)


def bomb_of_arrays(path: Path) -> None:
    np.savez_compressed(path.with_suffix('.npz'), w=np.zeros(20_000_000, 'f4'))
    path.with_suffix('.npz').rename(path)


def expanded(path: Path) -> None:
    torch.save({'state_dict': {'w': torch.ones(1).expand(10**6, 10**6)}}, path)


def without_values(path: Path) -> None:
    torch.save({'state_dict': {'w': torch.ones(10**6, device='meta')}}, path)


def objects(path: Path) -> None:
    np.savez(path.with_suffix('.npz'), w=np.array([attack(path.parent)], object))
    path.with_suffix('.npz').rename(path)


def paddle(path: Path) -> None:
    path.write_bytes(pickle.dumps({'w': np.ones(1), 'x': attack(path.parent)}, 2))


def dill(path: Path) -> None:
    path.write_bytes(b'\x80\x04\x8c\x0adill._dill\x8c\x0c_create_code\x93)R.')


def safetensors(header: bytes, length: int | None = None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        size = len(header) if length is None else length
        path.write_bytes(size.to_bytes(8, 'little') + header + bytes(64))

    return write


def header(start: int, end: int, shape: str, dtype: str = 'F32') -> bytes:
    return (
        f'{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}}}'
    ).encode()


def _nested(levels: int) -> bytes:
    """A pickle of tuples that have one another twice over."""
    return b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(levels))


def pickled(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def nested_dicts(path: Path) -> None:
    value: dict = {'w': 1}
    for _ in range(30):
        value = {'a': value, 'b': value, 'c': value}
    torch.save(value, path)


def cycle(path: Path) -> None:
    value: dict = {}
    value['a'] = [value]
    torch.save(value, path)


def deep(path: Path) -> None:
    path.write_bytes(b'\x80\x04' + b'}\x8c\x01a' * 20_000 + b'Ns' + b's' * 19_999 + b'.')


KINDS = {
    'TorchScript': (torchscript, 'TorchScript'),
    'tar of old torch': (old_tar, 'tar archive'),
    'zip bomb': (zip_bomb, 'GB of memory'),
    'zip of one part': (zip_of_one_part, 'GB of memory'),
    'bomb of arrays': (bomb_of_arrays, 'GB of memory'),
    'expanded tensor': (expanded, 'GB of memory'),
    'no values': (without_values, 'without values'),
    'array of objects': (objects, 'array of Python objects'),
    'pdparams': (paddle, 'mkdir'),
    'dill': (dill, r'dill\._dill\._create_code'),
    'header beyond the file': (safetensors(header(0, 64, '[16]'), 10**7), 'cut off'),
    'header beyond memory': (safetensors(header(0, 64, '[16]'), 2**62), 'no kind of file'),
    'tensor beyond the file': (safetensors(header(0, 4 * 10**12, '[1000000000000]')), 'cut off'),
    'tensor of more than its bytes': (safetensors(header(0, 64, '[17]')), 'cut off'),
    'size that overflows': (safetensors(header(0, 64, f'[{2**62},{2**62}]')), 'cut off'),
    'negative offsets': (safetensors(header(-64, 0, '[16]')), 'cut off'),
    'unknown dtype': (safetensors(header(0, 64, '[16]', 'OBJECT')), 'cut off'),
    'numbers of a range': (
        pickled(
            b'\x80\x02}U\x01kc__builtin__\nlist\nc__builtin__\nxrange\nJ\xff\xff\xff\x7f\x85R\x85Rs.'
        ),
        'range of 2147483647 numbers',
    ),
    'zeros': (
        pickled(b'\x80\x04}\x8c\x01k\x8c\x08builtins\x8c\x09bytearray\x93J\xff\xff\xff\x7f\x85Rs.'),
        'bytearray of 2147483647 zeros',
    ),
    'zeros of a new value': (
        pickled(b'\x80\x04}\x8c\x01k\x8c\x08builtins\x8c\x05bytes\x93J\xff\xff\xff\x7f\x85\x81s.'),
        'bytes of 2147483647 zeros',
    ),
    'array without values': (
        pickled(b'\x80\x04}\x8c\x01k\x8c\x05numpy\x8c\x07ndarray\x93J\xff\xff\xff\x7f\x85\x85Rs.'),
        'ndarray without values',
    ),
    'power of ten': (
        pickled(
            b'\x80\x04}\x8c\x01k\x8c\x09fractions\x8c\x08Fraction\x93\x8c\x0b1e999999999\x85Rs.'
        ),
        r'fractions\.Fraction',
    ),
    'key that takes for ever': (pickled(b'\x80\x02})' + _nested(100) + b'Ns.'), 'more than'),
    'set that takes for ever': (
        pickled(b'\x80\x04}U\x01k\x8f()' + _nested(100) + b'\x90s.'),
        'more',
    ),
    'text that takes for ever': (
        pickled(b'\x80\x02}U\x01kc__builtin__\nstr\n)' + _nested(100) + b'\x85Rs.'),
        'str of a value',
    ),
    'dicts in dicts': (nested_dicts, 'holds no weights'),
    'cycle': (cycle, 'holds no weights'),
    'deep': (deep, 'recursion|holds no weights'),
    'a name that leads a terminal': (
        pickled(b'\x80\x04}\x8c\x01k\x8c\x03\x1b[2\x8c\x02\nx\x93)Rs.'),
        r'\\x1b\[2\.\\nx',
    ),
}


@pytest.mark.parametrize('kind', KINDS)
def test_hostile_file_is_one_line_whatever_its_name(tmp_path, kind):
    write, words = KINDS[kind]
    suffixes = ('.pth', '.safetensors', '.pdparams', '.bin')
    file = tmp_path / f'x{suffixes[list(KINDS).index(kind) % 4]}'
    write(file)
    with pytest.raises(CheckpointError, match=words) as error:
        CheckpointLoader.load_checkpoint(str(file), 'cpu')
    assert str(error.value).isprintable()


@pytest.mark.parametrize('name', ['../outside/absent.pth', 'a\0b.pth', 'file:///a%00b', '\x1b[2J'])
def test_odd_name_is_one_line(name):
    with pytest.raises((FileNotFoundError, CheckpointError, ValueError), match='no such') as error:
        read_checkpoint(name)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    'name',
    ['../outside/kept', '/etc/passwd', 'a%00b', 'focalnet_tiny_lrf_in1k/../x', '\x1b[2J', ''],
)
def test_names_of_the_zoo_are_no_paths(name):
    with pytest.raises(ValueError, match='no such weights') as error:
        CheckpointLoader.load_checkpoint(f'focal://{name}')
    assert str(error.value).isprintable()


# ---- what mmengine does with the content -------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict:
    """A checkpoint of a run."""
    folder = tmp_path_factory.mktemp('trained')
    make_runner(folder, train_cfg=dict(by_epoch=True, max_epochs=1)).train()
    return read_checkpoint(folder / 'epoch_1.pth')


@pytest.fixture(params=[Runner, None], ids=['mmengine', 'durable'])
def resume(request, tmp_path, monkeypatch):
    """Resumes a checkpoint with one of the runners; returns it after one epoch more."""

    def run(content: dict, **fields: object) -> Runner:
        torch.save(content, tmp_path / 'x.pth')
        if request.param:
            monkeypatch.setattr('tiny_run.DurableRunner', request.param)
        runner = make_runner(
            tmp_path / 'run',
            load_from=str(tmp_path / 'x.pth'),
            resume=True,
            train_cfg=dict(by_epoch=True, max_epochs=2),
            **fields,
        )
        runner.train()
        return runner

    return run


CODE = "__import__('os').mkdir({!r})"


@pytest.mark.parametrize('place', ['config', 'cfg'])
def test_text_of_a_config_is_not_run(trained, resume, tmp_path, place):
    """mmengine's ``Runner.resume`` runs ``meta['config']``."""
    text = f'x = 1\n{CODE.format(str(tmp_path / "ran"))}\n'
    info = {**trained['message_hub']['runtime_info'], 'cfg': text}
    hub = {**trained['message_hub'], 'runtime_info': info}
    resume({**trained, 'meta': {**trained['meta'], place: text}, 'message_hub': hub})


@pytest.mark.parametrize(
    'text',
    [
        'x = {}',
        'x = dict(a={})',
        'x = [{}',
        "custom_imports = dict(imports=['antigravity', 'evil'])\n# {}",
        "_base_ = 'base.py'\nx = 1  # {}",
        "env_variables = dict(PATH='{}')",
        'def x(a={}): pass',
        "model = dict(type='os.mkdir', path='ran')",
        "x = [dict(a=(dict(type='subprocess.Popen', args=['mkdir', 'ran']),))]",
        "model = dict(type='evil')  # {}",
        "model = dict(type='evil.Net')  # {}",
        "model = dict(type='mmengine.load', file='evil.pkl')",
        "model = dict(type='torch.load', f='evil.pkl', weights_only=False)",
        "model = dict(type='focal_mm.weights.trust')",
        "model = dict(type='HFLlama', name='x/y', trust_remote_code=True)",
        b'x = 1',
        None,
    ],
)
def test_only_settings_are_kept_of_a_config(tmp_path, monkeypatch, text):
    """mmengine's inferencers run it, too, if they are given nothing but a checkpoint."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'base.py').write_text(CODE.format(str(tmp_path / 'ran')))
    (tmp_path / 'evil.py').write_text(CODE.format(str(tmp_path / 'ran')))
    if isinstance(text, str):
        text = text.format(CODE.format(str(tmp_path / 'ran')))
    info = dict(cfg=text)
    torch.save(dict(meta=dict(cfg=text), message_hub=dict(runtime_info=info)), tmp_path / 'x.pth')
    content = CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'), 'cpu')
    assert content == dict(meta={}, message_hub=dict(runtime_info={}))


def test_config_that_mmengine_has_printed_is_kept(tmp_path):
    cfg = Config(
        dict(
            CONFIG,
            custom_imports=dict(imports=['focal_mm'], allow_failed_imports=False),
            values=[1e9, -1.5, None, (1,), True],
            odd={1: 2, 'a-b': {}},
            types=[
                dict(type='torch.optim.sgd.SGD'),
                dict(type='torch.nn.ReLU'),
                dict(type='mmdet.ResNet'),
            ],
        )
    )
    meta = dict(cfg=cfg.pretty_text)
    torch.save(dict(meta=meta), tmp_path / 'x.pth')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'), 'cpu')['meta'] == meta


@pytest.mark.parametrize('path', ['outside/kept.pth', '/', '..', 'x\0y', 3, ['a'], 'best_../kept'])
def test_run_deletes_no_file_that_a_checkpoint_names(trained, resume, tmp_path, path):
    path = str(tmp_path / path) if isinstance(path, str) and path[0] != '/' else path
    info = {**trained['message_hub']['runtime_info'], 'best_ckpt': path, 'best_score': -100.0}
    info['keep_ckpt_ids'] = ['/../../outside/kept', 1]
    hub = {**trained['message_hub'], 'runtime_info': info}
    checkpoint = dict(type='CheckpointHook', interval=1, save_best='acc', max_keep_ckpts=1)
    runner = resume({**trained, 'message_hub': hub}, default_hooks=dict(checkpoint=checkpoint))
    assert Path(runner.message_hub.get_info('best_ckpt')).parent == tmp_path / 'run'


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=3),
        dict(dataset_meta=['a']),
        dict(dataset_meta={1: 'a'}),
        dict(dataset_meta=dict(classes=3)),
        dict(dataset_meta=dict(CLASSES=('a', None))),
        dict(dataset_meta=dict(classes=('a',), palette=[(1, 2)])),
        dict(dataset_meta=dict(classes=('a',), palette=[(1, 2, 300)])),
        dict(dataset_meta=dict(classes=('a',), palette=[('1', '2', '3')])),
        dict(CLASSES=[b'a']),
        dict(dataset_meta=dict(classes=('a\x1b]0;b\x07',))),
        dict(CLASSES=('a',), PALETTE=7),
        'meta',
        [('dataset_meta', {})],
    ],
    ids=str,
)
def test_odd_names_of_classes_are_one_line(tmp_path, meta):
    torch.save(dict(meta=meta, state_dict={'w': torch.ones(1)}), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth: .*take its weights alone') as error:
        CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))
    assert str(error.value).isprintable()


def test_name_of_a_tensor_leads_no_terminal(tmp_path):
    """mmengine prints the names of tensors that a network does not expect."""
    torch.save({'state_dict': {'a\x1b[2J\nb': torch.ones(1)}}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x1b.* is no name of a tensor'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'))


# ---- weights that are no numbers ---------------------------------------------------------------


NUMBERS = ['init_cfg', 'load_from', 'resume', 'mmengine', 'mmpretrain']


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('road', NUMBERS)
def test_weights_of_a_failed_training_are_refused(trained, tmp_path, road, value):
    if road in ('load_from', 'resume'):
        content = {**trained, 'state_dict': dict(Net().state_dict())}
    else:
        content = dict(state_dict=dict(FocalNet(ARCH).state_dict()))
    state = content['state_dict']
    key = next(reversed([key for key in state if key.endswith('weight')]))
    state[key] = torch.full_like(state[key], value)
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=rf'{key} is NaN or infinite \(1 of'):
        ROADS[road](str(tmp_path / 'x.pth'), tmp_path)


def test_masks_may_be_infinite(tmp_path):
    mask = torch.full((2, 2), -torch.inf).triu(1)
    torch.save({'state_dict': {'attn_mask': mask}}, tmp_path / 'x.pth')
    load = CheckpointLoader.load_checkpoint
    assert load(str(tmp_path / 'x.pth'))['state_dict']['attn_mask'].equal(mask)


def test_detector_and_segmentor_of_openmmlab_refuse_them_too(tmp_path):
    mmdet, mmseg = pytest.importorskip('mmdet.apis'), pytest.importorskip('mmseg.apis')
    torch.save({'state_dict': {'backbone.a.weight': torch.tensor(torch.nan)}}, tmp_path / 'x.pth')
    detector = dict(
        default_scope='mmdet',
        model=dict(
            type='RetinaNet',
            backbone=dict(type='FocalNet', arch=ARCH, out_indices=(0,)),
            neck=dict(type='ChannelMapper', in_channels=[8], out_channels=8),
            bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8),
        ),
    )
    segmentor = dict(
        default_scope='mmseg',
        model=dict(
            type='EncoderDecoder',
            backbone=dict(type='FocalNet', arch=ARCH),
            decode_head=dict(type='FCNHead', in_channels=16, in_index=1, channels=8, num_classes=2),
            test_cfg=dict(mode='whole'),
        ),
    )
    for build, config in (mmdet.init_detector, detector), (mmseg.init_model, segmentor):
        init_default_scope(config['default_scope'])
        with pytest.raises(CheckpointError, match=r'backbone\.a\.weight is NaN'):
            build(Config(config), str(tmp_path / 'x.pth'), device='cpu')
