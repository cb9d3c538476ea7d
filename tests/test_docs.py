"""The pages of docs/ and the README: their blocks run, their links lead somewhere, and
their pictures are what the script draws. docs/blocks.py says how a block is marked that cannot run.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / 'docs').glob('*.md'), *ROOT.glob('*.md')])


def load(name):
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT / f'docs/{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


blocks = load('blocks')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_blocks_run(page, tmp_path):
    session = blocks.Session(tmp_path)
    for block in blocks.read_blocks(page):
        try:
            session.run(block)
        except Exception as error:
            raise AssertionError(f'{block}: {error}') from error


def anchors(page):
    """Anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_within_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    code = ' '.join(block.code for block in blocks.read_blocks(page))
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://', 'mailto:')):
            continue
        name, _, anchor = target.partition('#')
        file = page.parent / name if name else page
        if name.startswith('generated/'):  # drawn by a block when the pages are built
            assert file.name in code, f'{page.name}: {target}'
            continue
        assert file.exists(), f'{page.name}: {target}'
        if anchor:
            assert anchor in anchors(file), f'{page.name}: {target}'


def test_pictures_are_those_that_the_script_draws(tmp_path):
    load('pictures').draw_all(tmp_path)
    for picture in sorted((ROOT / 'docs/pictures').glob('*.svg')):
        assert picture.read_text() == (tmp_path / picture.name).read_text(), picture.name


@pytest.mark.parametrize(
    'code, message',
    [
        ('$ focal-mm trian x.py', 'trian'),
        ('$ focal-mm train x.py --resum auto --nothing', 'nothing'),
        ('$ python tools/trainer.py x.py', 'no tools/trainer.py'),
        ('$ focal-mm train configs/mask_rcnn/focalnet_q.py', 'no configs/mask_rcnn'),
        ('$ focal-mm train focal_mm::mask_rcnn/focalnet_q.py', 'no configs/mask_rcnn'),
    ],
)
def test_wrong_command_in_a_block_that_is_not_run_is_found(tmp_path, code, message):
    block = blocks.Block(ROOT / 'docs/x.md', 1, 'console', code + '\n', not_run='a test')
    with pytest.raises(ValueError, match=message):
        blocks.Session(tmp_path).run(block)


def test_output_that_a_page_shows_must_be_printed(tmp_path):
    block = blocks.Block(ROOT / 'docs/x.md', 1, 'console', '$ echo 12 oaks\n12 ... elms\n')
    with pytest.raises(ValueError, match='12 oaks'):
        blocks.Session(tmp_path).run(block)
