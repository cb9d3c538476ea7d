"""From a config and the options of a command line to a runner that trains or tests."""

import difflib
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import barrier, get_backend, is_distributed
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import is_abs
from torch import nn
from torch.distributed import init_process_group

from ..config import change_paths, datasets_of, dicts, move_data_root, type_name
from ..datasets import command_for, from_scratch, require_classes, use_mini, use_part
from ..transplant import use_backbone
from .data_check import require_sound_data

# Arguments of mmengine's OptimWrapper; those of mixed precision are not among them.
_FP32_KEYS = (
    'type',
    'optimizer',
    'constructor',
    'paramwise_cfg',
    'accumulative_counts',
    'clip_grad',
)
# Options of a DataLoader that PyTorch refuses where no worker processes load.
_WORKER_KEYS = ('persistent_workers', 'prefetch_factor', 'timeout', 'multiprocessing_context')


def load_config(
    config: str,
    work_dir: str | None = None,
    mini: bool = False,
    scratch: bool = False,
    amp: str | None = None,
    launcher: str = 'none',
    options: dict[str, Any] | None = None,
    part: str | None = None,
    backbone: str | None = None,
    dump: str | None = None,
) -> Config:
    """Read a config and apply the options of a command line.

    In every path ``~`` is expanded. A data loader without workers loses the options that only
    workers have, such as ``persistent_workers``.

    Args:
        config (str): A file, or ``PACKAGE::PATH``.
        work_dir (str, optional): Folder for logs and checkpoints. Default: the config's own, else
            ``work_dirs/<its path below configs/>``, because configs in two folders may have the
            same name.
        mini (bool): Train on a mini dataset, see :func:`focal_mm.datasets.use_mini`. Default:
            False.
        scratch (bool): Start from random weights, see :func:`focal_mm.datasets.from_scratch`.
            Default: False.
        amp (str, optional): Use mixed precision: ``'fp16'``, whose losses are scaled, or
            ``'bf16'``. Without a GPU it is off even if the config sets it. Default: as the config.
        launcher (str): mmengine's launcher of distributed runs. Default: ``'none'``.
        options (dict, optional): Settings by dotted key, applied after ``mini`` and ``scratch``.
            ``data_root`` also moves every path in the config's own. Default: none.
        part (str, optional): Train on a part of COCO or ADE20K, see
            :func:`focal_mm.datasets.use_part`. Default: on all of the data.
        backbone (str, optional): Name of published weights, whose backbone takes the place of the
            config's before the other options apply, see :func:`focal_mm.use_backbone`. Default:
            the config's own.
        dump (str, optional): File that the config is written to, with the options above but
            ``amp`` and ``launcher``. Default: none.

    Raises:
        FileNotFoundError: If there is no such config, or no folder for ``dump``.
        ValueError: If the options don't fit the config, or there is no mini dataset for its task or
            no part of its data.
    """
    cfg = _read_config(config)
    if backbone:
        use_backbone(cfg, backbone)
    if part:
        if mini:
            raise ValueError(f'--mini and --data {part} are two sets of data; leave one out')
        cfg = use_part(cfg, part)
    if mini:
        cfg = use_mini(cfg)
    elif scratch:
        cfg = from_scratch(cfg)
    _override(cfg, options or {})
    if dump:
        _dump(cfg, dump)
    cfg.work_dir = work_dir or cfg.get('work_dir') or _default_work_dir(config)
    change_paths(cfg, os.path.expanduser)
    for loader in dicts(cfg._cfg_dict):
        if 'dataset' in loader and not loader.get('num_workers'):
            for key in _WORKER_KEYS:
                loader.pop(key, None)
    cfg.launcher = launcher
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        if amp == 'bf16':  # has the exponents of fp32
            cfg.optim_wrapper.update(dtype='bfloat16', loss_scale=1.0)
    if get_device() == 'cpu':
        _adapt_to_cpu(cfg)
    return cfg


def _default_work_dir(config: str) -> str:
    parts = Path(config.rpartition('::')[2]).with_suffix('').parts
    if 'configs' in parts:
        parts = parts[len(parts) - parts[::-1].index('configs') :]
    elif '::' not in config:
        parts = parts[-1:]
    return str(Path('work_dirs', *parts))


def _read_config(name: str) -> Config:
    name = os.path.expanduser(name)
    path = Path(name)
    if '::' not in name and not path.is_file():
        siblings = [file.name for file in path.parent.glob('*.py')]
        near = difflib.get_close_matches(path.name, siblings)
        hint = (
            f'{path.parent} has {", ".join(near)}'
            if near
            else 'give a file, or PACKAGE::PATH as in focal_mm::mask_rcnn/focalnet_t_1x.py'
        )
        raise FileNotFoundError(f'{name}: no such config; {hint}')
    try:
        return Config.fromfile(name)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise FileNotFoundError(f'{name}: {error}') from error


def _dump(cfg: Config, file: str) -> None:
    path = Path(file).expanduser()
    if path.suffix not in ('.py', '.json', '.yml', '.yaml'):
        raise ValueError(f'--dump {file}: a config ends in .py, .json, .yml or .yaml')
    if not path.parent.is_dir():
        raise FileNotFoundError(f'--dump {file}: there is no folder {path.parent}')
    cfg.dump(path)
    print_log(f'the config is in {path}')


def _override(cfg: Config, options: dict[str, Any]) -> None:
    if 'data_root' in options:
        move_data_root(cfg, options['data_root'])
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f'--cfg-options {" ".join(options)}: {error.args[-1]}') from error


