"""The study of transfer: do fitted weights of a classifier help a detector? See docs/study.md.

Every run is a config of ``configs/study/`` with some options, trained as ``focal-mm train`` does,
in a folder of its own. Its ``result.json``, which is written last, says that it is finished.
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
from functools import cache, partial
from importlib import import_module
from math import isqrt
from multiprocessing import get_context, parent_process
from pathlib import Path
from statistics import fmean, stdev
from threading import Thread
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from .. import __version__
from ..config import CONFIGS, dicts
from ..datasets import drawn_objects
from ..engine import write_whole
from ..weights import read_checkpoint
from ..weights.resize import fit_kernel, fit_pooling
from .runner import build_runner, load_config, require_files
from .training import resume

# The metrics of each task: the name in the log, ours, and the factor that makes it percent.
METRICS = dict(
    pretraining={'accuracy/top1': ('top-1', 1)},
    mask_rcnn={'coco/bbox_mAP': ('box AP', 100), 'coco/segm_mAP': ('mask AP', 100)},
    upernet={'mIoU': ('mIoU', 1)},
    classifier={'accuracy/top1': ('top-1', 1)},
)
DENSE = {'mask_rcnn': 'Mask R-CNN', 'upernet': 'UPerNet'}
# Classifiers that nothing starts from train for less than the 800 iterations of the config.
SHORT = {'train_cfg.max_iters': 300}
# One process a core, but a process takes about 1 GiB of memory.
MOST_PROCESSES = 8


# ---- how the weights of a classifier are fitted ------------------------------------------------

# A fit takes the tensors of the classifier whose shapes differ from the network's, and the tensors
# of the network, as it is initialized, that differ or that the classifier lacks.
State = dict[str, Tensor]


def resample(theirs: State, own: State) -> State:
    """Return kernels resampled to the sizes of a network, scaled so that their sums stay."""
    return {key: fit_pooling(weight, own[key].shape[-1]) for key, weight in theirs.items()}


def crop(theirs: State, own: State) -> State:
    """Return bias tables in which each offset keeps its bias: cropped where a table shrinks, zero
    for the new offsets where it grows.
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
    """Return the tensors as the network is initialized."""
    return own


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
        options (dict): Options of the config. Default: none.
        start (Start): What a detector or segmentor starts from. Default: nothing special.
        classifier (Path, optional): Work folder of the classifier that it starts from. Default:
            None.
    """

    folder: Path
    config: str
    task: str
    variant: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    start: Start = Start()
    classifier: Path | None = None


def plan(family: str, seeds: Sequence[int], out: Path) -> list[Run]:
    """Return the runs of a family: the classifiers that others start from, and seed by seed the
    detectors, the segmentors and the ablations.

    Args:
        family (str): Name in ``STARTS``.
        seeds (sequence of int): Random seeds.
        out (Path): Folder of all runs.
    """

    def run(group: str, task: str, variant: str, seed: int, config: str, *args: Any) -> Run:
        name = variant.replace(',', '').replace(' ', '_')
        folder = out.resolve() / group / task / name / f'seed{seed}'
        return Run(folder, config, task, variant, seed, *args)

    base = BASES[family]
    first = [run(family, 'pretraining', base, seed, family) for seed in seeds]
    others = []
    for seed, classifier in zip(seeds, (run.folder for run in first)):
        for task in DENSE:
            for variant, start in STARTS[family].items():
                about = (f'{family}_{task}', start.options, start, classifier)
                others.append(run(family, task, variant, seed, *about))
        for variant, changes in {base: {}, **ABLATIONS[family]}.items():
            options = {f'model.backbone.{key}': value for key, value in changes.items()}
            others.append(run(family, 'classifier', variant, seed, family, options | SHORT))
        for peer, variant in PEERS.items():
            others.append(run('peers', 'classifier', variant, seed, peer, SHORT))
    return [*first, *others]


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
    drawn_objects()  # once, and not in each process
    processes = processes or min(os.cpu_count() or 1, MOST_PROCESSES)
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for run in runs:
                yield _finish(run, partial(train, run))
        finally:
            torch.set_num_threads(threads)
        return
    first = {run.classifier for run in runs}
    stages = ([r for r in runs if r.folder in first], [r for r in runs if r.folder not in first])
    pool = ProcessPoolExecutor(
        processes, get_context('spawn'), torch.set_num_threads, initargs=(1,)
    )
    try:
        for stage in stages:
            futures = {pool.submit(_train_in_pool, run): run for run in stage}
            for future in as_completed(futures):
                yield _finish(futures[future], future.result)
    finally:
        pool.shutdown(cancel_futures=True)


def _train_in_pool(run: Run) -> dict[str, Any]:
    _end_with_parent()
    return train(run)


@cache
def _end_with_parent() -> None:
    """Let nothing go on in this process when the command is killed."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


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

    A run whose config or whose classifier has changed since starts over. Only the checkpoints of
    classifiers that others start from are kept.

    Args:
        run (Run): The run.

    Returns:
        dict: Its result: what was trained, the backbone's parameters in millions, and the metrics
        in percent after each interval.
    """
    checkpoint = None
    if run.classifier and not run.start.scratch:
        # The file names a checkpoint of this folder, which may have been moved.
        name = Path((run.classifier / 'last_checkpoint').read_text()).name
        checkpoint = str(run.classifier / name)
    cfg = _load_config(run)
    digest = _digest(cfg, checkpoint, run.start)
    mark, record = run.folder / 'digest', run.folder / 'result.json'
    if not mark.is_file() or mark.read_text() != digest:
        shutil.rmtree(run.folder, ignore_errors=True)
    elif record.is_file():
        return json.loads(record.read_text())
    run.folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)
    with (run.folder / 'log.txt').open('a') as log, redirect_stdout(log), redirect_stderr(log):
        if checkpoint:
            if run.start.fit:
                checkpoint = _write_start(run, cfg.model.backbone, checkpoint)
            cfg.model.backbone.init_cfg.checkpoint = checkpoint
        resume(cfg, 'auto')
        require_files(cfg, 'train_dataloader', 'val_dataloader')
        begin = time.process_time()
        runner = build_runner(cfg)
        runner.train()
        seconds = time.process_time() - begin
    interval, last = cfg.train_cfg.val_interval, cfg.train_cfg.max_iters
    steps = sorted({*range(interval, last + 1, interval), last})
    result = dict(
        task=run.task,
        variant=run.variant,
        seed=run.seed,
        options=run.options,
        parameters=round(sum(p.numel() for p in runner.model.backbone.parameters()) / 1e6, 3),
        cpu_seconds=round(seconds, 1),
        steps=steps,
        metrics=_curves(run, steps),
    )
    write_whole(f'{json.dumps(result)}\n'.encode(), record)
    if run.task != 'pretraining':
        for file in run.folder.glob('*.pth'):
            file.unlink()
    return result


def _load_config(run: Run) -> Config:
    root = drawn_objects()
    if run.task in DENSE:
        root /= 'scenes'
    options = {'randomness': dict(seed=run.seed), 'data_root': str(root), **run.options}
    if run.start.scratch:
        classifier = Config.fromfile(f'focal_mm::study/{run.config.partition("_")[0]}.py')
        # A list takes the place of the dict, and a dict would be merged with it.
        init_cfg = classifier.model.backbone.init_cfg
        options['model.backbone.init_cfg'] = list(dicts(init_cfg))
    return load_config(f'focal_mm::study/{run.config}.py', str(run.folder), options=options)


def _digest(cfg: Config, checkpoint: str | None, start: Start) -> str:
    """Return a hash of everything that the result of a run depends on, but for its folder."""
    parts = [
        __version__,
        json.dumps(dict(cfg.to_dict(), work_dir=None), sort_keys=True, default=str),
        hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest() if checkpoint else '',
        start.fit.__name__ if start.fit else '',
    ]
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def _curves(run: Run, steps: Sequence[int]) -> dict[str, list[float]]:
    """Return the values of each metric at each step, from the log."""
    validated: dict[int, dict[str, float]] = {}
    for file in sorted(run.folder.glob('*/vis_data/scalars.json')):
        lines = map(json.loads, file.read_text().splitlines())
        validated |= {line['step']: line for line in lines if 'lr' not in line}
    # mmdet logs no metric if nothing is detected.
    return {
        name: [round(factor * validated[step].get(key, 0.0), 2) for step in steps]
        for key, (name, factor) in METRICS[run.task].items()
    }


def _write_start(run: Run, backbone: ConfigDict, checkpoint: str) -> str:
    """Write the weights of the classifier, fitted by ``run.start.fit``, for a backbone."""
    assert run.start.fit is not None
    init_default_scope('mmengine')
    torch.manual_seed(run.seed)
    net = MODELS.build({key: value for key, value in backbone.items() if key != 'init_cfg'})
    net.init_weights()
    # A detector has norms after its stages, which the classifier lacks and none of the fits change.
    own = {key: value for key, value in net.state_dict().items() if not key.startswith('norm')}
    prefix = 'backbone.'
    saved = read_checkpoint(checkpoint)['state_dict']
    theirs = {key[len(prefix) :]: v for key, v in saved.items() if key.startswith(prefix)}
    fresh = {k: v for k, v in own.items() if k not in theirs or v.shape != theirs[k].shape}
    differ = {key: theirs[key] for key in theirs.keys() & fresh.keys()}
    state = theirs | run.start.fit(differ, fresh)
    path = run.folder / 'start.pth'
    torch.save({'state_dict': {prefix + key: value for key, value in state.items()}}, path)
    return str(path)


# ---- results -----------------------------------------------------------------------------------


def summarize(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation over the seeds.

    Args:
        results (sequence of dict): As :func:`train` returns them.

    Returns:
        dict: By task: its ``steps``, and under ``variants`` by variant the ``parameters`` and by
        metric ``mean`` and ``std`` at each step; ``std`` is 0 for one seed.
    """
    summary: dict[str, dict[str, Any]] = {}
    for task in METRICS:
        variants: dict[str, list[Mapping[str, Any]]] = {}
        for result in results:
            if result['task'] == task:
                variants.setdefault(result['variant'], []).append(result)
        summary[task] = dict(
            steps=next(iter(variants.values()))[0]['steps'],
            variants={
                variant: dict(parameters=same[0]['parameters'])
                | {name: _spread([run['metrics'][name] for run in same]) for name in _names(task)}
                for variant, same in variants.items()
            },
        )
    return summary


