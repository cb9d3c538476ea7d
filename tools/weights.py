"""List, download, check and find the published weights."""

import sys

from focal_mm import weights
from focal_mm.cli.arguments import ArgumentParser
from focal_mm.cli.errors import one_line_errors


def list_names() -> None:
    print(
        f'{"name":29}{"backbone":18}{"arch":16}{"top-1":>5}{"params":>9}{"input":>6}  '
        f'{"licence":12}file'
    )
    for entry in weights.list():
        _, there = weights.find(entry.name)
        state = (
            'here'
            if there
            else 'for download'
            if entry.mirrors
            else 'only dead mirrors'
            if entry.dead
            else 'never published'
        )
        print(
            f'{entry.name:29}{entry.backbone:18}{entry.arch:16}{entry.top1 or "":>5}'
            f'{entry.params:>7} M{entry.input_size:>6}  {entry.licence:12}{state}'
        )


def verify() -> None:
    states = []
    for path, state in weights.verify():
        print(f'{state:12}{path}', flush=True)
        states.append(state)
    print(f'{len(states)} files, {states.count("changed")} changed')
    if 'changed' in states:
        sys.exit(1)


def where(name: str) -> None:
    path, there = weights.find(name)
    print(path if there else f'{path} (not there)')
    for address in weights.ZOO[name].addresses or ['never published']:
        print(f'  {address}')


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('list', help='print all names, and which files are here')
    commands.add_parser(
        'verify',
        help='compare downloaded files with their recorded sha256; '
        'exit status 1 if one has changed',
    )
    for command, text in (
        ('fetch', 'download a file if it is not here'),
        ('where', 'print the local path of a file and its mirrors'),
    ):
        commands.add_parser(command, help=text).add_argument('name', help='a name that list prints')
    args = parser.parse_args()
    with one_line_errors():
        if args.command == 'list':
            list_names()
        elif args.command == 'verify':
            verify()
        elif args.command == 'fetch':
            print(weights.fetch(args.name))
        else:
            where(args.name)


if __name__ == '__main__':
    main()
