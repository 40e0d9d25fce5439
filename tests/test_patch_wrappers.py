"""What the wrappers of other libraries' functions pass on, with stand-ins for these functions."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel

import hf_any3d
from hf_any3d import patches
from hf_any3d.modeling.pretrained_parts import AdapterLoadingMixin

OURS = {"model_type": "act3d", "architectures": ["ActForPointCloudClassification"]}


@pytest.fixture
def done(monkeypatch):
    """What the checks are asked; `config` is that of the repository, `adapter` whether it is one of ours."""
    state = SimpleNamespace(asked=[], config=OURS, adapter=False)

    def note(name, answer=None):
        return lambda *given, **more: state.asked.append((name, *given, *([more] if more else []))) or answer

    for name in ("check_name", "check_settings_files", "refuse_foreign_adapters", "check_adapter_config"):
        monkeypatch.setattr(patches, name, note(name))

    @contextmanager
    def stored(place):
        state.asked.append(("stored", place))
        yield

    monkeypatch.setattr(patches, "stored_settings", stored)
    monkeypatch.setattr(patches, "_our_config", lambda *given: state.asked.append(("config", *given)) or state.config)
    monkeypatch.setattr(
        patches, "_is_our_adapter", lambda *given: state.asked.append(("ours?", *given)) or state.adapter
    )
    return state


def original(task=None, model=None, config=None, revision=None, token=None, model_kwargs=None, **kwargs):
    """Stand in for `transformers.pipeline`."""
    given = {"task": task, "model": model, "config": config, "revision": revision, "token": token}
    return {name: value for name, value in given.items() if value is not None} | kwargs | (model_kwargs or {})


@pytest.mark.parametrize(
    ("args", "kwargs", "config"),
    [
        ((), {}, OURS),
        (("text-generation",), {"model": "me/x"}, OURS),
        (("point-cloud-classification", SimpleNamespace()), {}, OURS),
        ((), {"model": "me/x", "token": "t"}, None),
    ],
)
def test_pipelines_of_other_models_are_opened_as_before(args, kwargs, config, done):
    done.config = config
    assert patches._open_pipeline(original)(*args, **kwargs) == original(*args, **kwargs)
    looked = [("config", "me/x", {"token": "t"})] if config is None else []
    assert done.asked == looked


@pytest.mark.parametrize("is_adapter", [True, False])
def test_the_task_of_a_pipeline_is_that_of_its_model(is_adapter, done, monkeypatch):
    done.adapter = is_adapter
    monkeypatch.setattr(patches.AutoConfig, "from_pretrained", lambda *given, **more: ("read", *given, more))
    task = "point-cloud-classification"
    options = {"revision": "v1", "token": None, "cache_dir": "c", "model_kwargs": {"subfolder": "s", "dtype": "d"}}
    hub = {"cache_dir": "c", "revision": "v1", "subfolder": "s"}
    for given in ({"task": task}, {}):
        done.asked.clear()
        found = patches._open_pipeline(original)(model="me/x", local_files_only=True, **given, **options)
        own = hub | {"local_files_only": True}
        assert done.asked == [
            *([] if given else [("config", "me/x", own)]),
            ("check_name", "me/x", own),
            ("check_settings_files", "me/x"),
            ("ours?", "me/x", own),
        ]
        read = ("read", "me/x", {"_from_pipeline": task, **own, "dtype": "d"})
        assert found == {"task": task, "model": "me/x", **own, "dtype": "d"} | ({"config": read} if is_adapter else {})
    mine = patches._open_pipeline(original)(task, "me/x", "my config")
    assert mine == {"task": task, "model": "me/x", "config": "my config"}


def test_a_processor_that_is_damaged_is_named_before_a_pipeline_is_opened(done, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(patches.PointCloudProcessor, "from_pretrained", opened.append)
    done.adapter = True
    task = "point-cloud-classification"
    assert patches._open_pipeline(original)(task, tmp_path) == {"task": task, "model": tmp_path} and opened == []
    (tmp_path / "preprocessor_config.json").touch()
    patches._open_pipeline(original)(task, str(tmp_path))
    assert opened == [str(tmp_path)] and not [entry for entry in done.asked if entry[0] == "ours?"]


@pytest.mark.parametrize(
    ("name", "kwargs", "opened"),
    [
        (
            "BAAI/Uni3D:base",
            {"revision": "v1", "token": "t", "other": 1},
            ("v1", {"token": "t", "local_files_only": None}),
        ),
        ("BAAI/Uni3D:base", {"repo_type": "model"}, (None, {"token": None, "local_files_only": None})),
        ("BAAI/Uni3D:base", {"repo_type": "dataset"}, None),
        ("me/x", {}, None),
        ("HERE", {}, None),
    ],
)
def test_files_of_published_names_are_those_of_the_converted_model(name, kwargs, opened, tmp_path, monkeypatch):
    asked = []
    name = str(tmp_path) if name == "HERE" else name
    monkeypatch.setattr(
        "hf_any3d.published.opened_directory", lambda *given, **hub: asked.append((*given, hub)) or "at"
    )
    found = patches._open_published_checkpoints(lambda *given, **more: (given, more))(name, ["a"], 3, **kwargs)
    assert found == (("at" if opened else name, ["a"], 3), kwargs)
    assert asked == ([] if opened is None else [(name, *opened)])


@pytest.mark.parametrize(
    ("name", "beside", "config", "expected"),
    [
        ("me/x", "adapter", OURS, None),
        ("me/x", "adapter", None, "adapter"),
        ("me/x", None, OURS, None),
        ("HERE", None, OURS, None),
        ("HERE", "adapter", None, "adapter"),
    ],
)
def test_an_adapter_of_ours_is_opened_by_its_own_config(name, beside, config, expected, done, tmp_path):
    done.config, name = config, str(tmp_path) if name == "HERE" else name
    find = patches._open_adapter_repository_by_its_config(lambda *given, **more: beside)
    assert find(name, token="t") == expected
    asks = beside is not None or name != "me/x"
    assert done.asked == ([("config", name, {"token": "t"})] if asks else [])


class Adapted(AdapterLoadingMixin):
    def __init__(self):
        pass


@pytest.mark.parametrize("is_ours", [True, False])
def test_adapters_of_our_models_are_checked_before_they_are_loaded(is_ours, done, tmp_path, monkeypatch):
    monkeypatch.setattr(patches.PeftConfig, "from_pretrained", lambda *given, **hub: ("read", *given, hub))
    load = patches._refuse_missing_adapters(lambda *given, **more: (given, more))
    model, hub = Adapted() if is_ours else torch.nn.Linear(1, 1), {"revision": "v1", "subfolder": "in"}
    assert load(PeftModel, model, tmp_path, 3, dtype="x", **hub) == (
        (PeftModel, model, tmp_path, 3),
        {"dtype": "x", **hub},
    )
    assert done.asked == (
        [
            ("check_name", tmp_path, {"dtype": "x", **hub}),
            ("refuse_foreign_adapters", str(tmp_path), hub),
            ("check_settings_files", tmp_path / "in"),
            ("stored", tmp_path),
            ("check_adapter_config", ("read", str(tmp_path), hub)),
        ]
        if is_ours
        else []
    )


@pytest.mark.parametrize(
    ("text", "content"),
    [('{"a": 1}', {"a": 1}), ("[1]", {}), ("{", {}), ("[" * 100_000, {}), (None, {})],
)
def test_settings_of_a_repository_are_looked_for_without_errors(text, content, tmp_path, monkeypatch):
    asked, path = [], tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(
        patches,
        "cached_file",
        lambda *given, **more: asked.append((*given, more)) or (None if text is None else str(path)),
    )
    found = patches._settings_in("me/x", "config.json", {"revision": "v1", "token": "t", "dtype": "x"})
    assert found == (None if text is None else str(path), content)
    silent = ("gated_repo", "missing_entries", "connection_errors")
    kept = {"revision": "v1", "token": "t"} | {f"_raise_exceptions_for_{name}": False for name in silent}
    assert asked == [("me/x", "config.json", kept)]


@pytest.mark.parametrize(
    ("adapter", "config", "is_ours"),
    [
        ({"auto_mapping": {"parent_library": "hf_any3d.modeling.act"}}, {}, True),
        ({"auto_mapping": {"parent_library": "hf_any3dx"}}, {}, False),
        ({"auto_mapping": {"parent_library": None}}, OURS, True),
        ({"auto_mapping": None}, {"model_type": "bert"}, False),
        ({"auto_mapping": []}, {}, False),
        ({}, OURS, True),
    ],
)
def test_an_adapter_is_ours_by_what_it_records_or_by_the_config_beside_it(
    adapter, config, is_ours, tmp_path, monkeypatch
):
    files = {"adapter_config.json": adapter, "config.json": config}
    monkeypatch.setattr(patches, "_settings_in", lambda model, name, hub: (f"{model}/{name}", files[name]))
    assert patches._is_our_adapter("me/x", {}) is is_ours
    expected = config if config.get("model_type") == "act3d" else None
    assert patches._our_config("me/x", {}) == expected


def test_the_class_that_saved_a_config_is_the_one_it_names_or_the_one_without_a_head():
    found = [
        patches._saved_class({"model_type": "act3d", **more}).__name__
        for more in (
            {"architectures": ["ActForPreTraining"]},
            {"architectures": ["Other", "ActForPartSegmentation"]},
            {"architectures": ["Other"]},
            {"architectures": None},
            {},
        )
    ]
    assert found == ["ActForPreTraining", "ActForPartSegmentation", "ActModel", "ActModel", "ActModel"]


def test_a_patch_is_applied_once_and_keeps_what_it_wraps(monkeypatch):
    class Owner:
        @classmethod
        def of(cls, number):
            """Count."""
            return (cls.__name__, number)

        def plain(self, number):
            return number

    module = SimpleNamespace(Owner=Owner)
    monkeypatch.setitem(patches.sys.modules, "odd_module", module)
    wrap = lambda original: lambda *given: ("wrapped", original(*given))  # noqa: E731
    for name, call in (("of", lambda: Owner.of(3)), ("plain", lambda: Owner().plain(3))):
        before, patch = call(), patches.Patch(f"odd_module:Owner.{name}", "odd", wrap)
        assert patch.module == "odd_module" and patch.owner_and_name() == (Owner, name)
        for _ in range(2):
            patch.apply()
            assert call() == ("wrapped", before)
    assert Owner.of.__doc__ == "Count." and isinstance(vars(Owner)["of"], classmethod)


def test_entries_of_tables_are_added_where_libraries_look_them_up(monkeypatch):
    entry = type("AutoOdd", (), {})
    modules = {"a": SimpleNamespace(), "b": SimpleNamespace()}
    monkeypatch.setattr(patches, "transformers", SimpleNamespace(models=SimpleNamespace(auto=modules["a"])))
    monkeypatch.setitem(patches.sys.modules, "transformers", modules["b"])
    monkeypatch.setattr(patches, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", table := {"x": ["y"]})
    monkeypatch.setattr(patches, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", names := {})
    patches.add_entries([entry], {"odd": ["q"]}, [hf_any3d.MiniGPT3DForConditionalGeneration])
    assert names == {"minigpt3d": "MiniGPT3DForConditionalGeneration"}
    assert all(module.AutoOdd is entry for module in modules.values()) and patches.transformers.AutoOdd is entry
    assert table == {"x": ["y"], "odd": ["q"]}
