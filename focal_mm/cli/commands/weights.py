"""List, download, check, find and convert the published weights.

Examples:
  focal-mm weights list
  focal-mm weights fetch focalnet_tiny_lrf_in1k
  focal-mm weights where focalnet_tiny_lrf_in1k --json
  focal-mm weights convert official.pth focalnet.safetensors
"""

import sys
from argparse import ArgumentParser, Namespace

from ..arguments import path


def list_names(args: Namespace) -> None:
    """Print all names, and which files are here."""
    from ... import weights
    from ..output import print_json, print_table

    entries = [_describe(entry.name) for entry in weights.list()]
    if args.json:
        print_json(entries)
        return
    print_table(
        ['name', 'kind', 'arch', 'results', 'params', 'input', 'licence', 'file', 'config'],
        [
            [
                entry['name'],
                entry['kind'],
                entry['arch'],
                '/'.join(map(str, entry['results'].values())),
                f'{entry["params"]} M' if entry['params'] else '',
                entry['input_size'],
                entry['licence'],
                entry['state'],
                entry['config'] or '',
            ]
            for entry in entries
        ],
    )


def _describe(name: str) -> dict:
    """Return all that is known of published weights, where the file is, and its state."""
    from dataclasses import asdict

    from ... import weights

    file, there = weights.find(name)
    entry = weights.ZOO[name]
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
    return asdict(entry) | dict(path=file, state=state)


def verify(args: Namespace) -> None:
    """Compare downloaded files with their recorded sha256; exit status 1 if one has changed."""
    from ... import weights
    from ..output import print_json

    states = {}
    for file, state in weights.verify():
        states[str(file)] = state
        if not args.json:
            print(f'{state:12}{file}', flush=True)
    changed = list(states.values()).count('changed')
    if args.json:
        print_json(states)
    else:
        print(f'{len(states)} files, {changed} changed')
    if changed:
        sys.exit(1)


def fetch(args: Namespace) -> None:
    """Download a file if it is not here."""
    from ... import weights

    print(weights.fetch(args.weights.removeprefix('focal://')))


def where(args: Namespace) -> None:
    """Print the local path of a file, its addresses and its config."""
    from ... import weights
    from ..output import print_json

    name = args.weights.removeprefix('focal://')
    file, there = weights.find(name)
    if args.json:
        print_json(_describe(name))
        return
    entry = weights.ZOO[name]
    print(file if there else f'{file} (not there)')
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


def convert(args: Namespace) -> None:
    """Write the tensors of a checkpoint to a plain file, by the names of our backbones."""
    from rich.console import Console

    from ... import weights

    with Console(stderr=True).status(f'converting {args.input}'):
        origin, count = weights.convert(args.input, args.output, args.prefix)
    origin = origin or 'names of no backbone here, kept'
    print(f'{args.input}: {origin}, {count} tensors -> {args.output}')


def add_arguments(parser: ArgumentParser) -> None:
    """Add one subcommand for each function here; ``args.run(args)`` runs the chosen one."""
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for name, run in dict(list=list_names, verify=verify, fetch=fetch, where=where).items():
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        if run in (fetch, where):
            command.add_argument('weights', metavar='name', help='a name that list prints')
        if run is not fetch:
            command.add_argument('--json', action='store_true', help='print JSON')
    command = commands.add_parser('convert', help=convert.__doc__, description=convert.__doc__)
    command.add_argument(
        'input',
        type=path,
        help='checkpoint of the authors, timm, Hugging Face or PaddleClas, of a detector, or one '
        'that is refused since it could run code; the file name is free',
    )
    command.add_argument(
        'output',
        type=path,
        help='new file, .pth or .safetensors; an existing file is not overwritten',
    )
    command.add_argument(
        '--prefix',
        default='',
        help='take the tensors whose names begin with it, and take it off: net. or model. in files '
        'of Lightning',
    )
    command.set_defaults(run=convert)
