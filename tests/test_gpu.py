"""The page of ``make gpu``, tried on a CPU."""

import json
import shutil

import gpu
import pytest
import torch


def test_part_that_fails_does_not_stop_the_next(monkeypatch, tmp_path, capsys):
    shutil.copy(gpu.GOLDEN / 'mixformer_b0_two_of_odd_size.json', tmp_path)
    monkeypatch.setattr(gpu, 'GOLDEN', tmp_path)
    monkeypatch.setattr(gpu, 'PRECISIONS', dict(fp32=2e-4, bf16=0.03))
    options = ('--device', 'cpu', '--shrink', '16', '--rounds', '1')
    gpu.main(['triton', 'golden', 'attention', *options, '--json', str(tmp_path / 'page.json')])
    parts = json.loads((tmp_path / 'page.json').read_text())['parts']
    verdicts = {name: [figure['verdict'] for figure in part] for name, part in parts.items()}
    assert verdicts == dict(
        triton=['not measured'], golden=['met'] * 2, attention=['met'] * 2 + ['measured'] * 2
    )
    assert parts['triton'][0]['note'] == 'ValueError: no GPU'
    assert capsys.readouterr().out.endswith('golden: 2 met\nattention: 2 measured, 2 met\n')


@pytest.mark.parametrize('layout', ['sliced', 'nchw', 'nhwc'])
def test_errors_are_those_of_the_kernel(layout):
    assert gpu.errors(8, 2, 3, (5, 4), torch.float, layout, 'cpu') < 1e-5


def test_stages_are_those_of_all_archs():
    with torch.device('meta'):
        net = gpu.FocalNet('tiny_lrf')
    assert [gpu.sizes_of(layer) for layer in net.layers] == [(96 * 2**i, 3, 3) for i in range(4)]
