"""Published weights by name: mirrors, cache, and the ``focal://`` scheme of mmengine.

``focal://NAME`` is accepted wherever mmengine takes a checkpoint. The file is looked for, in this
order, in the folder ``$FOCAL_MM_WEIGHTS`` (if that is set, nothing is downloaded), in the cache
(:func:`focal_mm.cache.cache_dir`), and at the mirrors.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlparse

import rich.progress
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from rich.console import Console

from ..cache import cache_dir
from ..messages import printable
from ..registry import MODELS
from .content import secure
from .download import LARGEST, download, file_name, shows_progress
from .formats import read_checkpoint
from .loading import CheckpointError
from .published import ZOO, Weights

# Parameters that are fitted to the network, so that their shapes say nothing about its arch.
_FITTED = re.compile(r'focal_layers|pool_layers|relative_position|coord2rpb')


def list_weights() -> list[Weights]:
    """List all published weights, family by family."""
    return list(ZOO.values())


def find(name: str) -> tuple[Path, bool]:
    """Return the path of the file of published weights, whether it exists or not.

    Args:
        name (str): A key of :data:`ZOO`.

    Returns:
        tuple[Path, bool]: The file, and whether it exists.

    Raises:
        ValueError: If no weights have this name.
    """
    if name not in ZOO:
        near = get_close_matches(name, ZOO, n=3) or list(ZOO)
        raise ValueError(
            f'focal://{printable(name)}: no such weights; did you mean {", ".join(near)}?'
        )
    path = _folder() / ZOO[name].file
    for suffix in (path.suffix, '.pth', '.safetensors', '.bin', '.pdparams'):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix), True
    return path, False


def fetch(name: str) -> Path:
    """Return the file of published weights, and download it if it is not there.

    A mirror's answer counts once it has been read as a checkpoint of the entry's network and, where
    its hash is published, has that hash. The sha256 of a download is stored beside it
    (``FILE.sha256``) and checked at every later use. Dead addresses are not opened.

    Args:
        name (str): A key of :data:`ZOO`.

    Returns:
        Path: The file.

    Raises:
        ValueError: If no weights have this name.
        CheckpointError: If the file can't be downloaded, has changed since it was, or is of a
            network that does not exist here.
    """
    path, there = find(name)
    weights, offline = ZOO[name], os.environ.get('FOCAL_MM_WEIGHTS')
    if weights.refused:
        raise CheckpointError(f'focal://{name}: {weights.refused}')
    if there:
        _check(path)
        return path
    failures = []
    for url in () if offline else weights.mirrors:
        file = path.with_suffix(Path(urlparse(url).path).suffix)
        try:
            sha256 = download(
                url, file, partial(_require, weights), weights.sha256.get(url), _largest(weights)
            )
        except OSError as error:
            failures.append(f'{url} ({error})')
        else:
            _record(file).write_text(f'{sha256}  {file.name}\n')
            return file
    raise CheckpointError(f'focal://{name}: {_describe_missing(weights, path, failures)}')


def _largest(weights: Weights) -> int:
    """Return the number of bytes that a file of weights may have: with averages and the states of
    an optimizer, 16 a parameter, and a head for ImageNet-22K.
    """
    return LARGEST if weights.params is None else 500_000_000 + int(weights.params * 16e6)


def _describe_missing(weights: Weights, path: Path, failures: list[str]) -> str:
    """Return the reason why there is no file, and where a kept one goes."""
    kept = f'put a file that you kept at {path}'
    if offline := os.environ.get('FOCAL_MM_WEIGHTS'):
        reason = (
            f'FOCAL_MM_WEIGHTS={offline} has no such file, and nothing is downloaded while it is '
            f'set; addresses: {", ".join(weights.addresses) or "none"}'
        )
    elif failures:
        reason = f'mirrors: {"; ".join(failures)}'
    elif weights.dead:
        reason = f"its authors' server is gone ({weights.dead[0]}), and no other copy is known"
        sha256 = weights.sha256.get(weights.dead[0])
        kept += f' (its sha256 is {sha256})' if sha256 else ' (its sha256 was not published)'
    else:
        reason, kept = 'its authors never published it', f'put a file of your own at {path}'
        if weights.config:
            reason += (
                f'; configs/{weights.config} trains it, and --cfg-options '
                'model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone. '
                'starts from the result'
            )
    return (
        f'no {path.name} (nor .pth, .safetensors, .bin, .pdparams) in {path.parent}; {reason}; '
        f'{kept}, or into a folder that FOCAL_MM_WEIGHTS names, or train without it '
        '(--from-scratch)'
    )


def _require(weights: Weights, path: Path) -> None:
    """Read a file as a checkpoint of these weights' network: family, arch and kind of model.

    Raises:
        CheckpointError: If it is none.
    """
    content = read_checkpoint(path)
    state = content.get('state_dict', content) if isinstance(content, dict) else {}
    with torch.device('meta'):
        net = MODELS.get(weights.backbone)(arch=weights.arch, out_norm=False)
    own = dict(net.named_parameters())
    first = next(iter(own))
    prefix = next((k.removesuffix(first) for k in state if f'.{k}'.endswith(f'.{first}')), None)
    if prefix is None:
        raise CheckpointError(f'no {weights.backbone}: it has {next(iter(state), "nothing")}')
    if (prefix == '') != (weights.kind == 'classifier'):
        found = f'a backbone behind {prefix!r}' if prefix else 'a classifier or a backbone'
        raise CheckpointError(f'no {weights.kind}: it is {found}')
    theirs = {k[len(prefix) :]: value for k, value in state.items() if k.startswith(prefix)}
    other = f'no {weights.backbone} {weights.arch}'
    blocks, expected = _blocks(theirs), _blocks(own)
    if blocks != expected:
        raise CheckpointError(f'{other}: it has {len(blocks)} blocks instead of {len(expected)}')
    for key, value in own.items():
        if not _FITTED.search(key):
            shape = tuple(theirs[key].shape) if key in theirs else 'missing'
            if shape != value.shape:
                raise CheckpointError(f'{other}: {key} is {shape} instead of {tuple(value.shape)}')


def _blocks(names: Iterable[str]) -> set[str]:
    """Return the names of blocks, without what is in them."""
    found = (re.match(r'layers\.\d+\.blocks\.\d+\.', name) for name in names)
    return {match[0] for match in found if match}


def verify() -> Iterator[tuple[Path, str]]:
    """Check every file in the cache, or in ``$FOCAL_MM_WEIGHTS``, against its recorded sha256.

    Yields:
        tuple[Path, str]: The file, and ``'good'``, ``'changed'`` or, without a record,
        ``'unrecorded'``.
    """
    for path in sorted(_folder().glob('*')):
        if path.is_file() and path.suffix not in ('.sha256', '.part'):
            yield path, _state(path)


def _folder() -> Path:
    offline = os.environ.get('FOCAL_MM_WEIGHTS')
    return Path(offline).expanduser() if offline else cache_dir() / 'weights'


def _record(path: Path) -> Path:
    return path.with_name(f'{path.name}.sha256')


def _state(path: Path) -> str:
    if not _record(path).is_file():
        return 'unrecorded'
    sha256 = hashlib.sha256()
    with rich.progress.open(
        path,
        'rb',
        description=f'checking {path.name}',
        console=Console(stderr=True),
        transient=True,
        disable=not shows_progress(),
    ) as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    with _record(path).open(errors='replace') as record:
        recorded = record.read(1000).split()[:1]
    return 'good' if recorded == [sha256.hexdigest()] else 'changed'


def _check(path: Path) -> None:
    if _state(path) == 'changed':
        raise CheckpointError(
            f'{path}: sha256 is not the one in {_record(path).name}, so the file '
            'has changed since it was downloaded; delete both to get it again'
        )


def _fetch_url(url: str) -> Path:
    """Return the file of an address in torch's hub cache, where mmengine's own loader has it."""
    path = Path(torch.hub.get_dir()) / 'checkpoints' / file_name(url)
    if not path.is_file():
        try:
            download(url, path, read_checkpoint)
        except OSError as error:
            raise CheckpointError(
                f'{url}: {error}; download it elsewhere and name the local file instead'
            ) from error
    return path


def _load(get: Callable[[str], Path], source: str, map_location: str | torch.device | None) -> dict:
    """Read a file that one process downloads while the others wait."""
    path = None
    try:
        if get_rank() == 0:
            path = get(source)
    finally:
        barrier()
    return load_from_file(path or get(source), map_location)


def load_from_zoo(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Loader of ``focal://NAME`` for mmengine; see :func:`fetch` and :func:`read_checkpoint`."""
    return _load(fetch, filename.removeprefix('focal://'), map_location)


def load_from_url(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Loader of addresses for mmengine. As mmengine's own, it downloads to, and takes from, torch's
    hub cache, the first process first; but it runs no code (:func:`read_checkpoint`), and keeps no
    broken download.
    """
    return _load(_fetch_url, filename, map_location)


def load_from_file(filename: str | Path, map_location: str | torch.device | None = None) -> dict:
    """Loader of local files for mmengine that runs no code; see :func:`read_checkpoint` and
    :func:`~focal_mm.weights.content.secure`.
    """
    return secure(read_checkpoint(filename, map_location), filename)


def load_from_store(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Loader of object storage for mmengine that runs no code, as :func:`load_from_file`."""
    backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
    with TemporaryDirectory() as folder:
        path = Path(folder, 'checkpoint')
        path.write_bytes(backend.get(filename))
        return load_from_file(path, map_location)
