"""Published checkpoints open by their names, from files of the published names and layouts on the local hub."""

import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors, file_download
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

import hf_any3d
from hf_any3d import AutoModelForZeroShotPointCloudClassification, MiniGPT3DForConditionalGeneration, conversions
from hf_any3d.hub.licenses import ACCEPT
from hf_any3d.hub.published_table import PUBLISHED, SIZE_MARK
from hf_any3d.modeling.records import Published, PublishedFile
from hf_any3d.published import _OPENED, open_published, opened_directory, published_directory
from tests.cli.conftest import run
from tests.conversions.aligned_originals import openshape_flat, openshape_training, patchalign3d, uni3d
from tests.conversions.minigpt3d_originals import Originals
from tests.errors import raises
from tests.modeling.ptv3_case import SupervisedCase, ptv3_original
from tests.tiny_aligned import tiny_aligned
from tests.tiny_text_towers import tiny_clip_files
from tests.turns import some

NAME = "OpenShape/openshape-pointbert-vitb32-rgb"
UNI3D = "BAAI/Uni3D"
TOWER = "openai/clip-vit-base-patch32"
TINY = "modelzoo/uni3d-ti/model.pt"
CHAIR = "tests/files/chair.ply"
FORKED = multiprocessing.get_context("fork")  # others would import the libraries again


