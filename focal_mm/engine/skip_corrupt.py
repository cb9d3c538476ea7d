"""The transform that skips pictures which cannot be read, up to a limit."""

import logging
from multiprocessing import Value
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS as ROOT

from ..registry import TRANSFORMS

# Number of pictures skipped in this process and the workers that it starts.
_skipped: Any = Value('i', 0)


@TRANSFORMS.register_module()
class SkipCorrupt(BaseTransform):
    """Transform that names a picture which another transform cannot load, and skips it.

    A dataset then takes another picture at random in its place, as mmengine's do whenever a
    transform returns None in training.

    Args:
        transform (dict): Config of the transform that loads, as ``LoadImageFromFile``.
        limit (int): Number of pictures that may be skipped in each process, its workers included;
            one more is an error.
    """

    def __init__(self, transform: dict, limit: int) -> None:
        self.loader = ROOT.build(transform)
        self.limit = limit

    def transform(self, results: dict) -> dict | None:
        """Load a picture; None if it cannot be read.

        Raises:
            RuntimeError: If the limit is exceeded.
        """
        try:
            return self.loader(results)
        except Exception as error:  # each decoder has its own
            path = results.get('seg_map_path' if 'img' in results else 'img_path')
            with _skipped.get_lock():
                _skipped.value += 1
                count = _skipped.value
            if count > self.limit:
                raise RuntimeError(
                    f'{path} cannot be read ({error!r}), the {count}th such picture; more than '
                    f'{self.limit} are not skipped: check the data, or raise the limit'
                ) from error
            print_log(
                f'skipped {path}, which cannot be read ({error!r}): {count} of {self.limit}',
                'current',
                logging.WARNING,
            )
            return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.loader!r}, limit={self.limit})'
