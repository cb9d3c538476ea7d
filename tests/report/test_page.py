import json
import re

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from focal_mm.report import write_report
from focal_mm.report.details import overlay, palette_of
from focal_mm.report.record import write_json

EVIL = '</script><img src=x onerror="document.title=\'owned\'"><b>'
WIDTHS = dict(desktop=(1280, 900, False), phone=(390, 844, True))


def resize(browser, kind, dark=False):
    width, height, mobile = WIDTHS[kind]
    browser.execute_cdp_cmd(
        'Emulation.setDeviceMetricsOverride',
        dict(width=width, height=height, deviceScaleFactor=1, mobile=mobile),
    )
    scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[scheme]))


def details_of(step):
    import numpy as np

    colors = palette_of({}, 3)
    maps = dict(overlay=overlay(np.arange(12).reshape(3, 4) % 3, colors))
    boxes = [
        dict(box=[1, 1, 2, 1], label=i, score=s, faulty=i == 1, crowd=False, points=[])
        for i, s in ((1, 0.5), (2, None))
    ]
    return dict(
        kind='objects',
        epoch=step // 10,
        iter=step,
        classes=[EVIL, 'dog', 'кот'],
        palette=colors,
        by_class={'bbox AP': [0.1, 0.25, None], 'objects': [1, 2, 0]},
        curves=[
            dict(
                name='bbox',
                recall=[0, 0.5, 1],
                precision={'0.5': [[1, 1, 0], [1, 0.5, 0], [None] * 3]},
            )
        ],
        confusion=[[0, 0, 3], [0, 1, 1], [1, 1, 5]],
        worst=[
            dict(name=EVIL, note=EVIL, size=[4, 3], photo=None, truth=maps, found=dict(boxes=boxes))
        ],
        metrics={},
    )


@pytest.fixture
def runs(write_start, train_line):
    """Two runs: one with all that a report can have, and one that has logged little."""
    lines = [
        train_line(step, float('nan') if step == 12 else 4 / step, loss_cls=1 / step, memory=100)
        for step in range(4, 44, 4)
    ]
    lines.insert(5, {'coco/bbox_mAP': 0.125, 'coco/bbox_mAP_l': -1, 'step': 2})
    first = write_start(lines, config=f'name = {EVIL!r}\ntrain_cfg = dict(max_epochs=3)\n')
    for step in (20, 40):
        write_json(first / '20260101_000000' / 'report' / f'val_{step}.json', details_of(step))
    log = first / '20260101_000000' / '20260101_000000.log'
    log.write_text(f'System environment:\n    GPU: {EVIL}\n{"-" * 60}\nConfig:\n{EVIL}\n')
    return first, write_start([train_line(4, 3.0)], run=EVIL[2:9])


@pytest.fixture
def opened(browser, runs, tmp_path):
    """Opens a page of the runs; afterwards the console must be empty."""

    def open_page(count=1, kind='desktop', **options):
        page = tmp_path / 'page.html'
        write_report(runs[:count], page, **options)
        resize(browser, kind, options.pop('dark', False))
        browser.get(page.as_uri())
        return page

    yield open_page
    assert browser.get_log('browser') == []
    assert browser.title != 'owned' and not browser.find_elements(By.CSS_SELECTOR, 'main b')


def wait(browser, found):
    return WebDriverWait(browser, 20).until(lambda _: found())


def numbers(browser, section):
    """The table below the first chart of a section."""
    chart = browser.find_element(By.CSS_SELECTOR, f'#{section} .chart')
    chart.find_element(By.CSS_SELECTOR, 'details summary').send_keys(Keys.ENTER)
    rows = wait(browser, lambda: chart.find_elements(By.CSS_SELECTOR, '.numbers tr'))
    return [
        [cell.get_attribute('textContent') for cell in row.find_elements(By.CSS_SELECTOR, 'th,td')]
        for row in rows
    ]


def test_numbers_on_the_page_are_those_that_were_logged(browser, opened, runs):
    opened()
    header, *rows = numbers(browser, 'losses')
    assert header == ['iteration', 'loss', 'loss_cls']
    logged = (runs[0] / '20260101_000000' / 'vis_data' / 'scalars.json').read_text().splitlines()
    lines = [line for line in map(json.loads, logged) if 'loss' in line]
    assert [row[0] for row in rows] == [str(line['step']) for line in lines]
    assert rows[2][1] == 'nan'
    for row, line in zip(rows, lines):
        assert row[1] == 'nan' or float(row[1]) == pytest.approx(line['loss'], rel=1e-5)
    assert numbers(browser, 'metrics') == [['epoch', 'coco/bbox_mAP'], ['2', '0.125']]
    cells = browser.find_elements(By.CSS_SELECTOR, '#classes tbody tr')
    assert [cell.text for cell in cells] == [f'{EVIL} 0.1 0.1', 'dog 0.25 0.25', 'кот – –']
    assert browser.find_elements(By.CSS_SELECTOR, '#losses .nonfinite')
    assert 'loss is not finite in 1 lines, first at 12' in browser.page_source


def test_texts_from_files_are_texts(browser, opened):
    opened()
    text = browser.find_element(By.CSS_SELECTOR, 'figcaption').text
    assert text.startswith(f'{EVIL} {EVIL}')
    for summary in browser.find_elements(By.CSS_SELECTOR, '#log summary, #config summary'):
        summary.send_keys(Keys.ENTER)
    log, config = wait(
        browser,
        lambda: (
            (found := browser.find_elements(By.CSS_SELECTOR, '#log pre, #config pre'))[1:] and found
        ),
    )[::-1]
    assert EVIL in log.text and 'owned' in config.text


