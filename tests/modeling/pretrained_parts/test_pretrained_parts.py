"""Pretrained parts are not saved if unchanged, and stored with the model otherwise."""

import json
import os
import shutil
import warnings

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Trainer, TrainingArguments

from hf_any3d import (
    ActForPointCloudClassification,
    AutoModelForPointCloudClassification,
    AutoModelForPointCloudTextToText,
    BitFitConfig,
    GuidedAdapterConfig,
    encoder_linear_pattern,
    trainable_module_names,
)
from hf_any3d.modeling.act import ActAutoencoder, ActForPreTraining, ActModel
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.pretrained_parts.record import EncoderConfigMixin
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, EncoderUnavailableError, resolve_encoder
from tests import tiny_act
from tests.errors import raises
from tests.modeling.minigpt3d.test_minigpt3d import CLOUD, ids
from tests.modeling.minigpt3d.test_parts import (
    built,
    folder as chat_parts,  # noqa: F401  a fixture
)
from tests.modeling.minigpt3d.tiny_model import clouds as chat_clouds
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import clouds, saved_encoder, tiny_model, tiny_part_model, tiny_scene_model
from tests.tiny_text_towers import tiny_zero_shot_model
from tests.turns import by_turns, some

pytestmark = pytest.mark.filterwarnings("ignore:the weights of the")


def lora_of(model):
    return LoraConfig(
        target_modules=encoder_linear_pattern(model),
        modules_to_save=trainable_module_names(model),
        init_lora_weights=False,
        r=4,
    )


@torch.no_grad()
def answers(model):
    """Predictions of a model of any kind for a fixed input."""
    model.eval()
    if isinstance(model, MiniGPT3DForConditionalGeneration):
        return model(ids([2, *CLOUD, 5, 6]), points=chat_clouds(40)).logits
    if isinstance(model, ActAutoencoder):
        return model.teacher_features(clouds())
    if isinstance(model, ActForPreTraining):
        return model.autoencoder.teacher_features(clouds())
    settings = {"category": torch.tensor([0, 1, 0])} if "Part" in type(model).__name__ else {}
    output = model(points=clouds(), **settings)
    return output.point_embeds if hasattr(output, "point_embeds") else output.logits


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def merged_lora(model):
    return get_peft_model(model, lora_of(model)).merge_and_unload()


def merged_bitfit(model):
    adapted = get_peft_model(model, BitFitConfig())
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "bitfit" in name:
            parameter.data.normal_(std=0.5)
    return adapted.merge_and_unload()


def trained_in_place(model):
    encoder = getattr(model, model.base_model_prefix, model).encoder
    for parameter in encoder.requires_grad_(True).parameters():
        parameter.data.add_(0.1)
    return model


CHANGES = {"merged_lora": merged_lora, "merged_bitfit": merged_bitfit, "trained": trained_in_place}
MODELS = {
    "classification": tiny_model,
    "scenes": tiny_scene_model,
    "parts": tiny_part_model,
    "zero_shot": tiny_zero_shot_model,
    "autoencoder": tiny_autoencoder,
}


# A changed part is stored.


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(MODELS, left_out=["scenes", "parts"]))
def test_changed_encoder_of_every_kind_of_model_is_saved_with_it(kind, tmp_path):
    model = trained_in_place(MODELS[kind]())
    expected = answers(model)
    assert not torch.allclose(expected, answers(MODELS[kind]()), rtol=1e-2)
    with pytest.warns(UserWarning, match="weights of the encoder are no longer those of .* stored with the model"):
        model.save_pretrained(tmp_path / "first")
    assert model.config.encoder_name_or_path is None and model.config.encoder_trained_from is not None
    first = type(model).from_pretrained(tmp_path / "first")
    assert_same(answers(first), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.save_pretrained(tmp_path / "second", max_shard_size="40KB")
    assert len(list((tmp_path / "second").glob("model-*.safetensors"))) > 1
    assert_same(answers(type(model).from_pretrained(tmp_path / "second")), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", some(MODELS, left_out=["classification", "zero_shot"]))
def test_encoder_of_the_hub_that_did_not_change_is_left_out(kind, hub, tmp_path):
    model = MODELS[kind]()
    name = f"me/left-out-{kind.replace('_', '-')}"
    source = next(module.config.encoder_name_or_path for module in model.modules() if hasattr(module, "config"))
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=source)
    for module in model.modules():
        if isinstance(getattr(module, "config", None), EncoderConfigMixin):
            module.config.encoder_name_or_path = name
    expected = answers(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "full")
        model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for folder in ("full", "half"):
        stored = load_file(tmp_path / folder / "model.safetensors")
        assert stored and not [name for name in stored if "encoder.encoder.layer" in name or ".encoder.layer" in name]
    assert_same(answers(type(model).from_pretrained(tmp_path / "full")), expected)


def test_encoder_in_other_precision_that_cannot_be_compared_is_saved(tmp_path):
    shutil.copytree(saved_encoder("bert"), tmp_path / "encoder")
    model = type(tiny_model("bert")).from_encoder_pretrained(
        tmp_path / "encoder", num_tokens=8, tokenizer_neighbors=4, num_labels=3
    )
    model.to(torch.float64)
    expected = answers(model.float())
    model.double()
    shutil.rmtree(tmp_path / "encoder")
    with pytest.warns(
        UserWarning, match=r"weights of the encoder are no longer those .* and \d+ more\); they are stored"
    ):
        model.save_pretrained(tmp_path / "model")
    assert_same(answers(type(model).from_pretrained(tmp_path / "model", dtype=torch.float32)), expected)


def test_encoder_inside_a_teacher_inside_a_student_is_saved_when_it_changed(tmp_path):
    teacher = trained_in_place(tiny_autoencoder())
    torch.manual_seed(0)
    student = ActForPreTraining.from_autoencoder_pretrained(teacher, **{k: tiny_act.SMALL[k] for k in SIZES})
    expected = answers(student)
    student.save_pretrained(tmp_path)
    assert_same(answers(ActForPreTraining.from_pretrained(tmp_path)), expected)


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio")


@pytest.mark.slow
def test_trainer_saves_an_encoder_that_trains(tmp_path):
    torch.manual_seed(0)
    model = tiny_model("bert")
    model.any2point.encoder.requires_grad_(True)
    rows = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(6))]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=2, save_steps=1, learning_rate=1e-2, report_to=[], use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    expected = answers(model)
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-2"):
        assert_same(answers(AutoModelForPointCloudClassification.from_pretrained(folder)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "entry_point"), by_turns(CHANGES, ["auto", "peft"]))
