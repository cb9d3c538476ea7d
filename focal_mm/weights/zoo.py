"""Published weights by name: mirrors, cache, and the ``focal://`` scheme of mmengine.

``focal://NAME`` is accepted wherever mmengine takes a checkpoint. The file is looked for, in this
order, in the folder ``$FOCAL_MM_WEIGHTS`` (if that is set, nothing is downloaded), in the cache
(:func:`focal_mm.cache.cache_dir`), and at the mirrors.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from tqdm import tqdm

from ..cache import cache_dir, whole_file
from .formats import read_checkpoint
from .loading import CheckpointError

_GITHUB = 'https://github.com/microsoft/FocalNet/releases/download/v1.0.0/'
_HUB = 'https://huggingface.co/'
_PADDLE = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph/'
# Microsoft's first home for the files; it no longer answers.
_DEAD = 'https://projects4jw.blob.core.windows.net/'


@dataclass(frozen=True)
class Weights:
    """A published checkpoint.

    Attributes:
        name (str): The name after ``focal://``.
        file (str): The authors' file name; it is also looked for with ``.pth``, ``.safetensors``
            and ``.bin``.
        backbone (str): Type of the backbone that it fits.
        arch (str): Arch of that backbone.
        params (float): Parameters of the ImageNet-1K classifier in millions, as the authors give
            them, or counted if they don't.
        top1 (float or None): ImageNet-1K top-1 accuracy in percent, as the authors give it.
        mirrors (tuple[str]): Addresses, in the order in which they are tried.
        dead (tuple[str]): Addresses that no longer answer; they are tried after the mirrors. If
            there are neither mirrors nor these, the authors never published the file.
        input_size (int): Side of the training images in pixels.
        licence (str): Licence of the weights.
    """

    name: str
    file: str
    backbone: str
    arch: str
    params: float
    top1: float | None
    mirrors: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    input_size: int = 224
    licence: str = 'MIT'

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses in the order in which they are tried, with dead ones marked."""
        return (*self.mirrors, *(f'{url} (dead)' for url in self.dead))


def _focalnet(
    arch: str,
    params: float,
    top1: float | None,
    file: str | None = None,
    hub: str | None = None,
    timm: bool = True,
    github: bool = True,
    data: str = 'in1k',
    input_size: int = 224,
) -> Weights:
    file = file or f'focalnet_{arch}.pth'
    mirrors = [_GITHUB + file] if github else []
    if hub:
        mirrors.append(f'{_HUB}microsoft/focalnet-{hub}/resolve/main/pytorch_model.bin')
    if timm:
        mirrors.append(f'{_HUB}timm/focalnet_{arch}.ms_{data}/resolve/main/model.safetensors')
    return Weights(
        f'focalnet_{arch}_{data}',
        file,
        'FocalNet',
        arch,
        params,
        top1,
        tuple(mirrors),
        (f'{_DEAD}focalnet/release/classification/{file}',),
        input_size,
    )


def _focal_transformer(arch: str, params: float, top1: float, file: str) -> Weights:
    return Weights(
        f'focal_{arch}_in1k',
        file,
        'FocalTransformer',
        arch,
        params,
        top1,
        dead=(f'{_DEAD}model/focal-transformer/imagenet1k/{file}',),
    )


def _mixformer(arch: str, params: float, top1: float | None) -> Weights:
    file = f'MixFormer_{arch.upper()}_pretrained.pdparams'
    return Weights(
        f'mixformer_{arch}_in1k',
        file,
        'MixFormer',
        arch,
        params,
        top1,
        (_PADDLE + file,),
        licence='Apache-2.0',
    )


