"""Convert a checkpoint to a plain file of tensors: ``focal-mm weights convert``."""

from focal_mm.cli import weights
from focal_mm.cli.arguments import ArgumentParser
from focal_mm.cli.errors import one_line_errors


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    weights.add_convert_arguments(parser)
    args = parser.parse_args()
    with one_line_errors():
        args.run(args)


if __name__ == '__main__':
    main()
