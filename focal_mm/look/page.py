"""One page of HTML on which a reader moves a query over a photograph: no network, no server."""

import base64
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image as Pictures

from ..cache import whole_file
from .maps import fields_of
from .sheets import COLORS, class_title
from .surveys import Block, Queries, Survey

LIMIT = 5_000_000  # bytes of a page
PHOTO = 1000  # pixels of a photograph's longer side


class Detail(NamedTuple):
    """How much of the maps a page keeps.

    Attributes:
        dtype (type): Unsigned integers that the values of a map are stored as.
        tokens (int): Largest number of tokens of a map; of larger maps every second, third, ... row
            and column is kept.
        queries (int): Largest number of tokens of a map whose attention is kept.
    """

    dtype: type
    tokens: int
    queries: int


# From the most to the least; a page has the first that fits.
DETAILS = (
    Detail(np.uint16, 65536, 4096),
    Detail(np.uint16, 16384, 1024),
    Detail(np.uint16, 4096, 400),
    Detail(np.uint8, 4096, 200),
    Detail(np.uint8, 1024, 100),
    Detail(np.uint8, 256, 49),
)


def write_page(surveys: Sequence[Survey], path: str | Path) -> Path:
    """Write a page of one or more surveys, of which a reader sees one or two at a time.

    Numbers are rounded to a 65535th of the range of each map, with many or large pictures to a
    255th, and of large maps a part of the rows and columns is kept, so that the page stays below
    :data:`LIMIT`.

    Args:
        surveys (sequence of Survey): What is shown.
        path (str or Path): The new file.

    Returns:
        Path: The file.

    Raises:
        ValueError: If so many surveys do not fit into one page.
    """
    template = Path(__file__).with_name('page.html').read_text(encoding='utf-8')
    for detail in DETAILS:
        stores = [_Store() for _ in surveys]
        entries = [_entry(*pair, detail) for pair in zip(surveys, stores)]
        if sum(store.bytes.tell() for store in stores) > 3 * LIMIT:
            continue  # compression saves less than that
        for entry, store in zip(entries, stores):
            entry['data'] = store.text()
        colors = (np.array(colormaps[COLORS].colors) * 255).round().astype(int).tolist()  # type: ignore[attr-defined]
        content = dict(colors=colors, entries=entries)
        # A name may contain the end of a script.
        text = json.dumps(content, ensure_ascii=False).replace('<', '\\u003c')
        page = template.replace('{{content}}', text).encode()
        if len(page) < LIMIT:
            path = Path(path).expanduser()
            with whole_file(path) as part:
                part.write_bytes(page)
            return path
    raise ValueError(
        f'{len(surveys)} pictures and models do not fit into one page of '
        f'{LIMIT // 1_000_000} MB; give fewer at a time'
    )


class _Store:
    """Arrays in one row of bytes, and what a page has to know to find them."""

    def __init__(self) -> None:
        self.bytes = io.BytesIO()

    def whole(self, values: np.ndarray) -> dict[str, Any]:
        """Store integers as they are."""
        return self._put(values.astype('<u2'))

    def map(self, values: np.ndarray, detail: Detail) -> dict[str, Any]:
        """Store a map (H, W), rounded and thinned out."""
        step = 1
        while -(-values.shape[0] // step) * -(-values.shape[1] // step) > detail.tokens:
            step += 1
        kept = values[::step, ::step]
        return self.rounded(kept, detail.dtype) | dict(
            rows=kept.shape[0], cols=kept.shape[1], step=step
        )

    def rounded(self, values: np.ndarray, dtype: Any) -> dict[str, Any]:
        """Store numbers as integers between their minimum and their maximum."""
        values = np.nan_to_num(values.astype(np.float64))
        low, high = float(values.min()), float(values.max())
        most = np.iinfo(dtype).max
        scaled = np.round((values - low) / ((high - low) or 1) * most)
        return self._put(scaled.astype(np.dtype(dtype).newbyteorder('<'))) | dict(
            low=low, high=high
        )

    def _put(self, values: np.ndarray) -> dict[str, Any]:
        self.bytes.write(b'\0' * (self.bytes.tell() % 2))  # JavaScript wants even addresses
        at = self.bytes.tell()
        self.bytes.write(values.tobytes())
        return dict(at=at, size=values.size, bits=8 * values.itemsize)

    def text(self) -> str:
        """Return all bytes, compressed, as text."""
        return base64.b64encode(gzip.compress(self.bytes.getvalue(), mtime=0)).decode()


def _entry(one: Survey, store: _Store, detail: Detail) -> dict[str, Any]:
    height, width = one.sample.picture.shape[:2]
    stages = []
    for stride, blocks, norm in zip(one.strides, one.blocks, one.norms):
        stages.append(
            dict(
                stride=stride,
                rows=norm.shape[0],
                cols=norm.shape[1],
                norm=store.map(norm, detail),
                blocks=[_block(block, store, detail) for block in blocks],
            )
        )
    activation = None
    if one.activation is not None:
        seen = one.activation.map[:height, :width]
        activation = dict(title=class_title(one.activation), map=store.map(seen, detail))
    return dict(
        title=one.title,
        model=one.model,
        family=type(one.backbone).__name__,
        random=one.random,
        photo=_photo(one.sample.picture),
        width=width,
        height=height,
        stages=stages,
        activation=activation,
    )


def _block(block: Block, store: _Store, detail: Detail) -> dict[str, Any]:
    shown: dict[str, Any] = dict(
        levels=block.levels,
        maps={name: [store.map(one, detail) for one in maps] for name, maps in block.maps.items()},
        fields=[store.map(one, detail) for one in fields_of(block.mixer)],
        channels=None,
        attention=None,
    )
    if block.channels is not None:
        shown['channels'] = store.rounded(block.channels, np.uint16)
    if block.queries is not None:
        shown['attention'] = _attention(block.queries, store, detail)
    return shown


def _attention(queries: Queries, store: _Store, detail: Detail) -> dict[str, Any]:
    thin = 1
    while -(-queries.rows // thin) * -(-queries.cols // thin) > detail.queries:
        thin += 1
    grid: np.ndarray = np.arange(queries.rows * queries.cols).reshape(queries.rows, queries.cols)
    grid = grid[::thin, ::thin]
    kept = grid.flatten()
    windows, number = np.unique(queries.windows[kept], return_inverse=True)
    keys = queries.keys
    return dict(
        step=queries.step * thin,
        rows=grid.shape[0],
        cols=grid.shape[1],
        height=queries.plan.padded[0],
        width=queries.plan.padded[1],
        sides=keys.sides.tolist(),
        levels=keys.levels.tolist(),
        windows=store.whole(number),
        keyRows=store.whole(keys.rows[windows]),
        keyCols=store.whole(keys.cols[windows]),
        weights=store.rounded(queries.weights[kept], np.uint16),
    )


def _photo(picture: np.ndarray) -> str:
    """Return a picture as an address that contains it."""
    image, file = Pictures.fromarray(picture), io.BytesIO()
    image.thumbnail((PHOTO, PHOTO))
    image.save(file, 'JPEG', quality=85)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'
