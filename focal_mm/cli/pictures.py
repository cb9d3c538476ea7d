"""Pictures and videos of a user: finding, reading and writing them."""

import glob
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from ..cache import whole_file

PICTURES = frozenset(['.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'])
VIDEOS = frozenset(['.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'])
WRITTEN = frozenset(
    ['.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp']
)  # others are drawn as .jpg

TILES, TILE = 24, 320  # of the contact sheet: how many pictures, and their larger side in pixels


class Source(NamedTuple):
    """A picture or video, and its name below the folder of the results."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the suffix is of a video."""
        return self.path.suffix.lower() in VIDEOS


def find_sources(arguments: Sequence[str], out: Path) -> list[Source]:
    """Return the pictures and videos that files, folders and patterns name.

    Folders are searched with the folders in them. The results keep this order of folders, from the
    folder that all arguments are in.

    Args:
        arguments (sequence of str): As on the command line. A pattern, which a shell may not have
            resolved, may contain ``**``.
        out (Path): Folder of the results; what is in it is left out.

    Raises:
        FileNotFoundError: If an argument names nothing.
    """
    found: dict[Path, Path] = {}  # for each file, the folder that its argument named
    for argument in map(os.path.expanduser, arguments):
        path = Path(argument)
        if path.is_dir():
            files = sorted(
                Path(folder, name)
                for folder, _, names in os.walk(path)
                for name in names
                if Path(name).suffix.lower() in PICTURES | VIDEOS
            )
            if not files:
                suffixes = ' '.join(sorted(PICTURES | VIDEOS))
                raise FileNotFoundError(f'{path}: no pictures in this folder ({suffixes})')
            found |= {file: path for file in files if not file.is_relative_to(out)}
        elif path.exists():
            found[path] = path.parent
        else:
            files = [Path(file) for file in sorted(glob.glob(argument, recursive=True))]
            if not files:
                raise FileNotFoundError(f'{argument}: no such file, folder or pattern')
            found |= {file: file.parent for file in files if file.is_file()}
    root = os.path.commonpath([folder.absolute() for folder in found.values()])
    return [Source(file, file.absolute().relative_to(root).as_posix()) for file in found]


class Frame(NamedTuple):
    """A picture to predict.

    Attributes:
        source (Source): Where it is from.
        number (int or None): Number of the frame in a video, from 0.
        image (array): Height, width and the channels blue, green and red, in 8 bits.
    """

    source: Source
    number: int | None
    image: np.ndarray


def read_picture(path: Path) -> np.ndarray:
    """Read a whole picture as OpenMMLab's pipelines do.

    Raises:
        ValueError: If the file is no picture, or cut off.
    """
    try:
        with Image.open(path) as image:
            image.load()  # OpenCV fills what is cut off with gray
    except UnidentifiedImageError as error:
        raise ValueError('not a picture') from error
    except Exception as error:  # decoders raise many kinds of errors
        raise ValueError(str(error) or type(error).__name__) from error
    image = mmcv.imread(path)
    if image is None:
        raise ValueError('OpenCV cannot read it')
    return image


def read_frames(source: Source, faults: dict[str, str]) -> Iterator[Frame]:
    """Yield the frames of a source; what cannot be read is added to ``faults`` with the reason."""
    if not source.is_video:
        try:
            yield Frame(source, None, read_picture(source.path))
        except ValueError as error:
            faults[str(source.path)] = str(error)
        return
    video, count = mmcv.VideoReader(str(source.path)), 0
    for number, image in enumerate(video if video.opened else []):
        yield Frame(source, number, image)
        count += 1
    if count == 0:
        faults[str(source.path)] = 'not a video that OpenCV can read'
    elif count < 0.98 * video.frame_cnt:  # the number in the file is not exact
        faults[str(source.path)] = f'cut off after {count} of {video.frame_cnt} frames'


