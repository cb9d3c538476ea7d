"""Test a checkpoint of a config of mmdet, mmseg, mmpretrain or mmpose.

Examples:
  focal-mm test configs/mask_rcnn/focalnet_t_1x.py epoch_12.pth
  focal-mm test configs/imagenet/focalnet_t.py focalnet_tiny_lrf_in1k
  focal-mm test my_config.py best.pth --tta --show-dir drawn
"""

import os
from argparse import ArgumentParser, Namespace

from ..arguments import add_checkpoint_argument, add_run_arguments, checkpoint_of, start


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of OpenMMLab's tools/test.py, and ours."""
    add_run_arguments(parser)
    add_checkpoint_argument(parser)
    parser.add_argument(
        '--out',
        type=os.path.expanduser,
        help='save the predictions: a folder of label images for mmseg, a .pkl file for the others',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in windows')
    parser.add_argument(
        '--show-dir',
        type=os.path.expanduser,
        help='draw the predictions into files; mmdet puts a relative folder into the work folder',
    )
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds that a window stays; default: %(default)s',
    )
    parser.add_argument(
        '--tta', action='store_true', help="augment as in the config's tta_pipeline, else by a flip"
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Test."""
    from .. import runner, testing

    start(args)
    checkpoint = checkpoint_of(args)
    cfg = runner.load_config(
        args.config,
        args.work_dir,
        args.mini,
        launcher=args.launcher,
        options=args.cfg_options,
        part=args.data,
    )
    cfg.load_from = checkpoint
    runner.require_files(cfg, 'test_dataloader')
    if args.show or args.show_dir:
        testing.draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.out:
        testing.dump_predictions(cfg, args.out)
    if args.tta:
        testing.use_tta(cfg)
    runner.run(cfg, 'test')
