"""Train FocalNet-T Mask R-CNN on the mini dataset, evaluate it and draw its predictions."""

import json
from pathlib import Path

from focal_mm.cli.arguments import ArgumentParser
from focal_mm.cli.errors import one_line_errors
from focal_mm.cli.runner import build_runner, load_config
from focal_mm.cli.visualization import draw_detections, draw_losses


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/demo'),
        help='folder for the results; default: %(default)s',
    )
    folder = parser.parse_args().work_dir
    with one_line_errors():
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


if __name__ == '__main__':
    main()
