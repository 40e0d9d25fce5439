"""Every door that resumes or caches answers notices other weights, other inputs and other settings."""

import json
import os
import struct

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import pipeline

from hf_any3d import ChatSession, GuidedAdapterConfig, PointCloudProcessor, load_point_dataset, many_files
from hf_any3d.data.files import PointCloudData, point_cloud_bytes
from hf_any3d.data.fingerprints import (
    active_adapters,
    input_stamp,
    model_fingerprint,
    path_fingerprint,
    weights_state,
)
from hf_any3d.evaluation.chat_evaluation import open_model
from hf_any3d.evaluation.llm_judge import ClassNameJudge, LanguageModelJudge
from hf_any3d.evaluation.llm_judge.verdicts import judge_answers
from hf_any3d.evaluation.question_answering import PROTOCOLS, answer_question
from tests.chat.tiny_chat_model import cloud, tiny_chat_pipeline
from tests.cli.conftest import FILES, run
from tests.errors import raises
from tests.evaluation.llm_judge.test_judges import saved_judge
from tests.tiny_aligned import tiny_parts_by_name
from tests.tiny_encoders import tiny_model

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")


@pytest.fixture
def saved(tmp_path):
    """A saved classifier."""
    torch.manual_seed(0)
    model = tiny_model(id2label={0: "chair", 1: "lamp"})
    torch.nn.init.normal_(model.classifier.out.weight, std=2.0)
    get_peft_model(model, GuidedAdapterConfig()).save_pretrained(tmp_path / "model")
    PointCloudProcessor(num_points=32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("classifier.out.weight"))
    save_file(tensors | {name: -tensors[name]}, file, {"format": "pt"})


def change_json(name, **values):
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | values))

    return change


def change_text_tower(pipe):
    with torch.no_grad():
        for parameter in pipe.model.text_tower.model.parameters():
            parameter.add_(torch.randn_like(parameter))


