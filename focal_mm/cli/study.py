"""The study of transfer: do fitted weights of a classifier help a detector? See docs/study.md.

Every run is a config of ``configs/study/`` with some options, trained as ``focal-mm train`` does. A
run has a folder of its own. Its ``result.json``, which is written last, says that it is finished.
"""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import chain
from math import isqrt
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import find_latest_checkpoint
from torch import Tensor

from .. import __version__
from ..config import CONFIGS, dicts
from ..datasets import drawn_objects
from ..weights.resize import fit_kernel, fit_pooling
from .runner import build_runner, load_config, require_files
from .training import resume

# The metrics of each task: the name in the log, ours, and the factor that makes it percent.
METRICS = dict(
    pretraining={'accuracy/top1': ('top-1', 1)},
    classifier={'accuracy/top1': ('top-1', 1)},
    mask_rcnn={'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100)},
    upernet={'mIoU': ('mIoU', 1)},
)
DENSE = ('mask_rcnn', 'upernet')
# Classifiers that nothing starts from train for less than the 800 iterations of the config.
SHORT = {'train_cfg.max_iters': 300}
# One process a core, but a process takes about 1 GiB of memory.
MOST_PROCESSES = 8


# ---- how the weights of a classifier are fitted ------------------------------------------------

State = dict[str, Tensor]


def resample(theirs: State, own: State) -> State:
    """Return kernels resampled to the sizes of a network, scaled so that their sums stay.

    Args:
        theirs (dict): Tensors of the classifier whose shapes differ.
        own (dict): Tensors of the network, as it is initialized, that differ or are not in the
            classifier.
    """
    return {key: fit_pooling(weight, own[key].shape[-1]) for key, weight in theirs.items()}


def crop(theirs: State, own: State) -> State:
    """Return bias tables in which each offset keeps its bias: cropped where a table shrinks, zero
    for the new offsets where it grows.

    Args:
        theirs (dict): Tensors of the classifier whose shapes differ.
        own (dict): Tensors of the network, as it is initialized, that differ or are not in the
            classifier.
    """
    cropped = {}
    for key, table in theirs.items():
        # Windows have their heads last, pooled windows first.
        heads_last = table.shape[1] == own[key].shape[1]
        grids = table.t() if heads_last else table
        old, new = (isqrt(t.numel() // len(grids)) for t in (table, own[key]))
        fitted = fit_kernel(grids.unflatten(1, (old, old)), new).flatten(1)
        cropped[key] = (fitted.t() if heads_last else fitted).contiguous()
    return cropped


def renew(theirs: State, own: State) -> State:
    """Return the tensors as the network is initialized, and those that the classifier lacks.

    Args:
        theirs (dict): Tensors of the classifier whose shapes differ.
        own (dict): Tensors of the network, as it is initialized, that differ or are not in the
            classifier.
    """
    missing = own.keys() - theirs.keys()
    return {key: own[key] for key in {*theirs, *missing}}


@dataclass(frozen=True)
class Start:
    """What a detector or segmentor starts from.

    Attributes:
        fit (callable, optional): Replaces tensors of the classifier, in a file of its own. None:
            the weights are fitted as they load. Default: None.
        options (dict): Options of the config. Default: none.
        scratch (bool): Random weights, drawn as the classifier's were. Default: False.
    """

    fit: Callable[[State, State], State] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False


_BIASES = {
    'biases interpolated': Start(),
    'biases cropped': Start(crop),
    'biases new': Start(renew),
    'from scratch': Start(scratch=True),
}
STARTS: dict[str, dict[str, Start]] = {
    'focalnet': {
        'kernels zero-padded': Start(),
        'kernels resampled': Start(resample),
        'kernels kept': Start(options={'model.backbone.focal_windows': 3}),
        'kernels new': Start(renew),
        'from scratch': Start(scratch=True),
    },
    'focal': _BIASES,
    'mixformer': _BIASES,
}


# ---- the classifiers ---------------------------------------------------------------------------

# The classifier that the others start from, and what its ablations change.
BASES = dict(focalnet='focal modulation', focal='focal attention', mixformer='both interactions')
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    'focalnet': {
        # FocalNet, Table 10; the additive modulation is in Table 11.
        'additive': dict(modulation='additive'),
        'depth-wise ConvNet': dict(modulation='convnet'),
        'pooling': dict(modulation='pooling'),
        'global pooling': dict(focal_levels=0),
        'multi-scale attention': dict(modulation='multi_scale_attention'),
        'multi-scale attention, QKV later': dict(modulation='multi_scale_attention_qkv_later'),
        'sliding window': dict(modulation='sliding_window'),
        # FocalNet, Table 12, where three levels are the base and none is global pooling.
        '1 level': dict(focal_levels=1),
        '2 levels': dict(focal_levels=2),
        '4 levels': dict(focal_levels=4),
        '1 level, kernel 13': dict(focal_levels=1, focal_windows=13),
    },
    'focal': {},
    # MixFormer, Table 7.
    'mixformer': {
        'successive': dict(parallel=False, channel_interaction=False, spatial_interaction=False),
        'parallel': dict(channel_interaction=False, spatial_interaction=False),
        'channel interaction': dict(spatial_interaction=False),
        'spatial interaction': dict(channel_interaction=False),
    },
}
PEERS = dict(swin='Swin', convnext='ConvNeXt')


# ---- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A training.

    Attributes:
        folder (Path): Its work folder.
        config (str): Name of its config in ``configs/study/``.
        task (str): Name in ``METRICS``.
        variant (str): Its name in the figure.
        seed (int): Random seed.
        options (dict): Options of the config.
        start (Start): What a detector or segmentor starts from. Default: nothing special.
        classifier (Path, optional): Work folder of the classifier that it starts from. Default:
            None.
    """

    folder: Path
    config: str
    task: str
    variant: str
    seed: int
    options: dict[str, Any]
    start: Start = Start()
    classifier: Path | None = None


def plan(family: str, seeds: Sequence[int], out: Path) -> list[Run]:
    """Return the runs of a family, and draw their dataset if it is not there.

    Args:
        family (str): Name in ``STARTS``.
        seeds (sequence of int): Random seeds.
        out (Path): Folder of all runs.
    """
    data, out = drawn_objects(), out.resolve()
    pictures, scenes = {'data_root': str(data)}, {'data_root': str(data / 'scenes')}
    first, others = [], []
    for seed in seeds:
        base = _folder(out, family, 'pretraining', BASES[family], seed)
        first.append(Run(base, family, 'pretraining', BASES[family], seed, pictures))
        for task in DENSE:
            for variant, start in STARTS[family].items():
                folder, options = _folder(out, family, task, variant, seed), scenes | start.options
                config = f'{family}_{task}'
                others.append(Run(folder, config, task, variant, seed, options, start, base))
        for variant, changes in {BASES[family]: {}, **ABLATIONS[family]}.items():
            options = {f'model.backbone.{key}': value for key, value in changes.items()}
            folder = _folder(out, family, 'classifier', variant, seed)
            others.append(Run(folder, family, 'classifier', variant, seed, options | pictures | SHORT))
        for peer, variant in PEERS.items():
            folder = _folder(out, 'peers', 'classifier', variant, seed)
            others.append(Run(folder, peer, 'classifier', variant, seed, pictures | SHORT))
    return [*first, *others]


def _folder(out: Path, family: str, task: str, variant: str, seed: int) -> Path:
    return out / family / task / variant.replace(',', '').replace(' ', '_') / f'seed{seed}'


def execute(runs: Sequence[Run], processes: int | None = None) -> Iterator[dict[str, Any]]:
    """Train what is not trained, and yield the result of each run, in the order in which they end.

    Every run has one thread, so that its result does not depend on the number of cores. What others
    start from is trained before the others.

    Args:
        runs (sequence of Run): The runs.
        processes (int, optional): How many train at once; 1: one after the other in this process.
            Default: one a core.

    Raises:
        ValueError: If a run fails.
    """
    processes = processes or min(os.cpu_count() or 1, MOST_PROCESSES)
    first = {run.classifier for run in runs}
    stages = ([r for r in runs if r.folder in first], [r for r in runs if r.folder not in first])
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for run in chain(*stages):
                yield _finish(run, partial(train, run))
        finally:
            torch.set_num_threads(threads)
        return
    pool = ProcessPoolExecutor(
        processes, get_context('spawn'), torch.set_num_threads, initargs=(1,)
    )
    try:
        for stage in stages:
            futures = {pool.submit(train, run): run for run in stage}
            for future in as_completed(futures):
                yield _finish(futures[future], future.result)
    finally:
        pool.shutdown(cancel_futures=True)


def _finish(run: Run, result: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return result()
    except Exception as error:
        raise ValueError(
            f'{run.folder}: {error}; log.txt there says more, and the same command goes on from '
            'there'
        ) from error


def train(run: Run) -> dict[str, Any]:
    """Train, unless it is done; an interrupted training goes on from its last checkpoint.

    A run whose config or whose classifier has changed since starts over.

    Args:
        run (Run): The run.

    Returns:
        dict: Its result: what was trained, the backbone's parameters in millions, and the metrics
        in percent after each interval.
    """
    checkpoint = None
    if run.classifier and not run.start.scratch:
        checkpoint = run.classifier / Path(find_latest_checkpoint(str(run.classifier))).name
    cfg = _load_config(run)
    digest = _digest(cfg, checkpoint, run.start)
    mark, record = run.folder / 'digest', run.folder / 'result.json'
    if mark.is_file() and mark.read_text() == digest:
        if record.is_file():
            return json.loads(record.read_text())
    else:
        shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)
    with (run.folder / 'log.txt').open('a') as log, redirect_stdout(log), redirect_stderr(log):
        if checkpoint and run.start.fit:
            checkpoint = _write_start(run, cfg.model.backbone, checkpoint)
        if checkpoint:
            cfg.model.backbone.init_cfg.checkpoint = str(checkpoint)
        goes_on = find_latest_checkpoint(str(run.folder)) is not None
        resume(cfg, 'auto')
        # mmengine keeps visualizers, with their folders, by name for the whole process.
        cfg.visualizer.name = f'{run.folder} {time.time_ns()}'
        require_files(cfg, 'train_dataloader', 'val_dataloader')
        begin = time.process_time()
        runner = build_runner(cfg)
        runner.train()
        seconds = time.process_time() - begin
    steps = _steps(cfg)
    curves = _curves(run, steps)
    if curves is None and not goes_on:
        raise ValueError('the log does not have all validations')
    if curves is None:
        # It was interrupted between a checkpoint and the validation after it.
        shutil.rmtree(run.folder)
        return train(run)
    result = dict(
        task=run.task,
        variant=run.variant,
        seed=run.seed,
        config=f'study/{run.config}.py',
        options=run.options,
        start=checkpoint and str(checkpoint),
        parameters=round(sum(p.numel() for p in runner.model.backbone.parameters()) / 1e6, 3),
        cpu_seconds=round(seconds, 1),
        steps=steps,
        metrics=curves,
    )
    _write_json(record, result)
    if run.task != 'pretraining':
        for file in run.folder.glob('*.pth'):  # tens of megabytes, which nothing reads again
            file.unlink()
    return result


def _load_config(run: Run) -> Config:
    options = {'randomness': dict(seed=run.seed), **run.options}
    if run.start.scratch:
        classifier = Config.fromfile(f'focal_mm::study/{run.config.partition("_")[0]}.py')
        # A list takes the place of the dict, and a dict would be merged with it.
        init_cfg = classifier.model.backbone.init_cfg
        options['model.backbone.init_cfg'] = list(dicts(init_cfg))
    return load_config(f'focal_mm::study/{run.config}.py', str(run.folder), options=options)


def _digest(cfg: Config, checkpoint: Path | None, start: Start) -> str:
    """Return a hash of everything that the result of a run depends on, but for its folder."""
    parts = [
        __version__,
        json.dumps(dict(cfg.to_dict(), work_dir=None), sort_keys=True, default=str),
        hashlib.sha256(checkpoint.read_bytes()).hexdigest() if checkpoint else '',
        start.fit.__name__ if start.fit else '',
    ]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def _steps(cfg: Config) -> list[int]:
    """Return the iterations after which a run is validated."""
    interval, last = cfg.train_cfg.val_interval, cfg.train_cfg.max_iters
    return sorted({*range(interval, last + 1, interval), last})


def _curves(run: Run, steps: Sequence[int]) -> dict[str, list[float]] | None:
    """Return the values of each metric at each step, from the log; None if a step is not there."""
    validated: dict[int, dict[str, float]] = {}
    for file in sorted(run.folder.glob('*/vis_data/scalars.json')):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        validated |= {line['step']: line for line in lines if 'lr' not in line}
    if any(step not in validated for step in steps):
        return None
    # mmdet logs no metric if nothing is detected.
    return {
        name: [round(factor * validated[step].get(key, 0.0), 2) for step in steps]
        for key, (name, factor) in METRICS[run.task].items()
    }


def _write_start(run: Run, backbone: ConfigDict, checkpoint: Path) -> Path:
    """Write the weights of the classifier, fitted by ``run.start.fit``, for a backbone."""
    assert run.start.fit is not None
    init_default_scope('mmengine')
    torch.manual_seed(run.seed)
    net = MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'})
    net.init_weights()
    # A detector has norms after its stages, which the classifier lacks and none of the fits change.
    own = {key: value for key, value in net.state_dict().items() if not key.startswith('norm')}
    prefix = 'backbone.'
    saved = torch.load(checkpoint, map_location='cpu', weights_only=False)['state_dict']
    theirs = {key[len(prefix) :]: v for key, v in saved.items() if key.startswith(prefix)}
    fresh = {k: v for k, v in own.items() if k not in theirs or v.shape != theirs[k].shape}
    differ = {key: theirs[key] for key in theirs.keys() & fresh.keys()}
    state = theirs | run.start.fit(differ, fresh)
    path = run.folder / 'start.pth'
    torch.save({'state_dict': {prefix + key: value for key, value in state.items()}}, path)
    return path


# ---- results -----------------------------------------------------------------------------------


def summarize(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict]]]:
    """Return mean and standard deviation over the seeds of the last value of each metric.

    Args:
        results (sequence of dict): As :func:`train` returns them.

    Returns:
        dict: By task, variant and metric: ``mean``, ``std`` (0 for one seed) and ``values``.
    """
    summary: dict[str, dict[str, dict[str, dict]]] = {}
    for result in results:
        variants = summary.setdefault(result['task'], {})
        for name, values in result['metrics'].items():
            figures = variants.setdefault(result['variant'], {}).setdefault(name, {'values': []})
            figures['values'].append(values[-1])
    for variants in summary.values():
        for metrics in variants.values():
            for figures in metrics.values():
                values = figures['values']
                figures['mean'] = round(fmean(values), 2)
                figures['std'] = round(stdev(values), 2) if len(values) > 1 else 0.0
    return summary


def report(
    family: str, seeds: Sequence[int], results: Sequence[Mapping[str, Any]], out: Path
) -> dict[str, Any]:
    """Write the results of a family, ``FAMILY.json``, and their figure, ``FAMILY.png``.

    Args:
        family (str): Name in ``STARTS``.
        seeds (sequence of int): Random seeds.
        results (sequence of dict): As :func:`train` returns them.
        out (Path): Folder of the two files.

    Returns:
        dict: What the JSON file says.
    """
    names = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    order = {
        name: number
        for number, name in enumerate(
            (BASES[family], *ABLATIONS[family], *PEERS.values(), *STARTS[family])
        )
    }
    results = sorted(results, key=lambda r: (r['task'], order[r['variant']], r['seed']))
    content = dict(
        family=family,
        seeds=list(seeds),
        versions=dict(focal_mm=__version__, python=platform.python_version())
        | {name: import_module(name).__version__ for name in names},
        configs={
            name: (CONFIGS / 'study' / f'{name}.py').read_text()
            for name in (family, *(f'{family}_{task}' for task in DENSE), *PEERS)
        },
        summary=summarize(results),
        runs=results,
    )
    _write_json(out / f'{family}.json', content)
    draw(content, out / f'{family}.png')
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix('.tmp')
    draft.write_text(json.dumps(content, indent=1) + '\n')
    draft.rename(path)  # a file that is there is whole


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Draw what :func:`report` writes: for each dense task the mean over the seeds, and a band of
    one standard deviation, against iterations; the classifiers as bars.

    Args:
        content (dict): The content of the JSON file.
        path (Path): The picture.
    """
    summary, runs = content['summary'], content['runs']
    figure = Figure(figsize=(15, 4.6), layout='constrained')
    panels = figure.subplots(1, 3)
    for task, title, axes in zip(DENSE, ('Mask R-CNN', 'UPerNet'), panels):
        metric = next(iter(METRICS[task].values()))[0]
        for variant in summary[task]:
            same = [r for r in runs if (r['task'], r['variant']) == (task, variant)]
            steps = same[0]['steps']
            seeds = list(zip(*(r['metrics'][metric] for r in same)))
            means = [fmean(values) for values in seeds]
            spread = [stdev(values) if len(values) > 1 else 0.0 for values in seeds]
            (line,) = axes.plot(steps, means, marker='o', markersize=3, label=variant)
            low, high = ([m + sign * s for m, s in zip(means, spread)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set(title=title, xlabel='iteration', ylabel=f'{metric} (%)', ylim=(0, None))
        axes.grid(axis='y', color='0.92')
        axes.legend(frameon=False)
    bars = {name: metrics['top-1'] for name, metrics in summary['classifier'].items()}
    axes = panels[-1]
    axes.barh(
        list(bars),
        [figures['mean'] for figures in bars.values()],
        xerr=[figures['std'] for figures in bars.values()],
        color=['0.6' if name in PEERS.values() else 'C0' for name in bars],
        capsize=3,
    )
    axes.invert_yaxis()
    axes.set(title='Classifiers', xlabel='top-1 (%)')
    for panel in panels:
        panel.spines[['top', 'right']].set_visible(False)
    count = len(content['seeds'])
    figure.suptitle(f'{content["family"]}: mean and standard deviation of {count} seeds')
    figure.savefig(path, dpi=100)
