"""The hook that saves checkpoints, so that there is a whole one at any time."""

import logging
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..registry import HOOKS
from .checkpoints import BACKEND, PART, NoSpaceError, write_whole
from .fit import describe_optimizers, trained_names
from .process_state import gather_processes, restore_process
from .sampling import get_random_state, seed_generators, set_random_state

# The checkpoint of a run that was stopped between two others.
INTERRUPTED = 'interrupted.pth'
# Where a checkpoint has what this hook adds.
KEY = 'run_state'


@HOOKS.register_module()
class DurableCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, with which a run loses nothing and goes on as it was.

    A file is written beside its place, synced, read back and renamed; the ones that are to go are
    deleted after that. A checkpoint also has the states of the random generators of all
    processes, gradients that are being accumulated, and the position in the data.

    Args:
        on_full_disk (str): ``'stop'`` ends the run with a NoSpaceError when there is no space for
            a checkpoint; ``'continue'`` warns and goes on without saving. Default: ``'stop'``.
        **kwargs: Arguments of ``CheckpointHook``.
    """

    backend_args: dict[str, Any] | None
    last_ckpt: str | None

    def __init__(self, *args: Any, on_full_disk: str = 'stop', **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if on_full_disk not in ('stop', 'continue'):
            raise ValueError(f"on_full_disk={on_full_disk!r} is neither 'stop' nor 'continue'")
        self.on_full_disk = on_full_disk
        self.problems: list[str] = []
        self.state: dict[str, Any] | None = None
        self.resumed: dict[str, Any] | None = None
        self.saved_at: tuple[int, int] | None = None
        self.validated = False
        self.random: dict[str, Any] | None = None  # during validation, those of training
        self.trained: list[str] = []

    # ---- hooks ---------------------------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Note which parameters are trained, before training may change it."""
        self.trained = trained_names(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state of the run until training begins."""
        if runner._resume:
            self.resumed = checkpoint.get(KEY)

    def before_train(self, runner: Runner) -> None:
        """Restore the state of the run."""
        if self.save_best:
            self._find_best_checkpoints(runner)
        super().before_train(runner)
        if self.file_client_args is None and not self.backend_args and '://' not in self.out_dir:
            self.backend_args = dict(backend=BACKEND, problems=self.problems)
            if is_main_process():
                for part in Path(self.out_dir).glob(f'*.pth{PART}'):
                    part.unlink()
        if self.resumed is not None:
            restore_process(runner, self.resumed['processes'])
            self.resumed = None

    def before_val_epoch(self, runner: Runner) -> None:
        """Keep the random states, so that training does not depend on validation, nor validation on
        what else draws in this process.
        """
        self.random = get_random_state()
        seed_generators(runner.seed or 0, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Restore the random states and save the best checkpoint."""
        self._leave_validation()
        self.validated = True
        try:
            super().after_val_epoch(runner, metrics)
        finally:
            self.validated = False

    def _leave_validation(self) -> None:
        if self.random is not None:
            set_random_state(self.random)
            self.random = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state of the run to a checkpoint."""
        if self.state is not None:
            checkpoint[KEY] = self.state

    # ---- saving --------------------------------------------------------------------------------

    def save_interrupted(self, runner: Runner, meta: dict) -> str | None:
        """Save a checkpoint for a run that stops now, unless there is one of this moment.

        Args:
            runner (Runner): The runner.
            meta (dict): The ``epoch`` and ``iter`` of the checkpoint.

        Returns:
            str or None: The newest checkpoint; None if there was no space for it.
        """
        self._leave_validation()
        if self.saved_at != (meta['epoch'], meta['iter']):
            self._save(runner, INTERRUPTED, meta)
        return self.last_ckpt

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint; the oldest ones are deleted once it is whole."""
        ids: list[int] = []
        if self.max_keep_ckpts > 0:
            # A run that ends before the deletion goes on with a list that has the old one, too.
            ids = [i for i in self.keep_ckpt_ids if i != step] + [step]
            runner.message_hub.update_info('keep_ckpt_ids', ids)
        name = self.filename_tmpl.format(step)
        if not self._save(runner, name, meta):
            if self.max_keep_ckpts > 0:
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            return
        self._remove(self._path(INTERRUPTED))
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids.clear()
            self.keep_ckpt_ids.extend(ids)  # holds max_keep_ckpts at most
            for old in ids[: -self.max_keep_ckpts]:
                self._remove(self._path(self.filename_tmpl.format(old)))
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save(self, runner: Runner, name: str, meta: dict) -> bool:
        """Save a checkpoint under a name; return whether there was space for it."""
        loop = runner.train_loop
        self.state = dict(
            processes=gather_processes(runner),
            trained=self.trained,
            optimizers=describe_optimizers(runner),
            validated=self.validated,
        )
        if hasattr(loop, 'position'):
            epoch, taken = loop.position(meta)
            self.state['position'] = dict(
                epoch=epoch, taken=taken, length=len(loop.dataloader), seed=_sampler_seed(loop)
            )
        path = self._path(name)
        previous, self.last_ckpt = self.last_ckpt, path
        runner.message_hub.update_info('last_ckpt', path)
        when = (meta['epoch'], meta['iter'])
        try:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        finally:
            self.state = None
        if is_main_process() and not self.problems:
            self._try(write_whole, path.encode(), Path(runner.work_dir, 'last_checkpoint'))
        if not self._is_saved():
            self.last_ckpt = previous
            return False
        self.saved_at = when
        return True

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Save the best checkpoint; the one that was the best is deleted once it is whole."""
        if not self.save_best:
            return
        old = self._best_paths()
        self._set_best_paths(runner, dict.fromkeys(old))  # mmengine deletes those that it knows
        super()._save_best_checkpoint(runner, metrics)
        self._is_saved()
        new = self._best_paths()
        for key, path in old.items():
            if path and not (new[key] and self.file_backend.exists(new[key])):
                self._set_best_paths(runner, {key: path})
            elif path and path != new[key]:
                self._remove(path)

    def _best_paths(self) -> dict[str, str | None]:
        if len(self.key_indicators) == 1:
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best_paths(self, runner: Runner, paths: dict[str, str | None]) -> None:
        for key, path in paths.items():
            if not key:
                self.best_ckpt_path = path
            else:
                self.best_ckpt_path_dict[key] = path
            if path:
                runner.message_hub.update_info(f'best_ckpt_{key}' if key else 'best_ckpt', path)

    def _find_best_checkpoints(self, runner: Runner) -> None:
        """Find the best checkpoints in the folder of this run, which may have been moved or copied.
        The score of one that is gone is forgotten, so that the best of those that follow is kept.
        """
        if '://' in (self.out_dir or ''):
            return
        hub = runner.message_hub
        work_dir = Path(runner.work_dir)
        folder = Path(self.out_dir, work_dir.name) if self.out_dir else work_dir
        found = {}
        for score in hub.runtime_info:
            if score.startswith('best_score'):
                # One in another folder is of another run, which would lose it to a better one.
                key = score.replace('best_score', 'best_ckpt')
                own = folder / Path(hub.runtime_info.get(key) or '').name
                found[score] = key, str(own) if own.is_file() else None
        shared = [found]
        broadcast_object_list(shared)  # other processes may not see the folder
        for score, (key, place) in shared[0].items():
            if place is None:
                print_log(
                    f'the best checkpoint ({score} {hub.runtime_info.pop(score):.4f}) is gone; the '
                    'best one from now on is kept',
                    'current',
                    logging.WARNING,
                )
                hub.runtime_info.pop(key, None)
            else:
                hub.update_info(key, place)

    def _try(self, write: Any, *args: Any) -> None:
        try:
            write(*args)
        except NoSpaceError as error:
            self.problems.append(str(error))

    def _path(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # of DeepSpeed
            self.file_backend.rmtree(path)

    def _is_saved(self) -> bool:
        """Return whether there was space for what was saved last, in all processes alike.

        Raises:
            NoSpaceError: If there was not, and the run is to stop.
        """
        shared = [self.problems[0] if self.problems else None]
        self.problems.clear()
        broadcast_object_list(shared)
        problem = shared[0]
        if problem is None:
            return True
        if self.on_full_disk == 'stop':
            raise NoSpaceError(
                f'{problem}; the checkpoints before it are whole: make space and go on with '
                '--resume, or train on without saving: '
                '--cfg-options default_hooks.checkpoint.on_full_disk=continue'
            )
        print_log(f'{problem}; training goes on without saving', 'current', logging.ERROR)
        return False


def _sampler_seed(loop: Any) -> int | None:
    return getattr(getattr(loop.dataloader.batch_sampler, 'sampler', None), 'seed', None)
