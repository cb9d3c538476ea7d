"""Turn a config of mmdet 2 or mmseg 0 into one of mmdet 3 or mmseg 1.

It reads the configs of the official FocalNet code (its folders detection/ and segmentation/) and
others of mmdet 2 and mmseg 0, without running code of theirs. What was not understood is listed,
and the exit status is 1.

Examples:
  focal-mm migrate old/mask_rcnn_focalnet_tiny_patch4_mstrain_480-800_adamw_1x_coco_lrf.py
  focal-mm migrate old/config.py new_config.py
  focal-mm migrate old/config.py new_config.py --cfg-options model.pretrained=focalnet_tiny_lrf.pth
"""

from argparse import ArgumentParser, Namespace

from ..arguments import add_settings_argument, path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the two files and the options."""
    parser.add_argument(
        'old', metavar='OLD_CONFIG', type=path, help='a config of mmdet 2 or mmseg 0'
    )
    parser.add_argument(
        'new',
        metavar='NEW_CONFIG',
        type=path,
        nargs='?',
        help='file to write, which must not exist; default: print the config',
    )
    add_settings_argument(
        parser, 'settings in the old words, which the command line of the old code had'
    )
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Migrate a config; exit with status 1 if a setting was not understood."""
    import json
    import sys
    from contextlib import redirect_stdout

    from ..migrate import migrate
    from ..migrate.migration import describe

    new = args.new
    if new and new.exists():
        raise FileExistsError(f'{new} exists; choose another name, or remove it')
    with redirect_stdout(sys.stderr):  # messages of the libraries
        result = migrate(args.old, args.cfg_options)
    if new:
        new.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(result.text, encoding='utf-8')
    report = result.report
    if args.json:
        unknown = [dict(key=key, value=value) for key, value in report.unknown]
        found = dict(
            bases=result.bases, changes=report.changes, not_understood=unknown, config=result.text
        )
        print(json.dumps(found, indent=2, default=str))
    else:
        if not new:
            print(result.text, end='')
        out = sys.stdout if new else sys.stderr
        start = f'from {", ".join(result.bases)}' if result.bases else 'a whole config'
        print(f'{args.old} -> {new or "stdout"}, {start}', file=out)
        for change in report.changes:
            print(f'  note: {change}', file=out)
        for key, value in report.unknown:
            print(f'  not understood: {describe(key, value)}', file=out)
        if new:
            print(f'go on with: focal-mm train {new}', file=out)
    if report.unknown:
        sys.exit(1)
