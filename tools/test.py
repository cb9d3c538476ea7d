"""Test a checkpoint of a config of mmdet, mmseg or mmpretrain."""

from focal_mm.cli.arguments import RunParser
from focal_mm.cli.errors import one_line_errors
from focal_mm.cli.runner import load_config, require_files, run
from focal_mm.cli.testing import draw_predictions, dump_predictions, use_tta


def main() -> None:
    parser = RunParser(__doc__)
    parser.add_argument('checkpoint', help='a file, or an address')
    parser.add_argument(
        '--out',
        help='save the predictions: a folder of label images for mmseg, a .pkl file for the others',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in windows')
    parser.add_argument(
        '--show-dir',
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
    args = parser.parse_args()
    with one_line_errors():
        cfg = load_config(
            args.config,
            args.work_dir,
            args.mini,
            launcher=args.launcher,
            options=args.cfg_options,
            part=args.data,
        )
        cfg.load_from = args.checkpoint
        require_files(cfg, 'test_dataloader')
        if args.show or args.show_dir:
            draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
        if args.out:
            dump_predictions(cfg, args.out)
        if args.tta:
            use_tta(cfg)
        run(cfg, 'test')


if __name__ == '__main__':
    main()
