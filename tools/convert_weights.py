"""Convert a published checkpoint to a plain file of tensors with the names of our backbones."""

from pathlib import Path

from focal_mm.cli.arguments import ArgumentParser
from focal_mm.cli.errors import one_line_errors
from focal_mm.weights import convert


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        'input',
        type=Path,
        help='checkpoint of the authors, timm, '
        'Hugging Face or PaddleClas, or of a detector; the file name is free',
    )
    parser.add_argument(
        'output',
        type=Path,
        help='new file, .pth or .safetensors; an existing file is not overwritten',
    )
    args = parser.parse_args()
    with one_line_errors():
        origin, count = convert(args.input, args.output)
        print(f'{args.input}: {origin}, {count} tensors -> {args.output}')


if __name__ == '__main__':
    main()
