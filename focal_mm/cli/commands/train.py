"""Train a model from a config of mmdet, mmseg, mmpretrain or mmpose.

Examples:
  focal-mm train configs/mask_rcnn/focalnet_t_1x.py
  focal-mm train focal_mm::upernet/focalnet_t.py --mini
  focal-mm train mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py --backbone focalnet_tiny_lrf_in1k
  focal-mm train my_config.py --resume auto
  torchrun --nproc_per_node=8 -m focal_mm train my_config.py
  torchrun --nproc_per_node=8 -m focal_mm train my_config.py --sharded fsdp --amp bf16

SIGTERM and SIGINT save a checkpoint, then exit with status 143 and 130.
"""

import os
from argparse import ArgumentParser, Namespace

from ..arguments import add_run_arguments, start


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of OpenMMLab's tools/train.py, and ours."""
    add_run_arguments(parser)
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='start from random weights instead of the published ones',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        type=os.path.expanduser,
        metavar='CHECKPOINT',
        help='resume from a checkpoint; by default, or with auto, from the newest whole one in the '
        'work folder, and from the start if there is none',
    )
    parser.add_argument(
        '--skip-corrupt',
        type=int,
        metavar='N',
        help='name and skip up to N training pictures that cannot be read',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='fp16',
        choices=['fp16', 'bf16'],
        help='mixed precision (on a GPU); default: fp16 with scaled losses',
    )
    parser.add_argument(
        '--sharded',
        choices=['fsdp', 'deepspeed'],
        help='give each process a part of the weights, gradients and averages (docs/cluster.md)',
    )
    parser.add_argument(
        '--skip-data-check',
        action='store_true',
        help='train also on data in which focal-mm doctor --data finds errors',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Train."""
    from .. import runner, training

    start(args)
    cfg = runner.load_config(
        args.config,
        args.work_dir,
        args.mini,
        args.from_scratch,
        args.amp,
        args.launcher,
        args.cfg_options,
        args.data,
        args.backbone,
        args.dump,
    )
    if args.resume:
        training.resume(cfg, args.resume)
    if args.skip_corrupt is not None:
        training.skip_corrupt(cfg, args.skip_corrupt)
    if args.sharded:
        training.shard(cfg, args.sharded)
    if args.skip_data_check:
        cfg.check_data = False
    if args.auto_scale_lr:
        training.scale_lr(cfg)
    runner.require_files(cfg, 'train_dataloader', 'val_dataloader')
    runner.run(cfg, 'train')
