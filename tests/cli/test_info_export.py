"""Where `info` keeps facts, what it reads of weights without torch, and what `export`, `push` and `space` pass on."""

import hashlib
import importlib.metadata
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests.cli.conftest import run

module = import_module("hf_any3d.cli.model")
pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

FILES = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the hub's library."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def place_of(home, contents):
    """The file of facts by the versions of the packages and the contents of the configuration files."""
    digest = hashlib.sha256(
        json.dumps([importlib.metadata.version(n) for n in ("hf-any3d", "transformers", "peft")]).encode()
    )
    for name, content in zip(FILES, contents, strict=True):
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return home / "hf_any3d" / "facts" / f"{digest.hexdigest()[:32]}.json"


def test_facts_are_kept_by_the_content_of_the_configuration_files(home, tmp_path, monkeypatch):
    contents = [b"{}", b"", b'{"num_points": 4}', b""]
    model, hub, published = tmp_path / "model", tmp_path / "cache", tmp_path / "opened"
    for folder in (model, hub, published):
        folder.mkdir()
        for name, content in zip(FILES, contents, strict=True):
            if content:
                (folder / name).write_bytes(content)
        (folder / "README.md").write_text("not among them")
    asked = []

    def cached(name, file, revision=None):
        asked.append((name, file, revision))
        # What the hub's library returns for a file that is known not to be there is no path.
        return str(hub / file) if (hub / file).exists() else (None, object())[file == FILES[1]]

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert module._facts_file(str(model), None) == place_of(home, contents)
    assert module._facts_file("me/model", "v1") == place_of(home, contents)
    assert asked == [("me/model", file, "v1") for file in FILES]
    monkeypatch.setattr(module, "is_published", lambda name: name == "me/published")
    monkeypatch.setattr("hf_any3d.published.opened_directory", lambda *given: asked.append(given) or published)
    assert module._facts_file("me/published", "v2") == place_of(home, contents)
    assert asked[4:] == [("me/published", "v2")] * 4
    (model / FILES[3]).write_bytes(b"{}")
    assert module._facts_file(str(model), None) == place_of(home, [*contents[:3], b"{}"])


def test_facts_that_are_kept_have_the_name_that_is_asked_for(home, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    name = str(tmp_path / "model")
    assert module._stored_facts(name, None) is None
    module.store_facts(name, None, {"class": "A", "model": "old"})
    assert module._stored_facts(name, None) == {"class": "A", "model": name}
    module._facts_file(name, None).write_text("[1]")
    assert module._stored_facts(name, None) is None
    for error in (OSError("full"), importlib.metadata.PackageNotFoundError("peft")):
        monkeypatch.setattr(module, "_facts_file", lambda *given, error=error: (_ for _ in ()).throw(error))
        assert module._stored_facts(name, None) is None and module.store_facts(name, None, {}) is None


def test_a_model_that_is_not_known_is_counted_and_printed_in_three_forms(home, monkeypatch):
    asked, kept = [], []
    facts = {"class": "A", "total parameters": 1234567, "labels": ["a", "b"], "points": None, "bias": True}
    monkeypatch.setattr(module, "check_model", lambda *given, **more: asked.append((given, more)) or "found")
    monkeypatch.setattr(module, "_stored_facts", lambda *given: kept[-1] if kept else None)
    monkeypatch.setattr(module, "store_facts", lambda *given: asked.append(given))
    monkeypatch.setattr("hf_any3d.model_facts.model_facts", lambda *given: asked.append(given) or facts)
    lines = [
        "class             A",
        "total parameters  1,234,567",
        "labels            a, b",
        "points            –",
        "bias              yes",
    ]
    assert run("info", "m", "--revision", "v1").out.splitlines() == lines
    commands = ("predict", "zero-shot", "segment", "detect", "features", "reconstruct", "chat")
    assert asked == [(("m", *commands), {"revision": "v1"}), ("found", "v1"), ("found", "v1", facts)]
    kept.append(facts)
    assert json.loads(run("info", "m", "--json").out) == facts and len(asked) == 4
    table = 'fact,value\nclass,A\ntotal parameters,"1,234,567"\nlabels,"a, b"\npoints,–\nbias,yes\n'
    assert run("info", "m", "--csv").out == table
    monkeypatch.setattr(module, "_stored_facts", lambda *given: None)
    monkeypatch.setattr(module, "facts_of_stored_weights", lambda name: {"from": name})
    assert run("info", "m").out == "from  found\n" and len(asked) == 6


CONFIG = {
    "model_type": "act3d",
    "architectures": ["ActForPointCloudClassification"],
    "in_channels": 6,
    "num_groups": 64,
    "id2label": {str(number): f"class {number}" for number in (0, 2, 10, 1)},
}
HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"shape": [3, 5]},
    "a.bias": {"shape": [5]},
    "scale": {"shape": []},
    "norm.running_mean": {"shape": [7]},
    "norm.running_var": {"shape": [7]},
    "norm.num_batches_tracked": {"shape": []},
}


