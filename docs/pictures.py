"""Draw the pictures of the pages and of the README: ``python docs/pictures.py``.

They are drawn by matplotlib as SVG into ``docs/pictures``. Accuracy and seconds come from tables.md
and performance.md; tests/test_docs.py draws them again and compares.
"""

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use('svg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

HERE = Path(__file__).parent
# Okabe and Ito's colors, which the color-blind can tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#777777'


def grid(ax: Axes, cells: int) -> None:
    """Draw a map of cells x cells tokens."""
    for i in range(cells + 1):
        ax.plot([0, cells], [i, i], color='#dddddd', lw=0.5, zorder=0)
        ax.plot([i, i], [0, cells], color='#dddddd', lw=0.5, zorder=0)
    ax.set_xlim(-0.3, cells + 0.3)
    ax.set_ylim(cells + 0.3, -0.3)
    ax.set_aspect('equal')
    ax.axis('off')


def square(ax: Axes, left: float, top: float, side: float, color: str, **style: Any) -> None:
    """Draw a square."""
    style = dict(fill=False, lw=1.5) | style
    ax.add_patch(Rectangle((left, top), side, side, color=color, **style))


def query(ax: Axes, x: float, y: float) -> None:
    """Mark the position that looks."""
    ax.plot(x, y, marker='*', color='black', ms=11, zorder=5)


def modulation(ax: Axes) -> None:
    """Draw the receptive fields of FocalNet's levels: kernels 3, 5, 7, one after the other."""
    grid(ax, 21)
    field = 1
    for kernel, color in zip((3, 5, 7), (BLUE, GREEN, ORANGE)):
        field += kernel - 1
        square(ax, 10.5 - field / 2, 10.5 - field / 2, field, color, fill=True, alpha=0.18)
        square(ax, 10.5 - field / 2, 10.5 - field / 2, field, color)
    square(ax, 0, 0, 21, PURPLE, linestyle='--')
    query(ax, 10.5, 10.5)


def attention(ax: Axes) -> None:
    """Draw what a window of a Focal Transformer attends to: window_size 7, expand_size 3, and a
    region of 5 x 5 pooled windows.
    """
    grid(ax, 35)
    for row in range(5):
        for column in range(5):
            square(ax, 7 * column, 7 * row, 7, '#bbbbbb', lw=0.8)
            ax.add_patch(Circle((7 * column + 3.5, 7 * row + 3.5), 1.1, color=PURPLE, alpha=0.6))
    square(ax, 11, 11, 13, GREEN, fill=True, alpha=0.2)
    square(ax, 11, 11, 13, GREEN)
    square(ax, 14, 14, 7, BLUE, fill=True, alpha=0.3)
    square(ax, 14, 14, 7, BLUE)
    query(ax, 16.5, 15.5)


def mixing(ax: Axes) -> None:
    """Draw the two branches of a mixing block: a window of 7 x 7, and a kernel of 3 x 3 over its
    edge.
    """
    grid(ax, 21)
    for row in range(3):
        for column in range(3):
            square(ax, 7 * column, 7 * row, 7, '#bbbbbb', lw=0.8)
    square(ax, 7, 7, 7, BLUE, fill=True, alpha=0.25)
    square(ax, 7, 7, 7, BLUE)
    square(ax, 12, 9, 3, ORANGE, fill=True, alpha=0.35)
    square(ax, 12, 9, 3, ORANGE)
    query(ax, 13.5, 10.5)


OPERATORS = {
    'focal_modulation': (
        modulation,
        'FocalNet',
        [
            (BLUE, 'level 1: kernel 3'),
            (GREEN, 'level 2: kernel 5 after it'),
            (ORANGE, 'level 3: kernel 7 after it'),
            (PURPLE, 'global average'),
        ],
    ),
    'focal_attention': (
        attention,
        'Focal Transformer',
        [
            (BLUE, 'the window, token by token'),
            (GREEN, 'its surroundings'),
            (PURPLE, 'pooled windows, one token each'),
        ],
    ),
    'mixing_attention': (
        mixing,
        'MixFormer',
        [
            (BLUE, 'attention in the window'),
            (ORANGE, 'convolution across its edge'),
        ],
    ),
}


def draw_operators() -> plt.Figure:
    """Draw the three operators side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.9))
    for ax, (draw, title, legend) in zip(axes, OPERATORS.values()):
        draw(ax)
        ax.set_title(title, fontsize=12)
        describe(ax, legend, -0.05)
    figure.subplots_adjust(left=0.02, right=0.98, top=0.91, bottom=0.25, wspace=0.12)
    return figure


def describe(ax: Axes, legend: list[tuple[str, str]], top: float) -> None:
    """Write what the colors mean below a drawing."""
    for i, (color, text) in enumerate(legend):
        y = top - 0.08 * i
        ax.text(0.02, y, '■', color=color, transform=ax.transAxes, fontsize=10, va='center')
        ax.text(0.1, y, text, transform=ax.transAxes, fontsize=9, va='center')


def box(ax: Axes, x: float, y: float, text: str, color: str = GREY, width: float = 2.0) -> None:
    """Draw a step of a flow chart round (x, y)."""
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - 0.3),
            width,
            0.6,
            boxstyle='round,pad=0.05',
            facecolor='white',
            edgecolor=color,
            lw=1.5,
        )
    )
    ax.text(x, y, text, ha='center', va='center', fontsize=8.5)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = '') -> None:
    """Draw an arrow, with words beside it."""
    ax.annotate('', end, start, arrowprops=dict(arrowstyle='->', color='black', lw=1))
    if text:
        ax.text(
            (start[0] + end[0]) / 2 + 0.1, (start[1] + end[1]) / 2, text, fontsize=8, va='center'
        )


def chart(ax: Axes, width: float, height: float) -> None:
    """Prepare a flow chart."""
    ax.set_xlim(0, width)
    ax.set_ylim(height, 0)
    ax.axis('off')


def modulation_flow(ax: Axes) -> None:
    """Draw the steps of FocalModulation.forward."""
    chart(ax, 8, 7.2)
    box(ax, 4, 0.5, 'token map x')
    box(ax, 4, 1.6, 'linear f', width=1.6)
    box(ax, 1.2, 2.8, 'query q')
    box(ax, 4, 2.8, 'context z⁰')
    box(ax, 6.8, 2.8, 'gates g')
    box(ax, 4, 3.9, 'levels z¹ … zᴸ⁺¹  (Eq. 4)', BLUE, 3.4)
    box(ax, 4, 5.0, 'gated sum, linear h  (Eq. 5)', GREEN, 3.4)
    box(ax, 4, 6.4, 'query × modulator  (Eq. 6)', ORANGE, 3.4)
    arrow(ax, (4, 0.85), (4, 1.25))
    for x in (1.2, 4, 6.8):
        arrow(ax, (4, 1.95), (x, 2.45))
    arrow(ax, (4, 3.15), (4, 3.55))
    arrow(ax, (4, 4.25), (4, 4.65))
    arrow(ax, (6.8, 3.15), (5.8, 4.85))
    arrow(ax, (4, 5.35), (4, 6.05), 'modulator')
    arrow(ax, (1.2, 3.15), (2.3, 6.2))


def attention_flow(ax: Axes) -> None:
    """Draw the steps of FocalTransformerBlock.attend."""
    chart(ax, 8, 7.2)
    box(ax, 4, 0.5, 'token map x')
    box(ax, 1.6, 2.0, 'windows, s_p × s_p', BLUE, 2.6)
    box(ax, 6.2, 2.0, 'pool sub-windows (Eq. 1)', PURPLE, 3.0)
    box(ax, 1.6, 3.6, 'queries')
    box(ax, 5.6, 3.6, 'keys, values: window,\nsurroundings, pooled', GREEN, 3.2)
    box(ax, 3.8, 5.0, 'softmax(QKᵀ/√d + B) V  (Eq. 3)', ORANGE, 4.0)
    box(ax, 3.8, 6.4, 'linear')
    arrow(ax, (4, 0.85), (1.9, 1.65))
    arrow(ax, (4, 0.85), (6.0, 1.65))
    arrow(ax, (1.6, 2.35), (1.6, 3.25))
    arrow(ax, (2.4, 2.35), (4.9, 3.25))
    arrow(ax, (6.2, 2.35), (5.8, 3.25))
    arrow(ax, (1.6, 3.95), (3.0, 4.65))
    arrow(ax, (5.6, 3.95), (4.6, 4.65))
    arrow(ax, (3.8, 5.35), (3.8, 6.05))


def mixing_flow(ax: Axes) -> None:
    """Draw the steps of MixingAttention.forward."""
    chart(ax, 8, 7.2)
    box(ax, 4, 0.5, 'token map x')
    box(ax, 1.6, 1.9, 'window attention', BLUE, 2.6)
    box(ax, 6.4, 1.9, 'depth-wise 3 × 3', ORANGE, 2.6)
    box(ax, 1.6, 3.7, '× channels', GREEN)
    box(ax, 6.4, 4.7, '× positions', PURPLE)
    box(ax, 4, 6.3, 'concatenate, linear', width=2.8)
    arrow(ax, (4, 0.85), (1.9, 1.55))
    arrow(ax, (4, 0.85), (6.1, 1.55))
    arrow(ax, (1.6, 2.25), (1.6, 3.35))
    arrow(ax, (6.4, 2.25), (6.4, 4.35))
    arrow(ax, (5.4, 2.25), (2.7, 3.6))
    ax.text(2.0, 2.65, 'channel interaction', fontsize=8)
    arrow(ax, (2.65, 3.8), (5.35, 4.6))
    ax.text(3.9, 3.85, 'spatial interaction', fontsize=8)
    arrow(ax, (1.6, 4.05), (3.2, 5.95))
    arrow(ax, (6.4, 5.05), (4.9, 5.95))


FLOWS = {
    'focal_modulation': modulation_flow,
    'focal_attention': attention_flow,
    'mixing_attention': mixing_flow,
}


def draw_operator(name: str) -> plt.Figure:
    """Draw what one position sees, and the steps that make the output of it."""
    draw, _, legend = OPERATORS[name]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), width_ratios=(1, 1.15))
    draw(left)
    describe(left, legend, -0.05)
    FLOWS[name](right)
    figure.subplots_adjust(left=0.02, right=0.99, top=0.97, bottom=0.27, wspace=0.08)
    return figure


def read_points() -> list[tuple[str, str, float, float]]:
    """Return family, size, seconds and AP of each backbone that both pages have.

    The AP is the paper's, of Mask R-CNN 1x (tables.md); the seconds are those of a training step of
    the backbone at 800x1216 (performance.md, ``with_cp``).
    """
    tables = (HERE / 'tables.md').read_text()
    part = (HERE / 'performance.md').read_text().partition('### Memory against time')[2]
    points, family = [], ''
    for name, seconds in re.findall(r'^\| (.*?`\w+`) \| ([\d.]+) s,', part, re.MULTILINE):
        words, size = name.rstrip('`').rsplit('`', 1)
        family = words.strip() or family
        if not words.strip() and size == 'tiny':
            raise ValueError(f'performance.md: no family before {name}')
        prefix = {'FocalNet': 'focalnet', 'Focal Transformer': 'focal', 'MixFormer': 'mixformer'}
        short = size if size[0] == 'b' and size[1:].isdigit() else size[0]
        config = f'mask_rcnn/{prefix[family]}_{short}_1x'
        ap = box_ap(tables, config)
        points.append((family, size.removesuffix('_lrf'), float(seconds), ap))
    return points


def box_ap(tables: str, config: str) -> float:
    """Return the paper's box AP of a config from the text of tables.md."""
    header: list[str] = []
    for line in tables.splitlines():
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if cells[0] == 'config':
            header = cells
        elif cells[0] == config and 'box AP' in header:
            return float(cells[header.index('box AP')].split(' / ')[0])
    raise ValueError(f'tables.md: no box AP of {config}')


def draw_ap_over_seconds() -> plt.Figure:
    """Draw accuracy over time."""
    figure, ax = plt.subplots(figsize=(5, 4))  # readable at the width of a phone
    styles = {
        'FocalNet': (BLUE, 'o'),
        'Focal Transformer': (ORANGE, 's'),
        'MixFormer': (GREEN, '^'),
    }
    points = read_points()
    for family, (color, marker) in styles.items():
        own = [point for point in points if point[0] == family]
        x, y = [point[2] for point in own], [point[3] for point in own]
        ax.plot(x, y, color=color, marker=marker, ms=8, label=family)
        for _, size, seconds, ap in own:
            ax.annotate(
                size, (seconds, ap), xytext=(6, -11), textcoords='offset points', fontsize=9
            )
    ax.set_xlabel('seconds of a training step of the backbone,\n1x3x800x1216, two CPU cores')
    ax.set_ylabel('box AP, Mask R-CNN 1x (the papers)')
    ax.margins(0.08, 0.12)  # room for the names of sizes
    ax.set_xlim(0, 1.15 * max(point[2] for point in points))
    ax.grid(alpha=0.3)
    ax.legend(loc='lower right')
    figure.tight_layout()
    return figure


def draw_all(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(exist_ok=True)
    # Text stays text: the files are small and can be searched.
    style = {'svg.fonttype': 'none', 'svg.hashsalt': 'focal_mm', 'font.family': 'sans-serif'}
    with mpl.rc_context(style):
        figures = {'operators': draw_operators(), 'ap_over_seconds': draw_ap_over_seconds()}
        figures |= {name: draw_operator(name) for name in OPERATORS}
        for name, figure in figures.items():
            figure.savefig(folder / f'{name}.svg', metadata={'Date': None, 'Creator': None})
            plt.close(figure)


if __name__ == '__main__':
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / 'pictures')
