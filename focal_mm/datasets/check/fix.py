"""Copies of annotation files and lists without what training cannot use."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cache import whole_file
from .annotations import Fault, column, ids_of, number_of, records_of
from .coco import CocoFile, fault_of_form, find_faults, name_of
from .json_file import digest, read_json
from .masks import fault_of_polygon
from .pictures import Checked, open_picture, oriented_size
from .report import Copy, Report


def refuse_to_overwrite(out: Path) -> None:
    """Raise an error if a cleaned copy could not be written to a new file.

    Raises:
        FileExistsError: If there is such a file.
        FileNotFoundError: If its folder does not exist.
    """
    for path in (out, left_out_file(out)):
        if os.path.lexists(path):
            raise FileExistsError(f'--fix {path} exists; give another name, or move it away')
    if not out.parent.is_dir():
        raise FileNotFoundError(f'--fix {out}: there is no folder {out.parent}')


def left_out_file(out: Path) -> Path:
    """Return the name of the list of what a copy leaves out."""
    return out.with_name(f'{out.stem}.left_out.json')


def write_list(source: str, checked: Checked, out: Path) -> Copy:
    """Write a list of the pictures that training can use.

    Args:
        source (str): What was checked.
        checked (Checked): Its pictures.
        out (Path): The list.

    Raises:
        ValueError: If no picture is left.
    """
    lines = checked.lines or {}
    kept = [line for name, line in lines.items() if name not in checked.unusable]
    if not kept:
        raise ValueError(f'{source}: no picture is left, so that there is nothing to write')
    left = [dict(name=name, reason=reason) for name, reason in checked.unusable.items()]
    return _write(source, out, ''.join(f'{line}\n' for line in kept), dict(images=left))


def write_coco(coco: CocoFile, checked: Checked, out: Path) -> Copy:
    """Write a copy of a COCO file without what training cannot use.

    Left out are the pictures that are missing, broken or of another size, with their annotations,
    and annotations with errors. Areas, ids of annotations, and widths and heights that are missing
    are filled in; parts of polygons that are none are left out.

    Args:
        coco (CocoFile): The file.
        checked (Checked): Its pictures, all of which were decoded.
        out (Path): The copy.

    Raises:
        ValueError: If the file cannot be read, or nothing is left.
    """
    report = Report()
    content = read_json(coco.file, report)
    if content is None or (text := fault_of_form(content, coco.rules)):
        reason = report.findings[0].fault if content is None else text
        raise ValueError(f'{coco.file}: {reason}; no copy can mend that')
    faults = find_faults(content, coco.rules, coco.naming)
    images, gone, changes = _clean_images(content, faults, coco, checked)
    annotations, gone_annotations, more = _clean_annotations(content, faults, images)
    if not images or (not annotations and coco.rules.role != 'test'):
        raise ValueError(f'{coco.file}: nothing is left, so that there is nothing to write')
    cleaned = {**content, 'images': images, 'annotations': annotations}
    copy = _write(
        str(coco.file),
        out,
        json.dumps(cleaned, ensure_ascii=True),
        dict(images=gone, annotations=gone_annotations, changed=[*changes, *more]),
    )
    left = find_faults(cleaned, coco.rules, coco.naming)
    copy.remaining = [fault.text for fault in left if fault.level == 'error']
    return copy


def _write(source: str, out: Path, text: str, left_out: dict[str, list]) -> Copy:
    refuse_to_overwrite(out)
    sha256 = digest(Path(source)) if Path(source).is_file() else None
    listed = left_out_file(out)
    with whole_file(out) as part, whole_file(listed) as other:
        part.write_text(text, encoding='utf-8')
        other.write_text(
            json.dumps(dict(source=source, sha256=sha256, **left_out), indent=1), encoding='utf-8'
        )
    gone = len(left_out['images']) + len(left_out.get('annotations', ()))
    return Copy(source, str(out), str(listed), gone, len(left_out.get('changed', ())))


def _reasons(faults: Sequence[Fault], table: str, remedy: str) -> dict[int, str]:
    """Return for each record to which a remedy applies the first fault."""
    found: dict[int, str] = {}
    for fault in faults:
        if fault.table == table and fault.remedy == remedy:
            for row in fault.rows.tolist():
                found.setdefault(row, fault.text)
    return found


def _clean_images(
    content: dict[str, Any], faults: Sequence[Fault], coco: CocoFile, checked: Checked
) -> tuple[list[Any], list[dict], list[dict]]:
    """Return the images that are kept, those left out, and those changed."""
    drop = _reasons(faults, 'images', 'drop')
    sizeless = _reasons(faults, 'images', 'size')
    kept: list[Any] = []
    gone: list[dict] = []
    changed: list[dict] = []
    records = records_of(content, 'images')
    ids = ids_of(column(records, 'id'))
    first: dict[Any, int] = {}
    for row, one in enumerate(ids):
        first.setdefault(one, row)
    same = {one: [row for row, other in enumerate(ids) if other == one] for one in
            {ids[row] for row, text in drop.items() if 'twice' in text}}  # fmt: skip
    for row, image in enumerate(records):
        name = name_of(image, coco.naming)
        reason = drop.get(row) or checked.unusable.get(name or '')
        rows = same.get(ids[row], ())
        if rows and row == rows[0] and all(records[other] == image for other in rows):
            reason = checked.unusable.get(name or '')  # a repetition, of which one is kept
        if not reason and row in sizeless:
            size = _size_of(checked.pictures.get(name or ''))
            if size:
                image = {**image, 'width': size[0], 'height': size[1]}
                changed.append(dict(image=image['id'], reason=sizeless[row], now=list(size)))
            else:
                reason = sizeless[row]
        if reason:
            gone.append(dict(id=image.get('id'), file_name=image.get('file_name'), reason=reason))
        else:
            kept.append(image)
    return kept, gone, changed


def _size_of(path: Path | None) -> tuple[int, int] | None:
    try:
        if path is not None:
            with open_picture(path) as image:
                return oriented_size(image)
    except ValueError:
        pass
    return None


def _clean_annotations(
    content: dict[str, Any], faults: Sequence[Fault], images: Sequence[dict]
) -> tuple[list[Any], list[dict], list[dict]]:
    """Return the annotations that are kept, those left out, and those changed."""
    drop, number, area, parts = (
        _reasons(faults, 'annotations', remedy) for remedy in ('drop', 'id', 'area', 'parts')
    )
    known = set(ids_of(column(images, 'id')))
    records = records_of(content, 'annotations')
    ids = ids_of(column(records, 'id'))
    used = {one for one in ids if isinstance(one, int)}
    free = iter(range(max((one for one in used if one < 2**52), default=0) + 1, 2**53))
    seen: dict[Any, dict] = {}
    kept: list[Any] = []
    gone: list[dict] = []
    changed: list[dict] = []
    for row, one in enumerate(records):
        reason, new, notes = drop.get(row), dict(one), []
        (image_id,) = ids_of([one.get('image_id')])
        if reason is None and image_id not in known:
            reason = 'its picture was left out'
        repeats = row in number and 'twice' in number[row]
        if reason is None and repeats and seen.get(ids[row]) == one:
            reason = 'repeats another annotation'
        if reason is None and row in parts:
            new['segmentation'] = _sound_parts(one['segmentation'])
            notes.append(parts[row])
            if not new['segmentation']:
                reason = parts[row]
        if reason is not None:
            gone.append(dict(id=one.get('id'), image_id=one.get('image_id'), reason=reason))
            continue
        if row in number and not (repeats and ids[row] not in seen):
            new['id'] = next(free)
            notes.append(number[row])
        if row in area:
            new['area'] = _area_of(new)
            notes.append(area[row])
        seen.setdefault(ids[row], one)
        if notes:
            changed.append(dict(annotation=one.get('id'), now=new['id'], reason='; '.join(notes)))
        kept.append(new)
    return kept, gone, changed


def _sound_parts(mask: list) -> list:
    return [part for part in mask if not fault_of_polygon(part)]


def _area_of(annotation: dict[str, Any]) -> float:
    box = [number_of(side) for side in annotation['bbox']]
    return round(box[2] * box[3], 2)
