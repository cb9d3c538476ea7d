"""Published weights by name: mirrors, cache, and the ``focal://`` scheme of mmengine.

``focal://NAME`` stands wherever mmengine takes a checkpoint. The file comes, in this order, from
the folder ``$FOCAL_MM_WEIGHTS`` (where that is set, nothing is downloaded), from the cache
(``$FOCAL_MM_CACHE``, ``$XDG_CACHE_HOME/focal_mm`` or ``~/.cache/focal_mm``), or from the first
mirror that has it.
"""
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from tqdm import tqdm

from .formats import read_checkpoint
from .resize import CheckpointError

_GITHUB = 'https://github.com/microsoft/FocalNet/releases/download/v1.0.0/'
_HUB = 'https://huggingface.co/'
# The authors' first home for the files; it no longer answers.
_DEAD = 'https://projects4jw.blob.core.windows.net/focalnet/release/classification/'


@dataclass(frozen=True)
class Weights:
    """A published checkpoint.

    Attributes:
        name (str): What follows ``focal://``.
        file (str): The authors' file name; ``.safetensors`` and ``.bin`` are looked for as well.
        mirrors (tuple[str]): Addresses, in the order in which they are tried. Dead ones are kept
            last. None at all: the authors never published it.
        params (float): Parameters of the classifier in millions, as the authors give them.
        top1 (float or None): ImageNet-1K top-1 accuracy in percent, as the paper gives it.
        input_size (int): Side of the training images in pixels.
        licence (str): Licence of the weights.
    """
    name: str
    file: str
    mirrors: tuple[str, ...]
    params: float
    top1: float | None
    input_size: int = 224
    licence: str = 'MIT'


def _focalnet(arch: str, params: float, top1: float | None, file: str | None = None,
              hub: str | None = None, timm: bool = True, github: bool = True,
              data: str = 'in1k', input_size: int = 224) -> Weights:
    file = file or f'focalnet_{arch}.pth'
    mirrors = [_GITHUB + file] if github else []
    if hub:
        mirrors.append(f'{_HUB}microsoft/focalnet-{hub}/resolve/main/pytorch_model.bin')
    if timm:
        mirrors.append(f'{_HUB}timm/focalnet_{arch}.ms_{data}/resolve/main/model.safetensors')
    return Weights(f'focalnet_{arch}_{data}', file, (*mirrors, _DEAD + file), params, top1,
                   input_size)


# Names, parameters and accuracies: README of microsoft/FocalNet; paper, Tables 1, 3 and 13.
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
        _focalnet('large_fl3', 207, None, 'focalnet_large_lrf_384.pth', data='in22k',
                  input_size=384),
        _focalnet('large_fl4', 207, None, 'focalnet_large_lrf_384_fl4.pth', data='in22k',
                  input_size=384),
        _focalnet('xlarge_fl3', 366, None, 'focalnet_xlarge_lrf_384.pth', data='in22k',
                  input_size=384),
        _focalnet('xlarge_fl4', 366, None, 'focalnet_xlarge_lrf_384_fl4.pth', data='in22k',
                  input_size=384),
        _focalnet('huge_fl3', 687, None, 'focalnet_huge_lrf_224.pth', github=False, data='in22k'),
        _focalnet('huge_fl4', 689, None, 'focalnet_huge_lrf_224_fl4.pth', github=False,
                  data='in22k'),
        # The nets of Table 3, whose weights nobody has published.
        *(Weights(f'focalnet_{size}_lrf_deep_in1k', f'focalnet_{size}_lrf_deep.pth', (), *figures)
          for size, figures in dict(tiny=(25.1, 82.7), small=(38.2, 83.5),
                                    base=(85.1, 84.1)).items()),
    )
}


def cache_dir() -> Path:
    """The folder in which the package keeps what it downloads or draws."""
    default = Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')) / 'focal_mm'
    return Path(os.environ.get('FOCAL_MM_CACHE', default)).expanduser()


