"""The benchmark of faults: injects each of them and prints what came of it.

``make faults`` runs it, and writes docs/faults.md. Words choose cases by their fault; ``--quick``
those that the tests run, ``--json`` prints the results only.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
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


def run(words: list[str], quick: bool) -> list[Row]:
    """Inject faults, each in a folder of its own."""
    import command

    command.prepare()
    import data_cases  # noqa: F401  they fill CASES
    import run_cases  # noqa: F401
    from cases import CASES, Outcome

    chosen = [
        case
        for case in CASES
        if (case.quick or not quick) and (not words or any(word in case.fault for word in words))
    ]
    rows = []
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
            rows.append(Row(case.part, case.fault, *outcome))
            print(
                f'{number}/{len(chosen)} {"ok" if outcome.survived else "LOST"} '
                f'{time.monotonic() - start:.1f} s: {case.part}: {case.fault}: {outcome.happened}',
                file=sys.stderr,
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)
    return rows


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
    rows = run(args.words, args.quick)
    if args.json:
        print(json.dumps([vars(row) for row in rows]))
        return
    text = write(rows)
    print(text)
    if not args.words and not args.quick:
        head = PAGE.read_text().partition(MARK)[0]
        PAGE.write_text(f'{head}{MARK}\n\n{text}')


if __name__ == '__main__':
    main()
