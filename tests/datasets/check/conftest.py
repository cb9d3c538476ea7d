import json

import pytest

from focal_mm.datasets.check import CocoFile, Report, Rules

RULES = Rules(masks=True)


@pytest.fixture
def faults():
    """Checks a source; returns its findings as (level, fault)."""

    def check(source, thorough=False):
        report = Report()
        source.check(report, thorough)
        return {(finding.level, finding.fault) for finding in report.findings}

    return check


@pytest.fixture
def change_coco(write_coco):
    """Changes the content of a good COCO file by a function, or its bytes; returns the file."""

    def change(function, rules=RULES, raw=False, **fields):
        file, folder, content = write_coco()
        changed = function(file.read_bytes() if raw else content)
        file.write_bytes(changed if raw else json.dumps(content).encode())
        return CocoFile(file, folder, rules, **fields)

    return change
