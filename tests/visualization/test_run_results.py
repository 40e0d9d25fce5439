import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hf_any3d.visualization.run_results import plot_confusion_matrix, training_curves, write_run_results
from tests.conftest import real_pictures
from tests.visualization.test_pages_in_browser import SCROLLS, emulated

pytestmark = pytest.mark.usefixtures("drawn_results")
MATRIX = np.array([[7, 1, 0], [2, 5, 0], [0, 0, 9]])
LABELS = ["chair", "table & bench", "<lamp>"]


class Cells(HTMLParser):
    """The cells of a page's matrix."""

    def __init__(self):
        super().__init__()
        self.tag, self.cells, self.heads = "", [], []

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        if tag == "td":
            self.cells.append("")
        if tag == "th":
            self.heads.append("")

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        if self.tag == "td":
            self.cells[-1] += data
        if self.tag == "th":
            self.heads[-1] += data


def test_the_page_shows_every_count_and_escapes_the_labels(tmp_path):
    page = plot_confusion_matrix(MATRIX, LABELS, tmp_path / "matrix.html")
    cells = Cells()
    cells.feed(page.read_text(encoding="utf-8"))
    np.testing.assert_array_equal([int(cell or 0) for cell in cells.cells], MATRIX.flatten())
    assert cells.heads == ["", *LABELS, *LABELS]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_pictures_are_written_in_the_type_of_their_name(suffix, start, tmp_path):
    pytest.importorskip("matplotlib")
    path = plot_confusion_matrix(MATRIX, LABELS, tmp_path / f"matrix{suffix}")
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_class_without_samples_is_drawn_empty(tmp_path):
    page = plot_confusion_matrix(np.diag([3, 0]), ["a", "b"], tmp_path / "matrix.html").read_text(encoding="utf-8")
    assert "nan" not in page and page.count("</td>") == 4


HISTORY = [
    {"step": 10, "loss": 2.0, "learning_rate": 1e-3, "epoch": 0.1, "grad_norm": 3.0},
    {"step": 20, "loss": float("nan"), "learning_rate": 5e-4},
    {"step": 20, "eval_loss": 1.5, "eval_accuracy": 0.25, "eval_runtime": 3.0},
    {"step": 40, "loss": 1.0, "learning_rate": 0.0},
    {"step": 40, "eval_loss": 1.2, "eval_accuracy": 0.5},
    {"step": 40, "train_runtime": 9.0, "total_flos": 1e9},
]


def test_curves_are_those_of_the_log_and_skip_what_is_not_finite():
    curves = training_curves(HISTORY)
    assert list(curves) == ["loss", "accuracy", "learning rate"]
    assert curves["loss"] == {"training": ([10, 40], [2.0, 1.0]), "evaluation": ([20, 40], [1.5, 1.2])}
    assert training_curves([{"train_runtime": 1.0}]) == {}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    scores = {"test": {"chair": 0.875, "table & bench": 5 / 7, "<lamp>": 1.0}}
    with real_pictures():
        write_run_results(
            folder,
            title="outputs/<run>",
            history=HISTORY,
            metrics={"test": {"accuracy": 0.875, "loss": 0.5}},
            class_scores=scores,
            confusions={"test": (MATRIX, LABELS)},
        )
    return folder


@pytest.mark.slow
def test_a_run_leaves_curves_a_table_of_classes_and_the_confusion_matrix(results):
    page = (results / "results.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 3 and "87.50 %" in page and "Confusion matrix: test" in page
    assert "<lamp>" not in page and "&lt;lamp&gt;" in page and "outputs/&lt;run&gt;" in page
    assert "http:" not in page and "https:" not in page and "<script" not in page and "script-src 'none'" in page
    table = (results / "class_scores.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "class,test score,test count,test most often taken for"
    assert table[2] == "table & bench,0.7143,7,chair (29 %)" and table[3] == "<lamp>,1.0000,9,"
    assert (results / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_classes_leaves_its_curves(tmp_path):
    write_run_results(tmp_path, title="run", history=HISTORY, metrics={}, class_scores={}, confusions={})
    assert {file.name for file in tmp_path.iterdir()} == {"results.html", "results.png"}
    write_run_results(tmp_path / "b", title="run", history=[], metrics={}, class_scores={}, confusions={})
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["results.html"]


@pytest.mark.slow
def test_the_page_of_a_run_fits_a_phone(browser, results):
    with emulated(browser, phone=True, dark=True):
        browser.open(results / "results.html")
        assert not browser.driver.execute_script(SCROLLS) and browser.errors() == []


def test_steps_that_a_resumed_run_logs_again_are_drawn_once():
    history = [{"step": step, "loss": step / 10, "eval_mean_iou": True} for step in (10, 20, 20, 10, 30)]
    history += [{"step": 30, "eval_samples_per_second": 1.0, "eval_mean_iou": 0.5, "eval_x": 1, "learning_rate": "no"}]
    history += [{"step": 5, "learning_rate": 1e-3, "eval_accuracy": 1}, {"loss": 9.0}]
    found = training_curves(history)
    assert list(found) == ["loss", "accuracy", "mean iou", "x", "learning rate"]
    assert found["loss"] == {"training": ([10, 20, 30], [1, 2, 3])} and found["mean iou"] == {
        "evaluation": ([30], [0.5])
    }


def test_a_page_has_a_column_for_each_figure_of_any_split(tmp_path):
    metrics = {"train": {"loss": 1.5}, "test": {"accuracy": 0.5, "loss": 2345.0}}
    written = write_run_results(
        tmp_path, title="run", history=[], metrics=metrics, class_scores={}, confusions={"test": (MATRIX, LABELS)}
    )
    assert [path.name for path in written] == ["results.html", "results.png"]
    page = written[0].read_text(encoding="utf-8")
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)[:3]]
    assert rows == [["split", "loss", "accuracy"], ["train", "1.5000", ""], ["test", "2,345", "50.00 %"]]
