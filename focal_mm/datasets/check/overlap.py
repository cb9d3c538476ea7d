"""Pictures of training that are also validated on."""

import filecmp
import os
from collections import defaultdict
from pathlib import Path

from .pictures import bytes_of, sample
from .report import Report
from .work import parallel


def check_overlap(
    train: dict[str, Path],
    val: dict[str, Path],
    report: Report,
    thorough: bool = False,
) -> None:
    """Look for pictures that are in training and validation.

    They are the same file, or files of the same content, whatever their names. Many sets number
    their pictures from 1, so that the name alone says nothing.

    Args:
        train (dict[str, Path]): Pictures of training, by name.
        val (dict[str, Path]): Pictures of validation.
        report (Report): Takes the findings.
        thorough (bool): Compare the content of all pictures. Default: of those with equal names,
            and of 500 others, spread evenly.
    """
    if not train or not val:
        return
    files = {os.path.realpath(path) for path in train.values()}
    names = {path.name for path in train.values()}
    others = [path for path in val.values() if path.name not in names]
    compared = [path for path in val.values() if path.name in names]
    compared += others if thorough else sample(others)
    wanted = {length for path in compared if (length := bytes_of(path))}
    paths = list(train.values()) if wanted else []
    lengths = parallel(bytes_of, paths, 'train and val: sizes')
    alike = [path for path, length in zip(paths, lengths) if length in wanted]
    own: dict[tuple, list[Path]] = defaultdict(list)
    for path, mark in zip(alike, parallel(_mark, alike, 'train and val: content')):
        own[mark].append(path)
    copies: dict[Path, Path] = {}
    for path, mark in zip(compared, parallel(_mark, compared, 'train and val: content')):
        copy = next((one for one in own.get(mark, ()) if _is_copy(one, path)), None)
        if copy is not None:
            copies[path] = copy
    for name, path in val.items():
        if os.path.realpath(path) in files:
            report.warning('train and val', 'picture of training that is also in validation', name)
        elif path in copies:
            text = 'picture of training of which a copy is in validation'
            report.warning('train and val', text, f'{name} ({copies[path].name})')
        elif path.name in names:
            text = 'picture of the name of another one in training'
            report.add('note', 'train and val', text, [name])


def _mark(path: Path) -> tuple[int, bytes]:
    """Return the length of a file and some bytes of its middle."""
    length = bytes_of(path)
    if not length:
        return 0, b''
    with path.open('rb') as file:
        file.seek(length // 2)
        return length, file.read(1024)


def _is_copy(one: Path, other: Path) -> bool:
    return bool(bytes_of(one)) and filecmp.cmp(one, other, shallow=False)