def fetch(name: str) -> Path:
    """The file of published weights, downloaded if need be.

    The sha256 of a download is kept beside it (``FILE.sha256``) and checked at every later use.

    Args:
        name (str): A key of :data:`ZOO`.

    Returns:
        Path: The file.

    Raises:
        ValueError: If no weights have this name.
        CheckpointError: If the file is neither there nor to be had, or is not what was downloaded.
    """
    if name not in ZOO:
        near = get_close_matches(name, ZOO, n=3) or list(ZOO)
        raise ValueError(f'focal://{name}: no such weights; did you mean {", ".join(near)}?')
    weights = ZOO[name]
    offline = os.environ.get('FOCAL_MM_WEIGHTS')
    folder = Path(offline).expanduser() if offline else cache_dir() / 'weights'
    path = folder / weights.file
    for candidate in (path, path.with_suffix('.safetensors'), path.with_suffix('.bin')):
        if candidate.is_file():
            _check_sha256(candidate)
            return candidate
    failures = []
    for url in () if offline else weights.mirrors:
        candidate = path.with_suffix(Path(url).suffix)
        try:
            _download(url, candidate)
            return candidate
        except OSError as error:
            failures.append(f'{url} ({error})')
    if offline:
        tried = f'FOCAL_MM_WEIGHTS={offline} has no such file, and nothing is downloaded while it ' \
                f'is set; mirrors: {", ".join(weights.mirrors) or "none"}'
    elif weights.mirrors:
        tried = f'mirrors: {"; ".join(failures)}'
    else:
        tried = 'its authors never published it'
    raise CheckpointError(
        f'focal://{name}: no {path.name} (nor .safetensors, .bin) in {folder}; {tried}. Put the '
        'file there, or into a folder that FOCAL_MM_WEIGHTS names, or train without it '
        '(--from-scratch)')


def _download(url: str, path: Path) -> None:
    """Downloads to a temporary name; ``path`` appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    print_log(f'{url} -> {path}', logger='current')
    sha256, size = hashlib.sha256(), 0
    part = tempfile.NamedTemporaryFile(dir=path.parent, suffix='.part', delete=False)
    try:
        with part, urlopen(url, timeout=20) as response:
            total = int(response.headers.get('Content-Length') or 0)
            with tqdm(total=total or None, unit='B', unit_scale=True, desc=path.name) as bar:
                while chunk := response.read(1 << 20):
                    part.write(chunk)
                    sha256.update(chunk)
                    size += len(chunk)
                    bar.update(len(chunk))
        if total and size != total:
            raise OSError(f'cut off after {size} of {total} bytes')
        path.with_name(f'{path.name}.sha256').write_text(f'{sha256.hexdigest()}  {path.name}\n')
        os.replace(part.name, path)
    finally:
        Path(part.name).unlink(missing_ok=True)


def _check_sha256(path: Path) -> None:
    record = path.with_name(f'{path.name}.sha256')
    if not record.is_file():
        return
    sha256 = hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    if sha256.hexdigest() != record.read_text().split()[0]:
        raise CheckpointError(f'{path}: sha256 is not the one in {record.name}, so the file has '
                              'changed since it was downloaded; delete both to get it again')


def _fetch_url(url: str) -> Path:
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]  # many files are called model.bin
    path = cache_dir() / 'weights' / f'{digest}-{Path(urlparse(url).path).name}'
    if path.is_file():
        _check_sha256(path)
        return path
    try:
        _download(url, path)
    except OSError as error:
        raise CheckpointError(f'{url}: {error}; download it elsewhere and name the local file '
                              'instead') from error
    return path


def _load(get: Callable[[str], Path], source: str, map_location: str | torch.device | None) -> dict:
    """Downloads on one process before the others look."""
    path = None
    try:
        if get_rank() == 0:
            path = get(source)
    finally:
        barrier()
    return read_checkpoint(path or get(source), map_location)


def load_from_zoo(filename: str, map_location: str | torch.device | None = None) -> dict:
    """mmengine's loader of ``focal://NAME``; see :func:`fetch` and :func:`read_checkpoint`."""
    return _load(fetch, filename.removeprefix('focal://'), map_location)


def load_from_url(filename: str, map_location: str | torch.device | None = None) -> dict:
    """mmengine's loader of addresses, made safe; see :func:`read_checkpoint`."""
    return _load(_fetch_url, filename, map_location)


def load_from_file(filename: str, map_location: str | torch.device | None = None) -> dict:
    """mmengine's loader of local files, made safe; see :func:`read_checkpoint`."""
    return read_checkpoint(filename, map_location)


def register() -> None:
    """Makes mmengine load ``focal://`` names, and addresses and files without running their code.

    mmengine 0.10.7 can't read its own checkpoints on torch 2.6 and later
    (open-mmlab/mmengine #1655); its OneDL fork falls back to running what the file brings.
    """
    CheckpointLoader.register_scheme('focal://', load_from_zoo, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_url, force=True)
    CheckpointLoader.register_scheme('', load_from_file, force=True)
