"""What a stage starts from: which files of which revision are opened, the order of stages, and its batches."""

import logging
import os
from types import SimpleNamespace

import pytest
import torch
from transformers import BitsAndBytesConfig

from hf_any3d.training import minigpt3d_stages as stages
from hf_any3d.training.minigpt3d_stages import (
    StageArguments,
    StageTrainer,
    check_checkpoint,
    check_stage_order,
    open_for_stage,
    warn_of_local_parts,
)
from hf_any3d.training.text_rows import MixedBatches
from tests.errors import raises

PARTS = {"point_encoder": "me/points", "qformer": "me/qformer", "language_model": "me/words"}
REVISIONS = {"point_encoder": "p1", "qformer": "q1", "language_model": "w1"}


class Opened(SimpleNamespace):
    """A model or processor that was opened; it notes what is stored."""

    stored = False

    def store_parts(self):
        self.stored = True


@pytest.fixture
def asked(monkeypatch):
    """Let everything be opened without files; return what was asked for."""
    found = []

    def opening(kind, made):
        return lambda *given, **settings: found.append((kind, given, settings)) or made()

    kinds = {
        "MiniGPT3DConfig.from_pretrained": lambda: Opened(stage=1),
        "MiniGPT3DForConditionalGeneration.from_pretrained": lambda: Opened(name="opened model"),
        "MiniGPT3DProcessor.from_pretrained": lambda: Opened(name="opened processor"),
        "MiniGPT3DProcessor.from_config": lambda: Opened(name="new processor"),
        "AutoTokenizer.from_pretrained": lambda: "tokenizer",
        "AutoFeatureExtractor.from_pretrained": lambda: Opened(),
    }
    for kind, made in kinds.items():
        owner, _, method = kind.partition(".")
        monkeypatch.setattr(getattr(stages, owner), method, opening(kind, made))
    monkeypatch.setattr(stages, "set_stage", lambda *given: found.append(("set_stage", given, {})))
    return found


@pytest.mark.parametrize("revision", [None, "v2"])
@pytest.mark.parametrize("bits", [{}, {"load_in_8bit": True}])
def test_a_model_of_the_previous_stage_is_opened_with_its_revision(revision, bits, asked):
    arguments = StageArguments(
        stage=2,
        model_name_or_path="me/first",
        model_revision=revision,
        processor_config={"max_answer_tokens": 7, "end_mark": "##"},
        quantization_config=bits,
    )
    model, processor = open_for_stage(arguments, num_points=40)
    hub = {} if revision is None else {"revision": revision}
    (config, opened, third, last) = asked
    assert config == ("MiniGPT3DConfig.from_pretrained", ("me/first",), hub)
    quantized = opened[2].pop("quantization_config", None)
    assert opened[:2] == ("MiniGPT3DForConditionalGeneration.from_pretrained", ("me/first",))
    assert opened[2] == {"config": Opened(stage=1), "dtype": torch.float32, **hub}
    assert (quantized.to_dict() if bits else quantized) == (BitsAndBytesConfig(**bits).to_dict() if bits else None)
    assert third == ("MiniGPT3DProcessor.from_pretrained", ("me/first",), hub)
    assert last == ("set_stage", (model, 2), {}) and not model.stored
    assert (processor.max_answer_tokens, processor.end_mark, processor.name) == (7, "##", "opened processor")


@pytest.mark.parametrize("given", [{}, REVISIONS])
def test_a_model_from_parts_takes_each_from_its_revision(given, asked, monkeypatch):
    built = Opened(config=SimpleNamespace(point_config=SimpleNamespace(model_type="uni3d")))
    monkeypatch.setattr(stages, "build_from_parts", lambda *own, **more: asked.append(("build", own, more)) or built)
    revisions = {f"{part}_revision": revision for part, revision in given.items()}
    arguments = StageArguments(
        stage=1, **PARTS, **revisions, model_config={"point_token_id": 3, "a": 1}, store_parts=True
    )
    model, processor = open_for_stage(arguments, num_points=40, sampling="first")
    tokenizer, made, points, last, stage = asked
    whole = {part: given.get(part) for part in PARTS}
    assert tokenizer == (
        "AutoTokenizer.from_pretrained",
        ("me/words",),
        {"revision": given.get("language_model", "main")},
    )
    config = {**stages.PUBLISHED_LORA, "point_token_id": 3, "a": 1}
    assert made == ("build", ("me/points", "me/qformer", "me/words", torch.float32), {"revisions": whole, **config})
    encoder = {"revision": given.get("point_encoder", "main")}
    assert points == ("AutoFeatureExtractor.from_pretrained", ("me/points",), encoder)
    assert last == (
        "MiniGPT3DProcessor.from_config",
        (model.config, "tokenizer", Opened(num_points=40, sampling="first")),
        {},
    )
    assert model.stored and stage == ("set_stage", (model, 1), {}) and processor.name == "new processor"


