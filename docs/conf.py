"""Sphinx: the pages of this folder as HTML, ``make docs``."""

import os
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import focal_mm  # noqa: E402

project = 'focal_mm'
release = focal_mm.__version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3
html_theme = 'furo'
html_title = 'focal_mm'
html_copy_source = False
html_show_copyright = False
html_static_path = ['static']
html_css_files = ['page.css']
html_math_renderer = 'mathml'
# Type hints and docstrings already give the types of arguments.
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Two modules may have a class of one name, which a docstring may mean by its name alone.
suppress_warnings = ['ref.python']


def draw(app: Sphinx) -> None:
    """Run the steps of the pages that show pictures of them."""
    for page, last in (('own_data.md', 'found.png'), ('look.md', 'attention.png')):
        picture = HERE / 'generated' / last
        if not picture.is_file() or picture.stat().st_mtime < (HERE / page).stat().st_mtime:
            subprocess.run(
                [sys.executable, HERE / 'blocks.py', page, picture.parent],
                check=True,
                env=os.environ | dict(OMP_NUM_THREADS='1'),  # small maps: more threads only wait
            )


def write_math(self: object, node: nodes.math | nodes.math_block) -> None:
    """Write MathML, which browsers draw without a script or a network."""
    display = 'block' if isinstance(node, nodes.math_block) else 'inline'
    math = convert(node.astext(), display=display)
    if display == 'block':
        math = f'<div class="equation">{math}</div>'
    self.body.append(math)  # type: ignore[attr-defined]
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_html_math_renderer('mathml', (write_math, None), (write_math, None))
    app.connect('builder-inited', draw)
