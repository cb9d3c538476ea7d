"""A report of a run, one HTML file, from what mmengine and :class:`ReportHook` write.

:func:`read_run` reads a work folder and runs nothing in it; :func:`write_report` makes the page.
"""

from .page import PAGE, write_report
from .reading import FOLDER, HEAVY, read_run

__all__ = ['FOLDER', 'HEAVY', 'PAGE', 'read_run', 'write_report']
