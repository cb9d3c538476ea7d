"""What works on this machine, what does not, and the command that mends it.

Nothing here imports torch or OpenMMLab: a library that is broken may end the process that imports
it, so another process does.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import focal_mm

from ..cache import cache_dir
from ..compat.versions import STACK, numbers, version_of

_GIB = 2**30
_MARK = '@@'  # begins each line of probe.py, among the lines that libraries print
_REQUIRED = ('torch', 'mmengine', 'mmcv')
_LIBRARIES = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')
_PYTHON = ((3, 10), (3, 14))
# For words of an error on import, the packages that mend it.
_REMEDIES = {
    'pkg_resources': '"setuptools<82"',
    'libGL': 'opencv-python-headless',
    "'ftfy'": 'ftfy',
    "'regex'": 'regex',
    'transformers': '"transformers<4.52"',
    'NumPy 1.x': '"numpy<2"',
    'multiarray': '--force-reinstall numpy opencv-python',
    'MMCV==': '"mmcv-lite>=2.1,<2.2"',
    'incompatible': '"mmcv-lite>=2.1,<2.2"',
}


@dataclass
class Check:
    """One line of the report.

    Attributes:
        name (str): What was looked at.
        state (str): ``'ok'``, ``'note'`` (nothing to mend), ``'warning'`` or ``'error'``.
        detail (str): What was found.
        mend (str): The command or setting that mends it. Default: nothing to mend.
    """

    name: str
    state: str
    detail: str
    mend: str = ''


def examine() -> list[Check]:
    """Look at everything; takes as long as importing the libraries."""
    facts, end = _probe()
    return [
        *check_packages(facts),
        *check_imports(facts, end),
        *check_ops(facts),
        check_gpu(facts),
        *check_folders(),
        *check_resources(),
    ]


def _probe() -> tuple[dict[str, dict[str, Any]], str]:
    """Run probe.py, which imports the libraries, in another process.

    Returns:
        tuple[dict, str]: Facts by name, and the last lines of standard error if the process died.
    """
    source = str(Path(focal_mm.__file__).parents[1])
    path = os.pathsep.join([source, *filter(None, [os.environ.get('PYTHONPATH')])])
    done = subprocess.run(
        [sys.executable, '-c', Path(__file__).with_name('probe.py').read_text()],
        check=False,
        capture_output=True,
        text=True,
        errors='replace',
        env=os.environ | dict(PYTHONPATH=path),
    )
    facts: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            fact = json.loads(line[len(_MARK) :])
            facts[fact['name']] = fact
    died = done.returncode and f'exit status {done.returncode}: {done.stderr.strip()[-300:]}'
    return facts, died or ''


def check_packages(facts: dict[str, dict[str, Any]]) -> list[Check]:
    """Check Python, and the versions of what is installed, by its metadata alone."""
    version = '.'.join(map(str, sys.version_info[:3]))
    fits = _PYTHON[0] <= sys.version_info[:2] < _PYTHON[1]
    checks = [
        Check('Python', 'ok', f'{version}, {sys.executable}')
        if fits
        else Check('Python', 'error', f'{version}; 3.10 to 3.13 work', 'python3.12 -m venv .venv')
    ]
    folder = Path(focal_mm.__file__).parent
    checks.append(Check('focal_mm', 'ok', f'{focal_mm.__version__}, {folder}'))
    found = {
        module: [(name, version_of(name)) for name in names if version_of(name)]
        for module, (_, *names) in STACK.items()
    }
    owners = [name for module, names in found.items() if module != 'torch' for name, _ in names]
    onedl = [name for name in owners if name.startswith('onedl-')]
    stock = [name for name in owners if not name.startswith('onedl-')]
    stack = 'openmmlab' if stock and not onedl else 'onedl'
    install = f'pip install "focal-mm[{stack}]"'
    if onedl and stock:
        checks.append(
            Check(
                'stack',
                'error',
                f'both: {", ".join(onedl)} and {", ".join(stock)} own the same folders',
                f'pip uninstall -y {" ".join(owners)} && pip install "focal-mm[onedl]"',
            )
        )
    elif owners:
        checks.append(Check('stack', 'ok', "OneDL's packages" if onedl else 'stock OpenMMLab'))
    for module, (oldest, *_) in STACK.items():
        checks.append(_check_version(module, oldest, found[module], install))
    checks += [
        Check(name, 'note', f'not installed: {use}', f'pip install {package}')
        for name, use, package in (
            ('mmpose', 'keypoints', '--no-deps mmpose && pip install "focal-mm[keypoints]"'),
            ('supervision', 'YOLO and Pascal VOC in focal-mm new', '"focal-mm[datasets]"'),
        )
        if version_of(name) is None
    ]
    return checks


def _check_version(
    module: str, oldest: str, found: list[tuple[str, str | None]], install: str
) -> Check:
    text = ', '.join(f'{name} {version}' for name, version in found)
    if not found:
        if module in _REQUIRED:
            return Check(module, 'error', f'not installed; {oldest} or later is needed', install)
        return Check(module, 'note', f'not installed: {_LIBRARIES[module]}', install)
    if len(found) > 1:
        names = [name for name, _ in found]
        return Check(
            module,
            'error',
            f'{text} overwrite each other',
            f'pip uninstall -y {" ".join(names)} && {install}',
        )
    if numbers(found[0][1] or '0') < numbers(oldest):
        return Check(module, 'error', f'{text}; {oldest} or later is needed', f'{install} -U')
    return Check(module, 'ok', text)


def check_imports(facts: dict[str, dict[str, Any]], end: str) -> list[Check]:
    """Check what could be imported and run.

    Args:
        facts (dict): What the probe said, by name.
        end (str): How it died; empty if it did not.
    """
    checks: list[Check] = []
    failed: set[str] = set()
    for name, fact in facts.items():
        error = end if fact.get('begun') else fact.get('error', '')
        if name in ('devices', 'ops', 'focal_mm', 'torchvision') and not error:
            continue
        if not error:
            if name not in STACK or name in _LIBRARIES:
                checks.append(Check(f'try {name}', 'ok', 'works'))
            continue
        missing = re.fullmatch(r"ModuleNotFoundError: No module named '(\w+)'", error)
        if missing and missing[1] in {name, *failed}:
            failed.add(name)
            if missing[1] != name or version_of(name) is None:
                continue  # said above: it is not installed
        words = ' '.join(error.split())
        first = not failed
        failed.add(name)
        checks.append(
            Check(
                f'try {name}',
                'error' if name not in _LIBRARIES else 'warning',
                words[:300],
                _remedy(name, words) if first or name in _LIBRARIES else '',
            )
        )
    return checks


def _remedy(name: str, error: str) -> str:
    for words, packages in _REMEDIES.items():
        if words in error:
            return f'pip install {packages}'
    if command := re.search(r'pip install (?:"[^"]*"|\S+)', error):
        return command[0]
    owners = [package for package in STACK.get(name, ('', name))[1:] if version_of(package)]
    return f'pip install --force-reinstall --no-deps {" ".join(owners or ["focal-mm"])}'


def check_ops(facts: dict[str, dict[str, Any]]) -> list[Check]:
    """Say which ops of mmcv are compiled, which are stand-ins, and which are missing."""
    fact = facts.get('ops', {})
    if 'names' not in fact:
        return []
    names, ours = fact['names'], fact['ours']
    if not fact['stand_in']:
        checks = [Check('ops of mmcv', 'ok', f'compiled, all {len(names)}')]
    else:
        lacking = _kinds(name for name in names if name not in ours)
        checks = [
            Check('ops of mmcv', 'ok', f'on torchvision and PyTorch: {", ".join(_kinds(ours))}'),
            Check(
                'other ops',
                'note',
                f'{len(lacking)} are not compiled: {", ".join(lacking)}',
                'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps --no-cache-dir '
                '--force-reinstall onedl-mmcv (stock: mmcv==2.1.0)',
            ),
        ]
    if fact['others']:
        checks.append(Check('stand-ins', 'ok', ', '.join(fact['others'])))
    checks.append(
        Check('kernels', 'ok', os.environ.get('FOCAL_MM_KERNELS', 'fast (FOCAL_MM_KERNELS)'))
    )
    return checks


def _kinds(names: Iterable[str]) -> list[str]:
    """Return the names of ops without the steps that each consists of."""
    steps = re.compile(
        r'_(forward|backward|naive|input|parameters|coor|data|param|mean|output|var)+$'
    )
    kinds = dict.fromkeys(names)
    for _ in range(2):
        kinds = dict.fromkeys(steps.sub('', name) for name in kinds)
    return [name for name in kinds if not name.startswith('get_com')]


def check_gpu(facts: dict[str, dict[str, Any]]) -> Check:
    """Say which GPUs torch sees, and why none where there is one."""
    fact = facts.get('devices', {})
    if gpus := fact.get('gpus'):
        text = ', '.join(f'{name} ({memory / _GIB:.0f} GiB, {cc})' for name, memory, cc in gpus)
        return Check('GPU', 'ok', text)
    card = Path('/proc/driver/nvidia').is_dir() or Path('/dev/nvidia0').exists()
    if card and 'gpus' in fact:
        build = fact.get('cuda') and f'CUDA {fact["cuda"]}, newer than the driver?'
        return Check(
            'GPU',
            'error',
            f'this machine has one, and torch does not see it (torch is built for '
            f'{build or "the CPU"})',
            'pip install --force-reinstall torch torchvision '
            '--index-url https://download.pytorch.org/whl/cu126',
        )
    return Check('GPU', 'note', 'none: everything runs on the CPU, --mini in minutes')


def check_folders() -> list[Check]:
    """Check that the folders that runs write to can be written to; say where data is expected."""
    hub = Path(
        os.environ.get('TORCH_HOME') or Path(os.environ.get('XDG_CACHE_HOME', '~/.cache')) / 'torch'
    ).expanduser()
    checks = [
        _check_writable('cache', cache_dir(), 'export FOCAL_MM_CACHE=DIR'),
        _check_writable("torch's downloads", hub / 'hub' / 'checkpoints', 'export TORCH_HOME=DIR'),
        _check_writable('work folder', Path('work_dirs'), 'focal-mm train CONFIG --work-dir DIR'),
    ]
    if weights := os.environ.get('FOCAL_MM_WEIGHTS'):
        there = all(Path(path).expanduser().is_dir() for path in weights.split(os.pathsep))
        checks.append(
            Check('FOCAL_MM_WEIGHTS', 'ok', weights)
            if there
            else Check('FOCAL_MM_WEIGHTS', 'error', f'{weights}: no such folder', 'mkdir, or unset')
        )
    for folder, data, command in (
        ('data/coco', 'COCO 2017', 'focal-mm data coco-1pct data/coco'),
        (
            'data/ade/ADEChallengeData2016',
            'ADE20K',
            'focal-mm data ade20k-1pct data/ade/ADEChallengeData2016',
        ),
        ('data/imagenet', 'ImageNet-1K', '--cfg-options data_root=DIR'),
    ):
        there = Path(folder).is_dir()
        checks.append(
            Check(f'data, {data}', 'ok', str(Path(folder).resolve()))
            if there
            else Check(f'data, {data}', 'note', f'not in {folder}', command)
        )
    return checks


def _check_writable(name: str, folder: Path, mend: str) -> Check:
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(name, 'error', f'{folder}: {existing} cannot be written', mend)
    free = shutil.disk_usage(existing).free / _GIB
    text = f'{folder.absolute()}, {free:.0f} GiB free'
    if free < 5:
        return Check(name, 'warning', f'{text}: a checkpoint has up to 5 GiB', mend)
    return Check(name, 'ok', text)


def check_resources() -> list[Check]:
    """Check memory, shared memory and processors."""
    checks = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    memory = Path('/proc/meminfo')
    if memory.is_file():
        fields = dict(re.findall(r'(\w+):\s+(\d+) kB', memory.read_text()))
        total, free = (int(fields.get(key, 0)) / 2**20 for key in ('MemTotal', 'MemAvailable'))
        text = f'{free:.1f} of {total:.1f} GiB free, {cores} processors'
        checks.append(
            Check('memory', 'ok', text)
            if free > 4
            else Check('memory', 'warning', text, 'train_dataloader.num_workers=0, smaller batches')
        )
    shared = Path('/dev/shm')
    if shared.is_dir():
        size = shutil.disk_usage(shared).total / _GIB
        text = f'{shared}: {size:.1f} GiB'
        checks.append(
            Check('shared memory', 'ok', text)
            if size > 0.9
            else Check(
                'shared memory',
                'warning',
                f'{text}; workers of data loaders die of less than 1',
                'docker run --shm-size=8g, or --cfg-options train_dataloader.num_workers=0 '
                'train_dataloader.persistent_workers=False',
            )
        )
    return checks


def to_json(checks: list[Check]) -> list[dict[str, str]]:
    """Return the checks as plain data."""
    return [asdict(check) for check in checks]