def _adapt_to_cpu(cfg: Config) -> None:
    for optimizer in dicts(cfg.get('optim_wrapper')):
        if type_name(optimizer) in ('AmpOptimWrapper', 'ApexOptimWrapper'):
            print_log('no GPU: fp32 instead of mixed precision')
            optimizer.type = 'OptimWrapper'
            for key in set(optimizer).difference(_FP32_KEYS):
                del optimizer[key]
    if cfg.launcher != 'none':
        cfg.sync_bn = None
        if not cfg.get('model_wrapper_cfg'):
            # The defaults of mmengine, which it does not use beside another setting.
            cfg.model_wrapper_cfg = dict(
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters', False),
            )
        # Otherwise mmengine binds each process to the GPU of its rank.
        cfg.model_wrapper_cfg.setdefault('device_ids', None)


def require_files(cfg: Config, *loaders: str) -> None:
    """Raise an error, before anything is built, if a file is missing or classes do not fit.

    Args:
        cfg (Config): Any OpenMMLab config.
        loaders (str): Keys of the data loaders that the run uses, as ``'train_dataloader'``.

    Raises:
        FileNotFoundError: Names the first file or folder that is missing, and what to do.
        ValueError: If the classes of data and heads differ, see
            :func:`focal_mm.datasets.require_classes`.
    """
    for key in loaders:
        evaluator = cfg.get(key.replace('dataloader', 'evaluator'))
        for path in [
            *chain.from_iterable(map(_paths_of, datasets_of(cfg.get(key)))),
            *(node.get('ann_file') for node in dicts(evaluator)),
        ]:
            if path and '://' not in path and not Path(path).exists():
                if command := command_for(path):
                    raise FileNotFoundError(f'{path} does not exist; {command} makes it')
                option = 'data_root' if 'data_root' in cfg else f'{key}.dataset.data_root'
                raise FileNotFoundError(
                    f'{path}, which {key} reads, does not exist; if the data is elsewhere, say '
                    f'--cfg-options {option}=DIR; to try the built-in mini dataset, say --mini'
                )
    start = cfg.get('load_from')
    if start and '://' not in start and not Path(start).is_file():
        raise FileNotFoundError(
            f'{start} is a folder; give the checkpoint file'
            if Path(start).is_dir()
            else f'{start}: no such checkpoint'
        )
    require_classes(cfg, *loaders)


def _paths_of(dataset: ConfigDict) -> Iterator[str]:
    storage = dataset.get('backend_args') or dataset.get('file_client_args') or {}
    if storage.get('backend', 'local') not in ('local', 'disk'):
        return
    root = dataset.get('data_root') or ''
    yield root
    prefix = dataset.get('data_prefix')  # in mmpretrain also one folder
    folders = prefix.values() if isinstance(prefix, dict) else [prefix]
    for path in [dataset.get('ann_file'), *folders]:
        if isinstance(path, str) and path:
            yield path if is_abs(path) else os.path.join(root, path)


class _WithoutSyncBatchNorm(Runner):
    """Runner of processes without a GPU, which SyncBatchNorm needs."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for distributed training, with BatchNorm for each SyncBatchNorm."""
        if any('SyncBatchNorm' in type(module).__name__ for module in model.modules()):
            print_log('no GPU: BatchNorm instead of SyncBatchNorm', logger='current')
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config: its ``runner_type``, by default ours."""
    cfg.setdefault('runner_type', 'focal_mm.DurableRunner')
    if cfg.launcher == 'none' or get_device() != 'cpu':
        return RUNNERS.build(cfg)
    if cfg.launcher == 'pytorch' and not is_distributed():
        init_process_group('gloo')  # otherwise mmengine sets a CUDA device
    name = cfg.runner_type
    cls: type = RUNNERS.get(name) if isinstance(name, str) else name
    if not issubclass(cls, Runner):
        return RUNNERS.build(cfg)
    return type(cls.__name__, (_WithoutSyncBatchNorm, cls), {}).from_cfg(cfg)  # type: ignore[attr-defined]


def _warn_of_restarts() -> None:
    """Warn if torchrun is to restart processes, which then would not find each other.

    The store of its agents outlives them, with the addresses of the processes that have died
    (https://github.com/pytorch/pytorch/issues/135712).
    """
    if (
        os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'
        and os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0') != '0'
        and os.environ.get('RANK') == '0'
    ):
        print_log(
            'restarts by torchrun may fail, since new processes find the addresses of dead ones; '
            'set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, and on a single machine also '
            'say --standalone'
        )


def run(cfg: Config, task: str) -> None:
    """Build the runner of a config and run it.

    Args:
        cfg (Config): The config, as :func:`load_config` returns it.
        task (str): ``'train'`` or ``'test'``.

    Raises:
        ValueError: If the data has errors, unless ``check_data`` of the config is False.
        SystemExit: After a signal and once all is saved, with 128 plus the number of the signal.
    """
    if task == 'train':
        _warn_of_restarts()
        if cfg.get('check_data', True):
            require_sound_data(cfg)
    status = 0
    try:
        getattr(build_runner(cfg), task)()
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    if is_distributed() and get_backend() == 'gloo':
        # When processes that share a gloo group shut down, its threads sometimes abort one of them,
        # which fails the whole run. All results are written, so the processes exit without
        # shutting down.
        sys.stdout.flush()
        sys.stderr.flush()
        barrier()
        os._exit(status)
    if status:
        sys.exit(status)
