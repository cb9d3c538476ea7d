"""Figures for a paper: what blocks see, with the equation that each row shows."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..backbones.focal_attention import MultiLevelAttention
from ..cache import whole_file
from .activation import ClassActivation
from .maps import biases_of, fields_of, kernels_of, rim, window_boxes
from .samples import pixel_of
from .surveys import Block, Queries, Survey

COLORS = 'cividis'  # made to look the same to the color-blind
SIGNED = 'PuOr'  # of values around zero; safe for them, too
# Window, surroundings and pooled maps, of Okabe and Ito's colors.
PARTS = ('#0072B2', '#E69F00', '#009E73', '#CC79A7')
MARK = '#D55E00'
WIDTH = 7.2  # inches, of a page with two columns
LINE = 0.13  # inches, of a title or caption
SUFFIXES = ('.png', '.svg', '.pdf')
MAPS = (
    'gates',
    'contexts',
    'modulator',
    'kernels',
    'fields',
    'attention',
    'biases',
    'interactions',
)

Panel = tuple[str, Callable[[Axes], None]]


class Row(NamedTuple):
    """Panels with one caption.

    Attributes:
        name (str): What is shown, in a word.
        caption (str): What is shown, and its equation.
        panels (list): Title and drawing function of each.
        height (float, optional): Height over width of a panel. Default: that of the picture.
    """

    name: str
    caption: str
    panels: list[Panel]
    height: float | None = None


def draw_overview(survey: Survey) -> Figure:
    """Draw the norms of all stages and the class-activation map.

    Args:
        survey (Survey): What is drawn.

    Returns:
        Figure: matplotlib's, as wide as a page with two columns.
    """
    picture = survey.sample.picture
    panels: list[Panel] = [('picture', lambda axes: _show_picture(axes, picture))]
    for i, (norm, stride) in enumerate(zip(survey.norms, survey.strides), 1):
        panels.append((f'stage {i}', _map(norm, stride, picture)))
    rows = [
        Row(
            'norms', "Norm over the channels of each stage's output, before any output norm", panels
        )
    ]
    if survey.activation is not None:
        found = survey.activation
        rows.append(
            Row(
                'activation',
                f'{class_title(found)}, at {found.layer}',
                [
                    ('picture', lambda axes: _show_picture(axes, picture)),
                    ('activation', _map(found.map, 1, picture, 0, 1)),
                    ('both', lambda axes: _show_over(axes, found.map, picture)),
                ],
            )
        )
    return _draw(survey, 'all stages', rows)


def class_title(found: ClassActivation) -> str:
    """Return what a class-activation map shows."""
    if found.label is None:
        return 'Eigen-CAM: no class; first principal component of the output'
    name = f', {found.name}' if found.name else ''
    return f'Grad-CAM: what speaks for class {found.label}{name}'


def draw_block(
    survey: Survey,
    stage: int,
    block: int,
    query: tuple[float, float] = (0.5, 0.5),
    maps: Sequence[str] = MAPS,
) -> Figure:
    """Draw what one block sees.

    Args:
        survey (Survey): What is drawn.
        stage (int): Number of the stage, from 0.
        block (int): Number of the block in the stage, from 0.
        query (tuple[float, float]): Place of the token whose attention is drawn, x and y from 0 to
            1. Default: the middle.
        maps (sequence of str): The rows that are drawn where the block has them. Default:
            :data:`MAPS`, all.

    Returns:
        Figure: matplotlib's, as wide as a page with two columns.

    Raises:
        ValueError: If ``maps`` has a name that no row has.
    """
    require_maps(maps)
    shown = survey.blocks[stage][block]
    rows = _modulation_rows(survey, stage, shown) + _attention_rows(survey, stage, shown, query)
    rows = [row for row in rows if row.name in maps]
    return _draw(survey, f'stage {stage + 1}, block {block + 1}', rows)


def require_maps(maps: Sequence[str]) -> None:
    """Raise a ValueError if there are no rows of these names."""
    unknown = set(maps).difference(MAPS)
    if unknown:
        raise ValueError(f'maps={sorted(unknown)}: choose from {", ".join(MAPS)}')


def _modulation_rows(survey: Survey, stage: int, block: Block) -> list[Row]:
    picture, stride = survey.sample.picture, survey.strides[stage]
    rows = []
    names = [
        rf'$\ell={level}$' + (', global' if level > block.mixer.focal_level else '')  # type: ignore[operator]
        for level in block.levels
    ]
    if 'gates' in block.maps:
        low, high = _range(block.maps['gates'])
        rows.append(
            Row(
                'gates',
                r'Gates $g^\ell$ (Eq. 5): how much of each focal level a token takes',
                [
                    (name, _map(gate, stride, picture, low, high))
                    for name, gate in zip(names, block.maps['gates'])
                ],
            )
        )
        rows.append(
            Row(
                'contexts',
                r'Contexts $z^\ell$ (Eq. 4): norm over the channels',
                [
                    (name, _map(context, stride, picture))
                    for name, context in zip(names, block.maps['contexts'])
                ],
            )
        )
    if 'modulator' in block.maps:
        rows.append(
            Row(
                'modulator',
                'Modulator, the factor of the query in Eq. 6: norm over the channels',
                [
                    ('picture', lambda axes: _show_picture(axes, picture)),
                    ('modulator', _map(block.maps['modulator'][0], stride, picture)),
                ],
            )
        )
    fields = fields_of(block.mixer)
    if fields:
        kernels = kernels_of(block.mixer)
        rows.append(
            Row(
                'kernels',
                r'Depth-wise kernels of Eq. 4, mean of $|w|$ over the channels'
                + ('; dashed: the zero-padded rim' if any(map(rim, kernels)) else ''),
                [(f'{k.shape[-1]}×{k.shape[-1]}', _kernel(k)) for k in kernels],
                1,
            )
        )
        rows.append(
            Row(
                'fields',
                r'Receptive field of $z^\ell$ by the kernels of levels 1 to $\ell$ (section 3.2)',
                [(f'{len(one)}×{len(one)} tokens', _matrix(one)) for one in fields],
                1,
            )
        )
    return rows


def _attention_rows(
    survey: Survey, stage: int, block: Block, query: tuple[float, float]
) -> list[Row]:
    if block.queries is None:
        return []
    picture, stride, mixer = survey.sample.picture, survey.strides[stage], block.mixer
    focal = isinstance(mixer, MultiLevelAttention)
    equation = 'Eq. 3' if focal else 'MIX of Eq. 1, window attention'
    rows = [
        Row(
            'attention',
            f'Attention of the marked query ({equation}): softmax weights, mean of the heads',
            _attention_panels(block.queries, stride, picture, query),
        )
    ]
    tables = biases_of(mixer)
    if tables:
        rows.append(
            Row(
                'biases',
                'Learned biases B '
                + ('of Eq. 3' if focal else 'of the window attention')
                + ', mean of the heads, by the offset of the key'
                + ('; surroundings by query and key' if 'surroundings' in tables else ''),
                [(name, _signed(table.mean(0))) for name, table in tables.items()],
                1,
            )
        )
    if not focal:
        extra: list[Panel] = [('windows', lambda axes: _show_windows(axes, block, stride, picture))]
        if 'spatial' in block.maps:
            extra.append(
                ('spatial interaction', _map(block.maps['spatial'][0], stride, picture, 0, 1))
            )
        if block.channels is not None:
            weights = block.channels
            extra.append(
                ('channel interaction, by channel', lambda axes: _show_channels(axes, weights))
            )
        rows.append(
            Row(
                'interactions',
                'Windows, and the factors of the interactions (Figure 2): of positions of the '
                'convolution, of channels of the attention',
                extra,
            )
        )
        rows.append(
            Row(
                'kernels',
                r'Depth-wise kernel, mean of $|w|$ over the channels',
                [(f'{k.shape[-1]}×{k.shape[-1]}', _kernel(k)) for k in kernels_of(mixer)],
                1,
            )
        )
    return rows


def _attention_panels(
    queries: Queries, stride: int, picture: np.ndarray, query: tuple[float, float]
) -> list[Panel]:
    x, y = pixel_of(query, picture)
    row = min(y // stride // queries.step, queries.rows - 1)
    col = min(x // stride // queries.step, queries.cols - 1)
    number = row * queries.cols + col
    window, weights = queries.windows[number], queries.weights[number]
    keys, marked = queries.keys, (col * queries.step * stride, row * queries.step * stride)
    titles = ('window', 'surroundings', *(f'pooled {i}' for i in range(1, 9)))

    def panel(level: int) -> Panel:
        here = (keys.levels == level) & (weights > 0)
        boxes = np.stack([keys.cols[window][here], keys.rows[window][here], keys.sides[here]], -1)
        share = 100 * weights[here].sum()

        def draw(axes: Axes) -> None:
            _show_picture(axes, picture, faint=True)
            high, wide = queries.plan.padded
            rectangles, values = [], []
            for (left, top, side), weight in zip(boxes, weights[here]):
                # What a shift moves over the border continues at the opposite side.
                for dx in (0, wide) if left + side > wide else (0,):
                    for dy in (0, high) if top + side > high else (0,):
                        corner = (left - dx) * stride, (top - dy) * stride
                        rectangles.append(Rectangle(corner, side * stride, side * stride))
                        values.append(weight)
            drawn = PatchCollection(
                rectangles, cmap=COLORS, alpha=0.85, linewidth=0.3, edgecolor=PARTS[min(level, 3)]
            )
            drawn.set_array(np.array(values))
            drawn.set_clim(0, weights.max())
            axes.add_collection(drawn)
            if level == keys.levels.max():
                _add_scale(axes, drawn)
            axes.add_patch(
                Rectangle(marked, stride, stride, fill=False, edgecolor=MARK, linewidth=1.5)
            )

        return f'{titles[level]}: {share:.0f} %', draw

    return [panel(level) for level in np.unique(keys.levels)]


def _show_windows(axes: Axes, block: Block, stride: int, picture: np.ndarray) -> None:
    assert block.queries is not None
    _show_picture(axes, picture, faint=True)
    boxes = window_boxes(block.queries.plan) * stride
    rectangles = [Rectangle((x, y), right - x, low - y) for x, y, right, low in boxes]
    axes.add_collection(
        PatchCollection(rectangles, facecolor='none', edgecolor=PARTS[0], linewidth=0.8)
    )


def _show_channels(axes: Axes, weights: np.ndarray) -> None:
    axes.bar(np.arange(len(weights)), weights, width=1, color=PARTS[0])
    axes.set(ylim=(0, 1), xlim=(-0.5, len(weights) - 0.5))
    axes.set_box_aspect(0.8)
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=5, length=1.5)
    axes.set_axis_on()


def _range(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    return min(float(one.min()) for one in maps), max(float(one.max()) for one in maps)


def _show_picture(axes: Axes, picture: np.ndarray, faint: bool = False) -> None:
    height, width = picture.shape[:2]
    shown = picture
    if faint:
        gray = picture.mean(-1, keepdims=True)
        shown = (0.5 * gray + 127).astype(np.uint8).repeat(3, -1)
    axes.imshow(shown, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))


def _map(
    values: np.ndarray,
    stride: int,
    picture: np.ndarray,
    low: float | None = None,
    high: float | None = None,
) -> Callable[[Axes], None]:
    """Return a function that draws a map over the area of the picture, with its scale."""

    def draw(axes: Axes) -> None:
        rows, cols = values.shape
        height, width = picture.shape[:2]
        drawn = axes.imshow(
            values,
            COLORS,
            vmin=low,
            vmax=high,
            extent=(0, cols * stride, rows * stride, 0),
            interpolation='nearest',
        )
        axes.set(xlim=(0, width), ylim=(height, 0))
        _add_scale(axes, drawn)

    return draw


def _show_over(axes: Axes, values: np.ndarray, picture: np.ndarray) -> None:
    _show_picture(axes, picture)
    height, width = picture.shape[:2]
    axes.imshow(
        values, COLORS, vmin=0, vmax=1, alpha=0.6, extent=(0, values.shape[1], values.shape[0], 0)
    )
    axes.set(xlim=(0, width), ylim=(height, 0))


def _matrix(values: np.ndarray) -> Callable[[Axes], None]:
    return lambda axes: _add_scale(axes, axes.imshow(values, COLORS))


def _signed(values: np.ndarray) -> Callable[[Axes], None]:
    most = float(np.abs(values).max()) or 1.0

    def draw(axes: Axes) -> None:
        _add_scale(axes, axes.imshow(values, SIGNED, vmin=-most, vmax=most, aspect='auto'))
        axes.set_box_aspect(1)

    return draw


def _kernel(kernel: np.ndarray) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        _add_scale(axes, axes.imshow(np.abs(kernel).mean(0), COLORS))
        width, side = rim(kernel), kernel.shape[-1]
        if width:
            inner = side - 2 * width
            axes.add_patch(
                Rectangle(
                    (width - 0.5, width - 0.5),
                    inner,
                    inner,
                    fill=False,
                    edgecolor=MARK,
                    linestyle='--',
                    linewidth=1.2,
                )
            )

    return draw


def _add_scale(axes: Axes, drawn: Any) -> None:
    place = axes.inset_axes((1.03, 0, 0.05, 1))
    bar = axes.figure.colorbar(drawn, cax=place, format='{x:.6g}')
    bar.ax.tick_params(labelsize=5, length=1.5)
    bar.outline.set_linewidth(0.4)  # type: ignore[operator]


def _draw(survey: Survey, part: str, rows: Sequence[Row]) -> Figure:
    if not rows:
        rows = [
            Row(
                '',
                'This block has nothing of the kind',
                [('picture', lambda axes: _show_picture(axes, survey.sample.picture))],
            )
        ]
    height, width = survey.sample.picture.shape[:2]
    columns = max(4, *(len(row.panels) for row in rows))
    panel = 0.77 * WIDTH / columns  # beside its scale
    heading = textwrap.fill(f'{survey.heading} · {part}', 96)
    captions = [textwrap.fill(row.caption, 125) for row in rows]
    above = [0.19 + LINE * (1 + caption.count('\n')) for caption in captions]
    heights = [
        panel * (row.height or min(max(height / width, 0.4), 2.5)) + over + 0.1
        for row, over in zip(rows, above)
    ]
    # Placed by hand: matplotlib's own layouts take seconds for so many panels.
    heights = [0.17 + LINE * (1 + heading.count('\n')), *heights]
    figure = Figure(figsize=(WIDTH, sum(heights)))
    top, *parts = figure.subfigures(len(heights), 1, height_ratios=heights)
    top.suptitle(
        heading,
        y=1 - 0.06 / heights[0],
        fontsize=8,
        color=MARK if survey.random else 'black',
        fontweight='bold' if survey.random else 'normal',
    )
    for row, caption, over, sub, tall in zip(rows, captions, above, parts, heights[1:]):
        sub.suptitle(caption, x=0.01, y=1 - 0.02 / tall, ha='left', fontsize=7)
        margins = dict(left=0.01, right=0.93, top=1 - over / tall, bottom=0.06 / tall, wspace=0.38)
        cells = np.atleast_1d(sub.subplots(1, columns, gridspec_kw=margins))
        for axes in cells:
            axes.set_axis_off()
        for (title, draw), axes in zip(row.panels, cells):
            axes.set_title(title, fontsize=6, pad=2)
            draw(axes)
    return figure


def write_sheet(figure: Figure, path: str | Path) -> Path:
    """Write a figure, whole or not at all.

    Args:
        figure (Figure): What :func:`draw_block` or :func:`draw_overview` returns.
        path (str or Path): The new file, ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        Path: The file.

    Raises:
        ValueError: For another suffix.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f'{path}: a sheet ends in {", ".join(SUFFIXES)}')
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=200)
    return path