def write(folder, config, header=HEADER, processor=None):
    """Write a model whose weights have a header alone."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(processor)
    return str(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, {}),
        ({"parts": {"text_tower": {}}}, {}),
        ({"parts": None, "side_network": False, "depth_of_batch": False}, {}),
        ({"num_groups": None}, {"tokens": None}),
        ({"id2label": ...}, {"labels": ["LABEL_0", "LABEL_1"]}),
        ({"architectures": ["ActModel"]}, {"class": "ActModel"}),
        ({"architectures": ["ActForPreTraining"]}, None),
        ({"model_type": "any2point"}, None),
        ({"model_type": "bert"}, None),
        ({"model_type": ...}, None),
        ({"side_network": True}, None),
        ({"parts": {"text_tower": {}, "encoder": {}}}, None),
        ({"in_channels": ...}, None),
        ({"depth_of_batch": True}, None),
        ({"equal_patches": True}, None),
        ({"id2label": {"a": "b"}}, None),
    ],
)
def test_parameters_of_plain_models_are_read_from_the_header_of_their_weights(change, told, tmp_path):
    config = {name: value for name, value in (CONFIG | change).items() if value is not ...}
    name = write(tmp_path / "model", config, processor='{"num_points": 48}')
    facts = {
        "model": name,
        "class": "ActForPointCloudClassification",
        "adapter": None,
        "trained parameters": 21,
        "total parameters": 21,
        "labels": ["class 0", "class 1", "class 2", "class 10"],
        "points": 48,
        "channels": 6,
        "tokens": 64,
        "batch-dependent": [],
    }
    found = module.facts_of_stored_weights(name)
    assert found == (None if told is None else facts | told)
    assert found is None or list(found) == list(facts)


def test_weights_that_are_damaged_or_not_alone_are_counted_in_the_complete_way(tmp_path):
    assert module.facts_of_stored_weights(write(tmp_path / "model", CONFIG))["points"] is None
    for header in (b"{", b'{"a": {}}', b'{"a": 1}', b"\xff"):
        assert module.facts_of_stored_weights(write(tmp_path / "model", CONFIG, header)) is None
    assert module.facts_of_stored_weights(write(tmp_path / "model", CONFIG, HEADER, "{")) is None
    name = write(tmp_path / "model", CONFIG, HEADER, "{}")
    assert module.facts_of_stored_weights(name)["points"] is None
    (tmp_path / "model" / "adapter_config.json").touch()
    assert module.facts_of_stored_weights(name) is None
    (tmp_path / "model" / "adapter_config.json").unlink()
    (tmp_path / "model" / "model.safetensors").unlink()
    assert module.facts_of_stored_weights(name) is None


@pytest.mark.parametrize(
    ("config", "auto_class"),
    [
        ({"model_type": "act3d", "architectures": ["ActForPointCloudClassification"]}, "Classification"),
        ({"model_type": "detr3d", "architectures": ["Detr3DForPointCloudObjectDetection"]}, "ObjectDetection"),
        ({}, "Classification"),
    ],
)
@pytest.mark.parametrize("has_processor", [True, False])
def test_options_of_an_export_reach_it(has_processor, config, auto_class, tmp_path, monkeypatch):
    asked = []

    def opened(kind):
        return lambda name, revision: asked.append((kind, name, revision)) or f"a {kind}"

    def processor(name, revision):
        if not has_processor:
            raise OSError("none")
        return f"processor of {name} {revision}"

    exported = SimpleNamespace(path="a.onnx", bytes=1_234_567, worst_difference=0.000123, settings="a.json")
    for kind in ("Classification", "ObjectDetection"):
        monkeypatch.setattr(
            f"hf_any3d.auto.AutoModelForPointCloud{kind}", SimpleNamespace(from_pretrained=opened(kind))
        )
    monkeypatch.setattr("hf_any3d.processing.PointCloudProcessor.from_pretrained", processor)
    monkeypatch.setattr("hf_any3d.export.export_file", lambda *given, **more: asked.append((*given, more)) or exported)
    monkeypatch.setattr(module, "check_model", lambda *given, **more: asked.append((*given, more)) or "found")
    monkeypatch.setattr(module, "read_model_config", lambda name, revision: config)
    line = "a.onnx: 1.2 MB; outputs differ by at most 1.2e-04; settings in a.json\n"
    for words, chosen, revision in ((("--format", "pt2", "--revision", "v1"), "pt2", "v1"), ((), "onnx", None)):
        asked.clear()
        found = run("export", "m", "--output", tmp_path / "a.onnx", *words)
        assert found.code == 0 and found.out == line, found.err
        kept = f"processor of found {revision or 'main'}" if has_processor else None
        assert asked == [
            ("m", "predict", "detect", {"revision": revision}),
            (auto_class, "found", revision),
            (f"a {auto_class}", tmp_path / "a.onnx", chosen, {"processor": kept}),
        ]


def test_the_language_model_of_a_revision_is_exported_with_its_tokenizer(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "check_model", lambda *given, **more: asked.append((*given, more)) or "found")
    for name in ("modeling.minigpt3d.MiniGPT3DForConditionalGeneration", "chat.processing.MiniGPT3DProcessor"):
        monkeypatch.setattr(
            f"hf_any3d.{name}.from_pretrained",
            lambda model, revision: SimpleNamespace(tokenizer=f"tokenizer of {model} {revision}"),
        )

    def export(loaded, output, tokenizer):
        asked.append((output, tokenizer))
        output.mkdir()
        for name, size in (("a", 1_200_000), ("b", 300_000)):
            (output / name).write_bytes(b"0" * size)
        return 0.000123

    monkeypatch.setattr("hf_any3d.export.export_language_model", export)
    for number, (words, revision) in enumerate(((("--revision", "v1"), "v1"), ((), None))):
        output = tmp_path / str(number)
        found = run("export", "m", "--format", "language-model", "--output", output, *words)
        assert found.out == f"{output}: 1.5 MB; logits differ by at most 1.2e-04\n", found.err
        assert asked[-2:] == [
            ("m", "chat", {"revision": revision}),
            (output, f"tokenizer of found {revision or 'main'}"),
        ]


@pytest.mark.parametrize("place", ["train.parquet", "data/train.parquet", "other/train.parquet"])
def test_what_is_pushed_is_a_dataset_with_parquet_files_or_a_model(place, tmp_path, monkeypatch):
    folder, asked = tmp_path / "mine", []
    (folder / place).parent.mkdir(parents=True)
    (folder / place).touch()
    (folder / "config.json").write_text("{}")
    url = type("Url", (str,), {"repo_id": "me/made"})("http://hub/me/made")
    commit = SimpleNamespace(oid="abc")
    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda api, *one, **more: asked.append((one, more)) or url
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda api, **more: asked.append(more) or commit)
    monkeypatch.setattr(module, "_name_card", lambda *given: asked.append(given))
    kind = "model" if place.startswith("other") else "dataset"
    found = run("push", folder, "me/x", "--json")
    assert json.loads(found.out) == {
        "repository": "me/made", "kind": kind, "url": "http://hub/me/made", "commit": "abc",
    }  # fmt: skip
    assert asked[0] == (("me/x",), {"repo_type": kind, "private": None, "exist_ok": True})
    assert asked[1:-1] == ([(folder, "me/made")] if kind == "model" else [])
    assert asked[-1] == {
        "folder_path": folder,
        "repo_id": "me/made",
        "repo_type": kind,
        "revision": None,
        "commit_message": "Push mine",
        "ignore_patterns": asked[-1]["ignore_patterns"],
    }


def test_a_card_with_bytes_that_are_no_text_is_pushed_as_it_is(tmp_path):
    content = b"# Stuhl \xff\n\nMine.\n"
    (tmp_path / "README.md").write_bytes(content)
    module._name_card(tmp_path, "me/x")
    assert (tmp_path / "README.md").read_bytes() == content


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({"architectures": ["ActForPointCloudClassification"]}, ["ActForPointCloudClassification"]),
        ({"architectures": ["ActModel"]}, ["ActModel"]),
        ({"architectures": ["BertModel"]}, []),
        ({"architectures": None}, []),
        ({}, []),
    ],
)
def test_a_missing_card_is_written_of_the_class_that_the_config_names(config, written, tmp_path, monkeypatch):
    made, opened = [], []
    monkeypatch.setattr(module, "read_model_config", lambda name: config)
    monkeypatch.setattr("hf_any3d.model_card.saving.write_model_card", lambda *given: made.append(given))
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained",
        classmethod(lambda cls, folder, **_: opened.append((cls.__name__, folder)) or "loaded"),
    )
    for kind in written:
        found = next(
            one
            for base, heads in import_module("hf_any3d.registration").MODELS.values()
            for one in (base, *(head for some in heads.values() for head in some))
            if one.__name__ == kind
        )
        monkeypatch.setattr(
            found,
            "from_pretrained",
            classmethod(lambda cls, folder: opened.append((cls.__name__, folder)) or "loaded"),
        )
    module._name_card(tmp_path, "me/x")
    assert opened == [(kind, tmp_path) for kind in written]
    assert made == [("loaded", tmp_path, "me/x") for _ in written]


def test_a_space_is_three_files_and_none_replaces_another(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "find_model", lambda name: asked.append(name) or "me/found")
    monkeypatch.setattr(module, "read_model_config", lambda name: asked.append(name) or {"model_type": "act3d"})
    monkeypatch.setattr("hf_any3d.cli.common.kind_of_model", lambda config: ("a classifier", "predict"))

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    output = tmp_path / "space"
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", version)
        found = run("space", "me/x", "--output", output, "--title", "Stühle")
    assert asked == ["me/x", "me/found"] and found.out.splitlines() == [
        f"{output}: app.py, requirements.txt, README.md",
        f"try it: python {output / 'app.py'}; publish it: hf upload OWNER/NAME {output} . --repo-type space",
    ]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert 'title: "Stühle"\n' in card and "\n# Stühle\n" in card and "sdk_version: 6.0.0\n" in card
    assert "models:\n- me/found\n" in card and ", a classifier of the library hf_any3d." in card
    assert 'app(["demo", \'me/found\', "--host", "0.0.0.0", "--port", "7860"])' in (output / "app.py").read_text()
    for name in ("app.py", "requirements.txt", "README.md"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).touch()
        error = f"error: {other / name} exists; expected a new folder for --output\n"
        assert run("space", "me/x", "--output", other).err == error and len(list(other.iterdir())) == 1
    assert Path(output / "requirements.txt").read_text().endswith("\ntorch>=2.10\n")
