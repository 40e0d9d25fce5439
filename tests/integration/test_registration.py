"""Tests of what `import hf_any3d` changes in transformers and PEFT, and what it leaves alone."""

import importlib
import os

import pytest
import torch
import transformers
from peft import (
    AutoPeftModel,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor, BertModel
from transformers.models.auto import auto_factory
from transformers.pipelines import PIPELINE_REGISTRY

import hf_any3d
from hf_any3d.integration import registration
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointModel
from tests.common.models import minigpt3d
from tests.errors import raises
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds, saved_encoder, tiny_model


@pytest.fixture
def plain_lora():
    """A LoRA on a plain BERT: other people's adapter."""
    base = BertModel.from_pretrained(saved_encoder("bert"))
    return get_peft_model(base, LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)).eval()


@pytest.mark.parametrize(
    ("name", "module", "found"),
    [
        ("show", "hf_any3d.visualization.show", ("write_views", "view_of_cloud")),
        ("pipeline", "transformers", ("pipeline",)),
        ("PointCloudCollator", "hf_any3d.data", ("PointCloudCollator",)),
    ],
)
def test_a_name_that_is_looked_for_here_says_where_it_is(name, module, found):
    with raises(AttributeError, naming=f"module 'hf_any3d' has no attribute '{name}'; ") as error:
        getattr(hf_any3d, name)
    assert all(word in str(error.value) for word in (module, *found))
    assert all(hasattr(importlib.import_module(module), word) for word in found)


@torch.no_grad()
def hidden_of(model):
    return model(input_ids=torch.arange(5, 11)[None]).last_hidden_state


def wrapped():
    return (
        PeftModel.save_pretrained,
        PeftModel.load_adapter,
        auto_factory.find_adapter_config_file,
        transformers.pipelines.find_adapter_config_file,
    )


def test_registering_again_changes_nothing():
    before, tasks = wrapped(), PIPELINE_REGISTRY.get_supported_tasks()
    registration.register()
    assert all(now is then for now, then in zip(wrapped(), before, strict=True))
    assert PIPELINE_REGISTRY.get_supported_tasks() == tasks


def test_auto_classes_know_our_models(tmp_path):
    assert AutoConfig.for_model("any2point").__class__ is Any2PointConfig
    model = tiny_model()
    assert type(AutoModel.from_config(model.config)) is Any2PointModel
    classifier = hf_any3d.AutoModelForPointCloudClassification.from_config(model.config)
    assert type(classifier) is hf_any3d.Any2PointForPointCloudClassification
    model.save_pretrained(tmp_path)
    hf_any3d.PointCloudProcessor(num_points=7).save_pretrained(tmp_path)
    for auto in (AutoFeatureExtractor, AutoProcessor):
        assert auto.from_pretrained(tmp_path).num_points == 7


def test_every_task_has_its_pipeline_and_auto_class():
    for task, (made, auto) in registration.PIPELINES.items():
        entry = PIPELINE_REGISTRY.check_task(task)[1]
        assert entry["impl"] is made and entry["pt"] == (auto,)


def test_models_of_others_are_refused_by_our_auto_class():
    with raises(ValueError, naming="BertConfig"):
        hf_any3d.AutoModelForPointCloudClassification.from_pretrained(saved_encoder("bert"))


def test_adapter_of_others_is_saved_as_peft_alone_would(plain_lora, tmp_path):
    plain_lora.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_adapter_of_others_still_opens_on_its_own_base(plain_lora, tmp_path):
    plain_lora.save_pretrained(tmp_path)
    expected = hidden_of(plain_lora)
    for opened in (
        AutoModel.from_pretrained(tmp_path),
        AutoPeftModel.from_pretrained(tmp_path),
        PeftModel.from_pretrained(BertModel.from_pretrained(saved_encoder("bert")), tmp_path),
    ):
        torch.testing.assert_close(hidden_of(opened.eval()), expected)


def test_adapter_repository_of_others_with_a_config_still_opens_on_its_own_base(plain_lora, hub):
    plain_lora.push_to_hub("me/plain-lora")
    plain_lora.get_base_model().config.push_to_hub("me/plain-lora")
    assert "config.json" in hub.files("me/plain-lora")
    assert auto_factory.find_adapter_config_file("me/plain-lora") is not None
    torch.testing.assert_close(hidden_of(AutoModel.from_pretrained("me/plain-lora").eval()), hidden_of(plain_lora))


def test_other_processes_of_a_run_write_nothing(tmp_path):
    base = tiny_model()
    model = get_peft_model(base, hf_any3d.GuidedAdapterConfig())
    model.save_pretrained(tmp_path / "worker", is_main_process=False)
    assert not (tmp_path / "worker" / "config.json").exists()
    model.save_pretrained(tmp_path / "main", is_main_process=True)
    assert (tmp_path / "main" / "config.json").exists()


def test_public_names_are_all_there():
    for name in hf_any3d.__all__:
        assert getattr(hf_any3d, name) is not None
    assert set(hf_any3d.__all__) <= set(dir(hf_any3d))
    with raises(AttributeError, naming="'Any3Point'"):
        _ = hf_any3d.Any3Point


@pytest.mark.slow
def test_config_beside_an_adapter_names_the_class_to_open(tmp_path):
    get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig()).save_pretrained(tmp_path / "head")
    get_peft_model(tiny_model().any2point, hf_any3d.GuidedAdapterConfig()).save_pretrained(tmp_path / "features")
    named = [AutoConfig.from_pretrained(tmp_path / part).architectures for part in ("head", "features")]
    assert named == [["Any2PointForPointCloudClassification"], ["Any2PointModel"]]
    features = AutoModel.from_pretrained(tmp_path / "features")
    assert features(clouds()).pooler_output.shape == (3, 96)
    with raises(ValueError, naming="Any2PointModel"):
        hf_any3d.AutoModelForPointCloudClassification.from_pretrained(tmp_path / "features")


@pytest.mark.slow
@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_prompt_methods_of_peft_are_refused_by_models_without_words(method):
    with raises(ValueError, naming="Any2PointForPoint"):
        get_peft_model(tiny_model(), method(task_type="SEQ_CLS", num_virtual_tokens=2))
    with raises(ValueError, naming="ActModel"):
        get_peft_model(tiny_act(hf_any3d.ActModel), method(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2))


@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig])
def test_prompts_in_place_of_ids_are_refused_where_ids_mark_clouds(method):
    with raises(ValueError, naming="input_ids"):
        get_peft_model(minigpt3d(), method(task_type="CAUSAL_LM", num_virtual_tokens=2))


def test_prompt_methods_still_work_on_models_of_words():
    model = get_peft_model(
        BertModel.from_pretrained(saved_encoder("bert")),
        PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2),
    )
    words = torch.tensor([[3, 4, 5]])
    assert model(input_ids=words).last_hidden_state.shape == (1, 5, 48)
