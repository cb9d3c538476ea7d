import json
import sys
from importlib.util import find_spec

import pytest
import torch
from mmcv.image import io
from mmdet.datasets import CocoDataset
from torch import nn

from focal_mm.cli import benchmark, networks, suite
from focal_mm.cli.benchmark import Report, Result, Setting
from focal_mm.datasets import mini_coco
from focal_mm.datasets.shapes import SHAPES

pytestmark = pytest.mark.stock

SMALL = "FocalNet(arch={'embed_dims': 8, 'depths': (1, 1)}, focal_levels=1)"


def test_name_with_arguments_is_parsed_as_literals():
    assert networks.parse("a.B(c=[1, 2], d='e')") == ('a.B', dict(c=[1, 2], d='e'))
    assert networks.parse('dir/file.py:Class') == ('dir/file.py:Class', {})


@pytest.mark.parametrize('text', ['A(1)', 'A(b=', 'A(b=print())'])
def test_arguments_that_are_no_literals_are_refused(text):
    with pytest.raises(ValueError, match='NAME or NAME'):
        networks.parse(text)


@pytest.mark.parametrize('name', ['FocalNat', 'mmdet.Nothing', 'timm.nothing', 'nowhere.py:A'])
def test_unknown_network_names_itself(name):
    with pytest.raises(ValueError, match=name.split(':')[0]):
        networks.build(name)


def test_class_in_a_file_may_import_from_its_folder(tmp_path):
    (tmp_path / 'beside_it.py').write_text('width = 3')
    (tmp_path / 'net.py').write_text(
        'import torch\nfrom beside_it import width\n'
        'class Net(torch.nn.Conv2d):\n    def __init__(self, out): super().__init__(width, out, 1)'
    )
    assert networks.build(f'{tmp_path}/net.py:Net(out=5)').out_channels == 5


def test_configs_of_several_libraries_are_built_in_one_process():
    detector = networks.build('focal_mm::mask_rcnn/focalnet_t_1x.py')
    segmentor = networks.build('focal_mm::upernet/focalnet_t.py')
    assert [type(net).__module__.split('.')[0] for net in (detector, segmentor)] == [
        'mmdet',
        'mmseg',
    ]


def test_paddle_runs_in_another_process(tmp_path):
    (tmp_path / 'paddle.py').write_text(  # as much of Paddle as the child uses
        'import contextlib\nrandn = list\nset_grad_enabled = lambda on: contextlib.nullcontext()'
    )
    (tmp_path / 'net.py').write_text(
        'import pathlib\n'
        'class Net:\n'
        '    def __init__(self, log): self.log = pathlib.Path(log)\n'
        '    def eval(self): print("noise")\n'
        '    def __call__(self, image): self.log.write_text(str(image))'
    )
    net = networks.build(
        f'paddle@{sys.executable}:{tmp_path}/net.py:Net(log={str(tmp_path / "log")!r})'
    )
    net.process.kill()
    with pytest.raises(ValueError, match='ended'):
        benchmark.make_step(net, Setting((32, 64)))()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', str(tmp_path))
        net = networks.build(
            f'paddle@{sys.executable}:{tmp_path}/net.py:Net(log={str(tmp_path / "log")!r})'
        )
    (result,) = benchmark.compare(dict(net=benchmark.make_step(net, Setting((32, 64)))), 1)
    net.process.kill()
    assert (tmp_path / 'log').read_text() == '[1, 3, 32, 64]'
    assert len(result.seconds) == 1 and result.memory is None


def test_peer_in_paddle_that_lacks_a_part_is_refused():
    with pytest.raises(ValueError, match='PYTHON:FILE.py:CLASS'):
        networks.build('paddle@mixformer.py:MixFormer_B4')


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_step_runs_and_leaves_no_gradients(train, dtype):
    net = networks.build(SMALL)
    benchmark.make_step(net, Setting((32, 32), 2, train, dtype))()
    assert net.training == train and all(p.grad is None for p in net.parameters())


def test_networks_run_in_turn():
    order = []
    results = benchmark.compare(dict(a=lambda: order.append('a'), b=lambda: order.append('b')), 3)
    assert order[-6:] == ['a', 'b'] * 3
    assert [len(result.seconds) for result in results] == [3, 3]


def test_ratio_is_taken_round_by_round():
    assert Result('a', [1, 2, 9]).ratio(Result('b', [2, 4, 3])) == 0.5


def test_peak_memory_is_above_the_start():
    kept = torch.ones(40, 2**18)
    peak = benchmark.peak_memory(lambda: torch.ones(60, 2**18).sum())
    assert peak is None or 50 < peak < 100
    assert kept.sum() == kept.numel()


def test_work_counts_products_and_tells_depth_wise_convolutions():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 8, 1))
    with benchmark.WorkCounter() as work, torch.no_grad():
        net(torch.randn(2, 4, 5, 5))
    assert work.products == 2 * 2 * 25 * 4 * 8
    assert work.convolutions == {((2, 4, 5, 5), (4, 1, 3, 3), (1, 1)): 1}


