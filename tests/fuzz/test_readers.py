"""Random files for every reader: what comes back is a value or one line, and nothing else happens.

A fixed set of examples each time; other ones for an hour by ``make fuzz MINUTES=60``.
"""

import contextlib
import io
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from mmengine.runner import CheckpointLoader
from safetensors.torch import save

from focal_mm.cli.migrate import migrate
from focal_mm.weights import ZOO, CheckpointError, convert, find, recognise
from focal_mm.weights.content import secure
from focal_mm.weights.download import file_name
from focal_mm.weights.formats import to_official

pytestmark = pytest.mark.stock

MINUTES = float(os.environ.get('FOCAL_MM_FUZZ_MINUTES', '0'))
EXAMPLES = 100


def explore(
    check: Callable[..., None], examples: int = EXAMPLES, **strategies: st.SearchStrategy
) -> None:
    """Run a check on a fixed set of examples, or on random ones for some time."""
    end, number = time.monotonic() + 60 * MINUTES, 0
    options = settings(
        max_examples=examples if not MINUTES else 1000,
        derandomize=not MINUTES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    while number == 0 or time.monotonic() < end:

        def once(**values: Any) -> None:
            check(**values)

        seed(time.time_ns())(options(given(**strategies)(once)))()
        number += 1


# ---- what must not happen ----------------------------------------------------------------------

ACTS = (
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.remove',
    'os.rmdir',
    'os.rename',
    'os.mkdir',
    'os.chmod',
    'os.link',
    'os.symlink',
    'os.truncate',
    'shutil.rmtree',
    'socket.connect',
    'subprocess.Popen',
)
watched: list[str] | None = None


def watch(event: str, args: tuple) -> None:
    if watched is None:
        return
    if event in ACTS or (event == 'open' and args[1] and set(str(args[1])) & set('wax+')):
        watched.append(f'{event} {args}')


sys.addaudithook(watch)


def read(call: Callable[[], object], *errors: type[Exception]) -> None:
    """Call a reader, which may raise one line, and must not act."""
    global watched  # noqa: PLW0603  an audit hook stays for the whole process
    watched = []
    try:
        call()
        message = ''
    except errors as error:
        message = str(error)
    finally:
        acts, watched = watched, None
    assert acts == []
    assert message.isprintable() and len(message) < 5000


# ---- files -------------------------------------------------------------------------------------


def seeds() -> dict[str, bytes]:
    """A whole file of each kind."""
    state = {'layers.0.w': torch.ones(2, 3), 'b': torch.zeros(4, dtype=torch.bfloat16)}
    arrays = {key: value.float().numpy() for key, value in state.items()}
    content = dict(meta=dict(dataset_meta=dict(classes=('a',))), state_dict=state)
    files = {}
    for name, options in (('zip', {}), ('legacy', dict(_use_new_zipfile_serialization=False))):
        file = io.BytesIO()
        torch.save(content, file, **options)
        files[name] = file.getvalue()
    file = io.BytesIO()
    np.savez(file, **arrays)
    files['npz'] = file.getvalue()
    files['safetensors'] = save(state)
    for protocol in (0, 2, 4):
        files[f'pickle {protocol}'] = pickle.dumps(arrays, protocol)
    return files


FILES = seeds()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A whole file, in which some bytes are others, missing, or there twice."""
    content = bytearray(FILES[draw(st.sampled_from(list(FILES)))])
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8) | st.integers(0, len(content)))
        piece = bytes(content[start : start + length])
        new = draw(
            st.binary(max_size=8)
            | st.sampled_from([b'', piece * 2, piece[::-1], b'\xff' * len(piece), bytes(length)])
        )
        content[start : start + length] = new
    return bytes(content)


def test_damaged_file_is_read_or_refused(tmp_path):
    def check(content: bytes) -> None:
        file = tmp_path / 'x.pth'
        file.write_bytes(content)
        read(lambda: CheckpointLoader.load_checkpoint(str(file), 'cpu'), CheckpointError)

    explore(check, content=damaged())


NAMES = [
    ('os', 'mkdir'),
    ('posix', 'system'),
    ('builtins', 'eval'),
    ('builtins', 'exec'),
    ('builtins', 'getattr'),
    ('builtins', '__import__'),
    ('builtins', 'list'),
    ('builtins', 'dict'),
    ('builtins', 'range'),
    ('builtins', 'str'),
    ('builtins', 'bytes'),
    ('builtins', 'bytearray'),
    ('builtins', 'object'),
    ('builtins', 'slice'),
    ('collections', 'OrderedDict'),
    ('collections', 'defaultdict'),
    ('collections', 'deque'),
    ('decimal', 'Decimal'),
    ('fractions', 'Fraction'),
    ('pathlib', 'PosixPath'),
    ('argparse', 'Namespace'),
    ('types', 'SimpleNamespace'),
    ('types', 'FunctionType'),
    ('copyreg', '_reconstructor'),
    ('_codecs', 'encode'),
    ('functools', 'partial'),
    ('operator', 'attrgetter'),
    ('numpy', 'ndarray'),
    ('numpy', 'dtype'),
    ('numpy', 'float64'),
    ('numpy.core.multiarray', '_reconstruct'),
    ('numpy.core.multiarray', 'scalar'),
    ('numpy._core.numeric', '_frombuffer'),
    ('torch', 'Tensor'),
    ('torch', 'Size'),
    ('torch', 'device'),
    ('torch', 'load'),
    ('torch._utils', '_rebuild_tensor_v2'),
    ('torch._utils', '_rebuild_parameter'),
    ('torch._utils', '_rebuild_sparse_tensor'),
    ('torch._utils', '_rebuild_meta_tensor_no_storage'),
    ('torch._tensor', '_rebuild_from_type_v2'),
    ('torch.storage', '_load_from_bytes'),
    ('yacs.config', 'CfgNode'),
    ('mmengine.config.config', 'ConfigDict'),
    ('mmengine.config.lazy', 'LazyObject'),
    ('mmengine.logging.history_buffer', 'HistoryBuffer'),
    ('mmengine.logging.history_buffer', 'HistoryBuffer.mean'),
    ('mmengine.logging.message_hub', 'MessageHub'),
    ('addict.addict', 'Dict'),
]


def name(pair: tuple[str, str]) -> bytes:
    return b'c%s\n%s\n' % (pair[0].encode(), pair[1].encode())


# Opcodes with their arguments.
OPCODES = (
    st.sampled_from(NAMES).map(name)
    | st.sampled_from([b'R', b'R', b'b', b'\x81', b'\x92', b't', b'\x85', b'\x86', b'\x87', b')'])
    | st.sampled_from(
        [b'(', b'(', b'd', b'}', b's', b'u', b'l', b']', b'a', b'e', b'\x90', b'\x91']
    )
    | st.sampled_from(
        [b'N', b'\x88', b'0', b'2', b'\x94', b'h\x00', b'h\x01', b'h\x02', b'o', b'Q']
    )
    | st.integers(-(2**31), 2**31 - 1).map(lambda i: b'J' + i.to_bytes(4, 'little', signed=True))
    | st.text(max_size=6).map(
        lambda text: (
            b'X'
            + len(text.encode(errors='replace')).to_bytes(4, 'little')
            + text.encode(errors='replace')
        )
    )
    | st.binary(max_size=6).map(lambda data: b'C' + bytes([len(data)]) + data)
)


@pytest.mark.parametrize('omit', [False, True])
def test_pickle_of_random_opcodes_is_read_or_refused(tmp_path, omit):
    def check(opcodes: list[bytes]) -> None:
        file = tmp_path / 'x.pdparams'
        # So that more of them are reached: a name, its call, and what is left in a dict.
        file.write_bytes(b'\x80\x04}X\x01\x00\x00\x00k' + b''.join(opcodes) + b's.')
        if omit:
            (tmp_path / 'new.pth').unlink(missing_ok=True)
            with pytest.raises((CheckpointError, FileExistsError, ValueError)):
                convert(file, tmp_path / 'new.pth')
        else:
            read(lambda: CheckpointLoader.load_checkpoint(str(file), 'cpu'), CheckpointError)

    explore(check, opcodes=st.lists(OPCODES, min_size=1, max_size=30))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
TENSORS = st.dictionaries(
    st.text(max_size=5) | st.just('__metadata__'),
    st.fixed_dictionaries(
        dict(
            dtype=st.sampled_from(['F32', 'F64', 'BF16', 'I64', 'BOOL', 'F8_E4M3', 'X']),
            shape=st.lists(st.integers(-1, 2**64) | st.integers(0, 4), max_size=4),
            data_offsets=st.lists(st.integers(-1, 2**64) | st.integers(0, 64), max_size=3),
        )
    )
    | JSON,
    max_size=4,
)


def test_header_of_safetensors_is_read_or_refused(tmp_path):
    def check(header: Any, shift: int, size: int) -> None:
        file = tmp_path / 'x.safetensors'
        text = json.dumps(header).encode()
        file.write_bytes(max(len(text) + shift, 0).to_bytes(8, 'little') + text + bytes(size))
        read(lambda: CheckpointLoader.load_checkpoint(str(file), 'cpu'), CheckpointError)

    explore(
        check,
        header=TENSORS | JSON,
        shift=st.just(0) | st.integers(-50, 2**40),
        size=st.integers(0, 64),
    )


# ---- names and contents ------------------------------------------------------------------------

PATHS = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ['..', '.', '/', '\\', '%2e', '%00', '\0', '~', 'C:', 'focal', '%2f', 'a', '?']
    ),
    max_size=8,
).map(''.join)


def test_names_are_found_or_refused(tmp_path):
    def check(text: str) -> None:
        if text not in ZOO:
            with pytest.raises(ValueError, match='no such weights') as error:
                find(text)
            assert str(error.value).isprintable()
        with contextlib.suppress(CheckpointError):
            found = file_name(f'http://host/{text}')
            assert (tmp_path / found).parent == tmp_path and found not in ('', '.', '..')

    explore(check, text=PATHS)


WORDS = (
    'meta message_hub runtime_info dataset_meta classes CLASSES palette cfg config best_ckpt '
    'keep_ckpt_ids state_dict w iter'
)
KEYS = st.sampled_from(WORDS.split())
VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.floats()
    | PATHS
    | st.binary(max_size=3)
    | st.sampled_from([torch.ones(2), torch.full((2,), torch.nan), np.ones(3), np.array(['a'])]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(KEYS | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_content_is_secured_or_refused(tmp_path):
    def check(content: Any) -> None:
        read(lambda: secure(content, tmp_path / 'x.pth'), CheckpointError)

    explore(check, content=st.dictionaries(KEYS, VALUES, max_size=4) | VALUES)


NODES = (
    'backbone module layers 0 1 blocks modulation f h proj weight stem patch_embed attn gamma '
    'norm1_post ls1 downsample stages encoder embeddings focalnet _mean _variance mlp fc1 head '
    'fc layers_0 transformer decoder class_embed bbox_embed input_proj neck layer layernorm '
    'patch_embeddings projection projection_in'
)
PARTS = st.lists(st.sampled_from(NODES.split()), max_size=8).map('.'.join)
MARKS = st.sampled_from(
    [
        ('patch_embed.proj.weight', 'layers.0.blocks.0.modulation.f.weight'),
        ('stem.proj.weight', 'layers.0.blocks.0.modulation.f.weight'),
        (
            'embeddings.patch_embeddings.projection.weight',
            'encoder.stages.0.layers.0.modulation.projection_in.weight',
        ),
        (
            'layers.0.blocks.0.attn.dwconv3x3.1._mean',
            'layers.0.blocks.0.attn.dwconv3x3.1._variance',
        ),
        (),
    ]
)


def test_names_of_tensors_are_translated_or_refused():
    def check(marks: tuple[str, ...], names: list[str], shape: list[int]) -> None:
        state = {name: torch.zeros(shape) for name in (*marks, *names)}
        recognise(state)
        read(lambda: to_official(state), CheckpointError)

    explore(
        check,
        marks=MARKS,
        names=st.lists(PARTS, max_size=6),
        shape=st.lists(st.integers(0, 3), max_size=5),
    )


# ---- configs -----------------------------------------------------------------------------------

OLD = """
_base_ = []
img_norm = dict(mean=[1., 2., 3.], std=[1., 1., 1.], to_rgb=True)
model = dict(
    type='MaskRCNN',
    backbone=dict(type='FocalNet', embed_dim=96, depths=[2, 2, 6, 2], focal_levels=[3, 3, 3, 3]),
    neck=dict(type='FPN', in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5),
    test_cfg=dict(rpn=dict(nms_pre=1000), rcnn=dict(score_thr=0.05)))
data = dict(samples_per_gpu=2, train=dict(type='CocoDataset', pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', img_scale=(1333, 800))]),
    val=dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile')]))
optimizer = dict(type='AdamW', lr=0.0001)
lr_config = dict(policy='step', step=[8, 11])
runner = dict(type='EpochBasedRunner', max_epochs=12)
"""
CODE = """
dict( [ ) ] None 0 'a' 1e400 - _base_ lambda:0 __import__('os') ().__class__ 10**9**9 = , * %
'a'*10**9 [0]*10**10 {{_base_.x}} range(10**12) list(range(10**10)) '{0.__class__}'.format(1)
"""
PIECES = st.sampled_from([*CODE.split(), '\0', 'import os\n'])


def test_old_config_is_migrated_or_refused(tmp_path):
    (tmp_path / 'whole.py').write_text(OLD)
    migrate(tmp_path / 'whole.py')  # imports what the others need

    def check(edits: list[tuple[int, int, str]]) -> None:
        text = OLD
        for start, length, piece in edits:
            start %= len(text) + 1
            text = text[:start] + piece + text[start + length :]
        file = Path(tmp_path, 'old.py')
        file.write_text(text, encoding='utf-8')
        read(lambda: migrate(file), ValueError, FileNotFoundError)

    explore(
        check,
        examples=20,  # each of which reads mmdet's configs
        edits=st.lists(
            st.tuples(st.integers(0, 2000), st.integers(0, 12) | st.integers(0, 200), PIECES),
            min_size=1,
            max_size=3,
        ),
    )
