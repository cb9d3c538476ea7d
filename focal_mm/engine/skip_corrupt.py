"""The transform that skips pictures which cannot be read, up to a limit."""

import logging
from multiprocessing import Value
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS as ROOT

from ..config import dicts, type_name
from ..registry import TRANSFORMS

# Number of pictures skipped in this process and the workers that it starts.
_skipped: Any = Value('i', 0)


class CorruptPictureError(RuntimeError):
    """Error: a picture or its annotation cannot be read."""


@TRANSFORMS.register_module()
class SkipCorrupt(BaseTransform):
    """Transform that names a picture which another transform cannot load, and may skip it.

    A dataset then takes another picture at random in its place, as mmengine's do whenever a
    transform returns None in training.

    Args:
        transform (dict): Config of the transform that loads, as ``LoadImageFromFile``.
        limit (int): Number of pictures that may be skipped in each process, its workers included;
            one more is an error. Default: 0.
    """

    def __init__(self, transform: dict, limit: int = 0) -> None:
        self.loader = ROOT.build(transform)
        self.limit = limit

    def transform(self, results: dict) -> dict | None:
        """Load a picture; None if it cannot be read.

        Raises:
            CorruptPictureError: If the limit is exceeded.
        """
        try:
            return self.loader(results)
        except Exception as error:  # each decoder has its own
            path = results.get('img_path')
            if 'img' in results:
                path = results.get('seg_map_path') or f'the annotation of {path}'
            with _skipped.get_lock():
                _skipped.value += 1
                count = _skipped.value
            if count > self.limit:
                skipped = f' after {self.limit} others were skipped' if self.limit else ''
                raise CorruptPictureError(
                    f'{path} cannot be read ({error!r}){skipped}; mend it, or train with '
                    f'--skip-corrupt {max(2 * self.limit, 10)}'
                ) from error
            print_log(
                f'skipped {path}, which cannot be read ({error!r}): {count} of {self.limit}',
                'current',
                logging.WARNING,
            )
            return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.loader!r}, limit={self.limit})'


def name_corrupt(loader: dict, limit: int = 0) -> None:
    """Make a loader's config name the pictures that cannot be read, and skip some of them.

    Args:
        loader (dict): Config of a data loader, changed in place.
        limit (int): Number of pictures that are skipped. Default: 0.
    """
    for node in list(dicts(loader)):
        pipeline = node.get('pipeline')
        for number, step in enumerate(pipeline if isinstance(pipeline, list) else ()):
            if isinstance(step, dict) and type_name(step).startswith(
                ('LoadImage', 'LoadAnnotations')
            ):
                pipeline[number] = ConfigDict(
                    type='focal_mm.SkipCorrupt', transform=step, limit=limit
                )
