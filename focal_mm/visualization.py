"""Pictures of a training run: the losses as curves, the predictions beside the ground truth."""
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
from torch import nn

ZOOM = 3  # so that labels are readable on small images


def draw_losses(losses: Mapping[str, Sequence[float]], out: str | Path, window: int = 5) -> None:
    """Draws loss curves over iterations.

    Args:
        losses (dict[str, sequence of float]): For each loss its values, iteration by iteration.
            The one called ``loss`` is the total; its single values are shown as well.
        out (str or Path): The picture's file.
        window (int): Number of iterations that a curve averages over.
    """
    figure, axes = plt.subplots(figsize=(8, 4.5), layout='constrained')
    for name, values in sorted(losses.items()):
        total = name == 'loss'
        smooth = np.convolve(values, np.ones(window) / window, 'valid')
        axes.plot(np.arange(len(smooth)) + (window + 1) / 2, smooth, label=name,
                  linewidth=2.5 if total else 1.2, color='black' if total else None)
        if total:
            axes.plot(np.arange(len(values)) + 1, values, '.', color='0.7', zorder=0)
    axes.set(xlabel='iteration', ylabel=f'training loss, mean of {window} iterations', ylim=(0, None))
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', color='0.92')
    axes.legend(frameon=False)
    _save(figure, out)


@torch.no_grad()
def draw_detections(model: nn.Module, dataset: BaseDataset, indices: Sequence[int],
                     out: str | Path, score_thr: float = 0.5) -> None:
    """Draws a contact sheet of pairs: the ground truth on the left, predictions on the right.

    Args:
        model (nn.Module): A detector of mmdet.
        dataset (BaseDataset): A test dataset of mmdet that loads boxes and masks.
        indices (sequence of int): The images to draw, two pairs to a row.
        out (str or Path): The picture's file.
        score_thr (float): Predictions with a lower score are left out.
    """
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.6)
    visualizer.dataset_meta = dataset.metainfo
    model.eval()
    rows = math.ceil(len(indices) / 2)
    figure, axes = plt.subplots(rows, 2, squeeze=False, figsize=(12, 3.2 * rows),
                                layout='constrained')
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
        with warnings.catch_warnings():  # that an object touches the edge of its image
            warnings.filterwarnings('ignore', message='.* is out of bounds')
            visualizer.add_datasample('', mmcv.imresize(image, (width, height)), sample,
                                      pred_score_thr=score_thr)
        ax.imshow(visualizer.get_image())
    _save(figure, out)


def _save(figure: Figure, out: str | Path) -> None:
    figure.savefig(out, dpi=110)
    plt.close(figure)