def test_adapter_on_a_changed_encoder_is_saved_with_the_encoder(change, entry_point, tmp_path):
    base = CHANGES[change](tiny_model("bert"))
    adapted = get_peft_model(base, GuidedAdapterConfig(r=4, init_weights=False)).eval()
    expected = answers(adapted.get_base_model())
    adapted.save_pretrained(tmp_path)
    opened = AutoModelForPointCloudClassification.from_pretrained(tmp_path)
    if entry_point == "auto":
        opened.save_pretrained(tmp_path / "again")
        opened = AutoModelForPointCloudClassification.from_pretrained(tmp_path / "again")
    assert_same(answers(opened), expected)
    with pytest.raises(EncoderMismatchError, match="Other weights would change results silently"):
        PeftModel.from_pretrained(tiny_model("bert"), tmp_path)
    assert_same(answers(PeftModel.from_pretrained(base, tmp_path).get_base_model()), expected)
    modes = {file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}
    assert len(modes) == 1, "weights are for all whom the umask lets read"


@pytest.mark.slow
def test_adapter_is_refused_by_a_base_whose_encoder_changed(tmp_path):
    get_peft_model(tiny_model("bert"), GuidedAdapterConfig()).save_pretrained(tmp_path / "adapter")
    PeftModel.from_pretrained(tiny_model("bert"), tmp_path / "adapter")
    changed = trained_in_place(tiny_model("bert"))
    changed.save_pretrained(tmp_path / "changed")
    for base in (changed, AutoModelForPointCloudClassification.from_pretrained(tmp_path / "changed")):
        with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
            PeftModel.from_pretrained(base, tmp_path / "adapter")


def test_checksum_of_files_and_of_tensors_name_the_same_encoder(tmp_path):
    get_peft_model(tiny_model("bert"), GuidedAdapterConfig()).save_pretrained(tmp_path)
    base = tiny_model("bert")
    base.any2point.config.change_part("encoder", checksum=resolve_encoder(saved_encoder("bert")).file_checksum)
    assert base.any2point.config.part("encoder").checksum.startswith("sha256:")
    PeftModel.from_pretrained(base, tmp_path)


def test_temporarily_merged_adapter_is_not_saved_twice(tmp_path):
    model = tiny_model("bert")
    adapted = get_peft_model(model, lora_of(model)).eval()
    expected = answers(adapted.get_base_model())
    adapted.merge_adapter()
    with pytest.raises(ValueError, match="'default' is merged into the weights; expected unmerge_adapter()"):
        adapted.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    adapted.unmerge_adapter()
    adapted.save_pretrained(tmp_path / "adapter")
    assert_same(answers(AutoModelForPointCloudClassification.from_pretrained(tmp_path / "adapter")), expected)


