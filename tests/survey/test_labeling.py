"""The page on which suggested points are labeled: what it holds, what its script does, and a browser."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hf_any3d.visualization import html_pages
from hf_any3d.visualization.viewer import CloudView
from hf_any3d_survey.visualization import labeling
from hf_any3d_survey.visualization.labeling import AskedPoint, labeling_page

TEMPLATES = Path(labeling.__file__).with_name("templates")
NAMES = ["ground", "high vegetation", "<b>building"]


def page(count=3000, asked=5, **settings):
    """The text of a page of points on a field of 200 m, and the numbers of those that are asked for."""
    generator = np.random.default_rng(0)
    points = generator.uniform((0, 0, 0), (200, 200, 5), (count, 3))
    rows = generator.choice(count, asked, replace=False)
    places = [tuple(f"{value:.4f}" for value in points[row] + (500_000, 5_000_000, 0)) for row in rows]
    points_asked = [AskedPoint(int(row), place, NAMES[row % 3], 0.5) for row, place in zip(rows, places, strict=True)]
    view = CloudView(points, labels=np.arange(count) % 3, values=points[:, 2])
    return labeling_page(view, points_asked, NAMES, tile="my tile.laz", **settings), points, rows


def data_of(text):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1])


def test_a_page_has_what_is_around_the_points_and_fewer_points_far_from_them():
    text, points, rows = page()
    data = data_of(text)
    away = np.linalg.norm(points[:, None, :2] - points[rows][None, :, :2], axis=2).min(axis=1)
    assert data["panels"][0]["count"] == (away <= 15).sum()
    assert [one["row"] for one in data["ask"]["points"]] == rows.tolist()
    # Names come from files, and the page loads nothing.
    # The icon is in the page.
    assert "<b>building" not in text and "src=" not in text and "href=" not in text.replace('href="data:', "")
    thinned = data_of(page(most_points=60)[0])
    assert 60 <= thinned["panels"][0]["count"] <= 65, "the points that are asked for stay"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What the scripts of a page do, run by Node.js, while keys are pressed."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no node")
    text, points, rows = page(asked=6)
    file = tmp_path_factory.mktemp("page") / "page.json"
    file.write_text(json.dumps(data_of(text)))
    scripts = [Path(html_pages.__file__).with_name("templates") / "viewer.js", TEMPLATES / "labeling.js"]
    here = Path(__file__).with_name("labeling_without_browser.js")
    done = subprocess.run([program, here, *scripts, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), points, rows


def test_the_point_that_is_asked_for_is_in_the_middle_with_its_surroundings(played):
    seen, points, rows = played
    first = seen["first"]
    near = np.linalg.norm(points[:, :2] - points[rows[0], :2], axis=1)
    # Places have 16 bits on the page
    assert (near < 14.9).sum() <= first["list"] <= (near < 15.1).sum()
    assert np.allclose(first["ring"], np.array(first["size"]) / 2) and first["rings"] == 2 and first["shown"] > 0
    assert seen["count"] == "1 of 6" and seen["guess"].startswith("model: ")


def test_keys_answer_skip_and_go_back_and_a_new_class_is_added(played):
    seen, _, _ = played
    assert seen["after"] == {"answers": [NAMES[0], "", NAMES[1], None, None, None], "count": "4 of 6"}
    assert seen["corrected"] == [NAMES[0], "", NAMES[2], None, None, None]
    assert seen["added"][3] == "car, parked"
    assert seen["done"] == {"count": "5 of 6 labeled", "guess": "Done: save the answers."}


def test_saved_answers_are_a_table_of_labeled_points(played):
    seen, points, rows = played
    table = list(csv.DictReader(io.StringIO(seen["table"])))
    assert [row["class"] for row in table] == [NAMES[0], NAMES[2], "car, parked"]
    assert [int(row["row"]) for row in table] == [rows[0], rows[2], rows[3]] and table[0]["tile"] == "my tile.laz"
    assert np.allclose(float(table[0]["x"]) - 500_000, points[rows[0], 0], atol=1e-4)


def test_answers_outlast_a_closed_page(played):
    seen, _, _ = played
    assert seen["recalled"]["answers"] == seen["stored"][0] and seen["recalled"]["current"] == 6


@pytest.mark.slow
def test_a_person_labels_points_in_a_browser(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page()[0])
    browser.open(file)
    browser.wait(lambda: browser.painted() > 300)
    assert browser.text("#count") == "1 of 5" and len(browser.all("#classes button")) == 3
    browser.all("#classes button")[1].click()
    browser.wait(lambda: browser.text("#count") == "2 of 5")
    browser.driver.find_element("css selector", "body").send_keys("1")
    browser.wait(lambda: browser.text("#count") == "3 of 5")
    browser.all("#back")[0].click()
    browser.wait(lambda: browser.text("#count") == "2 of 5")
    assert browser.driver.execute_script("return answers.slice(0, 2)") == [NAMES[1], NAMES[0]]
    browser.driver.execute_script("saved = true")  # or the browser asks whether to leave
    assert browser.errors() == []