@pytest.mark.parametrize(("name", "known"), [("none", None), ("None", None), ("me/qformer", "me/qformer")])
def test_the_place_of_a_cloud_is_the_first_free_token_and_there_may_be_no_qformer(name, known, asked, monkeypatch):
    built = Opened(config=SimpleNamespace(point_config=SimpleNamespace(model_type="act3d")))
    monkeypatch.setattr(stages, "build_from_parts", lambda *own, **more: asked.append(("build", own, more)) or built)
    open_for_stage(StageArguments(stage=1, **{**PARTS, "qformer": name}), num_points=40)
    (_, given, settings), (kind, own, _) = asked[1:3]
    assert given[1] == known and settings["point_token_id"] == len("tokenizer")
    # ACT's encoders are released without a processor.
    assert kind == "MiniGPT3DProcessor.from_config" and own[2].features == ["xyz", "rgb"]
    assert (own[2].num_points, own[2].sampling, own[2].default_rgb) == (40, "random", [0, 0, 0])


@pytest.mark.parametrize(
    ("before", "stage", "message"),
    [
        (None, 1, None),
        (1, 2, None),
        (3, 4, None),
        (1, 1, "--stage 1 of me, a model of stage 1; expected an untrained one, or parts"),
        (2, 2, "--stage 2 of me, a model of stage 2; expected a model of stage 1"),
        (1, 3, "--stage 3 of me, a model of stage 1; expected a model of stage 2"),
        (3, 2, "--stage 2 of me, a model of stage 3; expected a model of stage 1"),
    ],
)
def test_stages_follow_each_other(before, stage, message, caplog):
    if message is None:
        check_stage_order(before, stage, "me")
    else:
        with pytest.raises(ValueError, match=message):
            check_stage_order(before, stage, "me")
    assert not caplog.messages


def test_a_model_without_a_recorded_stage_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        check_stage_order(None, 3, "me/model")
    assert caplog.messages == ["me/model does not record its training stage; stage 3 must follow stage 2"]


def test_a_checkpoint_is_of_the_stage_that_is_trained(monkeypatch):
    monkeypatch.setattr(stages.MiniGPT3DConfig, "from_pretrained", lambda name: SimpleNamespace(stage=2))
    check_checkpoint(None, 3)
    check_checkpoint("out/checkpoint-5", 2)
    with raises(ValueError, naming="--output"):
        check_checkpoint("out/checkpoint-5", 3)


def test_local_parts_are_told_before_a_model_is_shared(caplog, tmp_path):
    parts = {"qformer": str(tmp_path), "language_model": "me/words", "point_encoder": None}
    with caplog.at_level(logging.WARNING):
        warn_of_local_parts({part: {"name_or_path": name} for part, name in parts.items()})
        warn_of_local_parts(None)
    (told,) = caplog.messages
    assert told.startswith(f"the qformer is the local directory {tmp_path}, which others do not have")
    assert os.path.isdir(tmp_path)


@pytest.mark.parametrize(("data_seed", "seed"), [(None, 11), (0, 0), (5, 5)])
def test_batches_are_those_of_the_whole_run_on_this_process(data_seed, seed):
    trainer = StageTrainer.__new__(StageTrainer)
    trainer.args = SimpleNamespace(
        max_steps=6, gradient_accumulation_steps=2, seed=11, data_seed=data_seed, process_index=1, world_size=2
    )
    trainer.kinds, trainer.batch_sizes, trainer.ratios = [range(20), range(30)], [2, 3], [1.0, 4.0]
    assert trainer.rows_per_step == [8, 12]
    expected = MixedBatches([20, 30], [2, 3], [1.0, 4.0], 12, seed, 1, 2)
    assert list(trainer.batches()) == list(expected) and len(list(expected)) == 12


def test_only_public_parts_may_be_missing_from_a_checkpoint():
    trainer = StageTrainer.__new__(StageTrainer)
    trainer.model = SimpleNamespace(names_stored_elsewhere=lambda: {"a", "b"})
    trainer._issue_warnings_after_load(SimpleNamespace(missing_keys=["b", "a"], unexpected_keys=[]))
    found = SimpleNamespace(missing_keys=["b", "y"], unexpected_keys=["x"])
    with pytest.raises(ValueError, match="the checkpoint does not fit the model: x, y$"):
        trainer._issue_warnings_after_load(found)
    many = SimpleNamespace(missing_keys=[], unexpected_keys=[f"n{number}" for number in range(9)])
    with pytest.raises(ValueError, match="the model: n0, n1, n2, n3, n4, n5, n6, n7$"):
        trainer._issue_warnings_after_load(many)
