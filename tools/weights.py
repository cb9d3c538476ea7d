"""List, download, check and find the published weights."""

import sys

from focal_mm import weights
from focal_mm.cli.arguments import ArgumentParser
from focal_mm.cli.errors import one_line_errors


def list_names() -> None:
    print(
        f'{"name":41}{"kind":12}{"arch":15}{"results":>11}{"params":>9}{"input":>6}  {"licence":12}'
        f'{"file":19}config'
    )
    for entry in weights.list():
        _, there = weights.find(entry.name)
        state = (
            'refused'
            if entry.refused
            else 'here'
            if there
            else 'for download'
            if entry.mirrors
            else 'only dead mirrors'
            if entry.dead
            else 'never published'
        )
        results = '/'.join(map(str, entry.results.values()))
        params = f'{entry.params} M' if entry.params else ''
        print(
            f'{entry.name:41}{entry.kind:12}{entry.arch:15}{results:>11}{params:>9}'
            f'{entry.input_size:>6}  {entry.licence:12}{state:19}{entry.config or ""}'.rstrip()
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
    entry = weights.ZOO[name]
    print(path if there else f'{path} (not there)')
    for address in entry.addresses or ['never published']:
        sha256 = entry.sha256.get(address)
        print(f'  {address}' + (f' (sha256 {sha256})' if sha256 else ''))
    results = ', '.join(f'{name} {value}' for name, value in entry.results.items())
    print(f'{entry.kind} {entry.backbone} {entry.arch}' + (f': {results}' if results else ''))
    if entry.options:
        print(f'backbone options: {entry.options}')
    if entry.config:
        print(f'config: configs/{entry.config}')
    if entry.refused:
        print(f'refused: {entry.refused}')


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
