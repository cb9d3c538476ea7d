"""The runner that goes on where a run has ended, to the bit."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.logging import print_log
from mmengine.registry import LOOPS, VISUALIZERS
from mmengine.runner import EpochBasedTrainLoop, FlexibleRunner, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..registry import RUNNERS
from ..weights import CheckpointError
from .checkpoint_hook import KEY, DurableCheckpointHook
from .checkpoints import find_newest, is_resumable, peek
from .fit import IMPLEMENTATION, changed_settings, find_misfit
from .loaders import LOADER_TIMEOUT, explained_loaders
from .lock import held
from .loops import ResumableEpochLoop, ResumableIterLoop
from .process_state import optim_wrappers
from .skip_corrupt import name_corrupt
from .stop_hook import StopHook

_LOOPS = {EpochBasedTrainLoop: ResumableEpochLoop, IterBasedTrainLoop: ResumableIterLoop}
_HOOKS = dict(
    mean_loss=dict(type='focal_mm.MeanLossHook'),
    nonfinite=dict(type='focal_mm.NonFiniteHook'),
    stop=dict(type='focal_mm.StopHook'),
)


class _Durable:
    """What both runners share."""

    cfg: Any
    hooks: list
    work_dir: str
    train_loop: Any
    iter: int
    epoch: int
    world_size: int
    _randomness_cfg: dict[str, Any]
    _load_from: str | None
    _resume: bool | str
    _resumed: dict[str, Any] | None = None

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register mmengine's default hooks and ours."""
        hooks = {**_HOOKS, **(hooks or {})}
        ours = {name: hooks.pop(name) for name in _HOOKS}
        super().register_default_hooks(hooks)  # type: ignore[misc]
        for hook in ours.values():
            if hook is not None:
                self.register_hook(hook)

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """Register a hook: in place of mmengine's ``CheckpointHook`` ours."""
        names = ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook)
        if isinstance(hook, dict) and hook['type'] in names:
            hook = ConfigDict(hook, type='focal_mm.DurableCheckpointHook')
        super().register_hook(hook, priority)  # type: ignore[misc]

    def build_train_loop(self, loop: Any) -> Any:
        """Build a training loop: of mmengine's, those that start at any iteration."""
        if isinstance(loop, dict):
            loop = ConfigDict(loop)
            if 'by_epoch' in loop and 'type' not in loop:
                kind = EpochBasedTrainLoop if loop.pop('by_epoch') else IterBasedTrainLoop
            else:
                kind = loop['type']
                kind = LOOPS.get(kind) if isinstance(kind, str) else kind
            loop['type'] = _LOOPS.get(kind, loop.get('type'))
        return super().build_train_loop(loop)  # type: ignore[misc]

    def build_visualizer(self, visualizer: Any = None) -> Any:
        """Build a visualizer that writes into the folder of this run."""
        if isinstance(visualizer, dict) and 'name' in visualizer:
            # mmengine has one of each name in a process, which writes where the first run did.
            visualizer = ConfigDict(visualizer)
            kind: Any = visualizer.get('type')
            if isinstance(kind, str):
                with VISUALIZERS.switch_scope_and_registry(None) as registry:
                    kind = registry.get(kind)
            while kind and kind.check_instance_created(visualizer['name']):
                visualizer['name'] += ', next run'
        return super().build_visualizer(visualizer)  # type: ignore[misc]

    def train(self) -> nn.Module:
        """Train, from the start or from a checkpoint.

        Raises:
            CheckpointError: If a checkpoint is broken or does not fit.
            FileNotFoundError: If there is no such checkpoint.
        """
        if self._resume:
            self._find_checkpoint()
        if self._resume and self._load_from:
            self._prepare_resuming(self._load_from)
        stop = next((hook for hook in self.hooks if isinstance(hook, StopHook)), None)
        if stop is None:
            return self._train()
        with stop.listening():
            return self._train()

    def _train(self) -> nn.Module:
        with held(self.work_dir), explained_loaders(self):
            return super().train()  # type: ignore[misc]

    def val(self) -> dict:
        """Validate."""
        with explained_loaders(self):
            return super().val()  # type: ignore[misc]

    def test(self) -> dict:
        """Test."""
        with explained_loaders(self):
            return super().test()  # type: ignore[misc]

    @staticmethod
    def build_dataloader(
        dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Build a loader that names pictures which cannot be read, and that does not hang."""
        if isinstance(dataloader, dict):
            dataloader = copy.deepcopy(dataloader)
            name_corrupt(dataloader)
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if loader.num_workers and not loader.timeout:
            loader.timeout = LOADER_TIMEOUT
        return loader

    def _find_checkpoint(self) -> None:
        """Find the newest whole checkpoint, in one process for all."""
        if self._load_from is not None and self._resume != 'auto':
            return
        shared: list[Any] = [None, [], None]
        if is_main_process():
            try:
                name = Path(self.work_dir).name  # as CheckpointHook's out_dir has it
                others = [
                    Path(hook.out_dir, name)
                    for hook in self.hooks
                    if isinstance(hook, DurableCheckpointHook) and hook.out_dir
                ]
                shared[:2] = find_newest(self.work_dir, *others)
            except CheckpointError as error:
                shared[2] = str(error)
        broadcast_object_list(shared)
        path, broken, refused = shared
        if refused:
            raise CheckpointError(refused)
        if path is None and broken:
            raise CheckpointError(
                f'no checkpoint of {self.work_dir} is whole: {"; ".join(broken)}; delete them to '
                'start a new run'
            )
        for message in broken:
            print_log(f'passed over: {message}', 'current', level=30)
        if path is None:
            print_log(f'no checkpoint in {self.work_dir} yet, so this run begins', 'current')
            self._resume = False
        else:
            print_log(f'resumes from {path}, the newest whole checkpoint', 'current')
            self._load_from = path

    def _prepare_resuming(self, path: str) -> None:
        """Read the seed of a run, on which its loaders depend, before they are built."""
        checkpoint = peek(path)
        if not is_resumable(checkpoint):
            raise CheckpointError(
                f'{path}: holds weights, not the state of a run, so that there is nothing to '
                f'resume; to start from these weights: load_from={path} without --resume'
            )
        if 'optimizer' not in checkpoint:
            print_log(f'{path} has no state of an optimizer; it starts anew', 'current', level=30)
        self._resumed = checkpoint
        theirs, ours = checkpoint['meta'].get('seed'), self._randomness_cfg.get('seed')
        if theirs is not None and theirs != ours:
            if ours is not None:
                print_log(f'seed {theirs} of the checkpoint, not {ours}', 'current', level=30)
            self._randomness_cfg.update(seed=theirs)
            self._set_seed()

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume from a checkpoint, once all of it is known to fit.

        Raises:
            CheckpointError: If it does not fit; nothing has been loaded then.
        """
        if self._resumed is None:
            self._prepare_resuming(filename)
        checkpoint = self._resumed
        assert checkpoint is not None
        state = checkpoint.get(KEY)
        misfit = find_misfit(self, checkpoint, state)
        if misfit:
            raise CheckpointError(
                f'{filename} does not fit this run: {misfit}; resume with the config of the '
                f'checkpoint, or start a new run from its weights: load_from={filename} without '
                '--resume'
            )
        if changes := changed_settings(self, checkpoint):
            print_log(
                f'settings that differ from the checkpoint: {changes}; learning rates, decay and '
                'schedules go on as in the checkpoint',
                'current',
                level=30,
            )
        if 'ema_state_dict' not in checkpoint and any(isinstance(h, EMAHook) for h in self.hooks):
            print_log('the checkpoint has no average of weights; it starts here', 'current', 30)
        self._resumed = None
        super().resume(filename, *args, **kwargs)  # type: ignore[misc]
        loop = self.train_loop
        if hasattr(loop, 'seek'):
            self._seek(loop, state)

    def _seek(self, loop: ResumableEpochLoop | ResumableIterLoop, state: dict | None) -> None:
        """Set where the data goes on."""
        position = (state or {}).get('position')
        length = len(loop.dataloader)
        if position is None:  # a checkpoint of mmengine
            by_epoch = isinstance(loop, ResumableEpochLoop)
            epoch = self.epoch if by_epoch else 0
            taken = self.iter - epoch * length
            fits = taken >= 0 and (taken <= length or not by_epoch)
            loop.seek(epoch, taken if fits else 0, validated=True)
            return
        taken = position['taken']
        processes = len(state['processes'])  # type: ignore[index]
        if position['length'] != length or processes != self.world_size:
            taken = round(taken * length / position['length'])
            print_log(
                f'the checkpoint is of {processes} processes and {position["length"]} iterations '
                f'an epoch; with {self.world_size} and {length} it goes on, but as another run',
                'current',
                level=30,
            )
        loop.seek(position['epoch'], taken, state['validated'])  # type: ignore[index]
        sampler: Any = getattr(loop.dataloader.batch_sampler, 'sampler', None)
        if position['seed'] is not None and hasattr(sampler, 'seed'):
            sampler.seed = position['seed']

    def _set_seed(self) -> None:
        raise NotImplementedError


@RUNNERS.register_module()
class DurableRunner(_Durable, Runner):
    """mmengine's ``Runner`` for runs that may be interrupted at any moment.

    Name it in any config of OpenMMLab: ``runner_type = 'focal_mm.DurableRunner'``. In place of
    ``CheckpointHook`` it has ``focal_mm.DurableCheckpointHook``, and the hooks ``mean_loss``,
    ``nonfinite`` and ``stop`` beside it; ``default_hooks`` sets or, by None, removes each of them.

    A run that is resumed ends with the weights of one that was never interrupted, to the bit on a
    CPU. Without a file, resuming takes the newest whole checkpoint of the work folder; so does
    ``resume='auto'``, which starts from ``load_from`` if there is none.
    """

    def _set_seed(self) -> None:
        self.set_randomness(**self._randomness_cfg)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Load the weights of a checkpoint."""
        checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        if self._resume and 'optimizer' in checkpoint:
            # mmengine would run this text as Python.
            checkpoint['meta'].pop('config', None)
            saved = checkpoint['optimizer']
            for name, wrapper in optim_wrappers(self).items():
                groups = saved.get(name, saved)['param_groups']
                for own, group in zip(wrapper.param_groups, groups):
                    group.update({key: own[key] for key in IMPLEMENTATION if key in own})
        return checkpoint


@RUNNERS.register_module()
class DurableFlexibleRunner(_Durable, FlexibleRunner):
    """mmengine's ``FlexibleRunner``, whose strategies shard a model, as :class:`DurableRunner`.

    Its strategy is ``focal_mm.ShardedStrategy`` or mmengine's for one or more whole models; the
    checkpoints of DeepSpeed are folders of another kind, for which mmengine's own runner is.
    """

    _moment: dict[str, Any]

    def __init__(self, *args: Any, resume: bool | str = False, **kwargs: Any) -> None:
        super().__init__(*args, resume=bool(resume), **kwargs)
        self._resume = resume

    def build_strategy(self, strategy: Any = None, **kwargs: Any) -> Any:
        """Build the strategy of this run."""
        if isinstance(strategy, dict):
            # mmengine writes the folder and the name of the run into it, and the next run that is
            # built from the same settings would write into this one's folder.
            strategy = copy.copy(strategy)
        return super().build_strategy(strategy, **kwargs)

    def _set_seed(self) -> None:
        self.strategy._randomness.update(seed=self._randomness_cfg['seed'])
        self.strategy._set_randomness(**self.strategy._randomness)

    def load_or_resume(self) -> None:
        """Load or resume from the checkpoint that was found."""
        self._resume = bool(self._resume)
        # mmengine calls it after the checkpoint, from which EMAHook fills what it makes here.
        super().call_hook('before_run')
        super().load_or_resume()

    def save_checkpoint(
        self, *args: Any, meta: dict | None = None, backend_args: Any = None, **kwargs: Any
    ) -> None:
        """Save a checkpoint of the ``epoch`` and ``iter`` of ``meta``, in all processes."""
        self.strategy.backend_args = backend_args
        self._moment = dict(meta or {})
        super().save_checkpoint(*args, meta=meta, backend_args=backend_args, **kwargs)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call a method of all hooks."""
        if fn_name == 'before_run':
            return  # :meth:`load_or_resume` has
        if fn_name == 'before_save_checkpoint':
            # mmengine has replaced what it was given, as if an epoch or an iteration were over.
            kwargs['checkpoint']['meta'].update(self._moment)
        super().call_hook(fn_name, **kwargs)
