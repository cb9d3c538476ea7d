"""Train FocalNet-T Mask R-CNN on drawn pictures, evaluate it and draw its predictions.

It takes a few minutes on two CPU cores.

Examples:
  focal-mm demo --work-dir /tmp/demo
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the folder."""
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for the results; default: %(default)s',
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> None:
    """Train, and write metrics.json, loss_curve.png and predictions.png."""
    import json

    from ..runner import build_runner, load_config
    from ..visualization import draw_detections, draw_losses

    folder = args.work_dir
    cfg = load_config('focal_mm::mask_rcnn/focalnet_t_1x.py', str(folder), mini=True)
    runner = build_runner(cfg)
    runner.train()

    scalars = {name: buffer.data[0] for name, buffer in runner.message_hub.log_scalars.items()}
    metrics = {
        name.removeprefix('val/coco/'): float(values[-1])
        for name, values in scalars.items()
        if name.startswith('val/coco/')
    }
    (folder / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
    draw_losses(
        {
            name.removeprefix('train/'): values
            for name, values in scalars.items()
            if name.startswith('train/loss')
        },
        folder / 'loss_curve.png',
    )
    draw_detections(
        runner.model, runner.val_dataloader.dataset, range(8), folder / 'predictions.png'
    )
    print(f'box AP {metrics["bbox_mAP"]:.3f}, mask AP {metrics["segm_mAP"]:.3f}')
    for name in ('metrics.json', 'loss_curve.png', 'predictions.png'):
        print(folder / name)
