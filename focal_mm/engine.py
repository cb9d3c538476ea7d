"""What the tools share: from a command line to a runner, and mistakes answered in one line."""
import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import barrier, get_backend, is_distributed
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.distributed import init_process_group

from .datasets.mini import datasets_of, dicts, from_scratch, library, use_mini


class ArgumentParser(argparse.ArgumentParser):
    """Answers a wrong command line with one line."""

    def error(self, message: str) -> None:
        self.exit(2, f'{self.prog}: error: {message} (--help lists the options)\n')


class RunParser(ArgumentParser):
    """The options that training and testing have in common, under OpenMMLab's names."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description)
        self.add_argument('config', help="a config file, or one of a package's: "
                          'focal_mm::mask_rcnn/focalnet_t_1x.py, mmdet::...')
        self.add_argument('--work-dir', help='where logs and checkpoints go; default: '
                          "the config's work_dir, else work_dirs/<its path below configs/>")
        self.add_argument('--mini', action='store_true', help='the built-in mini dataset of the '
                          "config's task and a schedule of minutes on a CPU, from scratch")
        self.add_argument('--cfg-options', nargs='+', action=DictAction, default={},
                          metavar='KEY=VALUE', help='override settings of the config; data_root=DIR '
                          'moves every dataset and annotation file that lies under the old one')
        self.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'],
                          default='none')
        self.add_argument('--local_rank', '--local-rank', type=int, default=0,
                          help=argparse.SUPPRESS)  # older launchers pass it

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:
        try:
            parsed = super().parse_args(*args, **kwargs)
        except ValueError:  # mmengine's DictAction on a word without '='
            self.error('--cfg-options takes KEY=VALUE pairs, without spaces around "="')
        os.environ.setdefault('LOCAL_RANK', str(parsed.local_rank))
        return parsed


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line for a mistake of the user, exit status 2.

    Whatever ``focal_mm`` raises on purpose names in one line what is wrong and the way out, and
    OpenMMLab's registries may have wrapped it. Any other error keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not _raised_by_us(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        print(f'{Path(sys.argv[0]).name}: error: {cause.args[-1]}', file=sys.stderr)
        sys.exit(2)


def _raised_by_us(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return (len(frames) > 0 and frames[-1].line.startswith('raise ')
            and Path(frames[-1].filename).is_relative_to(Path(__file__).parent))


def load_config(config: str, work_dir: str | None = None, mini: bool = False,
                scratch: bool = False, amp: bool = False, launcher: str = 'none',
                options: dict[str, Any] | None = None) -> Config:
    """Reads a config and changes it as a command line asks, in this order.

    Args:
        config (str): A file, or ``PACKAGE::PATH``.
        work_dir (str, optional): Default: the config's own, else ``work_dirs/<its path below
            configs/>``, for configs in two folders may have one name.
        mini (bool): See :func:`focal_mm.datasets.use_mini`.
        scratch (bool): See :func:`focal_mm.datasets.from_scratch`.
        amp (bool): Mixed precision. Without a GPU it is off, whatever the config says.
        launcher (str): mmengine's launcher of distributed runs.
        options (dict, optional): Settings by dotted key. ``data_root`` moves all that lies below
            the config's own.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the options don't fit it, or the mini datasets don't fit its task.
    """
    cfg = _read_config(config)
    if mini:
        cfg = use_mini(cfg)
    elif scratch:
        cfg = from_scratch(cfg)
    _override(cfg, options or {})
    cfg.work_dir = work_dir or cfg.get('work_dir') or _work_dir(config)
    cfg.launcher = launcher
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if get_device() == 'cpu':
        _leave_out_gpu(cfg)
    return cfg


def _work_dir(config: str) -> str:
    parts = Path(config.rpartition('::')[2]).with_suffix('').parts
    if 'configs' in parts:
        parts = parts[len(parts) - parts[::-1].index('configs'):]
    elif '::' not in config:
        parts = parts[-1:]
    return str(Path('work_dirs', *parts))


def _read_config(name: str) -> Config:
    path = Path(name)
    if '::' not in name and not path.is_file():
        siblings = [file.name for file in path.parent.glob('*.py')]
        near = difflib.get_close_matches(path.name, siblings)
        hint = f'{path.parent} has {", ".join(near)}' if near else \
            'give a file, or PACKAGE::PATH as in focal_mm::mask_rcnn/focalnet_t_1x.py'
        raise FileNotFoundError(f'{name}: no such config; {hint}')
    try:
        return Config.fromfile(name)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise FileNotFoundError(f'{name}: {error}') from error


def _override(cfg: Config, options: dict[str, Any]) -> None:
    if 'data_root' in options and cfg.get('data_root'):
        old, new = (os.path.expanduser(root).rstrip('/')
                    for root in (cfg.data_root, options['data_root']))
        for node in dicts(cfg._cfg_dict):
            for key, value in node.items():
                if isinstance(value, str) and f'{value}/'.startswith(f'{old}/'):
                    node[key] = new + value[len(old):]
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f'--cfg-options {" ".join(options)}: {error.args[-1]}') from error


def _leave_out_gpu(cfg: Config) -> None:
    optimizer = cfg.get('optim_wrapper') or {}
    if optimizer.get('type') == 'AmpOptimWrapper':
        print_log('no GPU: fp32 instead of mixed precision')
        optimizer.type = 'OptimWrapper'
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            optimizer.pop(key, None)
    if cfg.launcher != 'none':
        # mmengine would bind each process to the GPU of its rank.
        cfg.setdefault('model_wrapper_cfg', dict(device_ids=None))


def check_files(cfg: Config, *loaders: str) -> None:
    """Makes sure that what a run reads is there, before anything is built.

    Args:
        cfg (Config): Any OpenMMLab config.
        loaders (str): Its data loaders that the run uses.

    Raises:
        FileNotFoundError: Names the first file or folder that is missing, and the ways out.
    """
    for key in loaders:
        evaluator = cfg.get(key.replace('dataloader', 'evaluator'))
        for path in [*chain.from_iterable(map(_paths, datasets_of(cfg.get(key)))),
                     *(node.get('ann_file') for node in dicts(evaluator))]:
            if path and '://' not in path and not Path(path).exists():
                option = 'data_root' if 'data_root' in cfg else f'{key}.dataset.data_root'
                raise FileNotFoundError(
                    f'{path}, which {key} reads, does not exist; if the data is elsewhere, say '
                    f'--cfg-options {option}=DIR; to try the built-in mini dataset, say --mini')
    start = cfg.get('load_from')
    if start and '://' not in start and not Path(start).is_file():
        raise FileNotFoundError(f'{start}: no such checkpoint')


def _paths(dataset: ConfigDict) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    yield root
    prefix = dataset.get('data_prefix')  # mmpretrain takes one folder as well
    folders = prefix.values() if isinstance(prefix, dict) else [prefix]
    for path in [dataset.get('ann_file'), *folders]:
        if isinstance(path, str) and path and '://' not in root:
            yield str(Path(root, path))


def resume(cfg: Config, checkpoint: str) -> None:
    """Goes on from a checkpoint, or with ``auto`` from the last one in the work folder, if any."""
    cfg.resume = True
    cfg.load_from = None if checkpoint == 'auto' else checkpoint


def scale_lr(cfg: Config) -> None:
    """Adapts the learning rate to the batch, in proportion to the one that it was chosen for.

    Raises:
        ValueError: If the config doesn't say which one that was.
    """
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise ValueError(f'--auto-scale-lr: {cfg.filename} has no auto_scale_lr.base_batch_size')
    cfg.auto_scale_lr.enable = True


def use_tta(cfg: Config) -> None:
    """Tests with the augmentation of the config's ``tta_pipeline``, else with a flip.

    mmdet merges boxes only, so a mask head is left out and boxes alone are evaluated.

    Raises:
        ValueError: If the model predicts masks without a mask head, or is mmpose's.
    """
    if library(cfg) == 'mmpose':
        raise ValueError('--tta: mmpose flips by itself, model.test_cfg.flip_test')
    for dataset in datasets_of(cfg.test_dataloader):
        dataset.pipeline = cfg.get('tta_pipeline') or _flipped_too(dataset.pipeline)
    default = dict(
        mmdet=dict(type='DetTTAModel',
                   tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
        mmseg=dict(type='SegTTAModel'),
        mmpretrain=dict(type='AverageClsScoreTTA'))[library(cfg)]
    for node in dicts(cfg.test_evaluator):
        if 'segm' in node.get('metric', ()):
            if not cfg.model.get('roi_head', {}).get('mask_head'):
                raise ValueError(f'--tta: mmdet merges boxes only, and {cfg.model.type} has no '
                                 'mask head that could be left out')
            print_log('--tta: mmdet merges boxes only, no masks')
            cfg.model.roi_head.mask_head = None
            node.metric = ['bbox']
    cfg.model = ConfigDict(cfg.get('tta_model') or default, module=cfg.model)


def _flipped_too(pipeline: list[ConfigDict]) -> list[dict]:
    """A test pipeline that packs every image twice, as it is and flipped."""
    *steps, pack = pipeline
    # The ground truth is loaded after the flip: predictions are flipped back to meet it.
    annotations = [step for step in steps if step.type == 'LoadAnnotations']
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0., 1.)]
    branches = [flips, *([step] for step in annotations), [dict(type=pack.type)]]
    return [*(step for step in steps if step not in annotations),
            dict(type='TestTimeAug', transforms=branches)]


def dump_predictions(cfg: Config, out: str) -> None:
    """Keeps the predictions of a test: mmseg's as images in a folder, others in a pickle file.

    Raises:
        ValueError: If the file is called neither ``.pkl`` nor ``.pickle``.
    """
    if library(cfg) == 'mmseg':
        for evaluator in dicts(cfg.test_evaluator):
            evaluator.update(output_dir=out, keep_results=True)
    elif out.endswith(('.pkl', '.pickle')):
        evaluator = cfg.test_evaluator
        dump = 'DumpDetResults' if library(cfg) == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [*(evaluator if isinstance(evaluator, list) else [evaluator]),
                              dict(type=dump, out_file_path=out)]
    else:
        raise ValueError(f'--out {out}: {library(cfg)} writes a pickle file, .pkl or .pickle')


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Shows the predictions of a test in a window, or draws them into files.

    Args:
        cfg (Config): A config for mmdet, mmseg or mmpretrain.
        show (bool): Whether to open windows.
        show_dir (str, optional): Where the files go; mmdet puts a relative one below the work
            folder.
        wait_time (float): How long a window stays, in seconds.

    Raises:
        ValueError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError(f'--show, --show-dir: {cfg.filename} has no default_hooks.visualization, '
                         'which draws')
    hook.update(show=show, wait_time=wait_time)
    hook['enable' if library(cfg) == 'mmpretrain' else 'draw'] = True
    if show_dir and library(cfg) == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook['out_dir' if library(cfg) == 'mmpretrain' else 'test_out_dir'] = show_dir


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, of its own ``runner_type`` if it names one."""
    if cfg.launcher == 'pytorch' and get_device() == 'cpu' and not is_distributed():
        init_process_group('gloo')  # mmengine would set a CUDA device first
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def run(cfg: Config, task: str) -> None:
    """Builds the runner of a config and lets it ``'train'`` or ``'test'``."""
    getattr(build_runner(cfg), task)()
    if is_distributed() and get_backend() == 'gloo':
        # While processes that share a gloo group are torn down, its threads now and then abort one
        # of them, and with it the whole run. All is done and written: they end together, as is.
        sys.stdout.flush()
        sys.stderr.flush()
        barrier()
        os._exit(0)
