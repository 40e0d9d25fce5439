"""The cache of converted checkpoints: what counts as whole, which size a file has, and names of none."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from hf_any3d import published
from hf_any3d.hub.published_table import UNI3D, Published, PublishedFile
from hf_any3d.published import CHECKSUMS, _cache, _check_config, _checksums, _is_whole, _title, open_published
from tests.errors import raises

SIZES = {
    "tiny": PublishedFile("a.pt", {"hidden_size": 192, "layers": 12}),
    "base": PublishedFile("b.pt", {"hidden_size": 768, "layers": 12}),
    "deep": PublishedFile("c.pt", {"hidden_size": 768, "layers": 24}),
}


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({"hidden_size": 192, "layers": 12}, "tiny", None),
        ({"hidden_size": 768, "layers": 24, "more": 1}, "deep", None),
        (
            {"hidden_size": 192, "layers": 12},
            "base",
            "hidden_size=192; size 'base' has hidden_size=768; it has the size 'tiny'$",
        ),
        ({"hidden_size": 768, "layers": 12}, "deep", "layers=12; size 'deep' has layers=24; it has the size 'base'$"),
        (
            {"hidden_size": 5, "layers": 5},
            "tiny",
            "hidden_size=5, layers=5; size 'tiny' has hidden_size=192, layers=12$",
        ),
        ({}, "tiny", "hidden_size=None, layers=None; size 'tiny'"),
    ],
)
def test_the_size_of_a_checkpoint_is_that_of_its_tensors(config, size, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = Path("x.pt"), tmp_path, Published(UNI3D, SIZES, None), size
    if message is None:
        _check_config(*given)
        return
    with pytest.raises(ValueError, match=f"x.pt: its tensors give .*{message}"):
        _check_config(*given)


def test_a_single_checkpoint_has_no_size(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 5}')
    entry = Published(UNI3D, {None: PublishedFile("a.pt", {"hidden_size": 192})}, None)
    with raises(ValueError, naming="hidden_size"):
        _check_config(Path("x.pt"), tmp_path, entry, None)


def test_a_converted_model_is_whole_as_long_as_its_files_are_those_that_were_written(tmp_path, caplog):
    folder = tmp_path / "model"
    assert not _is_whole(folder)
    (folder / "in").mkdir(parents=True)
    for name in ("config.json", "in/weights", "README.md"):
        (folder / name).write_text(name)
    assert _is_whole(folder), "one of an earlier version, without checksums"
    sums = _checksums(folder)
    assert list(sums) == ["config.json", "in/weights"] and all(len(one) == 64 for one in sums.values())
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    (folder / "README.md").write_text("edited")
    (folder / "new").touch()
    assert _is_whole(folder) and not caplog.messages, "cards may be edited, and files added"
    (folder / "in" / "weights").write_text("changed")
    assert not _is_whole(folder) and f"{folder}: in/weights is damaged; the published file" in caplog.messages[0]
    (folder / CHECKSUMS).write_text("{}")
    assert not _is_whole(folder) and f"{CHECKSUMS} is damaged" in caplog.messages[1]


def test_the_cache_is_below_that_of_the_hub(tmp_path):
    assert _cache(None) == Path(constants.HF_HOME, "hf_any3d", "published") and _cache(str(tmp_path)) == tmp_path
    assert (_title(None), _title("base")) == ("", "-base")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("me/other", ValueError, "me/other: not a published checkpoint; expected one of .*, or a file$"),
        ("me/other.pt", FileNotFoundError, "no file me/other.pt"),
        ("me/other.pth", FileNotFoundError, "no file"),
        ("me/other.bin", FileNotFoundError, "no file"),
        ("./me/other", FileNotFoundError, "no file"),
        ("/me/other", FileNotFoundError, "no file"),
        ("~/other", FileNotFoundError, "no file"),
        ("other", FileNotFoundError, "no file other"),
    ],
)
def test_names_of_no_checkpoint_are_files_or_repositories(name, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        open_published(name)


def test_a_file_has_no_revision(tmp_path):
    (tmp_path / "a.pt").touch()
    with raises(ValueError, naming="a.pt"):
        open_published(tmp_path / "a.pt", revision="v1")


def test_a_name_is_looked_up_once_per_process_and_again_if_its_directory_is_gone(tmp_path, monkeypatch):
    asked, found = [], published._Found(tmp_path / "model")
    monkeypatch.setattr(published, "_OPENED", {})
    monkeypatch.setattr(published, "_from_hub", lambda *given: asked.append(given) or found)
    (tmp_path / "model").mkdir()
    for revision in (None, None, "v1"):
        assert published.opened_directory("me/x", revision, token="t") == tmp_path / "model"
    assert asked == [("me/x", None, revision, False, None, {"token": "t"}) for revision in (None, "v1")]
    (tmp_path / "model").rmdir()
    published.opened_directory("me/x")
    assert len(asked) == 3
