"""From a row of a paper's table to its trained and tested model."""
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch.autograd.graph import saved_tensors_hooks

from .datasets.mini import dicts, library
from .engine import RunParser, check_files, load_config
from .stack import CONFIGS
from .tables import Row, input_size, results
from .weights import fetch

GIB = 1024**3


@dataclass(frozen=True)
class Step:
    """A command, and whether an earlier run has done it already."""
    command: list[str]
    done: bool


def load(row: Row, folder: Path, options: Sequence[str] = ()) -> Config:
    """A row's config as the tools will read it, given a work folder and more of their options."""
    given, _ = RunParser('').parse_known_args([str(row.path), *options])
    return load_config(given.config, str(folder), given.mini, options=given.cfg_options)


def plan(row: Row, folder: Path, launcher: str = 'none', gpus: int = 1,
         options: Sequence[str] = ()) -> list[Step]:
    """The commands that train a row, test it, and test it at several scales if its table does.

    Args:
        row (Row): The row.
        folder (Path): The work folder; what lies there is resumed, or is done.
        launcher (str): ``'none'``, ``'pytorch'`` (torchrun) or ``'slurm'`` (srun).
        gpus (int): Processes, of one GPU each.
        options (sequence of str): More options for both tools.
    """
    length = load(row, folder, options).train_cfg
    last = folder / (f'epoch_{length.max_epochs}.pth' if 'max_epochs' in length else
                     f'iter_{length.max_iters}.pth')

    def command(tool: str, *args: object) -> list[str]:
        start = dict(
            none=[sys.executable],
            pytorch=[sys.executable, '-m', 'torch.distributed.run', '--standalone',
                     f'--nproc_per_node={gpus}'],
            slurm=['srun', f'--ntasks={gpus}', f'--ntasks-per-node={min(gpus, 8)}',
                   f'--gres=gpu:{min(gpus, 8)}', '--kill-on-bad-exit=1', sys.executable, '-u'],
        )[launcher]
        return [*start, str(CONFIGS.parent / 'tools' / tool), str(row.path), *map(str, args),
                '--launcher', launcher, *options]

    steps = [Step(command('train.py', '--work-dir', folder, '--resume', '--auto-scale-lr'),
                  last.is_file())]
    for several in (False, True):
        if any(name.endswith(' ms') == several for name in row.metrics):
            to = folder / 'tta' if several else folder
            tested = last.is_file() and results(to, since=last.stat().st_mtime)
            steps.append(Step(command('test.py', last, '--work-dir', to, *['--tta'] * several),
                              bool(tested)))
    return steps


def check(row: Row, cfg: Config, memory: int | None = None) -> None:
    """Makes sure that a row can be run here: its data, its weights, memory on the GPU.

    Weights that are not here yet are downloaded.

    Args:
        row (Row): The row.
        cfg (Config): Its config, as :func:`load` reads it.
        memory (int, optional): That of a GPU in bytes. Default: there is none.

    Raises:
        FileNotFoundError: If a file of the data is missing.
        ValueError: If weights cannot be had, or the memory does not suffice.
    """
    check_files(cfg, 'train_dataloader', 'val_dataloader', 'test_dataloader')
    for node in dicts(cfg.model):
        if str(node.get('checkpoint', '')).startswith('focal://'):
            fetch(node.checkpoint.removeprefix('focal://'))
    needed = training_memory(cfg) if memory is not None else 0
    if needed > (memory or 0):
        raise ValueError(
            f'{row.config}: {cfg.train_dataloader.batch_size} images need at least '
            f'{needed / GIB:.0f} GiB, and the GPU has {memory / GIB:.0f}; take fewer, with '
            '--cfg-options train_dataloader.batch_size=N, or model.backbone.with_cp=True')


def training_memory(cfg: Config) -> int:
    """Bytes that a training step needs at least: weights, gradients, both moments of AdamW, and
    what the backbone and the neck keep of a batch for the backward pass. Nothing is computed."""
    init_default_scope(cfg.default_scope)
    # Classifiers and pose estimators are trained at the size of their tests.
    trained = dict(mmdet=(800, 1344), mmseg=cfg.get('crop_size'))
    size = trained.get(library(cfg)) or input_size(cfg)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == 'meta':
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.device('meta'), saved_tensors_hooks(keep, lambda tensor: tensor):
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
        maps = model.extract_feat(torch.empty(cfg.train_dataloader.batch_size, 3, *size))
    weights = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}
    activations = sum(nbytes for key, nbytes in kept.items() if key not in weights)
    if cfg.optim_wrapper.type == 'AmpOptimWrapper':
        activations //= 2
    del maps  # whose graph holds on to all that was kept
    return 4 * sum(weights.values()) + activations


def run(steps: Sequence[Step]) -> None:
    """Runs what is not done, in order.

    Raises:
        ValueError: If a command fails. The next run goes on from there.
    """
    for step in steps:
        if not step.done and subprocess.run(step.command).returncode:
            raise ValueError(f'{" ".join(step.command)} failed; once that is mended, the same '
                             'command as before goes on from there')
