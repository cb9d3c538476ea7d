"""Pictures of a training run: loss curves, and predictions beside the ground truth."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel

ZOOM = 3  # makes labels readable on small images


def draw_losses(losses: Mapping[str, Sequence[float]], out: str | Path, window: int = 5) -> None:
    """Draw loss curves over iterations.

    Args:
        losses (dict[str, sequence of float]): Values of each loss, one an iteration. ``loss`` is
            the total; its single values are drawn as points.
        out (str or Path): File of the picture.
        window (int): Number of iterations that a curve averages over. Default: 5.
    """
    figure, axes = plt.subplots(figsize=(8, 4.5), layout='constrained')
    for name, values in sorted(losses.items()):
        total = name == 'loss'
        smooth = np.convolve(values, np.ones(window) / window, 'valid')
        axes.plot(
            np.arange(len(smooth)) + (window + 1) / 2,
            smooth,
            label=name,
            linewidth=2.5 if total else 1.2,
            color='black' if total else None,
        )
        if total:
            axes.plot(np.arange(len(values)) + 1, values, '.', color='0.7', zorder=0)
    axes.set(
        xlabel='iteration', ylabel=f'training loss, mean of {window} iterations', ylim=(0, None)
    )
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='0.92')
    axes.legend(frameon=False)
    _save(figure, out)


@torch.no_grad()
def draw_detections(
    model: BaseModel,
    dataset: BaseDataset,
    indices: Sequence[int],
    out: str | Path,
    score_thr: float = 0.5,
) -> None:
    """Draw pairs of pictures: the ground truth on the left, predictions on the right.

    Args:
        model (BaseModel): A detector of mmdet.
        dataset (BaseDataset): A test dataset of mmdet that loads boxes and masks.
        indices (sequence of int): Images to draw, two pairs a row.
        out (str or Path): File of the picture.
        score_thr (float): Predictions with a lower score are not drawn. Default: 0.5.
    """
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.6)
    visualizer.dataset_meta = dataset.metainfo
    model.eval()
    rows = math.ceil(len(indices) / 2)
    figure, axes = plt.subplots(
        rows, 2, squeeze=False, figsize=(12, 3.2 * rows), layout='constrained'
    )
    for ax in axes.flat:
        ax.axis('off')
    for ax in axes[0]:
        ax.set_title(f'ground truth   |   predictions with a score above {score_thr:g}')
    for index, ax in zip(indices, axes.flat):
        sample = model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        height, width = ZOOM * image.shape[0], ZOOM * image.shape[1]
        truth, found = sample.gt_instances, sample.pred_instances
        for instances in (truth, found):
            instances.bboxes = instances.bboxes * ZOOM
        truth.masks = truth.masks.resize((height, width))
        found.masks = found.masks.repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
        with warnings.catch_warnings():  # of objects that touch the edge of the image
            warnings.filterwarnings('ignore', message='.* is out of bounds')
            visualizer.add_datasample(
                '', mmcv.imresize(image, (width, height)), sample, pred_score_thr=score_thr
            )
        ax.imshow(visualizer.get_image())
    _save(figure, out)


def _save(figure: Figure, out: str | Path) -> None:
    figure.savefig(out, dpi=110)
    plt.close(figure)
