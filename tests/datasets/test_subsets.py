import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from zipfile import ZipFile

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from focal_mm.cli.runner import load_config, require_files
from focal_mm.datasets import mini_ade20k, mini_coco, subsets, use_part
from focal_mm.datasets.mini import set_num_classes
from focal_mm.datasets.subsets import choose, write_ade20k_part, write_coco_part

pytestmark = pytest.mark.stock

MASK_RCNN = 'focal_mm::mask_rcnn/focalnet_t_1x.py'
UPERNET = 'focal_mm::upernet/focalnet_t.py'


@pytest.fixture
def coco(tmp_path):
    """A copy of the drawn COCO, whose images have addresses that nothing answers."""
    root = shutil.copytree(mini_coco(), tmp_path / 'coco')
    for path in (root / 'annotations').glob('instances_*.json'):
        content = json.loads(path.read_text())
        for image in content['images']:
            split = path.stem.removeprefix('instances_')
            image['coco_url'] = f'http://127.0.0.1:9/{split}/{image["file_name"]}'
        path.write_text(json.dumps(content))
    return root


@pytest.fixture
def ade20k(tmp_path):
    return shutil.copytree(mini_ade20k(), tmp_path / 'ADEChallengeData2016')


@pytest.fixture
def serve():
    """Serves a folder; returns its address."""
    servers = []

    def start(folder):
        handler = partial(Quiet, directory=str(folder))
        servers.append(ThreadingHTTPServer(('127.0.0.1', 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def read(path):
    return json.loads(path.read_text())


# ---- which images ------------------------------------------------------------------------------


def test_part_is_the_same_in_any_order_and_forever():
    names = [f'{i:012}' for i in range(1000)]
    assert choose(names, '1pct') == choose(reversed(names), '1pct')
    assert sorted(choose(names, '1pct')) == [
        '000000000045',
        '000000000137',
        '000000000151',
        '000000000197',
        '000000000214',
        '000000000661',
        '000000000708',
        '000000000812',
        '000000000879',
        '000000000916',
    ]


def test_larger_part_contains_the_smaller_one():
    names = [f'{i:012}' for i in range(118287)]
    small, large = choose(names, '1pct'), choose(names, '10pct')
    assert (len(small), len(large)) == (1183, 11829) and small < large


def test_part_of_few_images_is_not_empty():
    assert choose(['a', 'b'], '1pct')


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['instances', 'panoptic', 'person_keypoints'])
def test_coco_part_has_the_annotations_of_its_images(coco, kind):
    write_coco_part(coco, '10pct')
    whole, part = (read(coco / f'annotations/{kind}_train2017{end}.json') for end in ('', '_10pct'))
    ids = {image['id'] for image in part['images']}
    assert len(ids) == len(part['images']) == 29
    assert part['annotations'] == [a for a in whole['annotations'] if a['image_id'] in ids]
    assert all(image in whole['images'] for image in part['images'])
    assert {**part, 'images': 0, 'annotations': 0} == {**whole, 'images': 0, 'annotations': 0}


def test_originals_stay_and_nothing_but_the_part_is_written(coco):
    before = {path: path.read_bytes() for path in coco.rglob('*') if path.is_file()}
    lines = write_coco_part(coco, '1pct')
    after = {path: path.read_bytes() for path in coco.rglob('*') if path.is_file()}
    new = {f'{kind}_{split}2017_1pct.json' for kind in subsets._KINDS for split in ('train', 'val')}
    assert {path.name for path in after.keys() - before.keys()} == new
    assert before.items() <= after.items()
    assert len(lines) == len(new) and '3 of 288 images' in lines[0]


def test_ade20k_part_lists_names(ade20k):
    lines = write_ade20k_part(ade20k, '10pct')
    names = (ade20k / 'training_10pct.txt').read_text().split()
    assert len(names) == 29 and names == sorted(names)
    assert all((ade20k / 'images' / 'training' / f'{name}.jpg').is_file() for name in names)
    assert [line.rpartition(': ')[2] for line in lines] == ['29 of 288 images', '3 of 32 images']


@pytest.mark.parametrize(
    'write, folder', [(write_coco_part, 'coco'), (write_ade20k_part, 'ade20k')]
)
def test_second_time_changes_nothing(write, folder, request):
    root = request.getfixturevalue(folder)
    assert write(root, '1pct') == write(root, '1pct')


def test_other_file_of_this_name_is_not_overwritten(coco, ade20k):
    mine = coco / 'annotations' / 'instances_train2017_1pct.json'
    mine.write_text('mine')
    with pytest.raises(FileExistsError, match='instances_train2017_1pct.json exists and has other'):
        write_coco_part(coco, '1pct')
    assert mine.read_text() == 'mine'
    (ade20k / 'training_1pct.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='training_1pct.txt exists and has other content'):
        write_ade20k_part(ade20k, '1pct')


@pytest.mark.parametrize(
    'content, words',
    [
        ('{', 'is no JSON'),
        ('[' * 10**5, 'is no JSON'),
        ('[]', 'no images'),
        ('{}', 'no images and annotations'),
    ],
)
def test_broken_annotations_are_named(coco, content, words):
    path = coco / 'annotations' / 'instances_val2017.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=f'instances_val2017.json .*{words}'):
        write_coco_part(coco, '1pct')


@pytest.mark.parametrize(
    'name', ['../evil.jpg', '/tmp/evil.jpg', 'a/b.jpg', '..', '', 'a\0.jpg', 3]
)
def test_names_of_images_that_leave_their_folder_are_refused(coco, name):
    path = coco / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    content['images'][3]['file_name'] = name
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'instances_val2017.json: file_name .* is no name'):
        write_coco_part(coco, '1pct')


def test_images_come_from_the_web_alone(coco, tmp_path):
    (tmp_path / 'secret').write_text('secret')
    path = coco / 'annotations' / 'instances_val2017.json'
    content = json.loads(path.read_text())
    content['images'][3]['coco_url'] = (tmp_path / 'secret').as_uri()
    path.write_text(json.dumps(content))
    file = coco / 'val2017' / content['images'][3]['file_name']
    file.unlink()
    with pytest.raises(FileNotFoundError, match='secret is no address on the web'):
        write_coco_part(coco, '1pct')
    assert not file.exists()


# ---- downloads ---------------------------------------------------------------------------------


def test_annotations_and_missing_images_are_downloaded(coco, tmp_path, serve, monkeypatch):
    address = serve(tmp_path)
    for path in (coco / 'annotations').glob('instances_*.json'):
        path.write_text(path.read_text().replace('http://127.0.0.1:9', f'{address}/coco'))
    with ZipFile(tmp_path / 'annotations.zip', 'w') as archive:
        for name in ('instances_train2017.json', 'instances_val2017.json', 'captions_val2017.json'):
            path = coco / 'annotations' / name
            archive.writestr(f'annotations/{name}', path.read_bytes() if path.exists() else b'')
    monkeypatch.setattr(subsets, 'COCO_ADDRESS', f'{address}/annotations.zip')
    new = tmp_path / 'new' / 'coco'
    write_coco_part(new, '10pct')
    files = {path.relative_to(new).as_posix() for path in new.rglob('*') if path.is_file()}
    part = read(new / 'annotations' / 'instances_train2017_10pct.json')
    assert {name for name in files if name.startswith('annotations/')} == {
        f'annotations/instances_{split}2017{end}.json'
        for split in ('train', 'val')
        for end in ('', '_10pct')
    }
    assert {name for name in files if name.startswith('train2017/')} == {
        f'train2017/{image["file_name"]}' for image in part['images']
    }
    images = {f'val2017/{image.name}' for image in (coco / 'val2017').iterdir()}
    assert {name for name in files if name.startswith('val2017/')} == images
    assert (new / 'val2017/000000000001.jpg').read_bytes() == (
        coco / 'val2017/000000000001.jpg'
    ).read_bytes()


def test_ade20k_is_downloaded(ade20k, tmp_path, serve, monkeypatch):
    shutil.make_archive(
        str(tmp_path / 'ade'), 'zip', root_dir=tmp_path, base_dir='ADEChallengeData2016'
    )
    monkeypatch.setattr(subsets, 'ADE20K_ADDRESS', f'{serve(tmp_path)}/ade.zip')
    new = tmp_path / 'new'
    write_ade20k_part(new, '1pct')
    for name in ('images/training', 'annotations/validation'):
        assert len(list((new / name).iterdir())) == len(list((ade20k / name).iterdir()))


def test_archive_writes_nothing_outside_its_folder(tmp_path, serve, monkeypatch):
    with ZipFile(tmp_path / 'ade.zip', 'w') as archive:
        archive.writestr('ADEChallengeData2016/images/training/../../../evil.jpg', b'')
    monkeypatch.setattr(subsets, 'ADE20K_ADDRESS', f'{serve(tmp_path)}/ade.zip')
    with pytest.raises(FileNotFoundError):
        write_ade20k_part(tmp_path / 'a' / 'b', '1pct')
    assert not list(tmp_path.rglob('evil.jpg'))


@pytest.mark.parametrize(
    'write, words',
    [
        (write_coco_part, 'instances_train2017.json and annotations/instances_val2017.json of'),
        (write_ade20k_part, 'images/training and images/validation and annotations/training'),
    ],
)
def test_without_a_network_the_error_says_where_to_put_what(tmp_path, monkeypatch, write, words):
    for name in ('COCO_ADDRESS', 'ADE20K_ADDRESS'):
        monkeypatch.setattr(subsets, name, 'http://127.0.0.1:9/x.zip')
    with pytest.raises(FileNotFoundError, match=words) as error:
        write(tmp_path / 'data', '1pct')
    assert f'into {tmp_path}/data' in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'data').exists()


def test_download_that_is_no_archive_is_an_error(tmp_path, serve, monkeypatch):
    (tmp_path / 'x.zip').write_text('<html>')
    monkeypatch.setattr(subsets, 'COCO_ADDRESS', f'{serve(tmp_path)}/x.zip')
    with pytest.raises(FileNotFoundError, match='File is not a zip file'):
        write_coco_part(tmp_path / 'data', '1pct')
    assert [path for path in (tmp_path / 'data').rglob('*') if path.is_file()] == []


@pytest.mark.parametrize('addresses', [True, False])
def test_missing_images_are_counted_and_their_folder_named(coco, addresses):
    if not addresses:
        shutil.copytree(mini_coco() / 'annotations', coco / 'annotations', dirs_exist_ok=True)
    shutil.rmtree(coco / 'val2017')
    with pytest.raises(
        FileNotFoundError, match=f'32 images are missing in {coco}/val2017'
    ) as error:
        write_coco_part(coco, '1pct')
    assert 'put the images of val2017 there' in str(error.value)


# ---- configs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'name, write, folder, counts',
    [
        (MASK_RCNN, write_coco_part, 'coco', (27, 3, 32)),
        (UPERNET, write_ade20k_part, 'ade20k', (29, 3, 32)),
    ],
)
def test_config_reads_the_part_and_is_tested_on_all(name, write, folder, counts, request):
    root = request.getfixturevalue(folder)
    write(root, '10pct')
    cfg = load_config(name, options=dict(data_root=str(root)), part='10pct')
    keys = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    shapes = dict(classes=('circle', 'square', 'triangle'))
    if folder == 'coco':  # the drawn images have three classes
        set_num_classes(cfg.model, 3)
        for key in keys:
            cfg[key].dataset.metainfo = shapes
    require_files(cfg, *keys)
    init_default_scope(cfg.default_scope)
    for key, count in zip(keys, counts):
        dataset = cfg[key].dataset
        metainfo = shapes if folder == 'coco' else {}
        assert (
            len(DATASETS.build(dict(dataset, metainfo=metainfo, _scope_=cfg.default_scope)))
            == count
        )


