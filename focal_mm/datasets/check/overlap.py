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
    copies: dict[Path, Path] = {}
    lengths: dict[int, list[Path]] = defaultdict(list)
    if wanted := {bytes_of(path) for path in compared} - {None, 0}:
        paths = list(train.values())
        for path, length in zip(paths, parallel(bytes_of, paths, 'train and val: sizes')):
            if length in wanted:
                lengths[length].append(path)  # type: ignore[index]

    def copy_of(path: Path) -> Path | None:
        candidates = lengths.get(bytes_of(path) or 0, ())
        return next((one for one in candidates if _is_copy(one, path)), None)

    for path, copy in zip(compared, parallel(copy_of, compared, 'train and val: content')):
        if copy is not None:
            copies[path] = copy
    for name, path in val.items():
        if os.path.realpath(path) in files:
            report.warning('train and val', 'picture of training that is also in validation', name)
        elif path in copies:
            text = 'picture of training of which a copy is in validation'
            report.warning('train and val', text, f'{name} ({copies[path].name})')


def _is_copy(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
