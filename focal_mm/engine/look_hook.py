"""The hook that shows, during training, what the network sees in some pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..registry import HOOKS


@HOOKS.register_module()
class LookHook(Hook):
    """Hook that gives the visualizer sheets of what blocks see, and so TensorBoard, W&B or whatever
    is among its ``vis_backends``.

    A sheet is named ``look_PICTURE_stageN``. Without a pipeline in the config, pictures keep their
    size.

    Args:
        images (str or Sequence[str]): Files of the pictures.
        maps (Sequence[str]): Rows of the sheets, of :data:`focal_mm.look.sheets.MAPS`; a block has
            some of them. Default: gates, modulator, attention and interactions.
        stages (Sequence[int]): Stages whose last block is shown, from 0; negative ones count from
            the last. Default: the last.
        interval (int): Epochs, or iterations, from one sheet to the next; the first is drawn before
            training. Default: 1.
        by_epoch (bool): Whether ``interval`` counts epochs. Default: True.
        query (tuple[float, float]): The token whose attention is drawn, x and y from 0 to 1.
            Default: the middle.

    Raises:
        FileNotFoundError: If a picture is missing.
        ValueError: If there are no such maps or stages, or ``interval`` is below 1.
    """

    priority = 'LOW'

    def __init__(
        self,
        images: str | Sequence[str],
        maps: Sequence[str] = ('gates', 'modulator', 'attention', 'interactions'),
        stages: Sequence[int] = (-1,),
        interval: int = 1,
        by_epoch: bool = True,
        query: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        from ..look.samples import require_inside
        from ..look.sheets import require_maps

        require_maps(maps)
        require_inside(query)
        if interval < 1:
            raise ValueError(f'LookHook: interval={interval}; give 1 or more')
        self.images = [
            Path(image).expanduser()
            for image in ([images] if isinstance(images, (str, Path)) else images)
        ]
        for image in self.images:
            if not image.is_file():
                raise FileNotFoundError(f'LookHook: images={image}: no such file')
        self.maps, self.stages, self.query = maps, stages, query
        self.interval, self.by_epoch = interval, by_epoch

    def before_train(self, runner: Runner) -> None:
        """Show what the network sees to begin with."""
        self._show(runner, runner.epoch if self.by_epoch else runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Show what the network sees after every so many epochs."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._show(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Show what the network sees after every so many iterations."""
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._show(runner, runner.iter + 1)

    @master_only
    def _show(self, runner: Runner, step: int) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        from ..look import draw_block, prepare, survey

        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        for image in self.images:
            found = survey(model, prepare(model, image, runner.cfg), image.name, queries=64**2)
            for stage in self.stages:
                if not -len(found.blocks) <= stage < len(found.blocks):
                    raise ValueError(
                        f'LookHook: stages={self.stages} for a backbone of '
                        f'{len(found.blocks)} stages, counted from 0'
                    )
                stage %= len(found.blocks)
                if not found.blocks[stage]:
                    continue
                last = len(found.blocks[stage]) - 1
                figure = draw_block(found, stage, last, self.query, self.maps)
                figure.set_dpi(120)
                canvas = FigureCanvasAgg(figure)
                canvas.draw()
                rgb = np.asarray(canvas.buffer_rgba())[..., :3].copy()
                # Without a slash: the backend of local files makes no folders, and says nothing.
                runner.visualizer.add_image(f'look_{image.stem}_stage{stage + 1}', rgb, step)
