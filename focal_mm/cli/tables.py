"""The papers' tables, with the figures measured here beside the papers' own."""

import json
import re
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import CONFIGS, library, type_name

# A row must give a reason for a larger relative difference to the paper's figure.
TOLERANCE = 0.015
# For each metric of the metafiles: its key in the results of a run, and the factor that makes it
# percent, as in the papers.
METRICS = {
    **{
        f'box AP{paper}': (f'coco/bbox_mAP{ours}', 100)
        for paper, ours in (
            ('', ''),
            ('50', '_50'),
            ('75', '_75'),
            ('s', '_s'),
            ('m', '_m'),
            ('l', '_l'),
        )
    },
    **{
        f'mask AP{paper}': (f'coco/segm_mAP{ours}', 100)
        for paper, ours in (('', ''), ('50', '_50'), ('75', '_75'))
    },
    **{f'LVIS mask AP{paper}': (f'lvis/segm_AP{paper}', 100) for paper in ('', '50', '75')},
    **{
        f'AP{paper}': (f'coco/AP{ours}', 100)
        for paper, ours in (('', ''), ('50', ' .5'), ('75', ' .75'))
    },
    'mIoU': ('mIoU', 1),
    'PQ': ('coco_panoptic/PQ', 1),
    'Top 1 Accuracy': ('accuracy/top1', 1),
    'Top 5 Accuracy': ('accuracy/top5', 1),
}
# The papers' images a second on one V100, which nothing here measures again.
THROUGHPUT = 'Throughput (images/s, V100)'
# Number of regions that the papers' counter gives the heads of a two-stage detector.
BOXES, MASKS = 1000, 100


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a paper's table, and its config.

    Attributes:
        config (str): Path below ``configs/`` without suffix: ``mask_rcnn/focalnet_t_1x``.
        table (str): Name of the table: ``FocalNet, Table 5``.
        params (float or None): Parameters in millions, as the paper gives them.
        flops (float or None): Multiply-adds in G, as the paper gives them.
        metrics (dict): Results in percent, as the paper gives them, and its throughput.
        note (str): Why parameters or FLOPs differ from the paper's; empty if they don't.
        remark (str): What else a reader must know of the paper's figures. Default: empty.
    """

    config: str
    table: str
    params: float | None
    flops: float | None
    metrics: dict[str, float]
    note: str
    remark: str = ''

    @property
    def path(self) -> Path:
        """File of the config."""
        return CONFIGS / f'{self.config}.py'


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of a model.

    Attributes:
        params (float): Parameters in millions.
        flops (float): Multiply-adds in G of products with weights.
        attention (float): Multiply-adds in G of products of activations, as in attention.
    """

    params: float
    flops: float
    attention: float


def load_rows() -> list[Row]:
    """Return all rows of the papers that have a config, table by table."""
    found = []
    for path in yaml.safe_load((CONFIGS.parent / 'model-index.yml').read_text())['Import']:
        for model in yaml.safe_load((CONFIGS.parent / path).read_text())['Models']:
            about = model['Metadata']
            if 'Paper Table' in about:
                metrics = {
                    name: value
                    for result in model.get('Results', ())
                    for name, value in result['Metrics'].items()
                }
                if THROUGHPUT in about:
                    metrics[THROUGHPUT] = about[THROUGHPUT]
                found.append(
                    Row(
                        model['Config'].removeprefix('configs/').removesuffix('.py'),
                        about['Paper Table'],
                        about.get('Parameters (M)'),
                        about.get('FLOPs (G)'),
                        metrics,
                        about.get('Note', ''),
                        about.get('Remark', ''),
                    )
                )
    return sorted(
        found, key=lambda row: (row.table.rpartition(' ')[0], int(row.table.rpartition(' ')[2]))
    )


def select_rows(text: str) -> list[Row]:
    """Return the rows of the tables that have all words of a text in their names.

    Args:
        text (str): ``'FocalNet, Table 5'``, or shorter ``'focalnet 5'``; ``'mixformer'`` for all
            tables of a paper, ``''`` for all tables.

    Raises:
        ValueError: If there is no such table.
    """

    def words(name: str) -> set[str]:
        return set(re.findall(r'\w+', name.lower())) - {'table'}

    every = load_rows()
    found = [row for row in every if row.table == text] or [
        row for row in every if words(text) <= words(row.table)
    ]
    if not found:
        names = dict.fromkeys(row.table for row in every)
        raise ValueError(f'{text}: no such table; there are {"; ".join(names)}')
    return found


