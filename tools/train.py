"""Train a model from a config of mmdet, mmseg or mmpretrain."""

from focal_mm.cli.arguments import RunParser
from focal_mm.cli.errors import one_line_errors
from focal_mm.cli.runner import load_config, require_files, run
from focal_mm.cli.training import resume, scale_lr


def main() -> None:
    parser = RunParser(__doc__)
    parser.add_argument(
        '--from-scratch',
        action='store_true',
        help='start from random weights instead of the published ones',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint, by default the last one in the work folder',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (on a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    args = parser.parse_args()
    with one_line_errors():
        cfg = load_config(
            args.config,
            args.work_dir,
            args.mini,
            args.from_scratch,
            args.amp,
            args.launcher,
            args.cfg_options,
            args.data,
        )
        if args.resume:
            resume(cfg, args.resume)
        if args.auto_scale_lr:
            scale_lr(cfg)
        require_files(cfg, 'train_dataloader', 'val_dataloader')
        run(cfg, 'train')


if __name__ == '__main__':
    main()
