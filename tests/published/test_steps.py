"""The steps that open a published checkpoint, each with stand-ins for the others."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from hf_any3d import published as module
from hf_any3d.hub.published_table import Published, PublishedFile, System
from hf_any3d.model_card.saving import may_be_replaced, sign_card
from hf_any3d.modeling.pretrained_parts.sources import file_digest
from hf_any3d.published import _Found

SYSTEM = System("Odd", "convert_odd", "OddModel", "MIT", "CC-BY-NC-4.0", "its page", "https://x", non_commercial=True)
COMMIT, CHECKSUM = "a" * 40, "b" * 64


@pytest.mark.parametrize(
    ("name", "revision", "found"),
    [
        ("here.pt", None, ("file", Path("here.pt"), "base", True, "cache")),
        ("here.pt", "v1", "^here.pt: revision='v1' is given for a file; expected None$"),
        ("folder", None, "^folder: a directory; expected the authors' file. from_pretrained opens converted ones$"),
        ("BAAI/Uni3D", None, ("hub", "BAAI/Uni3D", "base", None, True, "cache", {"token": "t"})),
        ("BAAI/Uni3D:tiny", "v1", ("hub", "BAAI/Uni3D:tiny", "base", "v1", True, "cache", {"token": "t"})),
        ("her.pt", None, "^no file her.pt; did you mean here.pt\\?$"),
        ("a/her.pth", None, "^no file a/her.pth"),
        ("./her", None, "^no file ./her"),
        ("model", None, "^no file model$"),
        ("~/a/b", None, "^no file ~/a/b"),
        ("scannet_ep1080.pth", None, "^no file scannet_ep1080.pth; the authors have it at https://dl.fbaip"),
        ("me/x", None, "^me/x: not a published checkpoint; expected one of OpenShape/.*, or a file$"),
    ],
)
def test_a_name_is_a_file_or_that_of_a_repository(name, revision, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.pt").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(module, "_from_file", lambda *given: ("file", *given))
    monkeypatch.setattr(module, "_from_hub", lambda *given: ("hub", *given))
    given = (name, "base", revision, True, "cache", {"token": "t"})
    if isinstance(found, tuple):
        assert module._find(*given) == found
        return
    with pytest.raises((ValueError, FileNotFoundError), match=found):
        module._find(*given)


def test_arguments_of_a_directory_and_of_a_lookup(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_find", lambda *given: asked.append(given) or _Found(tmp_path / "found"))
    assert module.published_directory("a") == tmp_path / "found"
    module.published_directory("a", size="s", revision="r", accept_license=True, cache_dir="c", token="t")
    assert asked == [
        ("a", None, None, False, None, {"token": None}),
        ("a", "s", "r", True, "c", {"token": "t"}),
    ]
    asked.clear()
    monkeypatch.setattr(module, "_OPENED", {})
    monkeypatch.setattr(module, "_from_hub", lambda *given: asked.append(given) or _Found(tmp_path / "found"))
    for _ in range(2):
        assert module.opened_directory("me/x", "v1", token="t") == tmp_path / "found"
    assert asked == [("me/x", None, "v1", False, None, {"token": "t"})] * 2, "the directory is gone"
    (tmp_path / "found").mkdir()
    module.opened_directory("me/x", SimpleNamespace(resolved="v1"))
    assert len(asked) == 2
    module.opened_directory("me/x", "v2")
    assert len(asked) == 3 and asked[-1][2] == "v2"


@pytest.mark.parametrize(
    ("found", "kwargs", "hub", "opened"),
    [
        (_Found(Path("d")), {"token": "t", "dtype": "x"}, {"token": "t"}, (Path("d"), {"token": "t", "dtype": "x"})),
        (
            _Found(Path("d"), "me/x:base", COMMIT),
            {"local_files_only": True},
            {"local_files_only": True},
            ("me/x:base", {"local_files_only": True, "revision": COMMIT}),
        ),
    ],
)
def test_a_model_is_opened_by_its_class_and_by_its_name(found, kwargs, hub, opened, tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text('{"architectures": ["ActModel"]}')
    monkeypatch.setattr(module, "_OPENED", {})
    monkeypatch.setattr(module, "_find", lambda *given: asked.append(given) or found)
    monkeypatch.setattr("hf_any3d.ActModel.from_pretrained", lambda *given, **more: (*given, more))
    assert module.open_published("a", size="s", revision="r", accept_license=True, cache_dir="c", **kwargs) == opened
    assert asked == [("a", "s", "r", True, "c", hub)]
    assert module._OPENED == ({} if found.name is None else {("me/x:base", COMMIT): Path("d")})


@pytest.mark.parametrize(
    ("title", "convert", "found"),
    [
        ("Point Transformer V3, supervised", "convert_ptv3", "Point Transformer V3, supervised"),
        ("Point Transformer V3", "convert_ptv3", "Point Transformer V3 (Sonata, Concerto, Utonia)"),
        ("Uni3D", "convert_uni3d", "Uni3D"),
        ("ACT", "convert_act", "a.pt: a file of ACT; convert it first: hf-any3d convert a.pt --output DIR"),
    ],
)
def test_the_system_of_a_file_is_that_of_its_program(title, convert, found, monkeypatch):
    program = SimpleNamespace(title=title, convert=convert)
    monkeypatch.setattr(module, "recognize", lambda path: SimpleNamespace(program=program))
    if ":" not in found:
        assert module._system_of(Path("a.pt")).title == found
        return
    with pytest.raises(ValueError, match=found):
        module._system_of(Path("a.pt"))


SIZES = {
    "base": PublishedFile("a.pt", {"width": 8, "depth": 2}),
    "large": PublishedFile("b.pt", {"width": 16, "depth": 2}),
    "odd": PublishedFile("c.pt", {}),
}


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        ({"width": 8, "depth": 2, "more": 1}, "base", None),
        (
            {"width": 16, "depth": 2},
            "base",
            "a.pt: its tensors give width=16; size 'base' has width=8; it has the size 'large'",
        ),
        (
            {"width": 4, "depth": 3},
            "base",
            "its tensors give width=4, depth=3; size 'base' has width=8, depth=2; it has t",
        ),
        ({"depth": 2}, "large", "its tensors give width=None; size 'large' has width=16; it has the size 'odd'"),
        ({}, "odd", None),
    ],
)
def test_a_converted_model_has_the_size_that_was_asked_for(config, size, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = (Path("a.pt"), tmp_path, Published(SYSTEM, SIZES), size)
    if message is None:
        module._check_config(*given)
        return
    with pytest.raises(ValueError, match=message):
        module._check_config(*given)
    single = Published(SYSTEM, {None: SIZES["base"]})
    with pytest.raises(ValueError, match=r"; the checkpoint published there has width=8[^;]*$"):
        module._check_config(Path("a.pt"), tmp_path, single, None)


def converter(given, fails=False):
    def convert(checkpoint, output, **more):
        given.append((checkpoint, output, more))
        output.mkdir(parents=True)
        (output / "config.json").write_text('{"width": 8}')
        (output / "in").mkdir()
        (output / "in" / "weights").write_bytes(b"1")
        (output / "README.md").write_text(sign_card("---\ntags:\n- a\n---\n\n# A model\n\nText."))
        if fails:
            raise ValueError("bad tensors")

    return convert


def test_a_converted_directory_is_complete_and_says_where_it_is_from(tmp_path, monkeypatch):
    given, checked = [], []
    original, directory = tmp_path / "a.pt", tmp_path / "cache" / "new"
    original.write_bytes(b"weights")
    monkeypatch.setattr("hf_any3d.conversions.convert_odd", converter(given), raising=False)
    monkeypatch.setattr(module, "_check_config", lambda *more: checked.append(more))
    directory.mkdir(parents=True)
    (directory / "old").touch()
    record = {"name": "me/x", "file": "a.pt", "revision": COMMIT}
    one = Published(SYSTEM, SIZES)
    module._convert(original, directory, SYSTEM, "base", one, record, {"dataset": "x"})
    ((checkpoint, output, more),) = given
    assert (checkpoint, output.name, more) == (original, "x-base", {"dataset": "x"})
    assert checked == [(original, output, one, "base")]
    assert sorted(path.name for path in directory.iterdir()) == ["README.md", "checksums.json", "config.json", "in"]
    assert [path.name for path in directory.parent.iterdir()] == ["new"], "nothing unfinished is left"
    terms = {"weights_license": "CC-BY-NC-4.0", "code_license": "MIT", "non_commercial": True}
    assert json.loads((directory / "config.json").read_text()) == {
        "width": 8, "published": {**record, "sha256": file_digest(original), **terms},
    }  # fmt: skip
    assert json.loads((directory / "checksums.json").read_text()) == {
        "config.json": file_digest(directory / "config.json"), "in/weights": file_digest(directory / "in" / "weights"),
    }  # fmt: skip
    text = (directory / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.license == "cc-by-nc-4.0" and card.data.tags == ["a"] and may_be_replaced(text)
    assert (
        "Text.\n" in text
        and "\n## Terms\n\nWeights: CC-BY-NC-4.0 (stated by its page); program: MIT. The license" in text
    )
    # Of a file without a name the card has that of the file; terms in words are no identifier.
    worded = System("Odd", "convert_odd", "OddModel", "MIT", "as on the card", "its page", "https://x")
    module._convert(original, directory, worded, None, None, {"file": "a.pt"}, {})
    assert given[1][1].name == "a" and len(checked) == 1
    assert ModelCard((directory / "README.md").read_text()).data.license is None
    monkeypatch.setattr("hf_any3d.conversions.convert_odd", converter(given, fails=True), raising=False)
    with pytest.raises(ValueError, match="^bad tensors$"):
        module._convert(original, directory, SYSTEM, "base", one, record, {})
    assert [path.name for path in directory.parent.iterdir()] == ["new"] and (directory / "config.json").exists()


def test_a_directory_is_whole_while_its_files_are_as_they_were_written(tmp_path, caplog):
    directory = tmp_path / "model"
    assert not module._is_whole(directory)
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).write_text(name)
    assert module._is_whole(directory), "converted by an earlier version"
    (directory / "checksums.json").write_text(json.dumps(module._checksums(directory)))
    (directory / "README.md").write_text("edited")
    assert list(module._checksums(directory)) == ["a", "b"] and module._is_whole(directory)
    (directory / "more").touch()
    assert module._is_whole(directory)
    caplog.set_level(logging.WARNING, "hf_any3d.published")
    (directory / "b").write_text("changed")
    assert not module._is_whole(directory) and f"{directory}: b is damaged" in caplog.text
    os.remove(directory / "b")
    assert not module._is_whole(directory)
    (directory / "checksums.json").write_text("{}")
    assert not module._is_whole(directory) and "checksums.json is damaged" in caplog.text
