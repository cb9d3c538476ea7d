"""Pictures that are broken, missing, or other than training takes them for."""

import os
import shutil
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

from focal_mm.datasets.check import Reading, Report, check_overlap, oriented_size
from focal_mm.datasets.check.pictures import check_pictures

pytestmark = pytest.mark.stock

SIZE = (60, 40)


def save(mode, kind, **options):
    def write(path):
        Image.new(mode, SIZE).save(path, kind, **options)

    return write


def turn(orientation):
    def write(path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new('RGB', SIZE).save(path, exif=exif)

    return write


def write_bomb(path):
    """A PNG of a few hundred bytes that says it has 3600 million pixels."""
    Image.new('1', (8, 8)).save(path, 'PNG')
    raw = bytearray(path.read_bytes())
    raw[16:24] = (60000).to_bytes(4, 'big') * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, 'big')
    path.write_bytes(raw)


def replace(path, make):
    path.unlink()
    make(path)


BROKEN = {
    'zero': (lambda path: path.write_bytes(b''), 'picture of 0 bytes'),
    'zeros': (lambda path: path.write_bytes(bytes(99)), 'nothing but zeros'),
    'page': (lambda path: path.write_text('<!DOCTYPE html><html>'), 'a web page'),
    'lfs': (lambda path: path.write_text('version https://git-lfs.github.com/'), 'Git LFS'),
    'drawing': (lambda path: path.write_text('<svg/>'), 'SVG'),
    'postscript': (save('RGB', 'EPS'), 'PostScript'),  # Pillow would run Ghostscript
    'words': (lambda path: path.write_text('no picture'), 'cannot be read'),
    'bomb': (write_bomb, 'too many pixels'),
    'gone': (lambda path: path.unlink(), 'missing picture'),
    'folder': (lambda path: replace(path, os.mkdir), '(a folder)'),
    'pipe': (lambda path: replace(path, os.mkfifo), '(no regular file)'),
    'link': (lambda path: replace(path, lambda p: p.symlink_to('nowhere')), 'link to nothing'),
    'loop': (lambda path: replace(path, lambda p: p.symlink_to(p)), 'link to nothing'),
    'device': (lambda path: replace(path, lambda p: p.symlink_to('/dev/zero')), 'no regular file'),
    'smaller': (lambda path: Image.new('RGB', (30, 20)).save(path), 'smaller than width'),
    'turned': (turn(6), 'EXIF turns'),
}
ODD = {
    '16 bits': (
        lambda path: Image.fromarray(np.zeros((40, 60), np.uint16)).save(path, 'PNG'),
        '16 bits',
    ),
    'floats': (save('F', 'TIFF'), '16 bits or floats'),
    'cmyk': (save('CMYK', 'JPEG'), 'CMYK'),
    'lab': (save('LAB', 'TIFF'), 'color space'),
    'palette': (save('P', 'PNG'), 'palette'),
    'alpha': (save('RGBA', 'PNG'), 'transparency'),
    'animated': (
        save('RGB', 'PNG', save_all=True, append_images=[Image.new('RGB', SIZE, 'red')]),
        'animated',
    ),
    'mirrored': (turn(3), 'mirrors or turns'),
}


@pytest.fixture
def look(tmp_path):
    """Writes three pictures and changes one; returns the findings and what cannot be used."""

    def check(change, thorough=False, **options):
        pictures = {f'{i}.jpg': tmp_path / f'{i}.jpg' for i in range(3)}
        for path in pictures.values():
            Image.fromarray(np.random.randint(0, 255, (40, 60, 3), np.uint8)).save(path)
        change(pictures['1.jpg'])
        report, sizes = Report(), dict.fromkeys(pictures, SIZE)
        unusable = check_pictures(tmp_path, pictures, report, thorough, sizes, **options)
        return report, unusable

    return check


@pytest.mark.parametrize('name', BROKEN)
def test_broken_picture_is_an_error(look, name):
    change, words = BROKEN[name]
    report, unusable = look(change)
    (finding,) = report.findings
    assert finding.level == 'error' and words in finding.summary and '1.jpg' in finding.summary
    assert list(unusable) == ['1.jpg']


@pytest.mark.parametrize('name', ODD)
def test_odd_picture_is_a_warning(look, name):
    change, words = ODD[name]
    report, unusable = look(change)
    found = [finding for finding in report.findings if words in finding.fault]
    assert [finding.level for finding in found] == ['warning'] and not unusable


def test_what_is_usual_is_no_warning(look):
    report, _ = look(save('L', 'JPEG'))
    assert [finding.level for finding in report.findings] == ['note']
    report, _ = look(turn(1))
    assert report.findings == []


def test_end_that_is_missing_is_found_by_decoding(look):
    def cut(path):
        path.write_bytes(path.read_bytes()[:-900])

    assert look(cut)[0].errors == 0
    assert look(cut, thorough=True)[1] == {'1.jpg': 'picture that cannot be read'}


def test_size_is_the_one_that_the_pipeline_reads(look, tmp_path):
    report, _ = look(turn(6), reading=Reading(turns=False))
    assert report.findings == []
    with Image.open(tmp_path / '1.jpg') as image:
        assert oriented_size(image) == SIZE[::-1]


def test_other_loaders_may_read_anything(look):
    report, _ = look(lambda path: path.write_text('raw'), reading=Reading(usual=False))
    assert report.findings == []


@pytest.mark.parametrize(
    'there, wanted',
    [
        ('IMG.JPG', 'img.jpg'),
        ('img.png', 'img.jpg'),
        (unicodedata.normalize('NFD', 'é.jpg'), unicodedata.normalize('NFC', 'é.jpg')),
    ],
)
def test_missing_picture_is_named_by_what_is_there(tmp_path, there, wanted):
    Image.new('RGB', SIZE).save(tmp_path / there)
    report = Report()
    check_pictures(tmp_path, {wanted: tmp_path / wanted}, report)
    assert f'there is {there}' in report.findings[0].summary


def test_names_cannot_command_the_terminal(tmp_path):
    report = Report()
    check_pictures(tmp_path, {'\x1b[2J': tmp_path / '\x1b[2J'}, report)
    assert str(report.findings[0]).isprintable()


@pytest.fixture
def sets(tmp_path):
    """Pictures of training and validation, four of which are copies of each other."""
    for name, content in {
        'a/1.jpg': b'1' * 3000,
        'a/2.jpg': b'2' * 3000,
        'b/1.jpg': b'1' * 2999 + b'0',
        'b/2.jpg': b'2' * 3000,
        'b/9.jpg': b'1' * 3000,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    shutil.copy(tmp_path / 'a/1.jpg', tmp_path / 'c.jpg')
    return tmp_path


@pytest.mark.parametrize(
    'val, found',
    [
        ('b/1.jpg', 'of the name of another'),
        ('b/2.jpg', 'of which a copy'),
        ('b/9.jpg', 'of which a copy'),
        ('b/../a/1.jpg', 'that is also in validation'),
        ('nowhere.jpg', None),
    ],
)
def test_pictures_that_are_in_both_sets(sets, val, found):
    report = Report()
    train = {'1': sets / 'a/1.jpg', '2': sets / 'a/2.jpg', '3': sets / 'missing.jpg'}
    check_overlap(train, {'x': sets / val}, report)
    assert len(report.findings) == bool(found)
    level = 'note' if val == 'b/1.jpg' else 'warning'  # many sets count from 1
    assert all(one.level == level and found in one.fault for one in report.findings)
