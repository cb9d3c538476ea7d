"""tools/reproduce.py from end to end, on the mini dataset."""

import pytest

pytestmark = pytest.mark.stock

ROW = ('FocalNet, Table 5', 'focalnet_t_1x')


@pytest.mark.onedl
def test_row_is_trained_tested_and_printed_and_only_once(run_tool, tiny, tmp_path):
    work_dirs = tmp_path / 'work_dirs'
    options = ('--work-dirs', work_dirs, '--mini', '--cfg-options', *tiny, 'train_cfg.max_epochs=1')
    log = run_tool('reproduce.py', *ROW, *options)
    assert (work_dirs / 'mask_rcnn' / 'focalnet_t_1x' / 'epoch_1.pth').is_file()
    (line,) = (line for line in log.splitlines() if line.startswith('| mask_rcnn/focalnet_t_1x |'))
    assert '–' not in line
    again = run_tool('reproduce.py', *ROW, *options)
    assert line in again and 'Epoch(' not in again
