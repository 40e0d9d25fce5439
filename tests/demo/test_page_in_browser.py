"""The page of a chat model in a browser; tests/doors starts one by the command."""

import numpy as np
import pytest

from hf_any3d.data.example_shapes import ExampleShapes
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.demo.conversation import Conversation
from hf_any3d.demo.page import DemoPage
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline
from tests.visualization.test_pages_in_browser import SCROLLS, emulated

VIEW = "#view iframe"


@pytest.fixture(scope="module")
def address(tmp_path_factory, browser):
    """Address of the page."""
    shapes, pipe = tmp_path_factory.mktemp("shapes"), tiny_chat_pipeline()
    np.save(shapes / "a1b2_8192.npy", cloud(3))
    page = DemoPage("tiny", ExampleShapes(shapes), lambda: Conversation(pipe, context=160)).open()
    yield page.local_url
    page.close()


def ask(browser, text):
    """Ask a question, wait for the complete answer, and return all answers."""
    answers = len(browser.all("#chat .bot.message"))
    browser.wait(lambda: browser.all("#send"))
    browser.all("#question textarea")[0].send_keys(text)
    browser.all("#send")[0].click()
    browser.wait(lambda: len(browser.all("#chat .bot.message")) > answers and browser.all("#send"))
    return browser.texts("#chat .bot.message")


@pytest.mark.slow
def test_a_visitor_asks_about_a_shape_and_restarts(address, browser, tmp_path):
    browser.open(address)
    browser.wait(lambda: browser.all(VIEW) and browser.painted(VIEW) > 40)
    assert browser.text("#note").startswith("40 points.")
    questions = ["What is this, and what is it made of?", "Where does one find it, and who uses it?"]
    ask(browser, questions[0])
    answers = ask(browser, questions[1])
    assert len(answers) == 2 and all(answers)
    assert browser.texts("#chat .user.message") == questions
    assert "The oldest question was dropped: the model takes at most 160 tokens" in browser.text("#notice")
    browser.driver.save_screenshot(str(tmp_path / "page.png"))

    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(address)
    browser.wait(lambda: browser.all(VIEW))
    assert browser.all("#chat .message") == [], "another visitor has another conversation"
    browser.driver.close()
    browser.driver.switch_to.window(first)
    assert len(browser.all("#chat .bot.message")) == 2

    browser.all("#restart")[0].click()
    browser.wait(lambda: not browser.all("#chat .message"))
    assert ask(browser, "What is this?") and browser.errors() == []


@pytest.mark.slow
def test_files_and_examples_are_shown_and_broken_ones_refused(address, browser, tmp_path):
    mine, broken = tmp_path / "mine.ply", tmp_path / "broken.ply"
    write_point_cloud(mine, PointCloudData(np.tile(cloud()[:, :3], (50, 1))))
    broken.write_text("nothing")
    browser.open(address)
    first = browser.wait(lambda: browser.all(VIEW) and browser.all(VIEW)[0].get_attribute("srcdoc"))
    ask(browser, "What is this?")

    upload = browser.driver.find_element("css selector", "input[type=file]")
    upload.send_keys(str(broken))
    error = browser.wait(lambda: browser.text("#note p.error"))
    assert error.startswith("broken.ply: ") and "\n" not in error
    assert len(browser.all("#chat .bot.message")) == 1, "the conversation continues"

    upload.send_keys(str(mine))
    browser.wait(lambda: "40 of 2,000 points" in browser.text("#note"))
    assert "no colors" in browser.text("#note") and browser.all("#chat .message") == []
    assert browser.wait(lambda: browser.painted(VIEW)) > 40
    assert browser.all(VIEW)[0].get_attribute("srcdoc") != first

    browser.all("#example input")[0].click()
    names = browser.wait(lambda: all(names := browser.texts("[role=option]")) and names)  # they fade in
    assert "a1b2" in names[0] and len(names) == 20
    options = browser.all("[role=option]")
    next(option for option in options if "chair.ply" in option.text).click()
    browser.wait(lambda: browser.text("#note").startswith("40 points on the surface of a mesh."))
    assert ask(browser, "What is this?") and browser.errors() == []


# The contrast of an element's text with what is behind it, as WCAG defines it.
CONTRAST = """
const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
let behind = arguments[0];
while (behind && /^rgba\\(.*, 0\\)$/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
const back = behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)";
const pair = [getComputedStyle(arguments[0]).color, back];
const [low, high] = pair.map(light).sort((a, b) => a - b);
return (high + 0.05) / (low + 0.05);
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_phones_show_the_whole_page_and_get_answers(dark, address, browser):
    with emulated(browser, phone=True, dark=dark):
        browser.open(address)
        browser.wait(lambda: browser.all(VIEW) and browser.painted(VIEW) > 40)
        assert len(ask(browser, "What is this, and what is it made of?")) == 1
        assert not browser.driver.execute_script(SCROLLS)
        texts = [browser.all(one)[0] for one in ("#note p", "#chat .bot.message", "#question textarea", "#restart")]
        assert min(browser.driver.execute_script(CONTRAST, text) for text in texts) > 4.5
        width = browser.driver.execute_script("return innerWidth")
        for button in browser.all("#ask button"):
            assert 0 <= button.rect["x"] and button.rect["x"] + button.rect["width"] <= width
        back = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") is not dark and browser.errors() == []