@pytest.mark.slow
def test_changed_part_of_a_chat_model_is_saved_with_it(chat_parts, tmp_path):  # noqa: F811
    model = built(chat_parts)
    before = answers(model)
    for parameter in model.language_model.parameters():
        parameter.data.mul_(2)
    expected = answers(model)
    assert not torch.allclose(expected, before, rtol=1e-2)
    with pytest.warns(UserWarning, match="weights of the language_model are no longer those of"):
        model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["parts"]["language_model"]["stored"]
    stored = load_file(tmp_path / "model.safetensors")
    assert [name for name in stored if name.startswith("minigpt3d.language_model.model.layers.0.mlp")]
    assert_same(answers(AutoModelForPointCloudTextToText.from_pretrained(tmp_path)), expected)


def test_changed_part_that_is_quantized_is_refused(tmp_path):
    model = tiny_model("bert")
    model.any2point.encoder.hf_quantizer = object()  # marks a model as quantized for transformers
    model.save_pretrained(tmp_path / "model")
    trained_in_place(model)
    with pytest.raises(ValueError, match="quantized encoder is no longer that of .*cannot be stored"):
        model.save_pretrained(tmp_path / "changed")
    with pytest.raises(ValueError, match="quantized encoder is no longer that of"):
        get_peft_model(model, GuidedAdapterConfig()).save_pretrained(tmp_path / "guided")


def test_zero_shot_model_finds_its_text_tower_after_its_encoder_changed(tmp_path):
    model = merged_lora(tiny_zero_shot_model())
    expected = model.encode_labels(["chair", "lamp"])
    model.save_pretrained(tmp_path)
    assert_same(type(model).from_pretrained(tmp_path).encode_labels(["chair", "lamp"]), expected)


# Where parts are found.


def test_relative_path_of_an_encoder_is_recorded_as_absolute(tmp_path, monkeypatch):
    shutil.copytree(saved_encoder("bert"), tmp_path / "here" / "encoder")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = tiny_model("encoder" + os.sep)
    assert model.config.encoder_name_or_path == str(tmp_path / "here" / "encoder")
    model.save_pretrained("model")
    expected = answers(model)
    monkeypatch.chdir(tmp_path / "there")
    assert_same(answers(AutoModelForPointCloudClassification.from_pretrained(tmp_path / "here" / "model")), expected)


def test_recorded_relative_path_is_also_resolved_from_the_model(tmp_path, monkeypatch):
    shutil.copytree(saved_encoder("bert"), tmp_path / "model" / "parts" / "bert")
    model = tiny_model("bert")
    model.config.encoder_name_or_path = "parts/bert"
    model.save_pretrained(tmp_path / "model")
    assert_same(answers(AutoModelForPointCloudClassification.from_pretrained(tmp_path / "model")), answers(model))
    shutil.rmtree(tmp_path / "model" / "parts")
    with raises(EncoderUnavailableError, naming="'parts/bert'"):
        AutoModelForPointCloudClassification.from_pretrained(tmp_path / "model")


def test_encoder_repository_with_an_adapter_is_refused(tmp_path):
    encoder = AutoModel.from_pretrained(saved_encoder("bert"))
    encoder.save_pretrained(tmp_path)
    get_peft_model(encoder, LoraConfig(target_modules=["query"], init_lora_weights=False)).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists() and (tmp_path / "model.safetensors").exists()
    with raises(ValueError, naming="adapter_config.json"):
        tiny_model(str(tmp_path))


def test_base_repository_with_an_adapter_is_refused(hub, tmp_path):
    tiny_act.tiny_act(ActModel).push_to_hub("me/base-with-adapter")
    model = ActForPointCloudClassification.from_pretrained("me/base-with-adapter", num_labels=3)
    get_peft_model(model, GuidedAdapterConfig(r=4)).save_pretrained(tmp_path / "adapter")
    lora = LoraConfig(target_modules=["qkv"], init_lora_weights=False)
    get_peft_model(ActModel.from_pretrained("me/base-with-adapter"), lora).save_pretrained(tmp_path / "lora")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        hub.commit("me/base-with-adapter", {name: (tmp_path / "lora" / name).read_bytes()})
    settings = json.loads((tmp_path / "adapter" / "config.json").read_text())
    settings["parts"]["base"]["revision"] = "main"
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(settings))
    with raises(ValueError, naming="adapter_config.json"):
        AutoModelForPointCloudClassification.from_pretrained(tmp_path / "adapter")


# The record.


def test_a_part_that_is_stored_next_to_an_adapter_is_compared_with_its_record(tmp_path):
    get_peft_model(tiny_act.tiny_act(ActForPointCloudClassification), BitFitConfig()).save_pretrained(tmp_path)
    weights, file = tmp_path / "base" / "model.safetensors", tmp_path / "config.json"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(EncoderMismatchError, match="pretrained weights in base/ have checksum tensors-sha256"):
        ActForPointCloudClassification.from_pretrained(tmp_path)
    settings = json.loads(file.read_text())
    del settings["parts"]["base"]["checksum"]
    file.write_text(json.dumps(settings))
    assert ActForPointCloudClassification.from_pretrained(tmp_path).config.base_checksum is None
