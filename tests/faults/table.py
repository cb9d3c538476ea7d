"""The benchmark of faults: injects each of them and prints what came of it.

``make faults`` runs it, and writes docs/faults.md. Words choose cases by the beginning of their
part or by a piece of their fault, and only their rows are written; ``--quick`` chooses those that
the tests run, and ``--json`` prints the results and writes nothing.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / 'docs' / 'faults.md'
MARK = '<!-- The rest is written by `make faults`. -->'
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


@dataclass
class Row:
    """A row of the table."""

    part: str
    fault: str
    happened: str
    lost: str
    survived: bool


def read() -> list[Row]:
    """Return the rows of the page."""
    rows, part = [], ''
    for line in PAGE.read_text().partition(MARK)[2].splitlines():
        if line.startswith('## '):
            part = line[3:]
        elif line.startswith('| ') and not line.startswith(('| fault |', '| ---')):
            cells = [
                cell.strip().replace('\\|', '|') for cell in re.split(r'(?<!\\)\|', line)[1:-1]
            ]
            rows.append(Row(part, *cells[:3], cells[3] == 'yes'))
    return rows


def run(words: list[str], quick: bool) -> Iterator[Row]:
    """Inject faults, each in a folder of its own."""
    import command

    command.prepare()
    from fault import Outcome

    chosen = [
        case
        for case in all_cases()
        if (case.quick or not quick)
        and (not words or any(case.part.startswith(w) or w in case.fault for w in words))
    ]
    with tempfile.TemporaryDirectory(prefix='faults') as parent:
        os.environ['FAULTS_FOLDER'] = parent
        os.environ.setdefault('FOCAL_MM_CACHE', f'{parent}/cache')
        for number, case in enumerate(chosen, 1):
            folder = Path(parent, f'case_{number}')
            folder.mkdir()
            start = time.monotonic()
            try:
                outcome = case.run(folder)
            except Exception as error:
                outcome = Outcome(f'the case itself failed: {error!r}', '?', False)
            print(
                f'{number}/{len(chosen)} {"ok" if outcome.survived else "LOST"} '
                f'{time.monotonic() - start:.1f} s: {case.part}: {case.fault}: {outcome.happened}',
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)
            yield Row(case.part, case.fault, *outcome)


def all_cases() -> list:
    """Return the cases in the order of the page."""
    import data_cases  # noqa: F401
    import run_cases  # noqa: F401  they fill CASES
    from fault import CASES

    return CASES


def write(rows: list[Row]) -> str:
    """Return the results as Markdown."""
    lines = [f'{sum(row.survived for row in rows)} of {len(rows)} faults are survived.']
    for part in dict.fromkeys(row.part for row in rows):
        lines += [
            *('', f'## {part}', '', '| fault | what happened | what was lost | survived |'),
            '| --- | --- | --- | --- |',
        ]
        for row in rows:
            if row.part == part:
                cells = (row.fault, row.happened, row.lost, 'yes' if row.survived else '**no**')
                lines.append('| ' + ' | '.join(c.replace('|', '\\|') for c in cells) + ' |')
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('words', nargs='*')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    if args.json:
        print(json.dumps([vars(row) for row in run(args.words, args.quick)]))
        return
    known = {(row.part, row.fault): row for row in read()}
    for row in run(args.words, args.quick):
        known[row.part, row.fault] = row
        places = [(case.part, case.fault) for case in all_cases()]
        head = PAGE.read_text().partition(MARK)[0]
        text = write([known[place] for place in places if place in known])
        PAGE.write_text(f'{head}{MARK}\n\n{text}')
    print(text)


if __name__ == '__main__':
    main()
