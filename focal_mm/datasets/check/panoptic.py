"""COCO's panoptic segmentation: a JSON file, and a picture of segment ids for each picture."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .annotations import Rules, column, ids_of, number_of, records_of
from .coco import fault_of_form, pictures_of
from .json_file import read_json
from .pictures import (
    MAX_PIXELS,
    Checked,
    Reading,
    bytes_of,
    check_pictures,
    open_picture,
    sample,
)
from .report import Report
from .work import parallel


@dataclass(frozen=True)
class PanopticFile:
    """A panoptic file of COCO, and how it is read.

    Attributes:
        file (Path): The annotation file.
        folder (Path): Folder of the pictures.
        segments (Path, optional): Folder of the pictures of segment ids. Default: not read.
        role (str): ``'train'``, ``'val'`` or ``'test'``. Default: ``'train'``.
        reading (Reading): How training reads the pictures.
    """

    file: Path
    folder: Path
    segments: Path | None = None
    role: str = 'train'
    reading: Reading = field(default_factory=Reading)

    def check(self, report: Report, thorough: bool = False) -> Checked:
        """Check the file, its pictures, and the pictures of segment ids.

        Args:
            report (Report): Takes the findings.
            thorough (bool): Decode every picture. Default: open 500, spread evenly.

        Returns:
            Checked: The pictures.
        """
        content = read_json(self.file, report)
        if content is None:
            return Checked()
        if text := fault_of_form(content, Rules(role=self.role)):
            report.error(self.file, text)
            return Checked()
        segments = self._check_records(content, report)
        names, sizes = pictures_of(content)
        pictures = {name: self.folder / name for name in names}
        unusable = check_pictures(
            self.folder, pictures, report, thorough, sizes, self.file, self.reading
        )
        if self.segments is not None:
            self._check_segments(segments, sizes, report, thorough)
        report.looked_at.append(
            f'{self.file}: {len(names)} pictures, {len(segments)} panoptic annotations'
        )
        return Checked(pictures, unusable)

    def _check_records(self, content: dict[str, Any], report: Report) -> dict[str, set[Any]]:
        """Check images and segments; return for each picture the ids of its segments."""
        faults: dict[str, list[str]] = defaultdict(list)
        images = records_of(content, 'images')
        known = dict(zip(ids_of(column(images, 'id')), column(images, 'file_name')))
        if len(known) < len(images):
            report.error(self.file, 'image id that is missing or occurs twice')
        for image in images:
            size = number_of(image.get('width')), number_of(image.get('height'))
            if not all(side > 0 for side in size):
                faults['image without width and height'].append(f'{image.get("id")}')
        categories = records_of(content, 'categories')
        labels = set(ids_of(column(categories, 'id')))
        if any('isthing' not in one for one in categories):
            report.error(self.file, 'category without isthing')
        found: dict[str, set[Any]] = {}
        for row, annotation in enumerate(records_of(content, 'annotations')):
            (image_id,) = ids_of([annotation.get('image_id')])
            place = f'image {image_id}'
            name = known.get(image_id)
            if image_id is None or not isinstance(name, str):
                faults['annotation of an unknown image'].append(f'annotations[{row}]')
                continue
            if name in found:
                faults['two annotations of one image'].append(place)
            segments = annotation.get('segments_info')
            if not isinstance(segments, list):
                faults['annotation without segments_info'].append(place)
                continue
            records = [one if isinstance(one, dict) else {} for one in segments]
            ids = ids_of(column(records, 'id'))
            found[name] = set(ids)
            if len(found[name]) < len(ids) or None in found[name]:
                faults['segment id that is missing or occurs twice'].append(place)
            if not labels.issuperset(ids_of(column(records, 'category_id'))):
                faults['segment of an unknown category'].append(place)
            for one in records:
                box = one.get('bbox')
                numbers = [number_of(side) for side in box] if isinstance(box, list) else []
                if len(numbers) != 4 or not np.isfinite(numbers).all():
                    faults['segment whose bbox is not [x, y, width, height]'].append(place)
                if not np.isfinite(number_of(one.get('area'))):
                    faults['segment without an area'].append(place)
        for text, places in faults.items():
            report.add('error', self.file, text, places)
        if not found and self.role != 'test':
            report.error(self.file, 'no annotations')
        return found

    def _check_segments(
        self,
        segments: dict[str, set[Any]],
        sizes: dict[str, tuple[float, float]],
        report: Report,
        thorough: bool,
    ) -> None:
        assert self.segments is not None
        folder = self.segments
        # mmdet looks for the name of the picture, with another end.
        paths = {name: folder / name.replace('.jpg', '.png') for name in segments}
        there = []
        for name, length in zip(paths, parallel(bytes_of, list(paths.values()), folder.name)):
            if length:
                there.append(name)
            else:
                fault = 'no picture of segments' if length is None else 'segments of 0 bytes'
                report.error(folder, fault, paths[name].name)

        def look(name: str) -> str:
            return _compare(paths[name], segments[name], sizes.get(name))

        chosen = there if thorough else sample(there)
        for name, fault in zip(chosen, parallel(look, chosen, f'{folder.name}: segments')):
            if fault:
                report.error(folder, fault, paths[name].name)


def _compare(path: Path, ids: set[Any], size: tuple[float, float] | None) -> str:
    """Return what is wrong with a picture of segment ids; empty if nothing."""
    try:
        with open_picture(path) as image:
            if image.width * image.height > MAX_PIXELS:
                return ''
            own, pixels = image.size, np.asarray(image)
    except ValueError as error:
        return f'{error}'
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        return 'picture of segments that is not RGB, which holds their ids'
    if size not in (None, own):
        return 'picture of segments of another size than its picture'
    red, green, blue = pixels.astype(np.int64).transpose(2, 0, 1)
    seen = set(np.unique(red + 256 * green + 256**2 * blue).tolist()) - {0}
    return '' if seen == ids else 'picture of segments with other ids than segments_info'
