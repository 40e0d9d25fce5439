"""Pages opened in a browser: they draw and turn without console errors."""

import re

import numpy as np
import pytest

from hf_any3d.visualization.feature_map import write_feature_map
from hf_any3d.visualization.web_page import write_clouds_page, write_point_cloud_page

SCROLLS = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(300, 3))


def drag(browser):
    from selenium.webdriver import ActionChains

    canvas = browser.all("canvas")[0]
    ActionChains(browser.driver, duration=50).drag_and_drop_by_offset(canvas, 150, 60).perform()


def point_at(browser, place):
    from selenium.webdriver import ActionChains

    canvas = browser.all("canvas")[0]
    middle = canvas.rect["width"] / 2, canvas.rect["height"] / 2
    offset = [round(at - half) for at, half in zip(place, middle, strict=True)]
    ActionChains(browser.driver, duration=50).move_to_element_with_offset(canvas, *offset).perform()


def picture(browser):
    return browser.driver.execute_script("return document.querySelector('canvas').toDataURL()")


def test_labelled_clouds_turn(browser, points, tmp_path):
    labels = (points[:, 1] > 0).astype(int)
    browser.open(write_point_cloud_page(tmp_path / "page.html", points, labels, ["top", "legs"]))
    assert browser.painted() > 300 and browser.text("ul").split() == ["top", "legs"]
    before = picture(browser)
    drag(browser)
    assert picture(browser) != before and browser.errors() == [] and not browser.driver.execute_script(SCROLLS)


def test_rows_of_clouds_scroll_above_their_legend(browser, points, tmp_path):
    colored = np.concatenate([points, np.full((300, 3), 0.5)], axis=1)
    page = write_clouds_page(
        tmp_path / "page.html",
        [points, colored] * 5,
        titles=["a", "b"] * 5,
        columns=2,
        legend={"seen": (1, 0, 0), "guessed": (0, 0, 1)},
    )
    browser.open(page)
    assert browser.painted() > 3000 and not browser.driver.execute_script(SCROLLS)
    browser.driver.execute_script("scrollTo(0, document.body.scrollHeight)")
    canvas, legend = (browser.all(name)[0].rect for name in ("canvas", "ul"))
    bottom = browser.driver.execute_script("return document.querySelector('canvas').getBoundingClientRect().bottom")
    top = browser.driver.execute_script("return document.querySelector('ul').getBoundingClientRect().top")
    assert canvas["height"] >= 5 * 240 and legend["width"] > 1000 and bottom <= top + 1
    before = picture(browser)
    drag(browser)
    assert picture(browser) != before and browser.errors() == []


def test_maps_of_features_hide_classes_and_name_clouds(browser, points, tmp_path):
    labels = np.arange(300) % 3
    texts = [f"cloud {number}" for number in range(300)]
    page = write_feature_map(
        tmp_path / "page.html", points[:, :2], labels, ["chair", "lamp", "sofa"], texts=texts, heading="all of them"
    )
    browser.open(page)
    painted = browser.painted()
    assert painted > 3000 and browser.text("h1") == "all of them"
    point_at(browser, browser.driver.execute_script("return placeOf(7)"))
    assert re.fullmatch(r"(chair|lamp|sofa): cloud \d+", browser.text("p"))
    browser.all("li")[0].click()
    assert browser.painted() < painted and browser.errors() == []
