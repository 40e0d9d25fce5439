"""The pictures of the pages: `python -m docs.tools.pictures` lists them, and draws those whose names follow.

A picture that is drawn here stores what it says, words and numbers, in a text chunk of its PNG file. `make test-pages`
asks for the same answers again, without drawing, and compares; `make pictures` draws those that no longer agree.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from docs.tools import first_picture
from docs.tools.site import ROOT

FOLDER = ROOT / "docs"
_CHUNK = "Shown"
_STUDY = "a figure of studies/results/{}, drawn when the study was run; not compared"
_SCREENSHOT = "a screenshot of {}; not compared"


class Picture(NamedTuple):
    """How a picture is made.

    Attributes:
        made: In words.
        texts: Return what it says; None if it is not compared.
        draw: Write it to a path; None if this program cannot.
    """

    made: str
    texts: Callable[[], list[str]] | None = None
    draw: Callable[[Path], None] | None = None


@cache
def demo_answers() -> Any:
    """Return the answers of the demo of the bundled classifier."""
    from transformers import pipeline

    import hf_any3d  # noqa: F401  registers the task
    from hf_any3d.data.example_shapes import ExampleShapes
    from hf_any3d.demo.task_pages import TaskAnswers

    task = "point-cloud-classification"
    return TaskAnswers(task, pipeline(task), ExampleShapes())


def demo_texts() -> list[str]:
    """Return the classes that the demo shows for the packaged chair."""
    import hf_any3d

    chair = hf_any3d.read_point_cloud(hf_any3d.example_file("chair.ply"))
    return [text for label, score in demo_answers().ask(chair).rows for text in (label, f"{score:.1%}")]


def draw_demo(path: Path, is_phone: bool) -> None:
    """Take a screenshot of the demo with the packaged chair; a phone's is dark."""
    from hf_any3d.data.example_shapes import ExampleShapes
    from hf_any3d.demo.task_pages import TaskPage
    from tests.visualization.browser import headless_browser
    from tests.visualization.test_pages_in_browser import emulated

    answers = demo_answers()
    page = TaskPage("the classifier of household objects of hf-any3d", ExampleShapes(), answers).open()
    size: dict[str, Any] = {"width": 390 if is_phone else 1100, "height": 900, "deviceScaleFactor": 1}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        headless_browser(Path(profile)) as browser,
        emulated(browser, phone={**size, "mobile": is_phone}, dark=is_phone),
    ):
        browser.open(page.local_url)
        browser.wait(
            lambda: demo_texts()[1].removesuffix("%") in browser.text("#answer") and browser.painted("#view iframe")
        )
        whole = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": is_phone})
        path.write_bytes(b64decode(whole["data"]))
    page.close()


def generated_texts() -> list[str]:
    """Return the names of the generated classes."""
    from studies.generated_shapes import CLASSES

    return [name.replace("_", " ") for name in CLASSES]


def draw_generated(path: Path) -> None:
    """Draw the contact sheet of the generated shapes."""
    from studies.generated_shapes.__main__ import draw_picture

    draw_picture(path)


PICTURES = {
    "first": Picture("drawn from the answers to four commands", first_picture.texts, first_picture.draw_all),
    "demo_classes": Picture("a screenshot of `hf-any3d demo`", demo_texts, lambda path: draw_demo(path, False)),
    "demo_phone": Picture("a screenshot of `hf-any3d demo`", demo_texts, lambda path: draw_demo(path, True)),
    "generated_shapes": Picture("`python -m studies.generated_shapes`", generated_texts, draw_generated),
    "features": Picture("`examples/plot_features.py` with a model that trains for minutes; not compared"),
    "demo": Picture(_SCREENSHOT.format("`hf-any3d demo` with a chat model that trains for an hour")),
    "demo_chat_phone": Picture(_SCREENSHOT.format("`hf-any3d demo` with an untrained chat model")),
    "demo_parts": Picture(_SCREENSHOT.format("`hf-any3d demo` with a model of parts")),
    "demo_words_phone": Picture(_SCREENSHOT.format("`hf-any3d demo` with a zero-shot model")),
    "run_results": Picture(_SCREENSHOT.format("`results.html` of a training run")),
    "viewer_cells": Picture(_SCREENSHOT.format("a page of `examples/plot_cells.py`")),
    "viewer_classes": Picture(_SCREENSHOT.format("the viewer, with a shape of each class")),
    "viewer_classes_phone": Picture(_SCREENSHOT.format("the viewer, with a shape of each class")),
    "viewer_grid": Picture(_SCREENSHOT.format("the viewer, with the shapes and the answers of a model")),
    "viewer_phone": Picture(_SCREENSHOT.format("the viewer, with the shapes and the answers of a model")),
    "inventory": Picture(_SCREENSHOT.format("`hf-any3d show` of an inventory; it says nothing")),
    "label_your_laz": Picture(_SCREENSHOT.format("`hf-any3d show` of a labeled tile")),
    "act_codes": Picture(_STUDY.format("act_codes.md")),
    "act_reconstructions": Picture(_STUDY.format("act_shapes.md")),
    "layouts_found": Picture(_STUDY.format("layouts.md")),
    "segmentation_parts": Picture(_STUDY.format("segmentation.md")),
    "segmentation_rooms": Picture(_STUDY.format("segmentation.md")),
    "transfer": Picture(_STUDY.format("transfer.md")),
    "scaling": Picture("a figure of docs/scale.md, drawn when its times were measured; not compared"),
}
"""All pictures in `docs`, by their names without `.png`."""


def path_of(name: str) -> Path:
    """Return the file of a picture."""
    return FOLDER / f"{name}.png"


def stored_texts(path: Path) -> list[str] | None:
    """Return what a picture says as it was stored when it was drawn; None if nothing was."""
    from PIL import Image

    with Image.open(path) as picture:
        stored = picture.info.get(_CHUNK)
    return None if stored is None else json.loads(stored)


def store_texts(path: Path, texts: list[str], colors: int = 160) -> None:
    """Store what a picture says in its file."""
    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(_CHUNK, json.dumps(texts, ensure_ascii=False))
    # A palette takes a third of the bytes, and the difference cannot be seen.
    Image.open(path).convert("RGB").quantize(colors).save(path, optimize=True, pnginfo=chunks)


def is_true(name: str) -> bool:
    """Return whether a picture says what it would say if it were drawn now."""
    texts = PICTURES[name].texts
    return texts is None or stored_texts(path_of(name)) == texts()


def main(words: list[str] | None = None) -> None:
    """List pictures, or draw those that are named or, with `--stale`, say something else than they would now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    drawn = [name for name, picture in PICTURES.items() if picture.draw]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"One of {', '.join(drawn)}.")
    parser.add_argument("--stale", action="store_true", help="Draw those that no longer agree with the answers.")
    given = parser.parse_args(words)
    if wrong := [name for name in given.names if name not in drawn]:
        parser.error(f"{wrong[0]}: expected one of {', '.join(drawn)}")
    names = given.names or [name for name in drawn if given.stale and not is_true(name)]
    for name in names:
        picture = PICTURES[name]
        assert picture.draw is not None and picture.texts is not None
        picture.draw(path_of(name))
        store_texts(path_of(name), picture.texts())
        print(f"docs/{name}.png")
    if not given.names and not given.stale:
        for name, picture in PICTURES.items():
            print(f"{name:<20}  {picture.made}")


if __name__ == "__main__":
    main()
