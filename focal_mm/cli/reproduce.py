"""Training and testing of the rows of a paper's table."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch.autograd.graph import saved_tensors_hooks

from ..config import CONFIGS, dicts, library
from ..datasets import PARTS
from ..weights import fetch
from .arguments import ArgumentParser, add_run_arguments
from .runner import load_config, require_files
from .tables import Row, input_size, last_results

GIB = 1024**3


@dataclass(frozen=True)
class Step:
    """A command, and whether an earlier run has completed it."""

    command: list[str]
    done: bool


def load_row_config(row: Row, folder: Path, options: Sequence[str] = ()) -> Config:
    """Read the config of a row as the tools will read it.

    Args:
        row (Row): The row.
        folder (Path): The work folder.
        options (sequence of str): More options of the tools. Default: none.
    """
    parser = ArgumentParser()
    add_run_arguments(parser)
    given = parser.parse_args([str(row.path), *options])
    return load_config(
        given.config, str(folder), given.mini, options=given.cfg_options, part=given.data
    )


def plan(
    row: Row, folder: Path, launcher: str = 'none', gpus: int = 1, options: Sequence[str] = ()
) -> list[Step]:
    """List the commands that train and test a row.

    The row is also tested at several scales if its table has such results.

    Args:
        row (Row): The row.
        folder (Path): The work folder. Training resumes from its last checkpoint, and results in
            it are not repeated.
        launcher (str): ``'none'``, ``'pytorch'`` (torchrun) or ``'slurm'`` (srun). Default:
            ``'none'``.
        gpus (int): Number of processes, with one GPU each. Default: 1.
        options (sequence of str): More options for both tools. Default: none.
    """
    length = load_row_config(row, folder, options).train_cfg
    last = folder / (
        f'epoch_{length.max_epochs}.pth'
        if 'max_epochs' in length
        else f'iter_{length.max_iters}.pth'
    )

    def command(tool: str, *args: object) -> list[str]:
        start = dict(
            none=[sys.executable],
            pytorch=[
                sys.executable,
                '-m',
                'torch.distributed.run',
                '--standalone',
                f'--nproc_per_node={gpus}',
            ],
            slurm=[
                'srun',
                f'--ntasks={gpus}',
                f'--ntasks-per-node={min(gpus, 8)}',
                f'--gres=gpu:{min(gpus, 8)}',
                '--kill-on-bad-exit=1',
                sys.executable,
                '-u',
            ],
        )[launcher]
        return [
            *start,
            str(CONFIGS.parent / 'tools' / tool),
            str(row.path),
            *map(str, args),
            '--launcher',
            launcher,
            *options,
        ]

    steps = [
        Step(
            command('train.py', '--work-dir', folder, '--resume', '--auto-scale-lr'), last.is_file()
        )
    ]
    for several in (False, True):
        if any(name.endswith(' ms') == several for name in row.metrics):
            to = folder / 'tta' if several else folder
            tested = last.is_file() and last_results(to, since=last.stat().st_mtime)
            steps.append(
                Step(command('test.py', last, '--work-dir', to, *['--tta'] * several), bool(tested))
            )
    return steps


def mark_part(row: Row, part: str) -> Row:
    """Return the row of a table of its own, whose title and note say what its results are from.

    Args:
        row (Row): A row of a paper.
        part (str): ``'1pct'`` or ``'10pct'``, see :mod:`focal_mm.datasets.subsets`.
    """
    images = f'{100 * PARTS[part]:g} % of the training images'
    note = f"our results are from {images}, and the paper's from all of them"
    return replace(
        row,
        table=f'{row.table}, trained on {images}',
        note=f'{row.note}; {note}' if row.note else note,
    )


def require_resources(row: Row, cfg: Config, memory: int | None = None) -> None:
    """Raise an error if data, weights or GPU memory for a row are missing.

    Weights that are not in the cache are downloaded.

    Args:
        row (Row): The row.
        cfg (Config): Its config, as :func:`load_row_config` returns it.
        memory (int, optional): Memory of a GPU in bytes. Default: None, no GPU.

    Raises:
        FileNotFoundError: If a file of the data is missing.
        CheckpointError: If weights can't be downloaded.
        ValueError: If the memory is too small.
    """
    require_files(cfg, 'train_dataloader', 'val_dataloader', 'test_dataloader')
    for node in dicts(cfg.model):
        if str(node.get('checkpoint', '')).startswith('focal://'):
            fetch(node.checkpoint.removeprefix('focal://'))
    if memory is not None and (needed := estimate_training_memory(cfg)) > memory:
        raise ValueError(
            f'{row.config}: {cfg.train_dataloader.batch_size} images need at least '
            f'{needed / GIB:.0f} GiB, and the GPU has {memory / GIB:.0f}; take fewer, with '
            '--cfg-options train_dataloader.batch_size=N, or model.backbone.with_cp=True'
        )


def estimate_training_memory(cfg: Config) -> int:
    """Return a lower bound of the memory of a training step, in bytes.

    It includes weights, gradients, both moments of AdamW, and the tensors of the backbone and the
    neck that are saved for the backward pass. The model is on the meta device, so nothing is
    computed.
    """
    init_default_scope(cfg.default_scope)
    # Classifiers and pose estimators are trained at the size that they are tested at.
    trained = dict(mmdet=(800, 1344), mmseg=cfg.get('crop_size'))
    size = trained.get(library(cfg) or '') or input_size(cfg)
    saved: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == 'meta':
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device('meta'), saved_tensors_hooks(save, lambda tensor: tensor):
        model: Any = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
        maps = model.extract_feat(torch.empty(cfg.train_dataloader.batch_size, 3, *size))
    weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}
    activations = sum(nbytes for key, nbytes in saved.items() if key not in weights)
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        activations //= 2
    del maps  # until here their graph keeps the saved tensors alive
    return 4 * sum(weights.values()) + activations


def run_steps(steps: Sequence[Step]) -> None:
    """Run the steps that are not done, in order.

    Raises:
        ValueError: If a command fails. The next run continues there.
    """
    for step in steps:
        if not step.done and subprocess.run(step.command, check=False).returncode:
            raise ValueError(
                f'{" ".join(step.command)} failed; once that is mended, the same '
                'command as before goes on from there'
            )