# Names, parameters and accuracies: README of microsoft/FocalNet and paper, Tables 1 and 13; README
# of microsoft/Focal-Transformer; MixFormer's paper, Table 3.
ZOO: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        _focalnet('tiny_srf', 28.4, 82.1, hub='tiny'),
        _focalnet('tiny_lrf', 28.6, 82.3, hub='tiny-lrf'),
        _focalnet('small_srf', 49.9, 83.4, hub='small'),
        _focalnet('small_lrf', 50.3, 83.5, hub='small-lrf'),
        _focalnet('base_srf', 88.1, 83.7, hub='base'),
        _focalnet('base_lrf', 88.7, 83.9, hub='base-lrf'),
        _focalnet('tiny_iso', 5.9, 74.1, 'focalnet_tiny_iso_16.pth', timm=False, github=False),
        _focalnet('small_iso', 22.4, 80.9, 'focalnet_small_iso_16.pth', timm=False, github=False),
        _focalnet('base_iso', 87.2, 82.4, 'focalnet_base_iso_16.pth', timm=False, github=False),
        _focalnet(
            'large_fl3', 207, None, 'focalnet_large_lrf_384.pth', data='in22k', input_size=384
        ),
        _focalnet(
            'large_fl4', 207, None, 'focalnet_large_lrf_384_fl4.pth', data='in22k', input_size=384
        ),
        _focalnet(
            'xlarge_fl3', 366, None, 'focalnet_xlarge_lrf_384.pth', data='in22k', input_size=384
        ),
        _focalnet(
            'xlarge_fl4', 366, None, 'focalnet_xlarge_lrf_384_fl4.pth', data='in22k', input_size=384
        ),
        _focalnet('huge_fl3', 687, None, 'focalnet_huge_lrf_224.pth', github=False, data='in22k'),
        _focalnet(
            'huge_fl4', 689, None, 'focalnet_huge_lrf_224_fl4.pth', github=False, data='in22k'
        ),
        # Networks of Table 4 and networks like those of Table 3, whose weights are not published.
        *(
            Weights(
                f'focalnet_{arch}_{data}',
                f'focalnet_{arch}_{data}.pth',
                'FocalNet',
                arch,
                params,
                None,
            )
            for arch, data, params in (
                ('base_srf', 'in22k', 88.1),
                ('large_srf', 'in22k', 197.1),
                ('tiny_lrf_deep', 'in1k', 25.5),
                ('small_lrf_deep', 'in1k', 38.7),
                ('base_lrf_deep', 'in1k', 85.8),
            )
        ),
        # The largest network of the paper, whose weights are not published.
        Weights(
            'focal_large_in22k', 'focal_large_in22k.pth', 'FocalTransformer', 'large', 199.6, None
        ),
        _focal_transformer('tiny', 28.9, 82.2, 'focal-tiny-is224-ws7.pth'),
        _focal_transformer('small', 51.1, 83.6, 'focal-small-is224-ws7.pth'),
        _focal_transformer('base', 89.8, 84.0, 'focal-base-is224-ws7.pth'),
        _focal_transformer('tiny_conv', 30.8, 82.7, 'focal-tiny-useconv-is224-ws7.pth'),
        _focal_transformer('small_conv', 53.1, 83.8, 'focal-small-useconv-is224-ws7.pth'),
        _focal_transformer('base_conv', 93.3, 84.2, 'focal-base-useconv-is224-ws7.pth'),
        _focal_transformer('fast_tiny', 30.2, 82.4, 'focalv2-tiny-useconv-is224-ws7.pth'),
        _focal_transformer('fast_small', 51.5, 83.6, 'focalv2-small-useconv-is224-ws7.pth'),
        _focal_transformer('fast_base', 91.2, 84.0, 'focalv2-base-useconv-is224-ws7.pth'),
        _mixformer('b1', 8, 78.9),
        _mixformer('b2', 10, 80.0),
        _mixformer('b3', 17, 81.7),
        _mixformer('b4', 35, 83.0),
        _mixformer('b6', 119.5, None),
    )
}


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
        raise ValueError(f'focal://{name}: no such weights; did you mean {", ".join(near)}?')
    path = _folder() / ZOO[name].file
    for suffix in (path.suffix, '.pth', '.safetensors', '.bin'):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix), True
    return path, False


