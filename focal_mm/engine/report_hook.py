"""The hook that makes the report of a run: results of each validation, and a page at the end."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..registry import HOOKS
from ..report import FOLDER, HEAVY, PAGE, details, write_report
from ..report.configs import base_of, differences
from ..report.record import start_record, write_json


@HOOKS.register_module()
class ReportHook(Hook):
    """Hook that writes ``report.html`` into the work folder when training ends.

    At the start it notes the command, the versions and the state of git; at each validation the
    results of each class, curves or a confusion matrix, and the worst pictures, into ``report/``
    beside the log. ``focal-mm report`` makes the page from these files at any time, also of a run
    that goes on or has crashed. No error in here ends a run: it is logged as a warning.

    Args:
        folder (str, optional): Where the files of validations go. Default: ``report/`` beside the
            log.
        when (dict, optional): The ``epoch`` and ``iter`` of a validation outside of training.
            Default: the runner's.
    """

    priority = 'LOW'

    def __init__(self, folder: str | None = None, when: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.when = when
        self.started = False  # training
        self.recording = ExitStack()
        self.evaluations: list[Any] | None = None
        self.collecting = False
        self.collector: Any = None
        self.taken = 0

    def before_train(self, runner: Runner) -> None:
        """Note how the run was started."""
        self.started = True
        if not is_main_process():
            return
        with _warned('how the run was started'):
            filename = runner.cfg.filename
            record = start_record(filename, runner.seed, get_world_size())
            write_json(self._folder(runner) / 'run.json', record)
            if filename and Path(filename).is_file():
                base, content = base_of(filename)
                changes = differences(content, runner.cfg._cfg_dict)
                record.update(base=base, changes=changes)
                write_json(self._folder(runner) / 'run.json', record)

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin to collect."""
        self.collector, self.taken = None, 0
        self.recording.close()  # of a validation that was interrupted
        self.evaluations, self.collecting = None, False
        if not self._is_wanted():
            return
        metrics = getattr(runner.val_loop.evaluator, 'metrics', [])
        self.evaluations = self.recording.enter_context(details.recorded_evaluations(metrics))
        self.collecting = self.evaluations is None

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Collect what no evaluation keeps."""
        if not self.collecting:
            return
        self.collecting = False  # after an error, too
        with _warned('the details of a validation'):
            meta = runner.val_loop.evaluator.dataset_meta or {}
            for sample in outputs or ():
                # Samplers pad the shares of processes to one length by samples from the start.
                number = get_rank() + get_world_size() * self.taken
                self.taken += 1
                if self.collector is None:
                    fitting = (cls for cls in details.COLLECTORS if cls.fits(sample))
                    cls = next(fitting, None)
                    if cls is None or not meta.get('classes'):
                        return
                    classes = meta['classes']
                    self.collector = cls(classes, details.palette_of(meta, len(classes)))
                if number < len(runner.val_dataloader.dataset):
                    self.collector.add(sample)
            self.collecting = True

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the details of a validation."""
        self.recording.close()
        if not self._is_wanted():
            return
        collectors = all_gather_object(self.collector)
        if not is_main_process():
            return
        with _warned('the details of a validation'):
            found: dict[str, Any] = {}
            meta = runner.val_loop.evaluator.dataset_meta or {}
            classes = meta.get('classes') or ()
            if self.evaluations:
                palette = details.palette_of(meta, len(classes))
                paths = _paths(runner.val_dataloader.dataset)
                found = details.of_objects(self.evaluations, classes, palette, paths)
            elif kept := [one for one in collectors if one is not None]:
                for other in kept[1:]:
                    kept[0].merge(other)
                found = kept[0].result()
            when = self.when or dict(epoch=runner.epoch, iter=runner.iter)
            self._write(self._folder(runner), when, found, metrics or {})
        self.evaluations = self.collector = None

    def after_run(self, runner: Runner) -> None:
        """Write the page."""
        if self.started and is_main_process():
            with _warned('the report'):
                page = Path(runner.work_dir, PAGE)
                write_report([Path(runner.work_dir)], page)
                print_log(f'the report of the run is {page}', 'current')

    def _is_wanted(self) -> bool:
        """Return whether the moment of a validation is known."""
        return self.started or self.when is not None

    def _folder(self, runner: Runner) -> Path:
        return Path(self.folder or Path(runner.log_dir, FOLDER))

    @staticmethod
    def _write(folder: Path, when: dict, found: dict, metrics: dict) -> None:
        scalars = {name: float(value) for name, value in metrics.items() if isinstance(value, Real)}
        for older in folder.glob('val_*.json'):  # curves and pictures only of the newest
            content = json.loads(older.read_text())
            if not content.keys().isdisjoint(HEAVY):
                write_json(older, {k: v for k, v in content.items() if k not in HEAVY})
        write_json(folder / f'val_{when["iter"]}.json', found | when | dict(metrics=scalars))


def _paths(dataset: Any) -> dict[Any, str]:
    """Return the file of each picture of a dataset by its id."""
    if not hasattr(dataset, 'get_data_info'):
        return {}
    infos = (dataset.get_data_info(i) for i in range(len(dataset)))
    return {info.get('img_id'): info.get('img_path', '') for info in infos}


@contextmanager
def _warned(what: str) -> Iterator[None]:
    """Log an error as a warning, because no report is worth a run."""
    try:
        yield
    except Exception as error:
        print_log(f'report: no {what}: {error!r}', 'current', logging.WARNING)