def test_evaluators_read_what_their_loaders_read():
    cfg = load_config(MASK_RCNN, part='1pct')
    assert cfg.val_evaluator.ann_file.endswith('instances_val2017_1pct.json')
    assert cfg.test_evaluator.ann_file.endswith('instances_val2017.json')
    panoptic = load_config('focal_mm::mask2former/focalnet_l_panoptic.py', part='1pct')
    files = [evaluator.ann_file.rsplit('/')[-1] for evaluator in panoptic.val_evaluator]
    assert files == ['panoptic_val2017_1pct.json', 'instances_val2017_1pct.json']


def test_config_is_not_changed():
    cfg = Config.fromfile(UPERNET)
    before = cfg.pretty_text
    use_part(cfg, '1pct')
    assert cfg.pretty_text == before


def test_epochs_stay_and_iterations_shrink():
    cfg = load_config(MASK_RCNN, part='10pct')
    assert cfg.train_cfg.max_epochs == 12 and cfg.param_scheduler[1].milestones == [9, 11]
    assert (cfg.param_scheduler[0].begin, cfg.param_scheduler[0].end) == (0, 50)
    cfg = load_config(UPERNET, part='1pct')
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (1600, 160)
    assert cfg.default_hooks.checkpoint.interval == 160
    assert [(s.begin, s.end) for s in cfg.param_scheduler] == [(0, 15), (15, 1600)]
    cfg = load_config('focal_mm::mask2former/focalnet_l_panoptic.py', part='1pct')
    assert cfg.train_cfg.dynamic_intervals == [(7350, 7375)]
    assert cfg.param_scheduler.milestones == [6556, 7102]


@pytest.mark.parametrize('name', ['imagenet/focalnet_t', 'lvis/mixformer_b4_1x'])
def test_other_data_has_no_parts(name):
    with pytest.raises(ValueError, match=f'parts of COCO 2017 and of ADE20K, and .*{name}'):
        load_config(f'focal_mm::{name}.py', part='1pct')


def test_mini_has_no_parts():
    with pytest.raises(ValueError, match='--mini and --data 1pct'):
        load_config(MASK_RCNN, mini=True, part='1pct')


@pytest.mark.parametrize(
    'name, folder, command',
    [(MASK_RCNN, 'coco', 'focal-mm data coco-1pct'), (UPERNET, 'ade20k', 'data ade20k-1pct')],
)
def test_missing_part_names_the_command_that_makes_it(name, folder, command, request):
    root = request.getfixturevalue(folder)
    cfg = load_config(name, options=dict(data_root=str(root)), part='1pct')
    with pytest.raises(FileNotFoundError, match=f'_1pct.* does not exist; .*{command}'):
        require_files(cfg, 'train_dataloader')
