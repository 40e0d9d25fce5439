"""Every patch of PEFT and transformers is still needed: what the original does, and what the patched function does."""

import copy
import importlib
import inspect
import pickle
import pkgutil
import re
from pathlib import Path

import accelerate
import peft
import pytest
import torch
import transformers
import transformers.trainer
from peft import (
    AutoPeftModel,
    LoraConfig,
    PeftModel,
    PeftModelForFeatureExtraction,
    PromptTuningConfig,
    auto as peft_auto,
    get_peft_model,
)
from peft.utils import hotswap
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, BertModel
from transformers.models.auto import auto_factory

import hf_any3d
from hf_any3d.data import AugmentedDataset
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.transforms import Jitter
from hf_any3d.integration.patches import PATCHES
from hf_any3d.integration.peft_patches import adapted_class
from hf_any3d.integration.trainer_patches import BestAdaptersCallback
from tests.common.models import case_of
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[2]


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


# What waits for the first model, the first cloud and the first training rows.
tiny_model()
ROWS = AugmentedDataset([{"points": torch.zeros(4, 3)}] * 6, Jitter())
PointCloudData(points=torch.zeros(4, 3).numpy())
importlib.import_module("datasets")
TARGETS = [target for patch in PATCHES for target in patch.targets]


def test_few_functions_are_wrapped_and_the_page_says_what_would_delete_each():
    assert len(PATCHES) <= 10, TARGETS
    page = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \|.{20,}\|.{20,}\|$", page, re.MULTILINE)
    # Patches are entered as libraries are imported.
    assert sorted(rows) == sorted(patch.targets[0].rpartition(":")[2] for patch in PATCHES)


@pytest.mark.parametrize("target", TARGETS)
def test_every_patch_is_applied_once_keeps_the_signature_and_has_its_reason(target):
    patch = next(patch for patch in PATCHES if target in patch.targets)
    place, _, name = target.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(place)
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
        (peft.peft_model, "= model.load_adapter("),
        (peft.peft_model, "self.create_or_update_model_card("),
        (peft.peft_model, "self.add_adapter("),
        (transformers.utils.hub, "self._upload_modified_files("),
        (transformers.utils.hub, "file = cached_files("),
        (transformers.trainer, "= self.compute_loss("),
    ):
        assert call in inspect.getsource(module), module.__name__


@pytest.fixture
def plain(monkeypatch):
    """Make models of PEFT as it would without this package."""

    def make(model, config):
        with monkeypatch.context() as patched:
            patched.setattr(PeftModel, "__init__", original(PeftModel.__init__))
            return get_peft_model(model, config)

    return make


def test_transformers_finds_no_files_that_it_knows_in_the_repository_of_the_authors(hub):
    # The converted files: tests/published/test_published.py.
    hub.commit("OpenShape/openshape-pointbert-no-lvis", {"model.pt": b"not read"}, in_lfs=True)
    with raises(OSError, naming="preprocessor_config.json"):
        original(transformers.utils.hub.cached_files)(
            "OpenShape/openshape-pointbert-no-lvis", ["preprocessor_config.json"]
        )
    with raises(ValueError, naming="model.pt"):
        transformers.utils.hub.cached_files("OpenShape/openshape-pointbert-no-lvis", ["preprocessor_config.json"])


def test_models_around_ours_are_of_a_subclass_that_copies_and_pickles(plain, tmp_path):
    for task, kind in ((None, PeftModel), ("FEATURE_EXTRACTION", PeftModelForFeatureExtraction)):
        config = LoraConfig(task_type=task, target_modules=["query"])
        assert type(plain(tiny_model("bert"), config)) is kind
        bert = BertModel(tiny_config("bert"))
        assert type(get_peft_model(bert, LoraConfig(task_type=task, target_modules=["query"]))) is kind
        model = get_peft_model(tiny_model("bert"), config)
        assert type(model) is adapted_class(kind) and isinstance(model, kind)
        assert repr(model).startswith(f"{kind.__name__}(")
        torch.save(model, tmp_path / "model.pt")
        stored = torch.load(tmp_path / "model.pt", weights_only=False)
        for again in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model)), stored):
            assert type(again) is type(model)
            assert torch.equal(again.eval()(points=clouds(2))[0], model.eval()(points=clouds(2))[0])


def test_peft_saves_an_adapter_without_the_config_of_its_model(plain, tmp_path):
    for name, make in (("theirs", plain), ("ours", get_peft_model)):
        make(tiny_model(), hf_any3d.GuidedAdapterConfig()).save_pretrained(tmp_path / name)
    assert not (tmp_path / "theirs" / "config.json").exists()
    assert (tmp_path / "ours" / "config.json").exists()