def _names(task: str) -> list[str]:
    return [name for name, _ in METRICS[task].values()]


def _spread(curves: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    steps = list(zip(*curves))
    std = [round(stdev(values), 2) if len(values) > 1 else 0.0 for values in steps]
    return dict(mean=[round(fmean(values), 2) for values in steps], std=std)


def report(
    family: str, seeds: Sequence[int], results: Sequence[Mapping[str, Any]], out: Path
) -> dict[str, Any]:
    """Write the results of a family to ``FAMILY.json``, ``FAMILY.md`` and ``FAMILY.png``.

    Args:
        family (str): Name in ``STARTS``.
        seeds (sequence of int): Random seeds.
        results (sequence of dict): As :func:`train` returns them.
        out (Path): Folder of the files.

    Returns:
        dict: Content of the JSON file.
    """
    names = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    order = [BASES[family], *ABLATIONS[family], *PEERS.values(), *STARTS[family]]
    results = sorted(results, key=lambda r: (r['task'], order.index(r['variant']), r['seed']))
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
    page = '\n'.join(map(markdown, tables(content)))
    write_whole(f'{json.dumps(content)}\n'.encode(), out / f'{family}.json')
    write_whole(f'{page}\n'.encode(), out / f'{family}.md')
    draw(content, out / f'{family}.png')
    return content


Table = list[list[str]]


def tables(content: Mapping[str, Any]) -> list[Table]:
    """Return a table a task, of strings: the header, and a row a variant.

    Of a detector or segmentor there is the first metric at each step; of all else, the end.

    Args:
        content (dict): As :func:`report` returns it.
    """
    found, several = [], len(content['seeds']) > 1
    for task, about in content['summary'].items():
        steps, names = about['steps'], _names(task)
        columns = [(name, len(steps) - 1) for name in names]
        if task in DENSE:
            columns[:1] = [(names[0], i) for i in range(len(steps))]
        table = [
            [DENSE.get(task, task), 'parameters (M)', *(f'{n} at {steps[i]}' for n, i in columns)]
        ]
        for variant, figures in about['variants'].items():
            pairs = ((figures[name]['mean'][i], figures[name]['std'][i]) for name, i in columns)
            cells = (f'{mean:.1f} ± {std:.1f}' if several else f'{mean:.1f}' for mean, std in pairs)
            table.append([variant, f'{figures["parameters"]:.2f}', *cells])
        found.append(table)
    return found


def markdown(table: Table) -> str:
    """Return a table of :func:`tables` as Markdown."""
    header, *rows = table
    return ''.join(f'| {" | ".join(row)} |\n' for row in (header, ['---'] * len(header), *rows))


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Draw the first metric of each dense task, the mean over the seeds and a band of one standard
    deviation, against iterations; and the classifiers as bars.

    Args:
        content (dict): As :func:`report` returns it.
        path (Path): The picture.
    """
    summary = content['summary']
    figure = Figure(figsize=(15, 4.6), layout='constrained')
    *curves, bars = figure.subplots(1, 1 + len(DENSE))
    for (task, title), axes in zip(DENSE.items(), curves):
        steps, metric = summary[task]['steps'], _names(task)[0]
        for variant, figures in summary[task]['variants'].items():
            mean, std = figures[metric]['mean'], figures[metric]['std']
            (line,) = axes.plot(steps, mean, marker='o', markersize=3, label=variant)
            low, high = ([m + sign * s for m, s in zip(mean, std)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.set(title=title, xlabel='iteration', ylabel=f'{metric} (%)', ylim=(0, None))
        axes.grid(axis='y', color='0.92')
        axes.legend(frameon=False)
    ends = {name: figures['top-1'] for name, figures in summary['classifier']['variants'].items()}
    bars.barh(
        list(ends),
        [figures['mean'][-1] for figures in ends.values()],
        xerr=[figures['std'][-1] for figures in ends.values()],
        color=['0.6' if name in PEERS.values() else 'C0' for name in ends],
        capsize=3,
    )
    bars.invert_yaxis()
    bars.set(title='Classifiers', xlabel='top-1 (%)')
    for axes in (*curves, bars):
        axes.spines[['top', 'right']].set_visible(False)
    count = len(content['seeds'])
    figure.suptitle(f'{content["family"]}: mean and standard deviation of {count} seeds')
    figure.savefig(path, dpi=100)
