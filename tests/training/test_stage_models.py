"""Models that a stage starts from: quantization, half precision and trained parameters."""

import logging

import pytest
import torch
from huggingface_hub import HfApi
from transformers import BitsAndBytesConfig

from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration, set_stage
from hf_any3d.training.checkpoints import check_run
from hf_any3d.training.minigpt3d_stages import (
    StageArguments,
    halve_frozen,
    open_for_stage,
    trained_groups,
    warn_of_local_parts,
)
from tests.closeness import assert_nearly_equal
from tests.common.test_quantization import with_rounded_weights
from tests.errors import raises
from tests.examples.minigpt3d_runs import CONFIG, tiny_text, write_parts
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.tiny_model import clouds, tiny_model


@pytest.fixture(scope="module")
def parts(hub, tmp_path_factory) -> dict[str, str]:
    # Wide enough for blocks of 64 weights in 4-bit quantization.
    text = {"hidden_size": 64, "intermediate_size": 128}
    made = write_parts(tmp_path_factory.mktemp("parts"), **text)
    HfApi().create_repo("me/quantized-language-model", exist_ok=True)
    HfApi().upload_folder(repo_id="me/quantized-language-model", folder_path=made["language_model"])
    return made


def opened(parts, **settings) -> MiniGPT3DForConditionalGeneration:
    torch.manual_seed(0)
    arguments = StageArguments(stage=2, **parts, model_config=CONFIG, **settings)
    return open_for_stage(arguments, num_points=40)[0]


def prompt(model) -> torch.Tensor:
    return ids([2, *[model.config.point_token_id] * len(CLOUD), 5, 6, 7])


def kinds_of_linear(model) -> set[str]:
    return {type(module).__name__ for module in model.modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_quantized_language_model_trains_its_lora(parts, bits, hub, tmp_path):
    parts = parts | {"language_model": "me/quantized-language-model"}
    plain, model = opened(parts), opened(parts, quantization_config=bits)
    assert len(kinds_of_linear(model.language_model)) > 1 and kinds_of_linear(model.bridge) == {"Linear"}
    points = clouds(40)
    with torch.no_grad():
        rounded = with_rounded_weights(plain, model)
        found, expected = (each.eval()(prompt(model), points=points).logits for each in (model, rounded))
    # In 4 bits, random weights are so coarse that outputs say nothing; the rounded weights do.
    assert_nearly_equal(found, expected, 0.3 if "load_in_8bit" in bits else 1e-3)
    model.train()
    labels = prompt(model).masked_fill(prompt(model) == model.config.point_token_id, -100)
    model(prompt(model), points=points, labels=labels).loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert sum(bool(parameter.grad.any()) for parameter in trained.values()) > len(trained) / 3
    # Quantization is not saved: the next stage loads full weights.
    model.save_pretrained(tmp_path)
    full = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)
    assert kinds_of_linear(full.language_model) == {"Linear"}
    for name, parameter in trained.items():
        assert torch.equal(full.get_parameter(name), parameter), name
    again = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**bits))
    with torch.no_grad():
        torch.testing.assert_close(again(prompt(model), points=points).logits, found, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="loaded quantized; expected full weights to store"):
        again.store_parts()


@pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_of_a_quantized_language_model_from_a_directory_the_full_weights_are_stored(parts, bits, tmp_path):
    plain, model = opened(parts), opened(parts, quantization_config=bits)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1)
    with pytest.warns(UserWarning, match="the language model came from the directory"):
        model.save_pretrained(tmp_path)
    assert parts["language_model"] not in (tmp_path / "config.json").read_text()
    full = MiniGPT3DForConditionalGeneration.from_pretrained(tmp_path)
    assert not full.config.part("language_model").is_elsewhere
    assert kinds_of_linear(full.language_model) == {"Linear"}
    expected = dict(plain.named_parameters()) | trained
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    # The model in memory is still quantized, and still knows where its weights came from.
    assert kinds_of_linear(model.language_model) != {"Linear"}
    assert model.config.part("language_model").name_or_path == parts["language_model"]


def test_only_frozen_matrices_of_the_language_model_are_cast(parts):
    model = opened(parts)
    for name, parameter in model.named_parameters():
        # As in the last stage, which stores them all the same.
        parameter.requires_grad_(parameter.requires_grad and "low_rank_" not in name)
    halve_frozen(model, torch.bfloat16)
    halved = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert halved == {
        name
        for name, parameter in model.named_parameters()
        if "language_model." in name and parameter.ndim > 1 and "low_rank_" not in name
    }
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(prompt(model), points=clouds(40), labels=prompt(model).clamp(max=9)).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_stored_language_model_is_not_cast():
    with raises(ValueError, naming="--frozen_in_half"):
        halve_frozen(tiny_model(text_config=tiny_text()), torch.bfloat16)


@pytest.mark.parametrize(("before", "stage"), [(1, 1), (2, 2), (1, 3), (3, 2)])
def test_stages_follow_each_other(before, stage, tmp_path):
    model = tiny_model(text_config=tiny_text())
    model.config.stage = before
    model.save_pretrained(tmp_path)
    with raises(ValueError, naming=f"--stage {stage} of {tmp_path}, a model of stage {before}; expected "):
        open_for_stage(StageArguments(stage=stage, model_name_or_path=str(tmp_path)), num_points=40)
    check_run(tmp_path, model, 1)
    model.config.stage = 4
    with raises(ValueError, naming=f"has stage {before}, and this run 4"):
        check_run(tmp_path, model, 1)


def test_the_place_of_a_cloud_is_the_first_free_token_and_there_may_be_no_qformer(parts):
    arguments = StageArguments(
        stage=1, **{**parts, "qformer": "none"}, model_config=CONFIG, processor_config={"max_answer_tokens": 7}
    )
    model, processor = open_for_stage(arguments, num_points=40, sampling="first")
    assert model.config.point_token_id == len(processor.tokenizer) and model.config.stage == 1
    assert "qformer" not in model.config.parts and processor.max_answer_tokens == 7
    points = processor.feature_extractor
    assert (points.num_points, points.sampling, points.features) == (40, "first", ["xyz", "rgb"])


def test_local_parts_are_told_before_a_model_is_shared(caplog, tmp_path):
    parts = {"qformer": str(tmp_path), "language_model": "me/words", "point_encoder": None}
    with caplog.at_level(logging.WARNING):
        warn_of_local_parts({part: {"name_or_path": name} for part, name in parts.items()})
        warn_of_local_parts(None)
    (told,) = caplog.messages
    assert told.startswith(f"the qformer is the local directory {tmp_path}, which others do not have")


def test_groups_count_all_trained_parameters():
    model = tiny_model()
    names = {}
    for stage in (1, 2, 4):
        set_stage(model, stage)
        names[stage] = trained_groups(model)
        assert sum(names[stage].values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert set(names[1]) == {"bridge point mlp"} and set(names[4]) == {"bridge experts"}
    later = {"point mlp", "experts", "projector", "qformer LoRA", "qformer norms"}
    assert set(names[2]) == {f"bridge {part}" for part in later} | {"language model LoRA", "language model norms"}
