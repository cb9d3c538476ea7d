"""What a run writes down at its start, since nothing that mmengine writes has it."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import focal_mm

from ..cache import whole_file
from ..compat.versions import STACK, version_of

# Beside the packages that focal_mm stands on.
_PACKAGES = ('torchvision', 'numpy', 'opencv-python', 'pycocotools', 'mmpose', 'timm', 'triton')


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, separators=(',', ':')))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on."""
    names = [name for _, *packages in STACK.values() for name in packages]
    found = {name: version_of(name) for name in (*names, *_PACKAGES)}
    return dict(Python=platform.python_version(), focal_mm=focal_mm.__version__) | {
        name: version for name, version in found.items() if version
    }


def git_state(folder: str | Path) -> str:
    """Return the commit of the repository that a folder is in, and what has been changed since.

    Returns:
        str: Such as ``'1a2b3c… on main, 2 changed files'``; empty outside of a repository.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ['git', '-C', str(folder), *words],
            capture_output=True,
            check=True,
            text=True,
            timeout=20,
            env=os.environ | dict(GIT_OPTIONAL_LOCKS='0'),
        )
        return done.stdout.strip()

    try:
        commit, branch = git('rev-parse', 'HEAD'), git('rev-parse', '--abbrev-ref', 'HEAD')
        changed = git('status', '--porcelain', '--untracked-files=no').splitlines()
    except (OSError, subprocess.SubprocessError):
        return ''
    return f'{commit} on {branch}, ' + (f'{len(changed)} changed files' if changed else 'clean')


def command_line(environment: Mapping[str, str] = os.environ) -> str:
    """Return the command that started this process, with its launcher.

    Args:
        environment (Mapping): Variables that torchrun and Slurm set. Default: the process's.
    """
    program, *words = sys.orig_argv
    if words and Path(words[0]).name == 'focal-mm':
        program, *words = 'focal-mm', *words[1:]
    elif 'TORCHELASTIC_RUN_ID' in environment:
        local, world = (int(environment.get(f'{k}WORLD_SIZE', '1')) for k in ('LOCAL_', ''))
        program = f'torchrun --nnodes={world // local} --nproc_per_node={local}'
        words = words[1:] if words[:1] == ['-u'] else words
    elif 'SLURM_NTASKS' in environment and environment['SLURM_NTASKS'] != '1':
        program = f'srun --ntasks={environment["SLURM_NTASKS"]} {Path(program).name}'
    else:
        program = Path(program).name
    return f'{program} {shlex.join(words)}'


def start_record(filename: str | None, seed: int, processes: int) -> dict[str, Any]:
    """Return what is known when a run starts.

    Args:
        filename (str or None): The config's file.
        seed (int): Seed of the run.
        processes (int): How many train together.
    """
    here = Path.cwd()
    return dict(
        command=command_line(),
        folder=str(here),
        git=git_state(Path(filename).parent if filename else here) or git_state(here),
        host=platform.node(),
        platform=platform.platform(),
        processes=processes,
        seed=seed,
        versions=versions(),
        config=filename,
    )
