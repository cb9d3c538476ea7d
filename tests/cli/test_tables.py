import json
import os
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config

from focal_mm.cli import tables
from focal_mm.cli.tables import Cost, Row

pytestmark = pytest.mark.stock
DOCUMENT = (Path(__file__).parents[2] / 'docs' / 'tables.md').read_text()
ROWS = {(row.table, row.config): row for row in tables.load_rows()}
SECTIONS = {part.partition('\n')[0]: part for part in DOCUMENT.split('\n## ')[1:]}


@pytest.fixture
def row():
    return Row(
        'mask_rcnn/focalnet_t_1x',
        'FocalNet, Table 5',
        48.9,
        268,
        {'box AP': 46.1, 'mIoU': 46.8, 'mIoU ms': 47.8},
        '',
    )


def test_every_table_is_in_the_document_in_order():
    titles = [line[3:] for line in DOCUMENT.splitlines() if line.startswith('## ')]
    assert titles == list(dict.fromkeys(row.table for row in ROWS.values()))


def test_document_ends_with_the_tables_and_their_notes_alone():
    tables_alone = DOCUMENT[DOCUMENT.index('\n## ') :]
    notes = {f': {text}.' for row in ROWS.values() for text in (row.note, row.remark) if text}
    for line in filter(None, tables_alone.splitlines()):
        assert line.startswith(('## ', '| ')) or any(line.endswith(note) for note in notes), line


@cache
def cost_of(path: Path) -> Cost:
    return tables.count_cost(Config.fromfile(path))


@pytest.mark.onedl
@pytest.mark.parametrize('table, config', ROWS)
def test_documented_figures_are_those_of_the_model(table, config):
    row = ROWS[table, config]
    if config.startswith('keypoint/'):
        pytest.importorskip('mmpose')
    cost = cost_of(row.path)
    (line,) = (line for line in SECTIONS[table].splitlines() if line.startswith(f'| {config} |'))
    assert [cell.strip() for cell in line.split('|')[1:6]] == tables.row_cells(row, cost, {}, [])
    assert row.note or not tables.differences(row, cost)


def test_attention_may_be_counted_or_not(row):
    assert tables.differences(row, Cost(48.9, 260, 20)) == ''
    assert tables.differences(row, Cost(48.9, 280, 20)) == 'FLOPs +4.5 %'
    assert tables.differences(row, Cost(48.0, 230, 20)) == 'parameters -1.8 %, FLOPs -6.7 %'


def test_paper_may_have_rounded():
    row = Row('upernet/mixformer_b1', 'MixFormer, Table 6', 35, None, {}, '')
    assert tables.differences(row, Cost(34.1, 0, 0)) == ''
    assert tables.differences(row, Cost(33.9, 0, 0)) == 'parameters -3.1 %'


@pytest.mark.parametrize(
    'paper, ours, found',
    [
        (4.49, 4.554, ''),
        (4.49, 4.565, 'FLOPs +1.7 %'),
        (4.5, 4.61, ''),
        (4, 4.55, ''),
        (5.2, 5, 'FLOPs -3.8 %'),
    ],
)
def test_paper_rounds_as_it_prints(paper, ours, found):
    row = Row('ablation/focalnet_t_convnet', 'FocalNet, Table 10', None, paper, {}, '')
    assert tables.differences(row, Cost(28.6, ours, 0)) == found
    (cell,) = tables.row_cells(row, Cost(28.6, ours, 0), {}, [])[2:3]
    assert cell == f'{paper:g} / {ours:.{2 if paper == 4.49 else 1}f}'


def test_throughput_is_the_papers_alone():
    row = Row('a/b', 'FocalNet, Table 10', None, None, {tables.THROUGHPUT: 696, 'mIoU': 1.5}, '')
    cells = tables.row_cells(row, Cost(1, 1, 0), {}, [tables.THROUGHPUT, 'mIoU', 'PQ'])
    assert cells[5:] == ['696', '1.5 / –', '']


def test_remark_follows_the_table_as_a_note_does(row):
    rows = [
        Row(name, 'FocalNet, Table 5', None, None, {}, '', 'the slides differ')
        for name in ('a', 'b')
    ]
    text = tables.render({r: Cost(1, 1, 0) for r in rows}, {r: {} for r in rows})
    assert text.endswith('\n\na, b: the slides differ.\n')


def test_results_of_runs_stand_beside_the_papers(row, tmp_path):
    run, several = tmp_path / row.config / '1', tmp_path / row.config / 'tta' / '1'
    for folder, found in ((run, {'coco/bbox_mAP': 0.4587, 'mIoU': 46.31}), (several, {'mIoU': 47})):
        folder.mkdir(parents=True)
        (folder / '1.json').write_text(json.dumps(found))
    metrics = tables.measured_metrics(row, tmp_path)
    assert metrics == {'box AP': 45.9, 'mIoU': 46.3, 'mIoU ms': 47}
    line = tables.render({row: Cost(49.43, 270.7, 0)}, {row: metrics}).splitlines()[4]
    assert line == (
        '| mask_rcnn/focalnet_t_1x | 48.9 / 49.4 | 268 / 271 |  |  | 46.1 / 45.9 | '
        '46.8 / 46.3 | 47.8 / 47 |'
    )


def test_last_test_counts_unless_it_is_older_than_the_checkpoint(tmp_path):
    for time, value in ((200, 0.3), (100, 0.2)):
        (tmp_path / str(time)).mkdir()
        (tmp_path / str(time) / 'test.json').write_text(json.dumps({'coco/bbox_mAP': value}))
        os.utime(tmp_path / str(time) / 'test.json', (time, time))
    assert tables.last_results(tmp_path) == {'coco/bbox_mAP': 0.3}
    assert tables.last_results(tmp_path, since=300) == {}
    assert tables.last_results(tmp_path / 'elsewhere') == {}


def test_tables_are_named_whole_or_in_short():
    assert {row.table for row in tables.select_rows('focalnet 1')} == {'FocalNet, Table 1'}
    assert {row.table for row in tables.select_rows('Focal Transformer, Table 5')} == {
        'Focal Transformer, Table 5'
    }
    assert [(row.table, row.config) for row in tables.select_rows('')] == list(ROWS)
    assert {row.table for row in tables.select_rows('focalnet 10')} == {'FocalNet, Table 10'}
    assert {row.table for row in tables.select_rows('figure')} == {'Focal Transformer, Figure 5'}
    with pytest.raises(ValueError, match='focalnet 99: no such table; there are Focal'):
        tables.select_rows('focalnet 99')


def test_html_is_escaped(row):
    html = tables.render({row: Cost(49.43, 270.7, 0)}, {row: {}}, html=True)
    assert '<td>48.9 / 49.4</td>' in html
    assert '<td>&lt;</td>' in tables._html('t', ['<'], [['<']], [])