def test_charts_zoom_by_drag_and_by_keys(browser, opened):
    opened()
    chart = browser.find_element(By.CSS_SELECTOR, '#losses .chart')
    svg = chart.find_element(By.CSS_SELECTOR, 'svg[tabindex]')
    reset = chart.find_element(By.CSS_SELECTOR, '.tools button')

    def labels():
        found = svg.find_elements(By.CSS_SELECTOR, 'text[text-anchor=middle]')
        return [float(one.text) for one in found if re.fullmatch(r'[\d.]+', one.text)]

    whole = labels()
    assert not reset.is_enabled()
    ActionChains(browser).move_to_element(svg).click_and_hold().move_by_offset(
        90, 0
    ).release().perform()
    assert reset.is_enabled() and min(labels()) > 20 and max(labels()) < 40
    svg.send_keys('0')
    assert labels() == whole
    svg.send_keys(Keys.HOME, '+')
    assert max(labels()) <= 22 and min(labels()) < 6
    reset.click()
    assert labels() == whole
    svg.send_keys(Keys.HOME, Keys.RIGHT)
    values = [one.text for one in chart.find_elements(By.CSS_SELECTOR, '.legend .value')]
    assert chart.find_element(By.CSS_SELECTOR, '.at').text == 'iteration 8'
    assert values == ['0.5', '0.125']


def test_smoothing_is_a_mean_with_weights(browser, opened):
    opened()
    slider = browser.find_element(By.ID, 'smoothing')
    browser.execute_script(
        'arguments[0].value = 0.5; arguments[0].dispatchEvent(new Event("input"))', slider
    )
    svg = browser.find_element(By.CSS_SELECTOR, '#losses svg[tabindex]')
    svg.send_keys(Keys.HOME, Keys.RIGHT)
    value = browser.find_element(By.CSS_SELECTOR, '#losses .legend .value').text
    assert float(value) == pytest.approx((1 * 0.25 + 0.5 * 0.5) / 0.75, abs=1e-3)


def test_lines_are_switched_off_and_on(browser, opened):
    opened()
    button = browser.find_element(By.CSS_SELECTOR, '#losses .legend button')
    drawn = len(browser.find_elements(By.CSS_SELECTOR, '#losses .chart:first-child svg g'))
    button.send_keys(Keys.ENTER)
    assert button.get_attribute('aria-pressed') == 'false'
    left = browser.find_elements(By.CSS_SELECTOR, '#losses .chart:first-child svg g')
    assert len(left) == drawn - 1


def test_curves_of_a_class_and_the_confusion_are_shown(browser, opened):
    opened()
    choice = browser.find_element(By.CSS_SELECTOR, '#curves select')
    choice.send_keys('dog')
    assert numbers(browser, 'curves')[1:] == [['0', '1'], ['0.5', '0.5'], ['1', '0']]
    rows = browser.find_elements(By.CSS_SELECTOR, '#confusion .confusion tbody tr')
    assert rows[0].text.endswith('75.0 % 25.0 % 0.0 %')


@pytest.mark.parametrize('kind', WIDTHS)
@pytest.mark.parametrize('dark', [False, True])
def test_pages_fit_and_can_be_read(browser, opened, kind, dark):
    opened(2, kind)
    resize(browser, kind, dark)
    width = browser.execute_script('return document.documentElement.scrollWidth')
    assert width <= WIDTHS[kind][0]
    colors = browser.execute_script(
        'const { color, backgroundColor } = getComputedStyle(document.body);'
        'return [color, backgroundColor].map((one) => one.match(/[0-9]+/g).map(Number))'
    )
    text, page = (sum(color[:3]) for color in colors)
    assert (text - page > 500) if dark else (page - text > 500)
    for heading in ('Summary', 'Losses and learning rate', 'The worst pictures', 'Environment'):
        assert browser.find_elements(By.XPATH, f'//h2[text()="{heading}"]')


def test_two_runs_are_side_by_side(browser, opened):
    opened(2)
    header, first, *_ = numbers(browser, 'losses')
    assert header == ['iteration', 'A: loss', 'B: loss', 'A: loss_cls']
    assert first == ['4', '1', '3', '0.25']
    assert [one.text[:2] for one in browser.find_elements(By.CSS_SELECTOR, '#summary h3')] == [
        'A:',
        'B:',
    ]
    changes = browser.find_element(By.CSS_SELECTOR, '#config .changes').text
    assert 'train_dataloader – dict(batch_size=4)' in changes
    missing = browser.find_elements(By.CSS_SELECTOR, '.absent')
    assert any('focal-mm report --evaluate' in one.text for one in missing)


def test_pages_need_no_network(opened):
    text = opened().read_text()
    assert "default-src 'none'" in text
    addresses = set(re.findall(r'https?://[^\s"\'<>]+', text))
    assert addresses <= {'http://www.w3.org/2000/svg'}


def test_pages_that_are_watched_load_themselves_again(browser, opened):
    opened(watch=20)
    assert 'loads itself again every 20 s' in browser.find_element(By.ID, 'made').text


def test_damaged_details_spoil_one_section_only(browser, opened, runs):
    file = runs[0] / '20260101_000000' / 'report' / 'val_40.json'
    file.write_text(json.dumps(details_of(40) | dict(worst=[None], curves=2)))
    opened()
    damaged = browser.find_elements(By.XPATH, '//section[p[contains(., "is damaged")]]/h2')
    assert {one.text for one in damaged} == {'Precision and recall', 'The worst pictures'}
    assert browser.find_elements(By.ID, 'environment')
