"""Files are there whole or not at all, and leave nothing else behind."""

import json

import pytest

from hf_any3d.whole_files import whole_file, write_json, write_text


def names_below(folder):
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def test_text_and_json_are_written_with_the_folders_above_them(tmp_path):
    assert write_text(tmp_path / "a" / "b" / "page.html", "Maße\n").read_text(encoding="utf-8") == "Maße\n"
    path = write_json(str(tmp_path / "c" / "report.json"), {"größe": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"größe": [1, 2]}
    assert "größe" in path.read_text(encoding="utf-8"), "people read it too"
    assert names_below(tmp_path) == ["page.html", "report.json"]


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = write_text(tmp_path / "report.txt", "old")
    with whole_file(path) as unfinished:
        unfinished.write_text("ne")
        assert path.read_text() == "old"
        unfinished.write_text("new")
    assert path.read_text() == "new" and names_below(tmp_path) == ["report.txt"]


def test_after_an_error_nothing_half_written_stays(tmp_path):
    path = write_text(tmp_path / "report.txt", "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as unfinished:
        unfinished.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and names_below(tmp_path) == ["report.txt"]


def test_folder_in_the_place_of_the_file_is_refused_and_kept(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write_text(tmp_path, "text")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))
