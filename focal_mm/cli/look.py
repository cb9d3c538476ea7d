"""Models and pictures for ``focal-mm look``, and the files that it writes."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ..config import datasets_of, dicts, is_pretrained, type_name
from ..look import (
    Survey,
    class_activation,
    draw_block,
    draw_overview,
    prepare,
    survey,
    write_page,
    write_sheet,
)
from ..look.samples import crops, find_backbone, mixers_of, pipeline_of
from ..look.sheets import SUFFIXES
from ..weights import ZOO
from .output import track
from .pictures import Source, read_picture
from .predict import load_weights
from .runner import load_config

MOST = 24  # pictures times models on a page


class Model(NamedTuple):
    """A network to look into.

    Attributes:
        net (nn.Module): The model, in eval mode.
        name (str): What pictures say it is.
        random (bool): Whether the backbone has random weights.
    """

    net: nn.Module
    name: str
    random: bool


def load_model(
    name: str,
    checkpoint: str | None = None,
    scratch: bool = False,
    device: str = 'cpu',
    options: dict[str, Any] | None = None,
) -> Model:
    """Build a model with its weights.

    Args:
        name (str): A config, or the name of published weights.
        checkpoint (str, optional): What mmengine takes, of the whole model. Default: the published
            weights, or those that the config's ``init_cfg`` names.
        scratch (bool): Keep the weights random. Default: False.
        device (str): As torch takes it. Default: ``'cpu'``.
        options (dict, optional): Settings of the config. Default: none.

    Raises:
        FileNotFoundError: If there is no such config and there are no such weights.
    """
    name = name.removeprefix('focal://')
    weights = ZOO.get(name)
    if weights is None and not Path(name).suffix and '::' not in name:
        near = get_close_matches(name, ZOO, n=3)
        hint = (
            f'did you mean {", ".join(near)}?' if near else '`focal-mm weights list` has the names'
        )
        raise FileNotFoundError(f'{name}: neither a config nor published weights; {hint}')
    title = f'{name}, {Path(checkpoint).name}' if checkpoint else name
    if weights is not None and not scratch:
        checkpoint = checkpoint or f'focal://{name}'
    if weights is not None and weights.config is None:
        net = _backbone_alone(weights, checkpoint)
        return Model(net.to(device).eval(), title, checkpoint is None)

    config = name if weights is None else f'focal_mm::{weights.config}'
    cfg = load_config(config, scratch=scratch or checkpoint is not None, options=options)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    net = MODELS.build(cfg.model)
    metainfo: dict = {}
    for dataset in datasets_of(cfg.get('test_dataloader')):
        metainfo = DATASETS.build(dict(dataset, lazy_init=True)).metainfo
        break
    if checkpoint:
        metainfo = metainfo | load_weights(net, checkpoint)
    else:
        net.init_weights()
    net.cfg, net.dataset_meta = cfg, metainfo
    family = type(find_backbone(net)).__name__
    backbones = [node for node in dicts(cfg.model) if type_name(node) == family]
    learned = checkpoint or any(is_pretrained(node.get('init_cfg')) for node in backbones)
    return Model(net.to(device).eval(), title, not learned)


def _backbone_alone(weights: Any, checkpoint: str | None) -> nn.Module:
    """Return a backbone whose published classifier has no config."""
    init = dict(type='Pretrained', checkpoint=checkpoint) if checkpoint else None
    net = MODELS.build(
        dict(type=weights.backbone, arch=weights.arch, out_norm=False, init_cfg=init)
        | weights.options
    )
    net.init_weights()
    return net


class Output(NamedTuple):
    """Where the files go.

    Attributes:
        folder (Path): The folder.
        stem (str): What the names of the files begin with.
        suffix (str): Of the sheets, or ``''`` for none.
    """

    folder: Path
    stem: str
    suffix: str

    @classmethod
    def parse(cls, out: Path) -> 'Output':
        """Return what an argument means: a sheet's suffix, ``.html`` for a page alone, or a folder.

        Raises:
            ValueError: For a file of another kind.
        """
        suffix = out.suffix.lower()
        if suffix in (*SUFFIXES, '.html'):
            return cls(out.parent, out.stem, '' if suffix == '.html' else suffix)
        if out.is_file() or suffix in ('.jpg', '.jpeg', '.gif', '.webp', '.eps', '.htm'):
            raise ValueError(f'--out {out}: give a folder, or a file that ends in .html, '
                             f'{", ".join(SUFFIXES)}')  # fmt: skip
        return cls(out, '', '.png')


def look(
    models: Sequence[Model],
    sources: Sequence[Source],
    output: Output,
    query: tuple[float, float] = (0.5, 0.5),
    every_block: bool = False,
    layer: str | None = None,
    label: int | None = None,
    whole: bool = False,
) -> tuple[list[Path], dict[str, str]]:
    """Look at pictures with networks, and write sheets and a page.

    Args:
        models (sequence of Model): The networks.
        sources (sequence of Source): The pictures.
        output (Output): Where the files go.
        query (tuple[float, float]): Place of the token whose attention the sheets show, x and y
            from 0 to 1. Default: the middle.
        every_block (bool): Draw a sheet for each block, not only for the last of each stage.
            Default: False.
        layer (str, optional): Layer of the class-activation map. Default: the last stage.
        label (int, optional): Class of this map. Default: the one of the highest score.
        whole (bool): Leave out the crops of a model's test pipeline. Default: False.

    Returns:
        tuple: The files that were written, and the pictures that could not be read with the reason.

    Raises:
        ValueError: If there are too many pictures for one page, or no class-activation map of the
            layer and class asked for.
    """
    count = len(models) * len(sources)
    if count > MOST:
        raise ValueError(f'{count} pictures and models: a page shows at most {MOST}; give fewer')
    activates = find_spec('pytorch_grad_cam') is not None
    if not activates and layer is None and label is None:
        print(
            "no class-activation maps without the package grad-cam: pip install 'focal-mm[look]'",
            file=sys.stderr,
        )
    files: list[Path] = []
    skipped: dict[str, str] = {}
    surveys: list[Survey] = []
    jobs = [(source, model) for source in sources for model in models]
    for source, model in track(jobs, 'looking'):
        if str(source.path) in skipped:
            continue
        try:
            read_picture(source.path)
        except ValueError as error:
            skipped[str(source.path)] = str(error)
            continue
        sample = prepare(model.net, source.path, whole=whole)
        found = survey(model.net, sample, _title(source, sources), model.name, model.random)
        if activates or layer is not None or label is not None:
            found.activation = class_activation(model.net, sample, layer, label)
        surveys.append(found)
        name = _stem(source, sources)
        name += f'-{models.index(model) + 1}' if len(models) > 1 else ''
        files += _draw_sheets(found, output, name, query, every_block)
    steps = [step for model in models for step in pipeline_of(getattr(model.net, 'cfg', None))]
    if not whole and any(map(crops, steps)):
        print("cropped as the config's test pipeline does; --whole shows all", file=sys.stderr)
    if surveys:
        files.append(write_page(surveys, output.folder / f'{output.stem or "look"}.html'))
    return files, skipped


def _title(source: Source, sources: Sequence[Source]) -> str:
    """Return the name of a picture, with its folder if another one has the same."""
    names = [one.path.name for one in sources]
    return source.name if names.count(source.path.name) > 1 else source.path.name


def _stem(source: Source, sources: Sequence[Source]) -> str:
    """Return the name of a picture without its suffix, unless another one has the same."""
    stems = [Path(one.name).with_suffix('') for one in sources]
    stem = Path(source.name).with_suffix('')
    return source.name if stems.count(stem) > 1 else stem.as_posix()


def _draw_sheets(
    found: Survey, output: Output, name: str, query: tuple[float, float], every_block: bool
) -> list[Path]:
    if not output.suffix:
        return []
    start = output.folder / '-'.join(filter(None, (output.stem, name)))

    def write(part: str, figure: Figure) -> None:
        path = start.with_name(f'{start.name}-{part}{output.suffix}')
        files.append(write_sheet(figure, path))

    files: list[Path] = []
    write('overview', draw_overview(found))
    for stage, mixers in enumerate(mixers_of(found.backbone)):
        for block in range(len(mixers)) if every_block else range(len(mixers))[-1:]:
            figure = draw_block(found, stage, block, query)
            write(f'stage{stage + 1}-block{block + 1}', figure)
    return files