def test_training_has_three_times_the_floor_of_a_forward(monkeypatch):
    monkeypatch.setattr(benchmark, '_shortest_time', lambda step, device: 1.0)
    net = networks.build(SMALL)
    forward, train = (benchmark.floor(net, Setting((32, 32), train=t)) for t in (False, True))
    assert 0 < forward == train / 3


def test_report_has_a_table_json_and_a_plot(tmp_path):
    reports = [
        Report(
            Setting((side, side)),
            [Result('ours', [1.0, 3.0], 10.0), Result('dir/peer', [2.0, 6.0], 40.0)],
            floor=0.5,
        )
        for side in (100, 200)
    ]
    row = reports[0].table().splitlines()[3].split()
    assert row == ['peer', '4000.0', '0.25', '40', '0.50', '0.25']
    benchmark.save(reports, tmp_path / 'a.json')
    saved = json.loads((tmp_path / 'a.json').read_text())
    assert saved['reports'][1]['results'][1]['median'] == 4
    assert saved['machine']['torch'] == torch.__version__
    benchmark.plot(reports, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes()[1:4] == b'PNG'


@pytest.fixture
def small_suite(monkeypatch):
    """A suite of a small network beside itself, beside the official code, and of one that fails."""
    bars = (suite.Bar(SMALL, 100.0, 100.0), suite.Bar(suite.OFFICIAL_FOCALNET, 1.0))
    rows = (
        suite.Row('forward', SMALL, Setting((64, 64)), bars, floor=0.0),
        suite.Row('broken', 'FocalNat', Setting((64, 64))),
    )
    monkeypatch.setattr(suite, 'ROWS', rows)
    monkeypatch.setattr(suite, 'NETS', {'small': SMALL})
    return suite.Options(rounds=1, shrink=8)


def test_suite_measures_what_it_can_and_says_why_it_cannot(small_suite, tmp_path):
    figures = list(suite.run(small_suite, ('forward', 'broken', 'pixels', 'new size')))
    assert [(f.work, f.verdict) for f in figures if 'memory' not in f.beside] == [
        ('forward', 'missed'),
        ('forward', 'met'),
        ('forward', 'not measured'),
        ('broken', 'not measured'),
        ('small against pixels', figures[-2].verdict),
        ('small at a new size', figures[-1].verdict),
    ]
    notes = [f.note for f in figures if f.value is None]
    assert '--official' in notes[0] and 'FocalNat' in notes[1]
    suite.save(figures, small_suite, tmp_path / 'a.json')
    assert json.loads((tmp_path / 'a.json').read_text())['figures'][0]['verdict'] == 'missed'


def test_suite_measures_what_needs_photographs(small_suite, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    works = ('int8', 'maps', 'data')
    notes = [figure.note for figure in suite.run(small_suite, works)]
    assert notes and all('--coco' in note for note in notes)
    monkeypatch.setattr(suite, 'FOCALNET', SMALL)
    monkeypatch.setitem(CocoDataset.METAINFO, 'classes', SHAPES)
    small_suite.coco = mini_coco(tmp_path / 'coco')
    figures = list(suite.run(small_suite, works))
    found = {figure.work: figure for figure in figures}
    assert 0 < found['small maps in bf16'].value < 0.1
    assert found['data, masks as polygons'].value > 0
    decoded = found['data, TurboJPEG']
    assert decoded.value or 'turbojpeg' in decoded.note.lower()
    assert io.imread_backend == 'cv2'  # of all else in this process
    for work, package in ('OpenVINO', 'openvino'), ('ONNX Runtime', 'onnxruntime'):
        first, *more = (f for f in figures if f.work == f'FocalNet-T in int8, {work}')
        if find_spec(package) is None:
            assert f'pip install {package}' in first.note
        else:
            assert first.value > 0 and 0 < more[0].value < 0.05


def test_suite_evaluates_the_demo_in_bf16(small_suite, monkeypatch):
    options = {
        'model.backbone.arch': dict(embed_dims=8, depths=(1, 1, 1, 1), _delete_=True),
        'model.neck.in_channels': [8, 16, 32, 64],
        'train_cfg.max_epochs': 1,
        'train_dataloader.dataset.indices': 8,
        'val_dataloader.dataset.indices': 8,
    }
    monkeypatch.setitem(suite.DEMO, 'options', options)
    figures = list(suite.run(small_suite, ('demo in bf16',)))
    assert [figure.beside[:4] for figure in figures] == ['bbox', 'segm'], figures[0].note
    assert all(0 <= figure.value <= 1 for figure in figures)


def test_suite_compares_with_the_official_code(small_suite, tmp_path):
    file = tmp_path / suite.OFFICIAL_FOCALNET.partition(':')[0]
    file.parent.mkdir(parents=True)
    file.write_text(
        'import torch\nfrom mmcv_custom import load_checkpoint\nfrom ..builder import BACKBONES\n'
        '@BACKBONES.register_module()\n'
        'class FocalNet(torch.nn.Conv2d):\n'
        '    def __init__(self, **kwargs): super().__init__(3, 4, 1)'
    )
    small_suite.official = tmp_path
    figures = list(suite.run(small_suite, ('forward',)))
    (time,) = (f for f in figures if f.beside == 'official code, time')
    assert time.value is not None and time.value > 0
