"""Versions of files on the hub, what is fetched, and checksums by which downloads are told from damaged ones."""

import hashlib
import json
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.hf_api import RepoFile
from safetensors.torch import load_file, save_file

from hf_any3d.hub import downloads as module
from hf_any3d.hub.downloads import _checksum, find_version
from hf_any3d.hub.published_table import BorrowedPart, PublishedFile
from tests.errors import raises

# The client that the hub uses: another one has errors of its own.
CLIENT = import_module(errors.HTTPError.__module__.partition(".")[0])
RESPONSE = CLIENT.Response(404, request=CLIENT.Request("GET", "http://hub"))
COMMIT, CHECKSUM = "a" * 40, "d" * 64


@pytest.mark.parametrize(
    ("content", "blob"),
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_small_files_are_named_as_git_does_and_large_ones_by_their_content(content, blob, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    assert _checksum(file, blob) == blob
    assert _checksum(file, "0" * 64) == hashlib.sha256(content).hexdigest()


def test_files_of_several_pieces_have_one_checksum(tmp_path):
    content = bytes(range(256)) * 8200  # two megabytes and a bit
    file = tmp_path / "file"
    file.write_bytes(content)
    expected = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert _checksum(file, "0" * 40) == expected


class Hub:
    """What the hub answers, or the error that it raises, and what it was asked."""

    def __init__(self, monkeypatch):
        self.asked, self.answer = [], SimpleNamespace(commit_hash=COMMIT, etag=CHECKSUM)
        monkeypatch.setattr(module, "get_hf_file_metadata", self.metadata)

    def metadata(self, url, token, timeout):
        self.asked.append((url.rpartition("resolve/")[2], token))
        assert timeout > 0
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Hub(monkeypatch)


FILE = PublishedFile("in/a.pt")


def test_a_version_is_asked_for_and_kept_under_its_branch_and_its_commit(hub, tmp_path):
    version = module.Version(COMMIT, CHECKSUM)
    assert find_version("me/x", "base", FILE, None, tmp_path, {"token": "t"}) == version
    assert hub.asked == [("main/in/a.pt", "t")]
    places = [tmp_path / "revisions" / name / "base.json" for name in ("main", COMMIT)]
    assert sorted(tmp_path.rglob("*.json")) == sorted(places)
    assert all(json.loads(path.read_text()) == {"commit": COMMIT, "checksum": CHECKSUM} for path in places)
    # A commit is known for good, a branch is asked for again.
    assert find_version("me/x", "base", FILE, COMMIT, tmp_path, {}) == version and len(hub.asked) == 1
    hub.answer = SimpleNamespace(commit_hash="b" * 40, etag="c" * 40)
    assert find_version("me/x", "base", FILE, None, tmp_path, {}).commit == "b" * 40 and len(hub.asked) == 2
    find_version("me/x", None, FILE, "refs/pr/1", tmp_path, {})
    assert (tmp_path / "revisions" / "refs%2Fpr%2F1" / "model.json").is_file()


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("offline", "HF_HUB_OFFLINE is set"),
        ("local", "local_files_only=True"),
        (OSError("x"), r"the hub cannot be reached \(OSError\)"),
        (errors.OfflineModeIsEnabled("x"), r"the hub cannot be reached \(OfflineModeIsEnabled\)"),
        (CLIENT.ConnectError("x"), r"the hub cannot be reached \(ConnectError\)"),
    ],
)
def test_without_the_hub_the_last_known_version_is_taken(reason, told, hub, tmp_path, monkeypatch):
    find_version("me/x", "base", FILE, None, tmp_path, {})
    arguments = {"local_files_only": True} if reason == "local" else {}
    if isinstance(reason, Exception):
        hub.answer = reason
    elif reason == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_version("me/x", "base", FILE, None, tmp_path, arguments) == module.Version(COMMIT, CHECKSUM)
    assert len(hub.asked) == 1 + isinstance(reason, Exception)
    for size, revision, at in (("tiny", None, ""), ("base", "v1", " at revision v1")):
        text = rf"^me/x: in/a.pt{at} was never opened on this machine, and {told}; open it once with a network, or"
        with pytest.raises(OSError, match=text):
            find_version("me/x", size, FILE, revision, tmp_path, arguments)
    (tmp_path / "revisions" / "main" / "base.json").write_text(
        json.dumps({"commit": COMMIT[1:], "checksum": CHECKSUM})
    )
    with pytest.raises(OSError, match="was never opened on this machine"):
        find_version("me/x", "base", FILE, None, tmp_path, arguments)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("GatedRepoError", r"^me/x: no such repository on the hub, or no access to it \(for a private or gated one: "),
        ("RepositoryNotFoundError", "^me/x: no such repository on the hub, or no access"),
        ("RevisionNotFoundError", "^me/x: no revision 'v1' on the hub$"),
        (
            "RemoteEntryNotFoundError",
            "^me/x: revision 'v1' has no in/a.pt, the file that its authors published; if it",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_named(error, told, hub, tmp_path):
    hub.answer = getattr(errors, error)("x", response=RESPONSE)
    with pytest.raises(FileNotFoundError, match=told):
        find_version("me/x", "base", FILE, "v1", tmp_path, {})


@pytest.mark.parametrize(("commit", "checksum"), [(COMMIT[1:], CHECKSUM), (COMMIT, CHECKSUM[1:]), (None, None)])
def test_odd_answers_of_the_hub_are_refused(commit, checksum, hub, tmp_path):
    hub.answer = SimpleNamespace(commit_hash=commit, etag=checksum)
    told = f"^me/x: the hub names commit {commit or ''!r} and checksum {checksum or ''!r} of in/a.pt; expected 40 hexa"
    with pytest.raises(OSError, match=told):
        find_version("me/x", None, FILE, None, tmp_path, {})
    assert not list(tmp_path.iterdir())


def test_a_download_has_the_checksum_of_the_hub(hub, tmp_path, monkeypatch):
    asked, file = [], tmp_path / "a.pt"
    file.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    state = {"answer": str(file)}

    def fetch(*given, **more):
        asked.append((*given, more))
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        return state["answer"]

    monkeypatch.setattr(module, "hf_hub_download", fetch)
    get = partial(module.download, "me/x", "in/a.pt", commit=COMMIT)
    assert get(cache_dir=None, hub={}, checksum=digest) == file and not hub.asked
    hub.answer.etag = digest
    assert get(cache_dir=tmp_path, hub={"token": "t", "local_files_only": True}) == file
    assert hub.asked == [(f"{COMMIT}/in/a.pt", "t")]
    assert asked == [
        ("me/x", "in/a.pt", {"revision": COMMIT, "cache_dir": None, "token": None, "local_files_only": False}),
        ("me/x", "in/a.pt", {"revision": COMMIT, "cache_dir": tmp_path, "token": "t", "local_files_only": True}),
    ]
    with pytest.raises(ValueError, match=f"a.pt: the file of me/x has checksum {digest}; expected {'0' * 64}, as on"):
        get(cache_dir=None, hub={}, checksum="0" * 64)
    for error, kind, told in (
        (
            errors.LocalEntryNotFoundError("x"),
            OSError,
            "^me/x: in/a.pt is not in the hub's cache, and the hub cannot be",
        ),
        (
            errors.RemoteEntryNotFoundError("x", response=RESPONSE),
            FileNotFoundError,
            f"^me/x: commit {COMMIT} has no in/a.pt, which the conversion needs$",
        ),
        (
            OSError("full"),
            OSError,
            r"^me/x: the download of in/a.pt failed \(OSError: full\); call again to continue it$",
        ),
        (
            CLIENT.ReadTimeout("slow"),
            OSError,
            r"^me/x: the download of in/a.pt failed \(ReadTimeout: slow\); call again",
        ),
    ):
        state["answer"] = error
        with pytest.raises(kind, match=told):
            get(cache_dir=None, hub={}, checksum=digest)


@pytest.mark.parametrize(
    ("names", "fetched"),
    [
        (
            ["a.safetensors", "a.bin", "c.json", "t.txt", "x.jinja", "b.safetensors", "z.md"],
            "a.safetensors b.safetensors c.json t.txt x.jinja",
        ),
        (["a.bin", "c.json"], "a.bin c.json"),
        (["c.json"], "c.json"),
        (["z.md"], None),
    ],
)
def test_of_a_folder_settings_and_one_form_of_weights_are_fetched(names, fetched, tmp_path, monkeypatch):
    asked, version = [], module.Version(COMMIT, CHECKSUM)

    def tree(own, repository, path, revision):
        asked.append((repository, path, revision))
        files = [RepoFile(path=f"in/{name}", size=1, oid="x") for name in names]
        return [*files, SimpleNamespace(path="in/folder.json")]

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_tree", tree)
    fetch = lambda repository, name: asked.append((repository, name)) or tmp_path / name  # noqa: E731
    assert module.fetch_part("me/x", "in/a.pt", fetch, version, {}) == tmp_path / "in" / "a.pt"
    asked.clear()
    if fetched is None:
        with raises(FileNotFoundError, naming="config.json"):
            module.fetch_part("me/x", "in/", fetch, version, {})
        return
    assert module.fetch_part("me/x", "in/", fetch, version, {"token": "t"}) == tmp_path / "in"
    assert asked == [("me/x", "in", COMMIT), *(("me/x", f"in/{name}") for name in fetched.split())]
    for error, kind, told in (
        (
            errors.RemoteEntryNotFoundError("x", response=RESPONSE),
            FileNotFoundError,
            f"^me/x: commit {COMMIT} has no folder in/, which the conversion needs$",
        ),
        (OSError("x"), OSError, r"^me/x: the hub cannot be reached \(OSError: x\)$"),
    ):
        monkeypatch.setattr(
            "huggingface_hub.HfApi.list_repo_tree", lambda *_, error=error, **__: (_ for _ in ()).throw(error)
        )
        with pytest.raises(kind, match=told):
            module.fetch_part("me/x", "in/", fetch, version, {})


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_borrowed_part_is_a_model_of_some_tensors_for_a_while(is_sharded, tmp_path, monkeypatch):
    snapshot, asked = tmp_path / COMMIT, []
    snapshot.mkdir()
    (snapshot / "config.json").write_text('{"a": 1}')
    numbers = {name: torch.full((2,), float(place)) for place, name in enumerate(("q.a", "q.b", "tokens", "other"))}
    if is_sharded:
        places = {"q.a": "2", "q.b": "1", "tokens": "1", "other": "3"}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        for file in "123":
            save_file({name: numbers[name] for name, place in places.items() if place == file}, snapshot / file)
    else:
        save_file(numbers, snapshot / "model.safetensors")

    def fetch(repository, name, **given):
        asked.append((repository, name, given))
        if not (snapshot / name).exists():
            raise FileNotFoundError(name)
        return snapshot / name

    monkeypatch.setattr(module, "download", fetch)
    monkeypatch.setattr(module, "hf_hub_download", fetch)
    part, hub = BorrowedPart("them/y", ("q.", "tokens")), {"token": "t"}
    with module.borrowed_part(part, tmp_path / "cache", tmp_path / "hub", hub) as folder:
        assert folder.parent == tmp_path / "cache" and json.loads((folder / "config.json").read_text()) == {"a": 1}
        found = load_file(folder / "model.safetensors")
        assert {name: tensor.tolist() for name, tensor in found.items()} == {
            "q.a": [0, 0], "q.b": [1, 1], "tokens": [2, 2],
        }  # fmt: skip
    assert not list((tmp_path / "cache").iterdir())
    files = ["1", "2"] if is_sharded else ["model.safetensors"]
    further = {"commit": COMMIT, "cache_dir": tmp_path / "hub", "hub": hub}
    assert asked == [
        ("them/y", "config.json", {"cache_dir": tmp_path / "hub", "token": "t"}),
        *(("them/y", name, further) for name in ("model.safetensors.index.json", *files)),
    ]
    for error in (CLIENT.ConnectError("x"), errors.LocalEntryNotFoundError("x")):
        monkeypatch.setattr(module, "hf_hub_download", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        text = rf"^them/y: a part of the model cannot be fetched \({type(error).__name__}: x\)$"
        with pytest.raises(OSError, match=text), module.borrowed_part(part, tmp_path / "cache", None, {}):
            pass
