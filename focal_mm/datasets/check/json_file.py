"""JSON files as pycocotools reads them, and the reasons why it would not."""

import gc
import hashlib
import json
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any

from .report import Report

# What a file is by its first bytes, where it should be JSON or a picture.
_BEGINNINGS = {
    b'version https://git-lfs': 'a pointer of Git LFS; `git lfs pull` gets the file',
    b'\x1f\x8b': 'compressed by gzip; unpack it',
    b'BZh': 'compressed by bzip2; unpack it',
    b'\xfd7zXZ': 'compressed by xz; unpack it',
    b'(\xb5/\xfd': 'compressed by zstd; unpack it',
    b'PK\x03\x04': 'a ZIP archive; unpack it',
    b'<!doctype html': 'a web page',
    b'<html': 'a web page',
    b'<?xml': 'XML',
    b'<svg': 'SVG',
    b'%pdf': 'PDF',
    b'%!ps': 'PostScript',
    b'\x80\x02': 'a pickle of Python',
    b'\x80\x04': 'a pickle of Python',
    b'{"': 'JSON',
}
_BLANK = b'\0 \t\r\n'


def read_json(file: Path, report: Report) -> Any:
    """Read a JSON file.

    Faults that pycocotools does not survive, such as a byte order mark, and keys that occur twice
    are errors even where the content can be read.

    Args:
        file (Path): The file.
        report (Report): Takes the findings.

    Returns:
        Any: The content; None if there is none, or it is null.
    """
    raw = read_bytes(file, report)
    if raw is None:
        return None
    if kind := kind_of(raw[:64], but='JSON'):
        report.error(file, f'no JSON, but {kind}')
        return None
    encoding = json.detect_encoding(raw)
    if encoding == 'utf-8-sig':
        report.error(file, 'begins with a byte order mark, which pycocotools cannot read')
    elif encoding != 'utf-8':
        report.error(file, f'is in {encoding.upper()}, and pycocotools reads UTF-8')
    repeated: list[str] = []

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in found if keys.count(key) > 1)
        return found

    # The collector would look at millions of new objects again and again, and find nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        content = json.loads(raw.decode(encoding), object_pairs_hook=without_repeats)
    except UnicodeDecodeError as error:
        report.error(file, f'no text in {error.encoding.upper()}, from byte {error.start}')
    except JSONDecodeError as error:
        report.error(file, f'no JSON: {_reason(error)}')
    except (ValueError, RecursionError) as error:
        report.error(file, f'no JSON ({error})')
    else:
        if repeated:
            text = 'key that occurs twice in one object, of which the last counts'
            report.add('error', file, text, repeated)
        if content is None:
            report.error(file, 'nothing but null')
        return content
    finally:
        if collecting:
            gc.enable()
    return None


def _reason(error: JSONDecodeError) -> str:
    if not error.doc[error.pos :].strip():
        return f'the file is cut off (line {error.lineno} column {error.colno})'
    if error.msg == 'Extra data':
        return (
            f'there is more after the end, in line {error.lineno}, as if it were JSON Lines or two '
            'files in one'
        )
    return f'{error.msg}, in line {error.lineno} column {error.colno}'


def read_bytes(file: Path, report: Report) -> bytes | None:
    """Return the bytes of a file; None, and an error in the report, if there are none."""
    if not file.exists():
        report.error(file, 'no such file')
    elif not file.is_file():
        report.error(file, 'a folder or device, not a file')
    else:
        try:
            raw = file.read_bytes()
        except OSError as error:
            report.error(file, f'cannot be read: {error.strerror}')
            return None
        if raw[:4096].strip(_BLANK) or raw.strip(_BLANK):
            return raw
        report.error(file, 'file of nothing but zeros or blanks' if raw else 'empty file')
    return None


def kind_of(start: bytes, but: str = '') -> str:
    """Return what a file is by its first bytes, if that is another kind than ``but``."""
    start = start.removeprefix(b'\xef\xbb\xbf').lstrip()
    for beginning, kind in _BEGINNINGS.items():
        if start[: len(beginning)].lower() == beginning.lower():
            return '' if kind == but else kind
    return ''


def digest(file: Path) -> str:
    """Return the sha256 of a file's content."""
    with file.open('rb') as stream:
        found = hashlib.sha256()
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()
