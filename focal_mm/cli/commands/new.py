r"""Write a config for your own data, which inherits from any config of a detector or segmentor.

Examples:
  focal-mm new road --base mask_rcnn/focalnet_t_1x --train train.json images/ --val val.json images/
  focal-mm new road --base mmdet::retinanet/retinanet_r50_fpn_1x_coco \
      --train data.yaml --val data.yaml
  focal-mm new voc --base atss/focalnet_t_3x --train VOC2012/ImageSets/Main/train.txt \
      --val VOC2012/ImageSets/Main/val.txt
  focal-mm new land --base upernet/focalnet_t --train images/train labels/train \
      --val images/val labels/val --classes water field forest town

--train and --val each take a COCO file and the folder of its pictures; a data.yaml of YOLO; folders
of pictures and of YOLO (.txt) or Pascal VOC (.xml) files; a list of Pascal VOC's; or, for a
segmentor, folders of pictures and of label maps.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..arguments import path


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_arguments(parser: ArgumentParser) -> None:
    """Add the name, the base, the data and what may be chosen otherwise."""
    parser.add_argument('name', type=path, help='the new file; .py may be left out')
    parser.add_argument(
        '--base',
        required=True,
        help='config to inherit from: one of ours (mask_rcnn/focalnet_t_1x), mmdet::..., '
        'mmseg::..., or a file',
    )
    for split in ('train', 'val'):
        parser.add_argument(
            f'--{split}',
            required=True,
            nargs='+',
            type=path,
            metavar='PATH',
            help=f'annotations and pictures for {"training" if split == "train" else "validation"}',
        )
    parser.add_argument(
        '--classes',
        nargs='+',
        metavar='NAME',
        help='names of the classes, or a file with one a line; a detector takes them from the '
        'annotations; a segmentor calls them by their label',
    )
    parser.add_argument(
        '--batch-size', type=_positive, help="pictures for each GPU; default: the base's"
    )
    parser.add_argument('--gpus', type=_positive, default=1, help='number of GPUs; default: 1')
    parser.add_argument(
        '--iterations',
        type=_positive,
        help='length of the run; default: fit for the number of pictures',
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help='start from the published weights of the backbone, also where there are some of the '
        'whole model',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Write the config; print the data, its faults and the command to go on with."""
    import sys

    from rich.console import Console

    from ...config import library
    from ...datasets import check, custom
    from .. import new

    name = args.name
    target = name if name.suffix == '.py' else name.with_name(f'{name.name}.py')
    if target.exists():
        raise FileExistsError(f'{target} exists; give another name, or move it away')
    base_name, base = new.read_base(args.base, target.parent)
    names = _names(args.classes)
    paths = dict(train=args.train, val=args.val)
    zero_is_ignored = False
    sets: dict[str, Any]
    if library(base) == 'mmseg':
        maps = {split: custom.read_label_maps(split, own) for split, own in paths.items()}
        classes, zero_is_ignored = custom.name_labels(maps, names)
        sets = dict(maps)
    else:
        boxes = custom.read_boxes(paths, target.with_suffix(''), names)
        classes = custom.common_classes(boxes, names)
        sets = dict(boxes)
    cfg, plan = new.fit(
        base,
        sets['train'],
        sets['val'],
        classes,
        args.batch_size,
        args.gpus,
        args.iterations,
        zero_is_ignored,
        None if args.backbone_only else new.published_weights(base_name),
    )
    new.write(target, base_name, base, cfg, plan, classes)

    console = Console(width=None if sys.stdout.isatty() else 200)
    new.print_summary(console, sets, classes, zero_is_ignored)
    report = check.check_config(cfg)
    for finding in report.findings:
        if finding.level != 'note':
            style = 'red' if finding.level == 'error' else 'yellow'
            console.print(str(finding), style=style, markup=False)
    if library(base) == 'mmseg' and names is None:
        print(
            'label 0 is a class; if it means not labelled, give --classes with names from label 1'
        )
    print(
        f'{target}: {plan.iterations} iterations of {plan.batch} pictures '
        f'({plan.epochs:.0f} epochs), learning rate {plan.lr}'
    )
    if report.errors:
        print(f'mend the errors above; focal-mm doctor --data {_quoted(target)} looks again; then:')
    else:
        print('next:')
    launch = f'torchrun --nproc_per_node={args.gpus} -m ' if args.gpus > 1 else ''
    options = ' --launcher pytorch' if args.gpus > 1 else ''
    command = 'focal_mm' if launch else 'focal-mm'
    print(f'  {launch}{command} train {_quoted(target)}{options}')
    if report.errors:
        sys.exit(1)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


def _names(words: list[str] | None) -> list[str] | None:
    """Return the names of --classes, or those in the file that it names."""
    if words is None or len(words) > 1 or not path(words[0]).is_file():
        return words
    lines = path(words[0]).read_text(encoding='utf-8-sig').splitlines()
    return [line.strip() for line in lines if line.strip()]
