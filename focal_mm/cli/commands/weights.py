"""List, download, check, find and convert the published weights.

Examples:
  focal-mm weights list
  focal-mm weights fetch focalnet_tiny_lrf_in1k
  focal-mm weights convert official.pth focalnet.safetensors
"""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path


def list_names(args: Namespace) -> None:
    """Print all names, and which files are here."""
    from ... import weights

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


def verify(args: Namespace) -> None:
    """Compare downloaded files with their recorded sha256; exit status 1 if one has changed."""
    from ... import weights

    states = []
    for path, state in weights.verify():
        print(f'{state:12}{path}', flush=True)
        states.append(state)
    print(f'{len(states)} files, {states.count("changed")} changed')
    if 'changed' in states:
        sys.exit(1)


def fetch(args: Namespace) -> None:
    """Download a file if it is not here."""
    from ... import weights

    print(weights.fetch(args.name))


def where(args: Namespace) -> None:
    """Print the local path of a file, its addresses and its config."""
    from ... import weights

    path, there = weights.find(args.name)
    entry = weights.ZOO[args.name]
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


def convert(args: Namespace) -> None:
    """Write the tensors of a checkpoint to a plain file, by the names of our backbones."""
    from ... import weights

    origin, count = weights.convert(args.input, args.output)
    origin = origin or 'names of no backbone here, kept'
    print(f'{args.input}: {origin}, {count} tensors -> {args.output}')


def add_arguments(parser: ArgumentParser) -> None:
    """Add one subcommand for each function here; ``args.run(args)`` runs the chosen one."""
    commands = parser.add_subparsers(required=True)
    for name, run in dict(list=list_names, verify=verify, fetch=fetch, where=where).items():
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        if run in (fetch, where):
            command.add_argument('name', help='a name that list prints')
    command = commands.add_parser('convert', help=convert.__doc__)
    command.add_argument(
        'input',
        type=Path,
        help='checkpoint of the authors, timm, Hugging Face or PaddleClas, of a detector, or one '
        'that is refused since it could run code; the file name is free',
    )
    command.add_argument(
        'output',
        type=Path,
        help='new file, .pth or .safetensors; an existing file is not overwritten',
    )
    command.set_defaults(run=convert)
