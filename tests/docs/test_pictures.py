"""Pictures of pages say what the library answers, and the table of them is complete."""

import pytest

from docs.tools import pictures
from docs.tools.pictures import PICTURES, path_of, stored_texts


def test_every_picture_is_in_the_table():
    assert {path.stem for path in pictures.FOLDER.glob("*.png")} == PICTURES.keys()


def test_what_is_compared_can_be_drawn_again_and_what_is_not_says_so():
    for name, picture in PICTURES.items():
        assert (picture.texts is None) == (picture.draw is None) == ("not compared" in picture.made), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, picture in PICTURES.items() if picture.texts])
def test_a_picture_says_what_is_answered_now(name):
    texts = PICTURES[name].texts
    assert texts is not None and stored_texts(path_of(name)) == texts(), "make pictures draws it again"


def test_a_picture_with_another_answer_is_drawn_again(tmp_path, monkeypatch):
    from PIL import Image

    drawn = []

    def draw(path):
        drawn.append(path)
        Image.new("RGB", (4, 4), "red").save(path)

    answers = ["4 trees", "2 buildings"]
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    monkeypatch.setattr(pictures, "PICTURES", {"a": pictures.Picture("drawn", lambda: list(answers), draw)})
    pictures.main(["a"])
    assert pictures.is_true("a")
    pictures.main(["--stale"])
    answers[1] = "3 buildings"
    pictures.main(["--stale"])
    assert drawn == [tmp_path / "a.png"] * 2 and stored_texts(drawn[0]) == answers
