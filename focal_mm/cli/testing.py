"""Changes to a config that only testing needs."""

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from ..config import datasets_of, dicts, library, type_name

# For each library the model that merges predictions, for configs without a tta_model. The names
# have their scope, since configs with classes for types have no default_scope.
_TTA_MODELS: dict[str | None, dict] = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
    'mmpretrain': dict(type='AverageClsScoreTTA'),
}


def use_tta(cfg: Config) -> None:
    """Make a config test with augmentation: its ``tta_pipeline``, or else a horizontal flip.

    mmdet merges only boxes, so the mask head is removed and only boxes are evaluated.

    Args:
        cfg (Config): A config for mmdet, mmseg or mmpretrain, changed in place.

    Raises:
        ValueError: If the model predicts masks without a mask head, or is one of mmpose.
    """
    kind = library(cfg)
    if kind not in _TTA_MODELS:
        raise ValueError(
            '--tta: only mmdet, mmseg and mmpretrain merge predictions; mmpose flips '
            'by itself, model.test_cfg.flip_test'
        )
    for dataset in datasets_of(cfg.test_dataloader):
        dataset.pipeline = cfg.get('tta_pipeline') or _with_flip(
            dataset.pipeline, _scoped(cfg, 'RandomFlip')
        )
    for node in dicts(cfg.test_evaluator):
        if 'segm' in node.get('metric', ()):
            if not cfg.model.get('roi_head', {}).get('mask_head'):
                raise ValueError(
                    f'--tta: mmdet merges boxes only, and {type_name(cfg.model)} has no '
                    'mask head that could be left out'
                )
            print_log('--tta: mmdet merges boxes only, no masks')
            cfg.model.roi_head.mask_head = None
            node.metric = ['bbox']
    merging = _TTA_MODELS[kind]
    merging = cfg.get('tta_model') or dict(merging, type=_scoped(cfg, merging['type']))
    cfg.model = ConfigDict(merging, module=cfg.model)


def _scoped(cfg: Config, name: str) -> str:
    """Return a name of the config's library as the config builds it: with the library's scope
    where none is set, as in configs whose types are classes.
    """
    return name if cfg.get('default_scope') else f'{library(cfg)}.{name}'


def _with_flip(pipeline: list[ConfigDict], flip: str) -> list[dict]:
    """Return a test pipeline that packs every image twice, as it is and flipped."""
    *steps, pack = pipeline
    # The ground truth is loaded after the flip, because predictions are flipped back.
    annotations = [step for step in steps if type_name(step) == 'LoadAnnotations']
    flips = [dict(type=flip, prob=prob) for prob in (0.0, 1.0)]
    branches = [flips, *([step] for step in annotations), [dict(type=pack.type)]]
    return [
        *(step for step in steps if step not in annotations),
        dict(type='TestTimeAug', transforms=branches),
    ]


def dump_predictions(cfg: Config, out: str) -> None:
    """Make a config save the predictions of a test.

    Args:
        cfg (Config): A config for mmdet, mmseg or mmpretrain, changed in place.
        out (str): For mmseg a folder for label images, for the others a pickle file.

    Raises:
        ValueError: If the pickle file ends in neither ``.pkl`` nor ``.pickle``.
    """
    if library(cfg) == 'mmseg':
        for evaluator in dicts(cfg.test_evaluator):
            evaluator.update(output_dir=out, keep_results=True)
    elif out.endswith(('.pkl', '.pickle')):
        evaluator = cfg.test_evaluator
        dump = _scoped(cfg, 'DumpDetResults') if library(cfg) == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [
            *(evaluator if isinstance(evaluator, list) else [evaluator]),
            dict(type=dump, out_file_path=out),
        ]
    else:
        raise ValueError(f'--out {out}: {library(cfg)} writes a pickle file, .pkl or .pickle')


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Make a config show the predictions of a test in windows, or draw them into files.

    Args:
        cfg (Config): A config for mmdet, mmseg or mmpretrain, changed in place.
        show (bool): Whether to open windows.
        show_dir (str or None): Folder for the files; mmdet puts a relative one into the work
            folder. None: no files.
        wait_time (float): How long a window stays, in seconds.

    Raises:
        ValueError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError(
            f'--show, --show-dir: {cfg.filename} has no default_hooks.visualization, which draws'
        )
    hook.update(show=show, wait_time=wait_time)
    hook['enable' if library(cfg) == 'mmpretrain' else 'draw'] = True
    if show_dir and library(cfg) == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook['out_dir' if library(cfg) == 'mmpretrain' else 'test_out_dir'] = show_dir
