"""Pages opened in a browser: they draw, turn and filter without console errors, on desktops and phones."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hf_any3d import serving
from hf_any3d.visualization.html_pages import html_page
from hf_any3d.visualization.show import write_feature_map, write_views
from hf_any3d.visualization.viewer import CloudView, write_clouds_page

TEMPLATES = Path(serving.__file__).with_name("templates")
SCROLLS = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(300, 3))


@contextmanager
def emulated(browser, phone=False, dark=False):
    """Show pages as a phone or a device with dark colors does."""
    command = browser.driver.execute_cdp_cmd
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    command("Emulation.setEmulatedMedia", {"features": features})
    if phone:
        command("Emulation.setDeviceMetricsOverride", PHONE if phone is True else phone)
    try:
        yield
    finally:
        command("Emulation.setEmulatedMedia", {"features": []})
        command("Emulation.clearDeviceMetricsOverride", {})


def drag(browser):
    from selenium.webdriver import ActionChains

    canvas = browser.all("canvas")[0]
    ActionChains(browser.driver, duration=50).drag_and_drop_by_offset(canvas, 100, 60).perform()


def picture(browser):
    return browser.driver.execute_script("return document.querySelector('canvas').toDataURL()")


def rows_of_legend(browser):
    return [text.split("\n")[0] for text in browser.texts("aside li") if text]


def painted(browser):
    """Count painted pixels once the page has drawn them finely."""
    return browser.wait(lambda: browser.driver.execute_script("return settled && !asked") and browser.painted())


def test_labeled_clouds_turn_and_their_labels_are_hidden(browser, points, tmp_path):
    labels = (points[:, 1] > 0).astype(int)
    view = CloudView(points, labels=labels)
    browser.open(write_views(tmp_path / "page.html", [view], names=["top", "<b>legs"]))
    before = painted(browser)
    assert before > 300 and rows_of_legend(browser) == ["top", "<b>legs"]
    first = picture(browser)
    drag(browser)
    browser.wait(lambda: picture(browser) != first)
    assert not browser.driver.execute_script(SCROLLS)
    browser.all("aside li button")[1].click()
    browser.wait(lambda: painted(browser) < 0.8 * before)
    assert browser.driver.execute_script("return [...hidden]") == [1] and browser.errors() == []


@pytest.mark.slow
def test_another_axis_is_turned_up_by_a_button(browser, points, tmp_path):
    flat = points * [1, 0.1, 0.5]  # as wide as before, low in Y
    browser.open(write_clouds_page(tmp_path / "page.html", [flat, points], columns=2, up_axis="z"))
    painted(browser)
    seen = []
    for _ in range(4):
        button = browser.all("#up")[0]
        heights = browser.driver.execute_script("return panels.map(panel => panel.high - panel.low)")
        own = browser.driver.execute_script("return [...points.slice(0, 3 * panels[0].count)]")
        seen.append((button.text, np.reshape(own, (-1, 3)), heights))
        button.click()
    assert [text for text, _, _ in seen] == ["Z up", "X up", "Y up", "Z up"]
    for (_, before, _), (_, after, _) in zip(seen, seen[1:], strict=False):
        assert np.array_equal(np.roll(before, -1, axis=1), after)  # turned, not mirrored
    # Colors leave out a hundredth at both ends.
    both = np.sort(np.concatenate([flat, points])[:, [2, 0, 1]], axis=0)
    out = int(0.01 * (len(both) - 1))
    extents = both[-1 - out] - both[out]
    found = [heights[0] for _, _, heights in seen[:3]]
    np.testing.assert_allclose(np.divide(found, found[0]), np.divide(extents, extents[0]), rtol=0.05)
    assert all(heights[0] == pytest.approx(heights[1]) for _, _, heights in seen) and browser.errors() == []


def test_pages_follow_a_dark_device_and_can_be_switched(browser, points, tmp_path):
    page = write_clouds_page(tmp_path / "page.html", [points])
    background = "return getComputedStyle(document.body).backgroundColor"
    shades = []
    for dark in (False, True):
        with emulated(browser, dark=dark):
            browser.open(page)
            shades.append(browser.driver.execute_script(background))
            browser.all("#theme")[0].click()
            shades.append(browser.driver.execute_script(background))
    assert shades[0] == shades[3] != shades[1] == shades[2]


@pytest.mark.slow
def test_rows_of_clouds_stay_rows_on_a_phone(browser, points, tmp_path):
    colored = np.concatenate([points, np.full((300, 3), 0.5)], axis=1)
    legend = {"seen": (1, 0, 0), "guessed": (0, 0, 1)}
    page = write_clouds_page(
        tmp_path / "page.html", [points, colored] * 5, titles=["a", "b"] * 5, columns=2, legend=legend
    )
    with emulated(browser, phone=True):
        browser.open(page)
        browser.wait(lambda: browser.painted() > 1000)
        assert not browser.driver.execute_script(SCROLLS) and browser.texts("figcaption") == ["a", "b"] * 5
        tops = [figure.rect["y"] for figure in browser.all("figure")[:4]]
        assert tops[0] == tops[1] < tops[2] == tops[3]
        assert rows_of_legend(browser) == [], "closed, since it would cover the clouds"
        browser.all("summary")[0].click()
        assert rows_of_legend(browser) == ["seen", "guessed"] and browser.errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_a_long_legend_scrolls_and_leaves_room_for_the_cloud(phone, browser, tmp_path):
    points, labels = np.random.default_rng(0).normal(size=(4000, 3)), np.arange(4000) % 40
    names = [f"class {number}" for number in range(40)]
    with emulated(browser, phone=phone):
        browser.open(write_views(tmp_path / "page.html", [CloudView(points, labels=labels)], names=names))
        if phone:
            browser.all("summary")[0].click()
        assert rows_of_legend(browser) == names
        fits = "return document.documentElement.scrollHeight <= innerHeight"
        browser.wait(lambda: browser.driver.execute_script(fits))
        below = "return document.querySelector('canvas').getBoundingClientRect().bottom"
        most = browser.driver.execute_script("return innerHeight") * (0.56 if phone else 1)
        browser.wait(lambda: browser.driver.execute_script(below) <= most)
        browser.driver.execute_script("document.querySelector('aside li:last-child').scrollIntoView()")
        last = browser.driver.execute_script(
            "return document.querySelector('aside li:last-child').getBoundingClientRect()"
        )
        assert last["bottom"] <= browser.driver.execute_script("return innerHeight") and browser.errors() == []


def test_grids_are_filtered_by_class_and_one_cloud_is_enlarged(browser, points, tmp_path):
    names = [f"class {number}" for number in range(20)]
    clouds = [CloudView(points * (1, 2, 1), title=f"cloud {n}", note=names[n], category=n) for n in range(20)]
    browser.open(write_views(tmp_path / "page.html", clouds, categories=names))
    assert rows_of_legend(browser) == names and len(browser.all("figure")) == 20
    overlaps = "return [...document.querySelectorAll('aside li')].some((one, k, all) => k && "
    overlaps += "one.getBoundingClientRect().top < all[k - 1].getBoundingClientRect().bottom - 1)"
    assert not browser.driver.execute_script(overlaps)
    browser.all("aside input")[0].send_keys("class 1")
    assert rows_of_legend(browser) == [name for name in names if "class 1" in name]
    browser.all("#keys button")[1].click()
    assert browser.all("figure") == []
    browser.all("aside li button")[0].click()
    assert browser.texts("figcaption b") == ["cloud 1"]
    browser.driver.execute_script("document.querySelectorAll('figure > button')[1].click()")
    wide = browser.driver.execute_script("return innerWidth")
    browser.wait(lambda: browser.all("figure.large canvas")[0].rect["width"] > 0.95 * wide)
    assert browser.errors() == []


@pytest.mark.slow
def test_boxes_are_shown_by_score_and_class_also_on_a_small_phone(browser, points, tmp_path):
    from tests.visualization.test_viewer import turned_box

    boxes = [
        turned_box(score=0.9),
        turned_box("lamp", 0.6, center=(-1, 0, 0)),
        turned_box("lamp", 0.2, center=(0, 1, 0)),
    ]
    cloud = CloudView(points, boxes=boxes, title="room.ply")
    page = write_views(tmp_path / "page.html", [cloud], box_names=["chair", "lamp"], up_axis="z")
    on_boxes = "return panels[0].ids ? [...panels[0].ids].filter(id => id < -1).length : 0"

    def drawn():
        painted(browser)
        return browser.driver.execute_script(on_boxes)

    def slide(score):
        browser.driver.execute_script(
            "const one = document.querySelector('#scores input'); one.value = arguments[0];"
            "one.dispatchEvent(new Event('input'))",
            score,
        )

    with emulated(browser, phone={**PHONE, "width": 360, "height": 640}):
        browser.open(page)
        two = browser.wait(drawn)
        assert not browser.driver.execute_script(SCROLLS) and browser.texts("summary")[0].startswith("2 boxes")
        for target in browser.all("#tools button, #tools select, #scores input"):
            assert target.rect["height"] >= 44 and target.rect["x"] + target.rect["width"] <= 360
        assert browser.all("canvas")[0].rect["height"] > 280
        slide(0.05)
        assert browser.wait(lambda: drawn() > two) and browser.text("#scores output") == "0.05"
        browser.all("summary")[0].click()
        browser.wait(lambda: rows_of_legend(browser) == ["chair", "lamp"])
        assert [text.split("\n")[-1] for text in browser.texts("aside li")] == ["1", "2"]
        assert all(button.rect["height"] >= 44 for button in browser.all("aside li button"))
        every = drawn()
        browser.all("aside li button")[1].click()
        browser.wait(lambda: 0 < drawn() < every)
        slide(0.95)
        browser.wait(lambda: drawn() == 0)
        assert browser.texts("summary")[0].startswith("0 boxes") and browser.errors() == []
    browser.open(page)
    browser.wait(drawn)
    pointed = """
    const panel = panels[0], at = panel.ids.findIndex(id => id === -2), box = panel.canvas.getBoundingClientRect();
    const dense = panel.canvas.width / box.width;
    const x = box.left + at % panel.canvas.width / dense, y = box.top + Math.floor(at / panel.canvas.width) / dense;
    panel.canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y, pointerId: 1}));
    """
    browser.driver.execute_script(pointed)
    assert browser.text("#tip") == "chair 90 %" and browser.errors() == []


@pytest.mark.slow
def test_maps_of_features_hide_classes_and_name_clouds(browser, points, tmp_path):
    labels = np.arange(300) % 3
    texts = [f"cloud {number}" for number in range(300)]
    page = write_feature_map(
        tmp_path / "page.html", points[:, :2], labels, ["chair", "lamp", "sofa"], texts=texts, heading="all of them"
    )
    browser.open(page)
    before = painted(browser)
    assert before > 3000 and browser.text("h1") == "all of them"
    place = """
    const panel = panels[0], at = panel.ids.findIndex(id => id === 7), box = panel.canvas.getBoundingClientRect();
    const dense = panel.canvas.width / box.width;
    const x = box.left + at % panel.canvas.width / dense, y = box.top + Math.floor(at / panel.canvas.width) / dense;
    panel.canvas.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: y, pointerId: 1}));
    """
    browser.driver.execute_script(place)
    assert browser.text("#tip") == "lamp: cloud 7"
    browser.all("aside li button")[0].click()
    browser.wait(lambda: painted(browser) < before)
    assert browser.errors() == []


# What sticks out of the page, or out of what it lies in, unless that scrolls.
OUTSIDE = """
const beyond = [...document.querySelectorAll("body *")].filter(one => {
  const own = one.getBoundingClientRect();
  if (!own.width || one.closest(".wide, svg, iframe")) return false;
  return own.right > Math.min(innerWidth, one.parentElement.getBoundingClientRect().right) + 1;
});
return beyond.map(one => one.outerHTML.slice(0, 80));
"""


def test_pages_of_results_and_of_the_service_fit_a_phone(browser, tmp_path):
    names = ["wide", "lora-rank-8-seed-3", "plain"]
    head = ["run", "accuracy", "95 % interval", "difference", "95 % interval", "p", "trainable", "time", "memory"]
    figures = ["95.0 %", "76.4 to 99.1", "-40.0", "-65.0 to -5.5", "0.04", "1,234", "12 min", "5 MB"]
    rows = [[name, *figures] for name in names]
    answers = [("night stand", False), ("bookshelf with doors", False), ("ball", True)]
    compared = {"title": "compared", "heading": "accuracy", "conclusions": [], "bars": [], "names": names}
    pages = {
        "comparison.html": compared | {"rows": [head, *rows], "scans": [("a.ply", "ball", answers)]},
        "front.html": {
            "title": "my-model",
            "kind": "a classifier",
            "version": "1",
            "data": {"model": "m", "routes": [{"path": f"/v1/{'long' * 20}", "takes": ["labels", "up_axis"]}]},
        },
    }
    for name, values in pages.items():
        page = tmp_path / name
        page.write_text(html_page(name, folder=TEMPLATES if name == "front.html" else None, **values))
        with emulated(browser, phone=True):
            browser.open(page)
            assert not browser.driver.execute_script(SCROLLS) and browser.driver.execute_script(OUTSIDE) == []
            if name == "comparison.html":
                # All of a run is seen at once, and marks stay beside their classes.
                assert browser.texts(".stacks td")[: len(head) - 1] == figures
                tops = "return [...document.querySelectorAll('td span')].map(one => one.getClientRects()[0].width)"
                assert min(browser.driver.execute_script(tops)) > 25
            assert browser.errors() == []
