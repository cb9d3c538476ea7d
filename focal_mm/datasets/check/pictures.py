"""Pictures: whether they are there, can be decoded, and are what training takes them for."""

import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from .json_file import kind_of
from .report import EXAMPLES, Report
from .work import parallel

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
SAMPLE = 500  # pictures and label maps that a quick check opens, spread evenly
MAX_PIXELS = 100_000_000  # of a picture that is decoded here
_ORIENTATION = 0x0112  # EXIF; from 5 on, width and height are exchanged
# Pillow has more, and one of them runs Ghostscript.
_FORMATS = (
    'JPEG', 'MPO', 'PNG', 'BMP', 'DIB', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000', 'AVIF', 'TGA'
)  # fmt: skip
_KINDS = {
    '16 bits': ('warning', 'picture of 16 bits or floats, which training reads with 8 bits'),
    'CMYK': ('warning', 'CMYK picture, whose colors decoders convert differently'),
    'palette': ('warning', 'picture with a palette of colors'),
    'alpha': ('warning', 'picture with transparency, which training drops'),
    'animated': ('warning', 'animated picture, of which training reads the first frame'),
    'colors': ('warning', 'picture in another color space than RGB'),
    'mirrored': (
        'warning',
        'picture that EXIF mirrors or turns, while its size cannot tell whether its boxes are too',
    ),
    'large': ('warning', f'picture of more than {MAX_PIXELS // 10**6} million pixels'),
    'gray': ('note', 'gray picture, which training reads as three equal channels'),
    'format': ('error', 'picture of a format that OpenCV does not read'),
}


class Facts(NamedTuple):
    """What the header of a picture says: its size in pixels, turned as EXIF says, and not."""

    size: tuple[int, int]
    stored: tuple[int, int]
    kinds: tuple[str, ...]


@dataclass
class Checked:
    """A set of pictures that was checked.

    Attributes:
        pictures (dict[str, Path]): The pictures by their names.
        unusable (dict[str, str]): For each picture that training cannot use, the reason.
        lines (dict[str, str], optional): For each picture its line in a list that could take the
            place of the set's own. Default: there are no such lists.
        classes (list[str], optional): Names of labels 0, 1, ... Default: not known.
    """

    pictures: dict[str, Path] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] | None = None
    classes: list[str] | None = None


