import builtins
from html.parser import HTMLParser

import numpy as np
import pytest

from hf_any3d.visualization.confusion import plot_confusion_matrix

MATRIX = np.array([[7, 1, 0], [2, 5, 0], [0, 0, 9]])
LABELS = ["chair", "table & bench", "<lamp>"]


class Cells(HTMLParser):
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


def test_missing_matplotlib_points_to_the_page_without_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install matplotlib`, or name a file \.html"):
        plot_confusion_matrix(MATRIX, LABELS, tmp_path / "matrix.png")
    assert plot_confusion_matrix(MATRIX, LABELS, tmp_path / "matrix.html").is_file()


@pytest.mark.parametrize(
    ("matrix", "labels", "name", "message"),
    [
        (MATRIX[:2], LABELS, "m.html", r"shape \(2, 3\)"),
        (MATRIX, LABELS[:2], "m.html", "2 labels for 3 classes"),
        (MATRIX, LABELS, "m.gif", "file type '.gif' is unknown; expected .html, .png"),
    ],
)
def test_wrong_input_is_named(matrix, labels, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_confusion_matrix(matrix, labels, tmp_path / name)
