"""Write any published checkpoint as a plain, safe file with the names of our backbones."""
from pathlib import Path

from focal_mm.engine import ArgumentParser, one_line_errors
from focal_mm.weights import convert


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('input', type=Path, help='what the authors, timm, Hugging Face, '
                        'PaddleClas or a detector of theirs saved, under any name')
    parser.add_argument('output', type=Path, help='a new file, .pth or .safetensors; one that is '
                        'there is not overwritten')
    args = parser.parse_args()
    with one_line_errors():
        origin, count = convert(args.input, args.output)
        print(f'{args.input}: {origin}, {count} tensors -> {args.output}')


if __name__ == '__main__':
    main()