def fetch(name: str) -> Path:
    """Return the file of published weights, and download it if it is not there.

    The sha256 of a download is stored beside it (``FILE.sha256``) and checked at every later use.

    Args:
        name (str): A key of :data:`ZOO`.

    Returns:
        Path: The file.

    Raises:
        ValueError: If no weights have this name.
        CheckpointError: If the file can't be downloaded, or has changed since it was.
    """
    path, there = find(name)
    if there:
        _check(path)
        return path
    weights, offline = ZOO[name], os.environ.get('FOCAL_MM_WEIGHTS')
    failures = []
    for url in () if offline else (*weights.mirrors, *weights.dead):
        candidate = path.with_suffix(Path(url).suffix)
        try:
            _download(url, candidate)
            return candidate
        except OSError as error:
            failures.append(f'{url} ({"dead: " if url in weights.dead else ""}{error})')
    if offline:
        tried = (
            f'FOCAL_MM_WEIGHTS={offline} has no such file, and nothing is downloaded while '
            f'it is set; mirrors: {", ".join(weights.addresses) or "none"}'
        )
    elif failures:
        tried = f'mirrors: {"; ".join(failures)}'
    else:
        tried = 'its authors never published it'
    raise CheckpointError(
        f'focal://{name}: no {path.name} (nor .pth, .safetensors, .bin) in {path.parent}; {tried}. '
        'Put the file there, or into a folder that FOCAL_MM_WEIGHTS names, or train without it '
        '(--from-scratch)'
    )


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
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    recorded = _record(path).read_text().split()[:1]
    return 'good' if recorded == [sha256.hexdigest()] else 'changed'


def _check(path: Path) -> None:
    if _state(path) == 'changed':
        raise CheckpointError(
            f'{path}: sha256 is not the one in {_record(path).name}, so the file '
            'has changed since it was downloaded; delete both to get it again'
        )


def _download(url: str, path: Path) -> None:
    """Download a file; ``path`` appears once it is complete.

    Raises:
        OSError: If the download fails, or the address answers with a page instead of a file.
    """
    print_log(f'{url} -> {path}', logger='current')
    sha256, size = hashlib.sha256(), 0
    with whole_file(path) as part:
        try:
            with part.open('wb') as file, urlopen(url, timeout=20) as response:
                if response.headers.get_content_type() == 'text/html':
                    raise OSError('a page, no file')
                total = int(response.headers.get('Content-Length') or 0)
                with tqdm(total=total or None, unit='B', unit_scale=True, desc=path.name) as bar:
                    while chunk := response.read(1 << 20):
                        file.write(chunk)
                        sha256.update(chunk)
                        size += len(chunk)
                        bar.update(len(chunk))
        except HTTPException as error:
            raise OSError(f'{type(error).__name__}: {error}') from error
        if total and size != total:
            raise OSError(f'cut off after {size} of {total} bytes')
        _record(path).write_text(f'{sha256.hexdigest()}  {path.name}\n')


def _fetch_url(url: str) -> Path:
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]  # many files are called model.bin
    path = cache_dir() / 'weights' / f'{digest}-{Path(urlparse(url).path).name}'
    if path.is_file():
        _check(path)
        return path
    try:
        _download(url, path)
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
    return read_checkpoint(path or get(source), map_location)


def load_from_zoo(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Loader of ``focal://NAME`` for mmengine; see :func:`fetch` and :func:`read_checkpoint`."""
    return _load(fetch, filename.removeprefix('focal://'), map_location)


def load_from_url(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Loader of addresses for mmengine that runs no code; see :func:`read_checkpoint`."""
    return _load(_fetch_url, filename, map_location)


def load_from_file(filename: str, map_location: str | torch.device | None = None) -> dict:
    """Loader of local files for mmengine that runs no code; see :func:`read_checkpoint`."""
    return read_checkpoint(filename, map_location)


def register() -> None:
    """Make mmengine load ``focal://`` names, and load addresses and files without running code.

    mmengine 0.10.7 can't read its own checkpoints on torch 2.6 and later
    (open-mmlab/mmengine #1655); its OneDL fork then runs the code in the file.
    """
    CheckpointLoader.register_scheme('focal://', load_from_zoo, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_url, force=True)
    CheckpointLoader.register_scheme('', load_from_file, force=True)