def stored(content: dict) -> bytes:
    """The bytes that the authors' programs would write."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def forget(repository: str) -> None:
    """Remove a repository from all caches, as on a new machine."""
    name = repository.replace("/", "--")
    shutil.rmtree(Path(constants.HF_HOME, "hf_any3d", "published", name), ignore_errors=True)
    shutil.rmtree(Path(constants.HF_HUB_CACHE, f"models--{name}"), ignore_errors=True)
    _OPENED.clear()


@pytest.fixture(scope="module")
def openshape() -> bytes:
    """`model.pt` of the encoder aligned with CLIP B/32, with one block."""
    return stored(openshape_flat("vitb32"))


@pytest.fixture(scope="module")
def tiny_uni3d() -> bytes:
    """`model.pt` of the tiny size, with one block."""
    return stored(uni3d("uni3d_manifest_tiny", "module."))


@pytest.fixture
def published_files(hub, openshape, tiny_uni3d, monkeypatch):
    """The repositories as their authors published them, on a machine that has opened none."""
    files = {"model.pt": openshape, "README.md": b"# OpenShape\n"}
    commits = {NAME: hub.commit(NAME, files, in_lfs=True), UNI3D: hub.commit(UNI3D, {TINY: tiny_uni3d}, in_lfs=True)}
    # Files of the tests have one block, whatever their width.
    shallow = {
        size: PublishedFile(file.path, {name: value for name, value in file.config.items() if "layers" not in name})
        for size, file in PUBLISHED[UNI3D].files.items()
    }
    monkeypatch.setitem(PUBLISHED, UNI3D, Published(PUBLISHED[UNI3D].system, shallow, PUBLISHED[UNI3D].texts))
    monkeypatch.delenv(ACCEPT, raising=False)
    yield commits
    monkeypatch.undo()  # the network is back
    hub.faults.clear()
    for name in commits:
        huggingface_hub.delete_repo(name)
        forget(name)


@pytest.fixture
def text_tower(hub, tmp_path):
    """A tiny CLIP with the width of features and the name of the published one."""
    hub.commit(TOWER, tiny_clip_files(tmp_path / "clip", 512))
    yield TOWER
    huggingface_hub.delete_repo(TOWER)
    forget(TOWER)


@pytest.mark.slow
def test_a_published_name_opens_in_one_line_and_without_a_network_afterwards(
    hub, published_files, monkeypatch, capsys
):
    before = len(hub.requests)
    model = open_published(NAME)
    assert type(model).__name__ == "OpenShapeForZeroShotPointCloudClassification" and not model.training
    assert model.name_or_path == NAME
    fetched = {path for method, path in hub.requests[before:] if method == "GET" and f"/{NAME}/resolve/" in path}
    assert fetched == {f"/{NAME}/resolve/{published_files[NAME]}/model.pt"}  # the file that is needed, at its commit
    record = model.config.published
    assert record["revision"] == published_files[NAME] and record["file"] == "model.pt" and len(record["sha256"]) == 64
    assert (record["weights_license"], record["code_license"]) == ("MIT", "Apache-2.0")
    card = (published_directory(NAME) / "README.md").read_text()
    assert "license: mit" in card and "program: Apache-2.0" in card and "# openshape-pointbert-vitb32-rgb\n" in card
    assert capsys.readouterr().err.count("Weights: MIT") == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _OPENED.clear()
    before = len(hub.requests)
    again = open_published(NAME)
    assert len(hub.requests) == before
    assert "Weights:" not in capsys.readouterr().err  # the license is shown once
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.slow
def test_pipelines_and_auto_classes_take_published_names(published_files, text_tower):
    classify = pipeline("zero-shot-point-cloud-classification", model=NAME)
    answers = classify(CHAIR, candidate_labels=["chair", "table"])
    assert sorted(answer["label"] for answer in answers) == ["chair", "table"]
    assert pipeline("point-cloud-feature-extraction", model=NAME)(CHAIR)["pooled"].shape == (512,)
    tiny = f"{UNI3D}{SIZE_MARK}tiny"
    assert AutoConfig.from_pretrained(tiny).model_type == "uni3d"
    assert AutoModel.from_pretrained(tiny).name_or_path == tiny
    assert AutoProcessor.from_pretrained(tiny).default_rgb == [0.4, 0.4, 0.4]


@pytest.mark.slow
def test_commands_take_published_names(published_files, text_tower, libraries_as_they_were):
    words = ("predict", CHAIR, "--model", NAME, "--labels", "chair, table", "--json")
    code, out, _ = run(*words)
    assert code == 0 and {entry["label"] for entry in json.loads(out)[0]["predictions"]} == {"chair", "table"}
    assert run("zero-shot", *words[1:])[:2] == (code, out)
    code, _, err = run("predict", CHAIR, "--model", UNI3D, "--labels", "chair, table")
    assert code == 1 and "no size is given; expected one of tiny, tiny-no-lvis, small" in err


@pytest.mark.slow
def test_a_command_fetches_and_copies_a_checkpoint(published_files, tmp_path):
    code, out, err = run("convert", NAME, "--output", tmp_path / "copy")
    assert code == 0 and str(tmp_path / "copy") in out and "Weights: MIT" in err
    assert AutoModel.from_pretrained(tmp_path / "copy").config.published["name"] == NAME
    code, out, _ = run("info", f"{UNI3D}:tiny", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["class"] == PUBLISHED[UNI3D].system.model_class
    code, _, err = run("convert", f"{UNI3D}:huge")
    assert code == 1 and err.startswith("error: BAAI/Uni3D: size='huge'; expected one of tiny, ")


@pytest.mark.slow
def test_without_a_class_of_the_text_tower_features_from_elsewhere_are_taken(published_files, tmp_path):
    import numpy as np

    classify = pipeline("zero-shot-point-cloud-classification", model=f"{UNI3D}:tiny")
    with raises(ValueError, naming="OpenCLIP"):
        classify(CHAIR, candidate_labels=["chair", "table"])
    features = np.random.default_rng(0).normal(size=(2, 1024)).astype(np.float32)
    answers = classify(CHAIR, candidate_labels=["chair", "table"], text_embeds=features)
    with raises(ValueError, naming="text_embeds"):
        classify(CHAIR, candidate_labels=["chair"], text_embeds=features)
    np.save(tmp_path / "texts.npy", features)
    words = ("predict", CHAIR, "--model", f"{UNI3D}:tiny", "--labels", "chair,table", "--json")
    code, _, err = run(*words)
    assert code == 1 and "--text-features" in err
    code, out, _ = run(*words, "--text-features", tmp_path / "texts.npy")
    assert code == 0
    scores = {entry["label"]: entry["score"] for entry in json.loads(out)[0]["predictions"]}
    assert scores == pytest.approx({answer["label"]: answer["score"] for answer in answers}, abs=1e-5)


@pytest.mark.slow
def test_the_size_must_be_that_of_the_tensors(hub, published_files, tiny_uni3d, tmp_path):
    hub.commit(UNI3D, {"modelzoo/uni3d-b/model.pt": tiny_uni3d}, in_lfs=True)
    with raises(ValueError, naming="hidden_size"):
        open_published(UNI3D, size="base")
    for size, message in ((None, "no size is given"), ("huge", "size='huge'; expected one of tiny, ")):
        with pytest.raises(ValueError, match=message):
            open_published(UNI3D, size=size)
    with pytest.raises(ValueError, match="a single checkpoint, leave size out"):
        open_published(NAME, size="base")
    with raises(errors.EntryNotFoundError, naming="modelzoo/uni3d-s/model.pt"):
        open_published(UNI3D, size="small")
    assert open_published(UNI3D, size="tiny").name_or_path == "BAAI/Uni3D:tiny"
    path = tmp_path / "mine.pt"
    path.write_bytes(tiny_uni3d)
    with raises(ValueError, naming="mine.pt"):
        open_published(path, size="giant")
    assert open_published(path).config.hidden_size == 192


@pytest.mark.slow
def test_a_file_of_the_authors_opens_by_its_path(tmp_path, openshape):
    path = tmp_path / "downloaded.pt"
    path.write_bytes(openshape)
    model = open_published(path, cache_dir=tmp_path / "cache")
    assert model.config.published["file"] == "downloaded.pt" and "name" not in model.config.published
    assert open_published(path, cache_dir=tmp_path / "cache", dtype="float16").dtype == torch.float16
    assert len(list((tmp_path / "cache" / "local").glob("*-v2*"))) == 1
    torch.save({"model": {"layer.weight": torch.ones(2)}}, path)
    with raises(ValueError, naming="OpenShape"):
        open_published(path)
    for name, error, message in (
        (tmp_path / "missing.pt", FileNotFoundError, "no file .*missing.pt"),
        ("someone/other", ValueError, "not a published checkpoint; expected one of .*OpenShape/"),
        (tmp_path, ValueError, "not a published checkpoint"),
    ):
        with pytest.raises(error, match=message):
            open_published(name)


@pytest.mark.slow
def test_an_adapter_names_the_published_checkpoint_and_opens_from_it(published_files, tmp_path):
    name = f"{UNI3D}:tiny"
    lora = LoraConfig(target_modules=["qkv"], init_lora_weights=False, modules_to_save=["alignment"])
    model = get_peft_model(open_published(name), lora)
    model.save_pretrained(tmp_path)
    base = AutoConfig.from_pretrained(tmp_path).part("base")
    assert (base.name_or_path, base.revision) == (name, published_files[UNI3D])
    clouds = torch.rand(1, 600, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.get_point_features(clouds)
        _OPENED.clear()
        again = AutoModelForZeroShotPointCloudClassification.from_pretrained(tmp_path).get_point_features(clouds)
    torch.testing.assert_close(again, expected)


def no_leftovers() -> None:
    """Nothing but whole models, and what is known about them, is in the cache."""
    for path in Path(constants.HF_HOME, "hf_any3d", "published").glob("*--*/*"):
        assert (
            # Files that have an address of their own are kept, as the hub's cache keeps others.
            path.name in ("license.json", "revisions", "files")
            or path.name.endswith((".lock", ".tmp.lock"))
            or "-v2" in path.name
        ), path
        assert "-v1" not in path.name or (path / "model.safetensors").is_file()


@pytest.mark.slow
def test_an_interrupted_download_is_one_error_and_continues(hub, published_files, monkeypatch):
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between attempts
    path = f"/{NAME}/resolve/{published_files[NAME]}/model.pt"
    hub.faults[path] = lambda body: body[: len(body) // 4]
    with pytest.raises(OSError, match=f"{NAME}: the download failed .*; call again to continue it"):
        open_published(NAME)
    no_leftovers()
    del hub.faults[path]
    assert open_published(NAME).config.model_type == "openshape"
    no_leftovers()


@pytest.mark.slow
def test_a_damaged_download_is_refused_by_its_checksum(hub, published_files):
    path = f"/{NAME}/resolve/{published_files[NAME]}/model.pt"
    hub.faults[path] = lambda body: body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(
        ValueError, match="has checksum [0-9a-f]{64}; expected [0-9a-f]{64}, as on the Hub. .* delete it"
    ):
        open_published(NAME)
    no_leftovers()


@pytest.mark.parametrize(
    "harm", some(["flipped", "truncated", "gone", "config", "list"], left_out=["truncated", "config"])
)
def test_a_damaged_converted_model_is_converted_again(published_files, harm, caplog):
    directory = published_directory(NAME)
    # A copy: the file below the mapped tensors is damaged.
    expected = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    file = directory / {"config": "config.json", "list": "checksums.json"}.get(harm, "model.safetensors")
    content = bytearray(file.read_bytes())
    content[-2] ^= 0x55
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if harm in ("truncated", "list") else content)
    _OPENED.clear()
    caplog.clear()
    model = open_published(NAME)
    assert [line for line in caplog.messages if f"{file.name} is damaged; the published file is converted" in line]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items() if name in expected)
    caplog.clear()
    _OPENED.clear()
    open_published(NAME)
    assert not [line for line in caplog.messages if "damaged" in line]


@pytest.mark.parametrize("content", ["[]", "{", 200_000 * "[", '{"commit": 5}'])
def test_a_damaged_record_of_a_revision_is_asked_for_again(published_files, content, monkeypatch):
    published_directory(NAME)
    (record,) = Path(constants.HF_HOME, "hf_any3d", "published", NAME.replace("/", "--")).glob("revisions/main/*")
    before = record.read_text()
    record.write_text(content)
    with monkeypatch.context() as offline, pytest.raises(OSError, match="is not in the Hub cache"):
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        published_directory(NAME)
    published_directory(NAME)
    assert record.read_text() == before


@pytest.mark.slow
def test_a_new_commit_is_seen_and_a_pinned_one_stays(hub, published_files, openshape):
    first = published_directory(NAME)
    hub.commit(NAME, {"README.md": b"# New\n"}, in_lfs=True)
    before = len(hub.requests)
    assert published_directory(NAME) == first  # the same file: nothing is fetched or converted again
    assert [method for method, _ in hub.requests[before:]] == ["HEAD"]
    changed = openshape_flat("vitb32")
    changed["pc_encoder.cls_token"] = torch.ones_like(changed["pc_encoder.cls_token"])
    hub.commit(NAME, {"model.pt": stored(changed)}, in_lfs=True)
    assert published_directory(NAME) != first
    before = len(hub.requests)
    assert published_directory(NAME, revision=published_files[NAME]) == first
    assert len(hub.requests) == before  # a commit does not change
    assert opened_directory(NAME, published_files[NAME]) == first
    with raises(errors.RevisionNotFoundError, naming="v9"):
        published_directory(NAME, revision="v9")


def test_without_a_network_what_was_never_opened_is_one_error(published_files, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"{NAME}: model.pt is not in the Hub cache .HF_HUB_OFFLINE is set."):
        pipeline("point-cloud-feature-extraction", model=NAME)


@pytest.mark.slow
def test_processes_that_open_at_the_same_time_convert_once(published_files, monkeypatch, tmp_path):
    convert, started = conversions.convert_openshape, FORKED.Barrier(2)

    def counted(**arguments):
        (tmp_path / f"by-{os.getpid()}").touch()
        time.sleep(0.5)  # the other one would begin, and find a part
        return convert(**arguments)

    def open_in_child():
        try:
            started.wait(60)
            directory = published_directory(NAME)
            load_file(directory / "model.safetensors")
            (tmp_path / f"at-{os.getpid()}").write_text(str(directory))
        finally:
            os._exit(0)

    monkeypatch.setattr(conversions, "convert_openshape", counted, raising=False)
    children = [FORKED.Process(target=open_in_child) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert len(list(tmp_path.glob("by-*"))) == 1
    found = [path.read_text() for path in tmp_path.glob("at-*")]
    assert len(found) == 2 and len(set(found)) == 1
    assert [path.name for path in Path(found[0]).parent.glob("*-v*")] == [Path(found[0]).name]


def test_a_license_that_forbids_commercial_use_is_asked_for_once(published_files, monkeypatch, capsys):
    kept = {"title": "Kept", "non_commercial": True, "weights_license": "CC-BY-NC-4.0"}
    system = dataclasses.replace(PUBLISHED[NAME].system, **kept)
    monkeypatch.setitem(PUBLISHED, NAME, Published(system, PUBLISHED[NAME].files))
    question = f"{NAME}: the weights are under CC-BY-NC-4.0 .* forbids commercial use; .* accept_license=True"
    with pytest.raises(ValueError, match=question):
        pipeline("point-cloud-feature-extraction", model=NAME)
    monkeypatch.setenv(ACCEPT, f"someone/else, {NAME}")
    assert open_published(NAME).config.published["non_commercial"] is True
    assert "forbids commercial use" in capsys.readouterr().err
    monkeypatch.delenv(ACCEPT)
    with pytest.raises(ValueError, match=question):
        open_published(NAME)  # a setting holds as long as it is set
    open_published(NAME, accept_license=True)
    assert "license: cc-by-nc-4.0" in (published_directory(NAME) / "README.md").read_text()
    assert open_published(NAME).name_or_path == NAME


@pytest.mark.slow
def test_a_supervised_model_opens_with_the_rules_of_its_training(hub, monkeypatch, tmp_path):
    name, case = "Pointcept/PointTransformerV3", SupervisedCase("ptv1_segment")
    entry = PUBLISHED[name]
    assert all(file.options["trained_with"] == "pointcept-1.5.1" for file in entry.files.values())
    (tmp_path / "arguments.json").write_text(json.dumps(case.arguments))
    file = entry.files["scannet"]
    options = {**file.options, "arguments": str(tmp_path / "arguments.json")}
    small = dataclasses.replace(file, config={"block_rule": "branch"}, options=options)
    hub.commit(name, {file.path: stored({"epoch": 1, "state_dict": case.tensors()})}, in_lfs=True)
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(entry, files={"scannet": small}))
    try:
        model = open_published(name, size="scannet")
        assert model.config.block_rule == "branch" and model.config.id2label[0] == "wall"
    finally:
        huggingface_hub.delete_repo(name)
        forget(name)


@pytest.mark.slow
def test_a_head_is_a_checkpoint_of_its_own(hub, monkeypatch):
    name, content = "facebook/sonata", ptv3_original("sonata")
    width = sum(content["config"]["enc_channels"])
    head = {"seg_head.weight": torch.randn(20, width), "seg_head.bias": torch.randn(20)}
    settings = {"backbone_out_channels": width, "num_classes": 20}
    head_file = stored({"config": settings, "state_dict": head})
    files = {"sonata.pth": stored(content), "sonata_linear_prob_head_sc.pth": head_file}
    hub.commit(name, files, in_lfs=True)
    entry = PUBLISHED[name]
    reduced = {size: dataclasses.replace(file, config={}) for size, file in entry.files.items()}
    monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(entry, files=reduced))
    try:
        with pytest.raises(ValueError, match="facebook/sonata: the weights are under CC-BY-NC-4.0"):
            open_published(name, size="base")
        model = open_published(name, size="scannet", accept_license=True)
        assert type(model).__name__ == "PointTransformerV3ForPointCloudSegmentation"
        assert torch.equal(model.segmenter.out.weight, head["seg_head.weight"])
        assert type(open_published(name, size="base")).__name__ == entry.system.model_class  # accepted before
    finally:
        huggingface_hub.delete_repo(name)
        forget(name)


@pytest.mark.slow
def test_minigpt3d_opens_by_its_name_with_parts_of_two_repositories(hub, tmp_path, libraries_as_they_were):
    (name, blip2), paths = Originals().publish(hub, tmp_path / "originals")
    before = len(hub.requests)
    try:
        pipe = pipeline("point-cloud-text-to-text", model=str(published_directory(name, accept_license=True)))
        fetched = [path for method, path in hub.requests[before:] if method == "GET"]
        assert not [path for path in fetched if path.endswith(("model-1.safetensors", "pytorch_model.bin"))]
        expected = tmp_path / "converted"
        conversions.convert_minigpt3d(expected, **paths)
        other = MiniGPT3DForConditionalGeneration.from_pretrained(expected).state_dict()
        assert other.keys() == pipe.model.state_dict().keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in pipe.model.state_dict().items())
        _OPENED.clear()
        by_name = open_published(name)
        assert by_name.name_or_path == name and by_name.config.parts is None
        assert pipeline("point-cloud-text-to-text", model=name).processor.tokenizer.eos_token_id is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", True)
            _OPENED.clear()
            assert pipeline("point-cloud-text-to-text", model=name).model.name_or_path == name
        with raises(ValueError, naming="MiniGPT"):
            open_published(paths["second_checkpoint"])
        code, out, _ = run("chat", name, CHAIR, "--max-new-tokens", 2, stdin="What is this?\n")
        assert code == 0
    finally:
        for repository in (name, blip2):
            huggingface_hub.delete_repo(repository)
            forget(repository)


@pytest.mark.slow
def test_every_size_and_every_layout_of_the_table_is_known_to_a_conversion(tmp_path):
    torch.save(openshape_training(), tmp_path / "model.pt")
    for path in (tmp_path / "model.pt",):
        model = open_published(path, cache_dir=tmp_path / "cache")
        assert model.config.aligned_with == PUBLISHED["OpenShape/openshape-pointbert-vitg14-rgb"].texts
    torch.save(patchalign3d(), tmp_path / "patchalign3d.pt")
    model = open_published(tmp_path / "patchalign3d.pt", cache_dir=tmp_path / "cache")
    assert type(model).__name__ == PUBLISHED["patchalign3d/patchalign3d-encoder"].system.model_class
    assert model.config.aligned_with == PUBLISHED["patchalign3d/patchalign3d-encoder"].texts
    for name, entry in PUBLISHED.items():
        assert entry.system.convert in conversions.__all__, name
        assert entry.system.model_class in hf_any3d.__all__, name
        found = {(file.path, *file.parts.values()) for file in entry.files.values()}
        assert len(found) == len(entry.files), name


TOWERS = {TOWER: 512, "openai/clip-vit-large-patch14": 768, "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": 1280}
"""Every text tower of the table, and the width of its features."""


@pytest.mark.slow
@pytest.mark.parametrize("tower", some(TOWERS, left_out=[*TOWERS][1:]))
def test_every_named_text_tower_opens(hub, tower, tmp_path):
    # Of Find3D below.
    aligned = [entry for entry in PUBLISHED.values() if entry.texts and entry.system.title != "Find3D"]
    assert {entry.text_tower for entry in aligned} == {*TOWERS, None}
    assert {entry.texts for entry in aligned if entry.text_tower is None} == {PUBLISHED[UNI3D].texts}
    width = TOWERS[tower]
    for entry in aligned:
        if entry.text_tower == tower and (stated := entry.files[None].config["projection_dim"]):
            assert stated == width
    hub.commit(tower, tiny_clip_files(tmp_path / "clip", width))
    parts = {"text_tower": {"name_or_path": tower}}
    model = tiny_aligned(hf_any3d.OpenShapeForZeroShotPointCloudClassification, projection_dim=width, parts=parts)
    try:
        embeds = model.encode_labels(["chair", "table"])
        assert embeds.shape == (2, width) and not torch.equal(*embeds)
        logits = model(torch.rand(1, 64, 6), text_embeds=embeds).logits_per_point_cloud
        assert logits.shape == (1, 2)
    finally:
        huggingface_hub.delete_repo(tower)
        forget(tower)