def test_peft_writes_its_template_as_card(plain, tmp_path):
    for name, make in (("theirs", plain), ("ours", get_peft_model)):
        (tmp_path / name).mkdir()
        make(tiny_model(), hf_any3d.GuidedAdapterConfig()).create_or_update_model_card(str(tmp_path / name))
    assert "[More Information Needed]" in (tmp_path / "theirs" / "README.md").read_text()
    assert "[More Information Needed]" not in (tmp_path / "ours" / "README.md").read_text()


def test_a_push_puts_a_template_over_the_card(hub, plain):
    get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig()).push_to_hub("me/adapter")
    assert "hf_any3d" in hub.content("me/adapter", "README.md").decode()
    plain(tiny_model(), hf_any3d.GuidedAdapterConfig()).push_to_hub("me/other")
    assert "hf_any3d" not in hub.content("me/other", "README.md").decode()


def test_peft_loads_an_adapter_onto_a_base_with_other_weights(adapter, plain):
    def changed():
        model = tiny_model()
        with torch.no_grad():
            next(model.any2point.encoder.parameters()).add_(1)
        return model

    plain(changed(), hf_any3d.GuidedAdapterConfig()).load_adapter(str(adapter), "theirs")
    with raises(ValueError, naming="weights"):
        PeftModel.from_pretrained(changed(), str(adapter))


def test_peft_swaps_no_adapter_with_a_trained_head(tmp_path):
    config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False)
    get_peft_model(tiny_model("bert"), config).save_pretrained(tmp_path)
    model = get_peft_model(tiny_model("bert"), config)
    config, state = model.peft_config["default"], load_file(tmp_path / "adapter_model.safetensors")
    named = {key.replace(".weight", ".default.weight") if ".lora_" in key else key: state[key] for key in state}
    with pytest.raises(KeyError):
        original(hotswap.hotswap_adapter_from_state_dict)(model, named, "default", config)
    hotswap.hotswap_adapter_from_state_dict(model, named, "default", config)


def test_peft_loses_the_weights_of_an_adapter_on_an_offloaded_model(plain, tmp_path):
    config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    model = get_peft_model(tiny_model("bert"), config)
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].out.bias.fill_(5)
    model.save_pretrained(tmp_path)
    expected = model.eval()(clouds(2)).logits

    def offloaded():
        return accelerate.cpu_offload(tiny_model("bert"), execution_device=torch.device("cpu"))

    wrapped = plain(offloaded(), config)
    wrapped.load_adapter(str(tmp_path), "theirs")
    wrapped.set_adapter("theirs")
    assert (wrapped.eval()(clouds(2)).logits - expected).abs().max() > 1
    with pytest.raises(ValueError, match="the base model's weights are offloaded"):
        PeftModel.from_pretrained(offloaded(), str(tmp_path))


def test_pipelines_find_the_task_of_adapters_and_directories(hub, adapter):
    get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig()).push_to_hub("me/task-of-adapter")
    hf_any3d.PointCloudProcessor(num_points=48).push_to_hub("me/task-of-adapter")
    hf_any3d.PointCloudProcessor(num_points=48).save_pretrained(adapter)
    for name in ("me/task-of-adapter", str(adapter)):
        assert transformers.pipeline(model=name).task == "point-cloud-classification"
    # Of others the hub is asked, as ever.
    hub.commit("me/of-peft", {"README.md": b"---\nlibrary_name: peft\npipeline_tag: text-generation\n---\n"})
    BertModel(tiny_config("bert")).push_to_hub("me/of-peft")
    with pytest.raises(RuntimeError, match="is meant to be used with peft"):
        transformers.pipeline(model="me/of-peft")


def test_pipelines_turn_from_an_adapter_repository_to_its_base(hub):
    name = "me/piped-adapter"
    get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig()).push_to_hub(name)
    hf_any3d.PointCloudProcessor(num_points=48).push_to_hub(name)
    assert original(transformers.pipelines.find_adapter_config_file)(name) is not None
    pipe = transformers.pipeline("point-cloud-classification", model=name)
    assert type(pipe.model) is hf_any3d.Any2PointForPointCloudClassification


def test_transformers_turns_from_an_adapter_repository_to_its_base(adapter):
    assert original(auto_factory.find_adapter_config_file)(str(adapter)) is not None
    assert auto_factory.find_adapter_config_file(str(adapter)) is None