@dataclass(frozen=True)
class Reading:
    """How a pipeline reads its pictures.

    Attributes:
        opencv (bool): Whether OpenCV decodes them. Default: True.
        turns (bool): Whether they are turned as EXIF says. Default: True.
        boxes (bool): Whether annotations have places in the picture. Default: True.
        usual (bool): Whether a usual loader reads them; of others only the presence of the files is
            checked. Default: True.
    """

    opencv: bool = True
    turns: bool = True
    boxes: bool = True
    usual: bool = True


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture of a format that is common in data sets.

    Raises:
        ValueError: If it cannot be opened or, in the block, decoded.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            yield image
    except Exception as error:  # each decoder has its own
        raise ValueError(f'picture that cannot be read{_explain(path, error)}') from error


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return ': far too many pixels'
    try:
        with path.open('rb') as file:
            start = file.read(64)
    except (OSError, ValueError):
        return ''
    kind = kind_of(start) or ('nothing but zeros' if not start.strip(b'\0') else '')
    return f': {kind}' if kind else ''


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as OpenCV reads a picture, which turns it as EXIF says."""
    width, height = image.size
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that is broken, which decoders pass over
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def look_at(path: Path, decode: bool, reading: Reading) -> Facts | str:
    """Return what the header of a picture says, or why it cannot be read.

    Args:
        path (Path): The picture.
        decode (bool): Decode all of it, unless it has more than 100 million pixels.
        reading (Reading): How training reads it.
    """
    known = not reading.opencv or _opencv_knows(path)
    try:
        with open_picture(path) as image:
            size = oriented_size(image) if reading.turns else image.size
            kinds = list(_kinds_of(image, reading))
            if not known:
                kinds.append('format')
            if image.width * image.height > MAX_PIXELS:
                kinds.append('large')
            elif decode:
                image.load()
            return Facts(size, image.size, tuple(kinds))
    except ValueError as error:
        if path.suffix.lower() in ('.tif', '.tiff') and known:
            return _look_by_opencv(path) or str(error)
        return str(error)


def _opencv_knows(path: Path) -> bool:
    import cv2

    try:
        return cv2.haveImageReader(os.fspath(path))
    except (cv2.error, ValueError):  # a name that is no UTF-8
        return True


def _look_by_opencv(path: Path) -> Facts | None:
    """Return the facts of a TIFF whose channels Pillow does not know, as of satellites."""
    import cv2

    if path.stat().st_size > 4 * MAX_PIXELS:
        return None
    try:
        image = cv2.imread(os.fspath(path), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if image is None:
        return None
    size = image.shape[1], image.shape[0]
    return Facts(size, size, ('16 bits',) if image.dtype.itemsize > 1 else ())


def _kinds_of(image: Image.Image, reading: Reading) -> Iterator[str]:
    mode = image.mode
    # Pillow reads 16 bits of three channels as 8 bits; only the raw mode tells.
    raw = ''.join(str(getattr(part, 'args', '')) for part in getattr(image, 'tile', ())[:1])
    if mode[0] in 'IF' or '16' in raw:
        yield '16 bits'
    if mode == 'CMYK':
        yield 'CMYK'
    if mode in ('LAB', 'HSV') or (mode == 'YCbCr' and image.format != 'JPEG'):
        yield 'colors'
    if mode in ('P', 'PA'):
        yield 'palette'
    if mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
        yield 'alpha'
    if mode in ('1', 'L', 'LA', 'La') or mode.startswith('I;16'):
        yield 'gray'
    # Cameras keep a preview beside the picture as a second frame of MPO.
    if image.format != 'MPO' and getattr(image, 'is_animated', False):
        yield 'animated'
    orientation = _orientation(image) if reading.turns and reading.boxes else 1
    if orientation > 1 and (orientation < 5 or image.width == image.height):
        yield 'mirrored'


def bytes_of(path: Path) -> int | None:
    """Return the length of a file in bytes; None if there is no such file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def check_pictures(
    folder: Path,
    pictures: dict[str, Path],
    report: Report,
    thorough: bool = False,
    sizes: dict[str, tuple[float, float]] | None = None,
    file: Path | None = None,
    reading: Reading = Reading(),
) -> dict[str, str]:
    """Look whether all pictures are there; open the headers of some, or decode all.

    Args:
        folder (Path): Their folder.
        pictures (dict[str, Path]): The pictures by their names.
        report (Report): Takes the findings.
        thorough (bool): Decode all. Default: open 500, spread evenly.
        sizes (dict, optional): For names, the width and height that ``file`` says.
        file (Path, optional): Where sizes and names are from. Default: ``folder``.
        reading (Reading): How training reads them.

    Returns:
        dict[str, str]: For each picture that training cannot use, the reason.
    """
    if pictures and not folder.is_dir() and not any(map(bytes_of, list(pictures.values())[:9])):
        report.error(folder, 'no such folder, where the pictures should be')
        return dict.fromkeys(pictures, 'missing picture')
    names = list(pictures)
    there: list[str] = []
    unusable: dict[str, str] = {}
    missing: list[str] = []
    lengths = parallel(bytes_of, list(pictures.values()), f'{folder.name}: files')
    for name, length in zip(names, lengths):
        if length is None:
            missing.append(name)
            unusable[name] = 'missing picture'
        elif length == 0:
            report.error(folder, 'picture of 0 bytes', name)
            unusable[name] = 'picture of 0 bytes'
        else:
            there.append(name)
    if missing:
        places = [f'{name}{_hint(pictures[name])}' for name in missing[:EXAMPLES]]
        report.add('error', folder, 'missing picture', places, len(missing))
    chosen = there if thorough else sample(there)
    if not reading.usual:
        return unusable

    def look(name: str) -> Facts | str:
        return look_at(pictures[name], thorough, reading)

    for name, facts in zip(chosen, parallel(look, chosen, f'{folder.name}: pictures')):
        if isinstance(facts, str):
            report.error(folder, facts, name)
            unusable[name] = facts
            continue
        for kind in facts.kinds:
            level, fault = _KINDS[kind]
            report.add(level, folder, fault, [name])
            if level == 'error':
                unusable[name] = fault
        said = (sizes or {}).get(name, facts.size)
        if said != facts.size:
            unusable[name] = fault = _misfit(said, facts)
            place = f'{name} ({facts.size[0]}x{facts.size[1]}, said {said[0]:g}x{said[1]:g})'
            report.error(file or folder, fault, place)
    return unusable


def _misfit(said: tuple[float, float], facts: Facts) -> str:
    if said == facts.stored:
        return 'picture that EXIF turns, so that width and height are exchanged'
    if said == facts.size[::-1]:
        return 'picture whose width and height are exchanged'
    if facts.size[0] < said[0] and facts.size[1] < said[1]:
        return 'picture that is smaller than width and height say'
    return 'picture of another size than width and height say'


def _hint(path: Path) -> str:
    """Return what a missing file may be called instead."""
    try:
        if path.is_dir():
            return ' (a folder)'
        if path.exists():
            return ' (no regular file)'
        if path.is_symlink():
            return ' (a link to nothing)'
        if found := _near(path):
            return f' (there is {found})'
    except (OSError, ValueError):
        pass
    return ' (with backslashes)' if '\\' in path.name else ''


def _near(path: Path) -> str:
    """Return the one name beside a missing file that differs in case, Unicode form or suffix."""
    slashed = Path(str(path).replace('\\', '/'))
    if slashed.is_file():
        return str(slashed)
    files = {name: _fold(name) for name in os.listdir(path.parent)}
    wanted = _fold(path.name)
    for same in (str, _stem):
        found = [name for name, folded in files.items() if same(folded) == same(wanted)]
        if len(found) == 1:
            return found[0]
    return ''


def _fold(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold().strip()


def _stem(name: str) -> str:
    return name.rpartition('.')[0]


def sample(items: Sequence[Any]) -> list[Any]:
    """Return at most 500 items, spread evenly."""
    return list(items[:: max(1, -(-len(items) // SAMPLE))])