def count_frames(source: Source) -> int:
    """Return how many frames a source says it has; 1 for a picture."""
    return max(1, mmcv.VideoReader(str(source.path)).frame_cnt) if source.is_video else 1


def write_picture(path: Path, rgb: np.ndarray) -> None:
    """Write a picture, whole or not at all; folders are made."""
    _write_image(path, Image.fromarray(rgb))


def _write_image(path: Path, picture: Image.Image) -> None:
    with whole_file(path) as part:
        picture.save(part, Image.registered_extensions()[path.suffix.lower()], quality=92)


class DrawnVideos:
    """The drawn frames of videos, one video after the other; each file appears when it is whole.

    Args:
        out (Path): Folder of the files.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.source: Source | None = None

    def add(self, source: Source, rgb: np.ndarray) -> None:
        """Add a frame; the first one of another video closes the last video."""
        if source != self.source:
            self.close()
            self.source = source
            self.out.mkdir(parents=True, exist_ok=True)
            self.folder = TemporaryDirectory(dir=self.out, prefix='.video-')
            height, width = rgb.shape[:2]
            rate = mmcv.VideoReader(str(source.path)).fps or 25.0
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            self.writer = cv2.VideoWriter(
                f'{self.folder.name}/drawn.mp4', codec, rate, (width, height)
            )
        self.writer.write(rgb[..., ::-1])

    def close(self) -> None:
        """Move the video that was written last to its place."""
        if self.source is not None:
            self.writer.release()
            suffix = '' if self.source.path.suffix == '.mp4' else '.mp4'
            path = self.out / f'{self.source.name}{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(f'{self.folder.name}/drawn.mp4', path)
            self.folder.cleanup()
            self.source = None


def draw_contact_sheet(tiles: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """Draw pictures in rows, each with its name below.

    Args:
        tiles (sequence of tuples): Name and picture, RGB.
        path (Path): The new file.
    """
    columns = min(len(tiles), math.ceil(math.sqrt(len(tiles) * 1.3)))
    font = ImageFont.truetype(font_manager.findfont('DejaVu Sans'), 13)
    line, gap = 20, 8
    thumbnails = []
    for _, picture in tiles:
        thumbnails.append(Image.fromarray(picture))
        thumbnails[-1].thumbnail((TILE, TILE))
    rows = [range(i, min(i + columns, len(tiles))) for i in range(0, len(tiles), columns)]
    heights = [max(thumbnails[i].height for i in row) + line + gap for row in rows]
    sheet = Image.new('RGB', (columns * (TILE + gap) + gap, sum(heights) + gap), 'white')
    draw = ImageDraw.Draw(sheet)
    y = gap
    for row, height in zip(rows, heights):
        for column, i in enumerate(row):
            x = gap + column * (TILE + gap)
            left = x + (TILE - thumbnails[i].width) // 2
            sheet.paste(thumbnails[i], (left, y + height - line - gap - thumbnails[i].height))
            draw.text(
                (x + TILE // 2, y + height - line), _fit(tiles[i][0], font), 'black', font, 'mt'
            )
        y += height
    _write_image(path, sheet)


def _fit(name: str, font: ImageFont.FreeTypeFont) -> str:
    """Return a name, or its end, as wide as a picture of the contact sheet."""
    shown = name
    while font.getlength(shown) > TILE and len(name) > 1:
        name = name[1:]
        shown = f'…{name}'
    return shown


def write_label_map(path: Path, labels: np.ndarray, palette: np.ndarray, first: int) -> None:
    """Write labels as a picture: of 8 bits with a palette, or of 16 bits if they need them."""
    if labels.max() > 255:
        picture = Image.fromarray(labels.astype(np.uint16))
    else:
        picture = Image.fromarray(labels.astype(np.uint8), mode='L').convert('L')
        picture.putpalette(
            np.concatenate([np.zeros((first, 3), np.uint8), palette])[:256].tobytes()
        )
    _write_image(path, picture)