def count_cost(cfg: Config) -> Cost:
    """Count the parameters and multiply-adds of a config's model at the papers' input.

    The input has the size that :func:`input_size` returns. Heads of two-stage detectors get 1000
    regions for boxes and 100 for masks. The model is on the meta device, so nothing is computed,
    except for the heads of Mask2Former, which need real maps.
    """
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model: Any = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
        image = torch.empty(1, 3, *input_size(cfg))
    deform = torch.ops.torchvision.deform_conv2d
    with (
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping={deform: _deform_conv_flops}) as counter,
    ):
        if hasattr(model, 'roi_head'):
            _run_two_stages(model, image)
        elif 'Mask2Former' in type_name(cfg.model.get('decode_head', cfg.model)):
            _run_mask2former(model, image)
        elif hasattr(model, 'bbox_head'):
            model.bbox_head(model.extract_feat(image))
        else:
            model(image, None)
    counts = counter.get_flop_counts()['Global']
    attention = sum(count for op, count in counts.items() if 'bmm' in str(op))
    params = sum(parameter.numel() for parameter in model.parameters())
    # The counter counts a multiply-add as two.
    return Cost(params / 1e6, (sum(counts.values()) - attention) / 2e9, attention / 2e9)


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the (H, W) in pixels of the image for which the papers count FLOPs.

    1280x800 for detectors; for segmentors the height of the training crop and four times its width;
    for classifiers and pose estimators the test crop.
    """
    if library(cfg) == 'mmdet':
        return 800, 1280
    if library(cfg) == 'mmseg':
        return cfg.crop_size[0], 4 * cfg.crop_size[0]
    if library(cfg) == 'mmpose':
        return cfg.codec.input_size[1], cfg.codec.input_size[0]
    (side,) = (
        step.crop_size
        for step in cfg.test_dataloader.dataset.pipeline
        if type_name(step) == 'CenterCrop'
    )
    return side, side


def _deform_conv_flops(image: tuple, weight: tuple, *_: Any, out_shape: tuple, **__: Any) -> int:
    return 2 * torch.Size(weight).numel() * torch.Size(out_shape[2:]).numel() * out_shape[0]


def _run_two_stages(model: Any, image: Tensor) -> None:
    maps = model.extract_feat(image)
    head, channels = model.roi_head, maps[0].shape[1]
    box_heads, mask_heads = (
        [] if part is None else list(part) if isinstance(part, nn.ModuleList) else [part]
        for part in (head.bbox_head, getattr(head, 'mask_head', None))
    )
    if hasattr(model.rpn_head, 'num_proposals'):  # Sparse R-CNN learns its regions
        count = model.rpn_head.num_proposals
        extra = [image.new_empty(1, count, channels)]
    else:
        count, extra = BOXES, []
        model.rpn_head(maps)
    if getattr(head, 'semantic_head', None) is not None:
        head.semantic_head(maps)
    for box_head in box_heads:
        box_head(image.new_empty(count, channels, 7, 7), *extra)
    flow = None  # from a mask head of HTC to the next
    for mask_head in mask_heads:
        regions = image.new_empty(MASKS, channels, 14, 14)
        if getattr(head, 'mask_info_flow', False):
            _, flow = mask_head(regions, flow)
        else:
            mask_head(regions)


def _run_mask2former(model: Any, image: Tensor) -> None:
    head = getattr(model, 'panoptic_head', None) or model.decode_head
    # The pixel decoder reads sizes from a tensor, which has no values on the meta device.
    head.to_empty(device='cpu')([torch.zeros(x.shape) for x in model.extract_feat(image)], [])


def last_results(folder: Path, since: float = 0) -> dict[str, float]:
    """Return the metrics of the last test in a work folder.

    Args:
        folder (Path): The work folder.
        since (float): Time in seconds since the epoch. Default: 0.

    Returns:
        dict[str, float]: Empty if there was no test, or the last test was before ``since``.
    """
    written = {file.stat().st_mtime: file for file in folder.glob('*/*.json')}
    last = max(written, default=-1)
    return json.loads(written[last].read_text()) if last >= since else {}


def measured_metrics(row: Row, work_dirs: Path) -> dict[str, float]:
    """Return the metrics of a row, in percent, for which there is a run.

    Runs are in ``work_dirs/CONFIG``, and for metrics of several scales in ``work_dirs/CONFIG/tta``.
    """
    one, several = (last_results(work_dirs / row.config / folder) for folder in ('', 'tta'))
    found = {}
    for name in row.metrics:
        kind = 'LVIS ' if row.config.startswith('lvis/') else ''
        key, factor = METRICS.get(kind + name.removesuffix(' ms'), (name, 1))
        value = (several if name.endswith(' ms') else one).get(key)
        if value is not None:
            found[name] = round(factor * value, 1)
    return found


def render(costs: dict[Row, Cost], metrics: dict[Row, dict[str, float]], html: bool = False) -> str:
    """Format tables, one after the other, with the paper's figures before ours.

    Args:
        costs (dict): :func:`count_cost` of each row, in the order of :func:`load_rows`.
        metrics (dict): :func:`measured_metrics` of each row.
        html (bool): Use HTML instead of Markdown. Default: False.
    """
    parts = []
    for table, group in groupby(costs, key=lambda row: row.table):
        members = list(group)
        names = list(dict.fromkeys(name for row in members for name in row.metrics))
        header = ['config', 'parameters (M)', 'FLOPs (G)', 'attention (G)', 'differs', *names]
        body = [row_cells(row, costs[row], metrics[row], names) for row in members]
        notes = [
            f'{", ".join(row.config for row in members if text in (row.note, row.remark))}: {text}.'
            for text in dict.fromkeys(text for row in members for text in (row.note, row.remark))
            if text
        ]
        parts.append((_html if html else _markdown)(table, header, body, notes))
    return '\n\n'.join(parts) + '\n'


def row_cells(row: Row, cost: Cost, metrics: dict[str, float], names: list[str]) -> list[str]:
    """Return the cells of one row of a table.

    Args:
        row (Row): The row.
        cost (Cost): Its :func:`count_cost`.
        metrics (dict): Its :func:`measured_metrics`.
        names (list[str]): Names of the metrics that have a column.
    """
    digits = max(_decimals(row.flops), 1 if cost.flops < 100 else 0)
    pairs = [_pair(name, row.metrics.get(name), metrics.get(name)) for name in names]
    return [
        row.config,
        f'{_format(row.params)} / {cost.params:.1f}',
        f'{_format(row.flops)} / {cost.flops:.{digits}f}',
        f'{cost.attention:.{max(digits, 1)}f}' if cost.attention else '',
        differences(row, cost),
        *pairs,
    ]


def differences(row: Row, cost: Cost) -> str:
    """Describe each figure that differs from the paper's by more than :data:`TOLERANCE`.

    The rounding of the paper is allowed for. Some of the papers' counters include the products of
    attention and others don't, so FLOPs differ only if they differ counted either way.

    Returns:
        str: As ``'FLOPs +5.7 %'``; empty if nothing differs.
    """
    found = []
    for name, paper, low, high in (
        ('parameters', row.params, cost.params, cost.params),
        ('FLOPs', row.flops, cost.flops, cost.flops + cost.attention),
    ):
        if paper is None:
            continue
        rounding = 0.5 * 0.1 ** _decimals(paper)
        nearest = min(max(paper, low), high)
        if abs(nearest - paper) - rounding > TOLERANCE * paper:
            found.append(f'{name} {100 * (nearest / paper - 1):+.1f} %')
    return ', '.join(found)


def _pair(name: str, paper: float | None, ours: float | None) -> str:
    if paper is None or name == THROUGHPUT:
        return '' if paper is None else _format(paper)
    return f'{_format(paper)} / {_format(ours)}'


def _decimals(value: float | None) -> int:
    return len(str(value).partition('.')[2]) if isinstance(value, float) else 0


def _format(value: float | None) -> str:
    return '–' if value is None else f'{value:g}'


def _markdown(title: str, header: list[str], body: list[list[str]], notes: list[str]) -> str:
    lines = [header, ['---'] * len(header), *body]
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return '\n\n'.join([f'## {title}', table, *notes])


def _html(title: str, header: list[str], body: list[list[str]], notes: list[str]) -> str:
    def line(texts: list[str], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts) + '</tr>'

    table = '\n'.join([line(header, 'th'), *(line(texts, 'td') for texts in body)])
    paragraphs = [f'<p>{escape(note)}</p>' for note in notes]
    return '\n'.join([f'<h2>{escape(title)}</h2>', f'<table>\n{table}\n</table>', *paragraphs])
