"""Every patch of PEFT and transformers is still needed: what the original does, and what the patched function does."""

import inspect
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from peft import AutoPeftModel, PeftModel, PromptTuningConfig, auto as peft_auto, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.models.auto import auto_factory

import hf_any3d
from hf_any3d.patches import PATCHES
from tests.tiny_encoders import tiny_model

NAMES = {patch.target.partition(":")[2] for patch in PATCHES}


def original(function):
    """The function of the library under our wrapper."""
    assert function._patched_by_hf_any3d
    return function.__wrapped__


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The directory of a guided adapter."""
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target)
def test_every_patch_is_applied_once_keeps_the_signature_and_has_its_reason(patch):
    owner, name = patch.owner_and_name()
    wrapper = inspect.getattr_static(owner, name)
    wrapper = getattr(wrapper, "__func__", wrapper)
    assert wrapper._patched_by_hf_any3d and not hasattr(wrapper.__wrapped__, "_patched_by_hf_any3d")
    assert (
        inspect.signature(wrapper) == inspect.signature(wrapper.__wrapped__)
        and wrapper.__doc__ == wrapper.__wrapped__.__doc__
    )
    assert patch.reason
    patch.apply()
    again = inspect.getattr_static(owner, name)
    assert getattr(again, "__func__", again) is wrapper


def test_libraries_still_call_the_functions_where_they_are_patched():
    for module, call in (
        (auto_factory, "= find_adapter_config_file("),
        (transformers.pipelines, "= find_adapter_config_file("),
        (transformers.pipelines, 'hub_kwargs["revision"] = resolve_revision('),
        (peft.peft_model, "= model.load_adapter("),
        (peft.peft_model, "self.create_or_update_model_card("),
        (transformers.utils.hub, "self._upload_modified_files("),
        (transformers.utils.hub, "file = cached_files("),
        (transformers.trainer, "self.create_model_card("),
        (transformers.pipelines, "= get_task("),
    ):
        assert call in inspect.getsource(module), module.__name__


def test_transformers_finds_no_files_that_it_knows_in_the_repository_of_the_authors(hub):
    # The converted files: tests/opening/test_published.py.
    hub.commit("OpenShape/openshape-pointbert-no-lvis", {"model.pt": b"not read"}, in_lfs=True)
    with pytest.raises(OSError, match="does not appear to have a file named preprocessor_config.json"):
        original(transformers.utils.hub.cached_files)(
            "OpenShape/openshape-pointbert-no-lvis", ["preprocessor_config.json"]
        )
    with pytest.raises(ValueError, match="model.pt: not a checkpoint of tensors"):
        transformers.utils.hub.cached_files("OpenShape/openshape-pointbert-no-lvis", ["preprocessor_config.json"])


def test_peft_saves_an_adapter_without_the_config_of_its_model(tmp_path):
    model = get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig())
    original(PeftModel.save_pretrained)(model, str(tmp_path / "theirs"))
    assert not (tmp_path / "theirs" / "config.json").exists()
    model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "config.json").exists()


def test_peft_writes_its_template_as_card(tmp_path):
    model = get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig())
    for name, write in (
        ("theirs", original(PeftModel.create_or_update_model_card)),
        ("ours", PeftModel.create_or_update_model_card),
    ):
        (tmp_path / name).mkdir()
        write(model, str(tmp_path / name))
    assert "[More Information Needed]" in (tmp_path / "theirs" / "README.md").read_text()
    assert "[More Information Needed]" not in (tmp_path / "ours" / "README.md").read_text()


def test_a_push_puts_a_template_over_the_card(hub):
    model = get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig())
    model.push_to_hub("me/adapter")
    assert "hf_any3d" in hub.content("me/adapter", "README.md").decode()
    patched, PeftModel._upload_modified_files = (
        PeftModel._upload_modified_files,
        original(PeftModel._upload_modified_files),
    )
    try:
        model.push_to_hub("me/other")
    finally:
        PeftModel._upload_modified_files = patched
    assert "hf_any3d" not in hub.content("me/other", "README.md").decode()


def test_the_trainer_writes_a_card_without_what_the_model_says_of_itself(tmp_path):
    trainer = Trainer(tiny_model(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    original(Trainer.create_model_card)(trainer, model_name="chairs")
    assert "Any2Point" not in (tmp_path / "README.md").read_text().replace("Any2PointFor", "")
    trainer.create_model_card(model_name="chairs")
    assert "Any2Point" in (tmp_path / "README.md").read_text().replace("Any2PointFor", "")


def test_peft_loads_an_adapter_onto_a_base_with_other_weights(adapter):
    def changed():
        model = tiny_model()
        with torch.no_grad():
            next(model.any2point.encoder.parameters()).add_(1)
        return model

    wrapped = get_peft_model(changed(), hf_any3d.GuidedAdapterConfig())
    original(PeftModel.load_adapter)(wrapped, str(adapter), "theirs")
    with pytest.raises(ValueError, match="weights"):
        PeftModel.from_pretrained(changed(), str(adapter))


def test_pipelines_look_for_missing_paths_on_the_hub(hub, monkeypatch):
    before = len(hub.requests)
    monkeypatch.setattr(transformers.pipelines, "resolve_revision", original(transformers.pipelines.resolve_revision))
    with pytest.raises(OSError):
        transformers.pipeline("point-cloud-classification", model="outputs/no-such-model")
    asked = len(hub.requests)
    assert asked > before
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="^no directory outputs/no-such-model"):
        transformers.pipeline("point-cloud-classification", model="outputs/no-such-model")
    assert len(hub.requests) == asked


def test_transformers_refuses_the_library_of_adapters(hub, adapter):
    hub.commit("me/of-peft", {"README.md": b"---\nlibrary_name: peft\npipeline_tag: text-generation\n---\n"})
    hub.commit("me/of-ours", {"README.md": (adapter / "README.md").read_bytes()})
    for name in ("me/of-peft", "me/of-ours"):
        with pytest.raises(RuntimeError, match="is meant to be used with peft"):
            original(transformers.pipelines.get_task)(name)
    with pytest.raises(RuntimeError, match="is meant to be used with peft"):
        transformers.pipelines.get_task("me/of-peft")
    assert transformers.pipelines.get_task("me/of-ours") == "point-cloud-classification"


def test_peft_looks_for_missing_adapters_on_the_hub(hub):
    before = len(hub.requests)
    with pytest.raises(Exception):  # noqa: B017  the kind of error differs by release
        original(PeftModel.from_pretrained.__func__)(PeftModel, tiny_model(), "outputs/no-such-adapter")
    asked = len(hub.requests)
    assert asked > before
    with pytest.raises(FileNotFoundError, match="^no directory outputs/no-such-adapter"):
        PeftModel.from_pretrained(tiny_model(), "outputs/no-such-adapter")
    assert len(hub.requests) == asked


def test_transformers_turns_from_an_adapter_repository_to_its_base(adapter):
    for module in (auto_factory, transformers.pipelines):
        assert original(module.find_adapter_config_file)(str(adapter)) is not None
        assert module.find_adapter_config_file(str(adapter)) is None


def test_auto_peft_model_does_not_open_by_the_config(adapter):
    with pytest.raises(Exception):  # noqa: B017  the kind of error differs by release
        original(peft_auto._BaseAutoPeftModel.from_pretrained.__func__)(AutoPeftModel, str(adapter))
    assert isinstance(
        AutoPeftModel.from_pretrained(adapter).get_base_model(), hf_any3d.Any2PointForPointCloudClassification
    )


def test_prompt_methods_are_not_refused_by_peft_in_words_that_help():
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    wrapped = SimpleNamespace(base_model=tiny_model(), prompt_encoder=torch.nn.ModuleDict(), peft_config={})
    with pytest.raises(Exception) as theirs:  # noqa: B017, PT011
        original(PeftModel.add_adapter)(wrapped, "default", config)
    assert "reads none" not in str(theirs.value)
    with pytest.raises(ValueError, match="learns embeddings of words, and .* reads none"):
        PeftModel.add_adapter(wrapped, "default", config)