def test_auto_peft_model_does_not_open_by_the_config(adapter):
    with pytest.raises(Exception):  # noqa: B017  the kind of error differs by release
        original(peft_auto._BaseAutoPeftModel.from_pretrained.__func__)(AutoPeftModel, str(adapter))
    assert isinstance(
        AutoPeftModel.from_pretrained(adapter).get_base_model(), hf_any3d.Any2PointForPointCloudClassification
    )


def trainer_of(model, folder, **settings):
    arguments = transformers.TrainingArguments(folder, report_to="none", use_cpu=True, **settings)
    return transformers.Trainer(model, arguments)


def test_trainers_find_no_best_weights_of_an_adapter_with_a_name_of_its_own(tmp_path):
    model = get_peft_model(tiny_model(), hf_any3d.GuidedAdapterConfig(init_weights=False), adapter_name="mine")
    model.save_pretrained(tmp_path)
    trained = {name: weight for name, weight in model.named_parameters() if ".mine." in name}
    stored = {name: weight.clone() for name, weight in trained.items()}
    trainer = trainer_of(model, tmp_path)
    trainer.args.load_best_model_at_end = True
    trainer.state.best_model_checkpoint = str(tmp_path)
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(1)
    trainer._load_best_model()
    assert not any(torch.equal(weight, stored[name]) for name, weight in trained.items())
    assert trainer.pop_callback(BestAdaptersCallback) is None
    trainer.compute_loss(model, {"points": clouds(2), "labels": torch.tensor([0, 1])})
    callback = trainer.pop_callback(BestAdaptersCallback)
    callback.on_train_end(trainer.args, trainer.state, trainer.control, model=model)
    assert all(torch.equal(weight, stored[name]) for name, weight in trained.items())


def test_loaders_tell_rows_no_epoch_that_is_begun_in_the_middle():
    for nested in (ROWS, torch.utils.data.ConcatDataset([ROWS])):
        sampler = accelerate.data_loader.SeedableRandomSampler(nested)
        loader = accelerate.data_loader.DataLoaderShard(nested, batch_size=2, sampler=sampler)
        resumed = accelerate.skip_first_batches(loader, 1)
        ROWS.epoch = 0
        original(accelerate.data_loader.DataLoaderShard.set_epoch)(resumed, 3)
        assert ROWS.epoch == 0
        resumed.set_epoch(3)
        assert ROWS.epoch == 3
        # An evaluation of the same rows in between, whose loader is in its own first epoch.
        accelerate.data_loader.DataLoaderShard(nested, batch_size=2).set_epoch(0)
        assert ROWS.epoch == 3


def test_trainers_smooth_labels_of_any_loss(tmp_path):
    case = case_of(hf_any3d.PatchAlign3DForZeroShotPointCloudSegmentation)
    trainer = trainer_of(case.still(), tmp_path, label_smoothing_factor=1e-9)
    batch = case.labeled()
    with torch.no_grad():
        theirs = original(transformers.Trainer.compute_loss)(trainer, trainer.model, dict(batch))
        assert abs(theirs - trainer.model(**batch).loss) > 1
        with raises(ValueError, naming="--label_smoothing_factor"):
            trainer.compute_loss(trainer.model, dict(batch))


def test_prompt_methods_are_not_refused_by_peft_in_words_that_help(plain):
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(Exception) as theirs:  # noqa: B017, PT011
        plain(tiny_model(), config)
    assert "reads none" not in str(theirs.value)
    with pytest.raises(ValueError, match="embeddings of words to .*, which reads none"):
        get_peft_model(tiny_model(), config)


def test_models_of_others_keep_the_errors_and_answers_of_their_libraries(tmp_path):
    bert = BertForSequenceClassification(tiny_config("bert"))
    bert.requires_grad_(False)
    tokens = torch.ones(2, 4, dtype=torch.long)
    batch = {"input_ids": tokens, "labels": torch.zeros(2, dtype=torch.long)}
    # Nothing is trained: the error is torch's.
    loss = trainer_of(bert.train(), tmp_path / "run", label_smoothing_factor=0.1).compute_loss(bert, dict(batch))
    assert not loss.requires_grad
    # A folder of adapters, a config that is none.
    for name in ("one", "two"):
        get_peft_model(BertModel(tiny_config("bert")), LoraConfig(target_modules=["query"])).save_pretrained(
            tmp_path / "adapters" / name
        )
    (tmp_path / "adapters" / "one" / "config.json").write_text('{"model_type": "bert"}')
    assert auto_factory.find_adapter_config_file(str(tmp_path / "adapters")) is None
