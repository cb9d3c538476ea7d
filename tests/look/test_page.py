"""The page in Chromium, headless: what it says beside what the arrays say."""

import re
import shutil

import numpy as np
import pytest
import torch
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from focal_mm import look
from focal_mm.look.page import LIMIT

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason='no browser: apt-get install chromium chromium-driver',
)


@pytest.fixture(scope='module')
def surveys(nets):
    """FocalNet, Focal Transformer and MixFormer on one picture, taller than wide."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 255, (12, 9, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    return {
        name: look.survey(nets(name), pixels, f'<b>&"{name}".png', name, name == 'focal')
        for name in ('focalnet', 'shifted', 'mixformer')
    }


@pytest.fixture(scope='module')
def browser(surveys, tmp_path_factory):
    """A browser with a page of the three, of which the first two are shown."""
    page = tmp_path_factory.mktemp('page') / 'look.html'
    surveys['focalnet'].activation = look.ClassActivation(
        np.linspace(0, 1, 120 * 90).reshape(120, 90), 'layers.3', 7, 'cat'
    )
    look.write_page(list(surveys.values()), page)
    assert page.stat().st_size < LIMIT
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'window-size=1280,900'):
        options.add_argument(f'--{argument}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.get(page.as_uri())
    WebDriverWait(driver, 60).until(
        lambda _: driver.find_element(By.TAG_NAME, 'body').get_attribute('data-ready')
    )
    yield driver
    errors = driver.get_log('browser')
    driver.quit()
    assert errors == []


def choose(browser, view, **sliders):
    """Click a view and move sliders by their keys."""
    browser.find_element(By.CSS_SELECTOR, f'button[data-view={view}]').click()
    for name, number in sliders.items():
        slider = browser.find_element(By.ID, name)
        if slider.is_enabled() and slider.is_displayed():
            slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * (number - 1))
        value = browser.find_element(By.ID, f'{name}-value').text
        assert value.startswith(f'{number} ')


def point(browser, panel, x, y, click=False):
    """Move the pointer to the middle of a pixel of a picture; return the line under it."""
    section = browser.find_elements(By.CLASS_NAME, 'panel')[panel]
    canvas = section.find_element(By.CSS_SELECTOR, 'canvas.picture')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', canvas)
    width, height = canvas.size['width'], canvas.size['height']
    chain = ActionChains(browser, duration=0).move_to_element_with_offset(
        canvas, round(((x + 0.5) / 90 - 0.5) * width), round(((y + 0.5) / 120 - 0.5) * height)
    )
    (chain.click() if click else chain).perform()
    return section.find_element(By.CLASS_NAME, 'under').text


def amounts(browser, panel):
    """The numbers at the query."""
    section = browser.find_elements(By.CLASS_NAME, 'panel')[panel]
    return [float(one.text) for one in section.find_elements(By.CLASS_NAME, 'amount')]


def test_values_under_the_pointer_are_those_of_the_arrays(browser, surveys, nets):
    shown = surveys['focalnet']
    gates = look.gates(nets('focalnet'), shown.sample)
    contexts = look.contexts(nets('focalnet'), shown.sample)
    for stage, block, level in ((1, 1, 1), (3, 2, 3), (3, 1, 4), (4, 1, 2)):
        for view, expected in (
            ('gates', gates[stage - 1][block - 1][..., level - 1]),
            ('contexts', np.linalg.norm(contexts[stage - 1][block - 1][level - 1], axis=-1)),
        ):
            choose(browser, view, stage=stage, block=block, level=level)
            text = point(browser, 0, 50, 71)
            row, col, value = re.fullmatch(r'row (\d+), column (\d+): (\S+)', text).groups()
            stride = 4 * 2 ** (stage - 1)
            assert (int(row), int(col)) == (71 // stride, 50 // stride)
            value_here = np.broadcast_to(expected, shown.norms[stage - 1].shape)[int(row), int(col)]
            reach = float(np.ptp(expected) / 65535 + 1e-3 * abs(value_here))
            assert float(value) == pytest.approx(value_here, abs=reach)
    choose(browser, 'activation')
    value = float(point(browser, 0, 45, 60).removeprefix('row 60, column 45: '))
    assert value == pytest.approx(shown.activation.map[60, 45], abs=1e-4)
    assert 'class 7, cat' in browser.find_elements(By.CLASS_NAME, 'panel')[0].text


def test_query_moves_by_click_and_by_keys(browser, nets, surveys):
    choose(browser, 'gates', stage=1, block=1)
    gates = look.gates(nets('focalnet'), surveys['focalnet'].sample)[0][0]
    point(browser, 0, 30, 50, click=True)
    np.testing.assert_allclose(amounts(browser, 0), gates[12, 7], rtol=2e-3, atol=2e-4)
    canvas = browser.find_element(By.CSS_SELECTOR, 'canvas.picture')
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    np.testing.assert_allclose(amounts(browser, 0), gates[14, 8], rtol=2e-3, atol=2e-4)
    canvas.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    np.testing.assert_allclose(amounts(browser, 0), gates[14, 4], rtol=2e-3, atol=2e-4)
    canvas.send_keys(*[Keys.ARROW_UP] * 40)
    np.testing.assert_allclose(amounts(browser, 0), gates[0, 4], rtol=2e-3, atol=2e-4)


def test_attention_of_the_query_is_that_of_the_arrays(browser, nets, surveys):
    choose(browser, 'attention', stage=2, block=1)
    for x, y in ((50, 71), (3, 2), (85, 115)):
        point(browser, 1, x, y, click=True)
        where = ((x + 0.5) / 90, (y + 0.5) / 120)
        one = look.attention(nets('shifted'), surveys['shifted'].sample, where)[1][0]
        weights = one.weights.mean(0)
        shares = [weights[one.levels == level].sum() for level in range(4)]
        np.testing.assert_allclose(amounts(browser, 1), shares, atol=2e-3)
        text = point(browser, 1, x, y)
        under = (
            ((x - one.boxes[:, 0]) % one.extent[0] < one.boxes[:, 2] - one.boxes[:, 0])
            & ((y - one.boxes[:, 1]) % one.extent[1] < one.boxes[:, 3] - one.boxes[:, 1])
            & (weights > 0)
        )
        values = [
            float(number)
            for number in re.findall(r'(?:window|surroundings|\d) (\S+?)(?:,|$)', text)
        ]
        np.testing.assert_allclose(sorted(values), sorted(weights[under]), atol=2e-4)


def test_receptive_field_lies_around_the_query(browser, nets):
    field = look.receptive_fields(nets('focalnet'))[0][0][1]
    choose(browser, 'fields', stage=1, block=1, level=2)
    point(browser, 0, 46, 62, click=True)
    middle = len(field) // 2
    for down, right in ((0, 0), (2, -1)):
        text = point(browser, 0, 46 + 4 * right, 62 + 4 * down)
        where, _, value = text.partition(': ')
        assert where == f'row {15 + down}, column {11 + right}'
        assert float(value) == pytest.approx(field[middle + down, middle + right], rel=2e-3)
    assert point(browser, 0, 5, 5) == 'row 1, column 1'


def test_finger_moves_the_query(browser, nets, surveys):
    choose(browser, 'norm', stage=1)
    canvas = browser.find_element(By.CSS_SELECTOR, 'canvas.picture')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', canvas)
    box = browser.execute_script('return arguments[0].getBoundingClientRect().toJSON()', canvas)
    spot = dict(x=box['x'] + box['width'] * 0.25, y=box['y'] + box['height'] * 0.75)
    browser.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', dict(enabled=True))
    for kind, points in (('touchStart', [spot]), ('touchEnd', [])):
        browser.execute_cdp_cmd('Input.dispatchTouchEvent', dict(type=kind, touchPoints=points))
    browser.execute_cdp_cmd('Emulation.setTouchEmulationEnabled', dict(enabled=False))
    expected = surveys['focalnet'].norms[0][90 // 4, 22 // 4]
    assert amounts(browser, 0) == pytest.approx([expected], rel=2e-3)


def test_other_pictures_and_models_can_be_put_side_by_side(browser, surveys):
    second = browser.find_element(By.ID, 'second')
    second.send_keys(Keys.END)
    titles = [one.text for one in browser.find_elements(By.TAG_NAME, 'h2')]
    assert titles == ['<b>&"focalnet".png', '<b>&"mixformer".png']  # names are no markup
    choose(browser, 'spatial', stage=4, block=1)
    panels = browser.find_elements(By.CLASS_NAME, 'panel')
    assert 'FocalNet has none of this here' in panels[0].text
    value = float(point(browser, 1, 50, 71).split()[-1])
    assert value == pytest.approx(
        surveys['mixformer'].blocks[3][0].maps['spatial'][0][2, 1], rel=2e-3
    )
    choose(browser, 'channels')
    factors = surveys['mixformer'].blocks[3][0].channels
    assert f'mean {factors.mean():.3g}'[:8] in panels[1].text
    second.send_keys(Keys.HOME)
    assert len(browser.find_elements(By.CLASS_NAME, 'panel')) == 1
    second.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)


def test_page_fits_a_phone_in_light_and_dark(browser):
    choose(browser, 'norm')
    backgrounds = set()
    for width in (390, 1280):
        size = dict(width=width, height=844, deviceScaleFactor=2, mobile=False)
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        for _ in range(2):
            browser.find_element(By.ID, 'theme').click()
            assert browser.execute_script('return document.documentElement.scrollWidth') <= width
            backgrounds.add(
                browser.find_element(By.TAG_NAME, 'body').value_of_css_property('background-color')
            )
            for canvas in browser.find_elements(By.CSS_SELECTOR, 'canvas.picture'):
                assert 0 < canvas.size['width'] <= width
                ratio = canvas.size['height'] / canvas.size['width']
                assert ratio == pytest.approx(120 / 90, rel=0.03)
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    assert len(backgrounds) == 2


def test_each_view_has_a_legend_of_two_sentences(browser):
    legends = browser.execute_script('return Object.values(VIEWS).map((view) => view[1])')
    assert len(legends) == 9
    for legend in legends:
        text = legend.replace('Eq. ', '')
        assert len(re.findall(r'\.( |$)', text)) == 2, legend


def test_random_weights_are_named(nets, tmp_path, surveys):
    page = look.write_page([surveys['focalnet']], tmp_path / 'a.html').read_text()
    assert 'http' not in page.replace('http-equiv', '')
    for random in (True, False):
        found = look.survey(nets('focalnet'), torch.zeros(1, 3, 32, 32), 'a', 'b', random)
        page = look.write_page([found], tmp_path / 'a.html').read_text()
        assert ('"random": true' in page) == random
        assert ('RANDOM' in found.heading) == random


def test_large_pictures_make_no_large_page(nets, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    found = look.survey(nets('shifted'), noise)
    whole = look.write_page([found], tmp_path / 'a.html').stat().st_size
    thinned = look.write_page([found] * 8, tmp_path / 'b.html').stat().st_size
    assert whole < thinned < LIMIT < 8 * whole
    with pytest.raises(ValueError, match='90 pictures and models do not fit'):
        look.write_page([found] * 90, tmp_path / 'c.html')