CHANGES = {
    "weights": change_weights,
    "config": change_json("config.json", pooling=["cls"]),
    "processor": change_json("preprocessor_config.json", num_points=16),
    "adapter": change_json("adapter_config.json", voxel_size=0.3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_saved_model_is_another_one_when_its_answers_may_differ(saved, change):
    before = model_fingerprint(saved)
    (saved / "README.md").write_text("a card")
    (saved / "training_args.bin").write_bytes(b"x")
    assert model_fingerprint(saved) == before
    CHANGES[change](saved)
    assert model_fingerprint(saved) != before


def test_a_model_of_the_hub_is_its_commit(hub, saved):
    for number in range(2):
        tiny_model().push_to_hub("me/identified", commit_message=str(number))
        model_fingerprint("me/identified")
    first = model_fingerprint("me/identified")
    assert first.startswith("commit:") and len(first) == len("commit:") + 40
    hub.commit("me/identified", {"note.txt": b"new"})
    assert model_fingerprint("me/identified") != first
    with raises(OSError, naming="nobody/nothing"):
        model_fingerprint("nobody/nothing")


def test_weights_in_memory_are_others_when_written_replaced_or_cast():
    layer = torch.nn.BatchNorm1d(3)
    seen = [weights_state(layer)]
    assert weights_state(layer) == seen[0]
    with torch.no_grad():
        layer.weight.add_(1)
    seen.append(weights_state(layer))
    layer.running_mean.zero_()
    seen.append(weights_state(layer))
    layer.half()
    seen.append(weights_state(layer))
    assert len(set(seen)) == len(seen)


def other_content(file, old, new):
    """Change a file so that its size and its time of modification stay as they are."""
    status = file.stat()
    content = file.read_bytes()
    changed = content.replace(old, new, 1)
    assert len(changed) == len(content) and changed != content
    file.write_bytes(changed)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_path_is_known_by_the_model_file_or_folder_there(saved, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.xyz").write_text("1 2 3")
    before = [path_fingerprint(path) for path in (saved, data, data / "a.xyz")]
    assert before[0] == model_fingerprint(saved) and len(set(before)) == 3
    assert [path_fingerprint(path) for path in (saved, data, data / "a.xyz")] == before
    other_content(data / "a.xyz", b"3", b"4")
    assert path_fingerprint(data) != before[1] and path_fingerprint(data / "a.xyz") != before[2]


def test_an_input_is_known_by_its_bytes_and_a_file_by_its_buffers(tmp_path):
    assert input_stamp("<stdin>", b"1 2 3") != input_stamp("<stdin>", b"1 2 4")
    (tmp_path / "cube.gltf").write_text(json.dumps({"buffers": [{"uri": "cube.bin"}, {"uri": "data:,x"}, {}]}))
    stamps = [input_stamp(tmp_path / "cube.gltf")]
    for content in (b"first", b"second"):
        (tmp_path / "cube.bin").write_bytes(content)
        stamps.append(input_stamp(tmp_path / "cube.gltf"))
    os.utime(tmp_path / "cube.bin", ns=(1, 1))
    stamps.append(input_stamp(tmp_path / "cube.gltf"))
    assert len(set(stamps)) == len(stamps)
    (tmp_path / "my cube.bin").write_bytes(b"first")
    text = json.dumps({"buffers": [{"uri": "my%20cube.bin"}]}).encode()
    glb = b"glTF" + struct.pack("<III", 2, 20 + len(text), len(text)) + b"JSON" + text
    materials = "v 0 0 0\n mtllib\tcube\\\n.mtl \r\nmtllib ../other/cube.mtl\nmtllib none.mtl\n"
    (tmp_path / "cube .mtl").write_text("newmtl red\nKd 1 0 0\n")
    for name, content, other, change in (
        ("cube.glb", glb, "my cube.bin", (b"f", b"F")),
        ("cube.obj", materials.encode(), "cube .mtl", (b"1", b"0")),
    ):
        (tmp_path / name).write_bytes(content)
        before = [how(tmp_path / name) for how in (input_stamp, path_fingerprint)]
        assert before == [how(tmp_path / name) for how in (input_stamp, path_fingerprint)]
        other_content(tmp_path / other, *change)
        after = [how(tmp_path / name) for how in (input_stamp, path_fingerprint)]
        assert not set(before) & set(after), name
    (tmp_path / "bad.gltf").write_text("[1]")
    assert input_stamp(tmp_path / "bad.gltf") == input_stamp(tmp_path / "bad.gltf")


# The doors.


def test_a_run_does_not_continue_with_other_weights(saved, tmp_path):
    words = ("predict", FILES / "chair.ply", "--model", saved, "--output", tmp_path / "t.jsonl", "--resume")
    assert run(*words).code == 0
    assert "1 already done" in run(*words).out
    before = (tmp_path / "t.jsonl").read_bytes()
    change_weights(saved)
    code, _, err = run(*words)
    assert code == 1 and "was made by other weights or files of the model" in err
    assert (tmp_path / "t.jsonl").read_bytes() == before


def test_a_run_knows_standard_input_by_its_bytes(saved, tmp_path):
    words = ("predict", "-", "--model", saved, "--output", tmp_path / "t.jsonl", "--resume")
    cloud = np.random.default_rng(0).integers(0, 9, (40, 3))
    first, second = ("\n".join(" ".join(map(str, row)) for row in points) for points in (cloud, cloud[::-1]))
    assert len(first) == len(second) and first != second
    assert run(*words, stdin=first).code == 0
    assert "already done" in run(*words, stdin=first).out
    assert "already done" not in run(*words, stdin=second).out


@pytest.mark.slow
@pytest.mark.parametrize("task", ["predict", "features"])
def test_a_run_reads_a_file_of_equal_size_and_time_again(saved, tmp_path, task):
    file = tmp_path / "cloud.ply"
    file.write_bytes(point_cloud_bytes(PointCloudData(np.random.default_rng(0).normal(size=(40, 3))), "ply"))
    words = (task, file, "--model", saved, "--output", tmp_path / "t.jsonl", "--resume")
    assert run(*words).code == 0 and "1 already done" in run(*words).out
    other_content(file, file.read_bytes()[-24:], b"\0\0\x80\x3f" * 6)
    assert "already done" not in run(*words).out
    for more in (("--top-k", 2) if task == "predict" else ("--feature", "tokens"), ("--up-axis", "z")):
        assert "was made by other settings" in run(*words, *more).err


def test_rows_of_many_files_are_those_of_the_weights(saved):
    rows = many_files.read_point_clouds(FILES / "chair.ply")
    settings = [step(rows, saved).settings for step in (many_files.classify, many_files.embed)]
    assert [step(rows, saved).settings for step in (many_files.classify, many_files.embed)] == settings
    change_weights(saved)
    assert all(
        step(rows, saved).settings != before
        for step, before in zip((many_files.classify, many_files.embed), settings, strict=True)
    )


def test_parts_by_name_are_embedded_for_each_category_and_text_tower():
    segment = pipeline(
        "zero-shot-point-cloud-segmentation",
        model=tiny_parts_by_name(),
        feature_extractor=PointCloudProcessor(num_points=64),
    )
    chair, table = (segment.label_embeddings(("leg", "top"), category=name) for name in ("chair", "table"))
    assert not torch.allclose(chair, table)
    assert segment.label_embeddings(("leg", "top"), category="chair") is chair
    change_text_tower(segment)
    assert not torch.allclose(segment.label_embeddings(("leg", "top"), category="chair"), chair)


def test_a_folder_of_clouds_is_read_again_when_a_file_changed(tmp_path):
    (tmp_path / "scans" / "ball").mkdir(parents=True)
    file = tmp_path / "scans" / "ball" / "1.xyz"
    file.write_text("1 2 3\n4 5 6\n7 8 9\n")

    def points():
        rows = load_point_dataset("folder", data_dir=str(tmp_path / "scans"), cache_dir=str(tmp_path / "cache"))
        return np.asarray(rows["train"].with_format("numpy")[0]["points"])

    assert points()[0, 0] == 1
    other_content(file, b"1 2", b"9 2")
    assert points()[0, 0] == 9


@pytest.mark.slow
def test_answers_about_clouds_are_of_the_model_and_of_the_clouds(tmp_path):
    tiny_chat_pipeline().save_pretrained(tmp_path / "chat")
    before = open_model(str(tmp_path / "chat"), device="cpu")[1]
    change_json("config.json", note="another")(tmp_path / "chat")
    assert open_model(str(tmp_path / "chat"), device="cpu")[1] != before
    protocol = PROTOCOLS["modelnet40-completion"]

    def asked(height=0.0, names=("box", "car"), **settings):
        rows = Dataset.from_dict({"points": [[[0, 0, height]], [[1, 1, 1]]], "label": [0, 1], "object_id": ["a", "b"]})
        rows = rows.cast_column("label", ClassLabel(names=list(names))).with_format("numpy")
        answers = answer_question(rows, protocol, lambda *_: ["a box", "a car"], tmp_path / "a.json", before, settings)
        return judge_answers(answers, "class", ClassNameJudge(list(names)), tmp_path / "judged.json", names)

    assert asked()["figures"]["correct"] == 2 and asked()["figures"]["correct"] == 2
    with raises(ValueError, naming="'a' is about another cloud"):
        asked(height=1.0)
    with raises(ValueError, naming="settings"):
        asked(num_beams=3)
    answers = json.loads((tmp_path / "a.json").read_text())
    with raises(ValueError, naming="judge"):
        judge_answers(answers, "class", ClassNameJudge(["car", "box"]), tmp_path / "judged.json", ["car", "box"])


@pytest.mark.slow
def test_a_conversation_goes_on_with_the_weights_and_adapters_that_the_model_has_now():
    pipe = tiny_chat_pipeline()
    session = ChatSession(pipe, cloud(), max_new_tokens=6)
    session.ask("What is this?")

    def whole():
        return pipe(session.messages[:-1], max_new_tokens=6)[0]["generated_text"][-1]["content"]

    features = pipe.answerer.features([cloud()])
    with torch.no_grad():
        for parameter in pipe.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert not torch.equal(pipe.answerer.features([cloud()]), features)
    assert session.ask("And now?") == whole()
    with torch.no_grad():
        for parameter in pipe.model.language_model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert session.ask("More?") == whole()


def test_adapters_that_are_not_active_or_disabled_take_no_part():
    wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear"))
    assert active_adapters(wrapped) == ["default"]
    wrapped.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    wrapped.set_adapter("other")
    assert active_adapters(wrapped) == ["other"]
    with wrapped.disable_adapter():
        assert active_adapters(wrapped) == []


def test_verdicts_are_of_the_weights_of_the_judge(tmp_path):
    answers = {"prompt": "?", "results": [{"object_id": 1, "ground_truth": "a car", "model_output": "car"}]}

    def judged():
        judge = LanguageModelJudge(saved_judge(tmp_path / "judge"), settings={"max_new_tokens": 2}, device="cpu")
        return judge_answers(answers, "same", judge, tmp_path / "judged.json")

    judged()
    weights = tmp_path / "judge" / "model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    judge = LanguageModelJudge(str(tmp_path / "judge"), settings={"max_new_tokens": 2}, device="cpu")
    with pytest.raises(ValueError, match="was made with judge"):
        judge_answers(answers, "same", judge, tmp_path / "judged.json")
