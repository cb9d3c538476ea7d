"""The code blocks of the pages: read, run and checked, by tests/test_docs.py and by Sphinx's build.

A comment before a block says what is done with it; on the first line of a page it goes for all
blocks without one.

- none: Python is executed, the blocks of a page in one namespace; a config (with ``_base_``) is
  read and its model built; of a console block each command must succeed. Lines that the page shows
  as printed must be printed, in that order; ``...`` stands for any.
- ``<!-- file: NAME -->``: the block is also written to that file.
- ``<!-- not run: REASON -->``: Python is compiled; a ``focal-mm`` command is parsed by its own
  parser, and the configs and scripts of this repository that it names must exist.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
MARK = re.compile(r'<!-- (not run|file): (.+?) -->\s*')


@dataclass
class Block:
    """A fenced block of a page.

    Args:
        page (Path): The page.
        line (int): Its first line, counted from 1.
        language (str): What stands after the fence.
        code (str): The text.
        not_run (str): Why it is not run. Default: it is.
        file (str): Where it is written. Default: nowhere.
    """

    page: Path
    line: int
    language: str
    code: str
    not_run: str = ''
    file: str = ''

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}, line {self.line}'

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each command of a console block, and the lines that it prints."""
        text = self.code.replace('\\\n', ' ')
        for part in re.split(r'^\$ ', text, flags=re.MULTILINE)[1:]:
            command, *printed = part.splitlines()
            while printed and command.count("'") % 2:  # a quotation of several lines
                command += ' ' + printed.pop(0).strip()
            yield command.partition('  # ')[0].strip(), printed


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, directives left out."""
    blocks, mark, of_page = [], None, ''
    for token in MarkdownIt().parse(page.read_text()):
        first, last = token.map or (0, 0)
        if token.type == 'html_block' and (found := MARK.fullmatch(token.content)):
            mark = found.groups()
            if (first, last) == (0, 1):
                of_page = mark[1]
        elif token.type == 'fence':
            language = token.info.strip()
            if not language.startswith('{'):
                kind, value = mark or ('not run', of_page)
                blocks.append(
                    Block(
                        page,
                        first + 1,
                        language,
                        token.content,
                        value if kind == 'not run' else '',
                        value if kind == 'file' else '',
                    )
                )
            mark = None
        elif token.type.endswith('_open'):
            mark = None
    return blocks


class Session:
    """Runs the blocks of a page, in a folder of its own.

    Args:
        folder (Path): Becomes the current folder. It has links to ``configs`` and ``tools``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict = {'__name__': '__main__'}
        for name in ('configs', 'tools'):
            (folder / name).symlink_to(ROOT / name)

    def run(self, block: Block) -> None:
        """Run a block, or check one that is not to be run."""
        with _inside(self.folder):
            if block.file:
                Path(block.file).write_text(block.code)
            if block.language == 'python':
                self._run_python(block)
            elif block.language == 'console':
                for command, printed in block.commands():
                    if block.not_run:
                        check_command(command)
                    else:
                        require_lines(command, printed, self._run_command(command))

    def _run_python(self, block: Block) -> None:
        code = compile(block.code, f'{block}', 'exec')
        if block.not_run:
            return
        if '_base_ =' in block.code:
            self._read_config(block)
        else:
            exec(code, self.names)

    def _read_config(self, block: Block) -> None:
        from mmengine.config import Config
        from mmengine.registry import MODELS, init_default_scope
        from mmengine.runner import Runner

        path = Path(block.file or 'read_from_the_page.py')
        path.write_text(block.code)
        cfg = Config.fromfile(str(path))
        init_default_scope(cfg.default_scope)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = MODELS.build(cfg.model)
        if isinstance(cfg.optim_wrapper.get('constructor'), str):
            # Half precision needs a GPU; the groups of parameters are the same without.
            options = cfg.optim_wrapper | dict(type='OptimWrapper')
            for name in ('loss_scale', 'dtype'):
                options.pop(name, None)
            Runner.build_optim_wrapper(SimpleNamespace(model=model), options)

    def _run_command(self, command: str) -> str:
        words = shlex.split(command)
        if words[0] == 'focal-mm' and not re.search(r'[|<>;&$]', command):
            return _call(words)
        environment = os.environ | dict(
            PYTHONPATH=str(ROOT), PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
        )
        done = subprocess.run(
            ['bash', '-c', command],
            check=False,
            env=environment,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f'{command}: exit status {done.returncode}\n{done.stderr}')
        return done.stdout + done.stderr


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change the folder, as contextlib.chdir of Python 3.11."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _call(words: list[str]) -> str:
    """Run ``focal-mm`` in this process, which has imported PyTorch already."""
    from focal_mm.cli.main import main

    before, sys.argv = sys.argv, words
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(
                f'{shlex.join(words)}: exit status {stop.code}\n{text.getvalue()}'
            ) from stop
    finally:
        sys.argv = before
    return text.getvalue()


def check_command(command: str) -> None:
    """Parse a command that is not run.

    Raises:
        ValueError: If ``focal-mm`` would refuse it, or a file of this repository is missing.
    """
    from focal_mm.cli.main import COMMANDS, build_parser

    words = shlex.split(command)
    for word in words:
        for name in re.findall(r'(?:^|=|::)((?:configs|tools)/[\w./]+\.(?:py|sh))', word):
            if not (ROOT / name).exists() and word not in words[1:2] * (words[0] == 'mim'):
                raise ValueError(f'{command}: there is no {name}')
        for name in re.findall(r'focal_mm::([\w/]+\.py)', word):
            if not (ROOT / 'configs' / name).exists():
                raise ValueError(f'{command}: there is no configs/{name}')
    own = _own_words(words)
    if own is None:
        return
    parser = build_parser(set(COMMANDS))
    if own[0] == 'run':
        own = own[:2]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parser.parse_args(own)
    except SystemExit as stop:
        raise ValueError(f'{command}: {errors.getvalue()}') from stop


def _own_words(words: list[str]) -> list[str] | None:
    """Return what follows ``focal-mm`` or ``-m focal_mm``; None if it is another command."""
    if words[0] == 'focal-mm':
        own = words[1:]
    elif 'focal_mm' in words and words[words.index('focal_mm') - 1] == '-m':
        own = words[words.index('focal_mm') + 1 :]
    else:
        return None
    return own[: min((own.index(word) for word in ('>', '|') if word in own), default=len(own))]


def require_lines(command: str, expected: list[str], text: str) -> None:
    """Compare what a command printed with what the page shows.

    Raises:
        ValueError: If a line was not printed.
    """
    pattern = '.*'.join(re.escape(line.strip()).replace(r'\.\.\.', '.*') for line in expected)
    if not re.search(pattern, text, re.DOTALL):
        raise ValueError(
            f'{command}: printed\n{textwrap.indent(text, "  ")}\nand not\n'
            + textwrap.indent('\n'.join(expected), '  ')
        )


def main(page: str, target: str) -> None:
    """Run the blocks of a page, and keep the pictures that they wrote to its folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))
        for block in read_blocks(ROOT / 'docs' / page):
            session.run(block)
        kept = Path(target)
        kept.mkdir(parents=True, exist_ok=True)
        for picture in sorted(Path(folder).glob('*.png')):
            shutil.copy(picture, kept)


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    main(*sys.argv[1:])
