"""Builds focal_mm; pyproject.toml holds all that needs no code."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Adds configs, tools and model-index.yml as ``focal_mm/.mim``, where mim looks for them."""

    def run(self) -> None:
        # pip builds inside the source tree: what an earlier build left may have been deleted since.
        package = Path(self.build_lib, 'focal_mm')
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        if self.editable_mode:  # focal_mm finds the folders of the source tree
            return
        for folder in ('configs', 'tools'):
            shutil.copytree(
                folder, package / '.mim' / folder, ignore=shutil.ignore_patterns('__pycache__')
            )
        shutil.copy('model-index.yml', package / '.mim')


setup(cmdclass={'build_py': BuildWithConfigs})
