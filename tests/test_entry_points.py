"""Auto class, PEFT, pipeline and AutoModel load equal models from a directory and from the hub."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, pipeline

from hf_any3d import (
    AutoModelForPointCloudClassification,
    PointCloudProcessor,
    encoder_linear_pattern,
    trainable_module_names,
)
from tests.closeness import assert_nearly_equal
from tests.tiny_encoders import (
    adapted_model,
    clouds,
    random_encoder,
    saved_encoder,
    tiny_config,
    tiny_model,
    train_step,
)
from tests.turns import some

PROCESSOR = PointCloudProcessor(num_points=48, sampling="first")


def lora_model(encoder, **kwargs):
    base = tiny_model(encoder, **kwargs)
    config = LoraConfig(r=2, target_modules=encoder_linear_pattern(base), modules_to_save=trainable_module_names(base))
    return get_peft_model(base, config)


MAKERS = pytest.mark.parametrize("make", [adapted_model, lora_model, tiny_model])


@torch.no_grad()
def outputs_of(model):
    """Return logits and pooled features of some clouds."""
    points = PROCESSOR(clouds())["points"]
    classifier = model.get_base_model() if isinstance(model, PeftModel) else model
    return model(points=points).logits, classifier.any2point(points).pooler_output


def made_and_trained(make, encoder, **kwargs):
    model = make(encoder, **kwargs)
    train_step(model)
    return model.eval()


def through_auto_class(name, base, **kwargs):
    return outputs_of(AutoModelForPointCloudClassification.from_pretrained(name, **kwargs))[0]


def through_peft(name, base, **kwargs):
    return outputs_of(PeftModel.from_pretrained(base(), name, **kwargs).eval())[0]


def through_pipeline(name, base, **kwargs):
    answers = pipeline("point-cloud-classification", model=name, **kwargs)(list(clouds()), top_k=3)
    scores = [{answer["label"]: answer["score"] for answer in answers_of_cloud} for answers_of_cloud in answers]
    return torch.tensor([[score[f"LABEL_{label}"] for label in range(3)] for score in scores]).log()


def check_entry_points(name, model, base):
    """Check that every entry point gives equal logits, in pipelines their softmax, and equal features."""
    logits, features = outputs_of(model)
    loaders = {through_auto_class: logits, through_pipeline: logits.log_softmax(dim=-1)}
    if isinstance(model, PeftModel):
        loaders[through_peft] = logits
    for load, expected in loaders.items():
        torch.testing.assert_close(load(name, base), expected, rtol=0, atol=1e-6, msg=load.__name__)
    with torch.no_grad():
        found = AutoModel.from_pretrained(name)(PROCESSOR(clouds())["points"])
    torch.testing.assert_close(found.pooler_output, features, rtol=0, atol=1e-6)


@pytest.mark.slow
@MAKERS
@pytest.mark.parametrize("encoder", some(["bert", "clip_vision_model"], left_out=["clip_vision_model"]))
def test_directory_opens_equal_through_every_entry_point(make, encoder, tmp_path):
    model = made_and_trained(make, encoder)
    model.save_pretrained(tmp_path / "made")
    PROCESSOR.save_pretrained(tmp_path / "made")
    check_entry_points(str(tmp_path / "made"), model, lambda: tiny_model(encoder))
    shutil.move(tmp_path / "made", tmp_path / "moved")
    check_entry_points(str(tmp_path / "moved"), model, lambda: tiny_model(encoder))


@pytest.mark.slow
@MAKERS
def test_tower_of_a_composite_encoder_is_restored(make, tmp_path):
    model = made_and_trained(make, "clip", tower="text")
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    check_entry_points(str(tmp_path), model, lambda: tiny_model("clip", tower="text"))


@pytest.fixture(scope="module")
def pushed_encoder(hub):
    """A tiny BERT in a repository of its own, with a later commit of other weights: its name and its first commit."""
    AutoModel.from_pretrained(saved_encoder("bert")).push_to_hub("me/tiny-bert")
    commit = hub.commits("me/tiny-bert")[-1]
    random_encoder(tiny_config("bert"), seed=9).push_to_hub("me/tiny-bert")
    assert hub.commits("me/tiny-bert")[-1] != commit
    return "me/tiny-bert", commit


@pytest.mark.slow
@MAKERS
def test_repository_opens_equal_through_every_entry_point(make, hub, pushed_encoder):
    encoder, commit = pushed_encoder
    name = f"me/loaders-{make.__name__.replace('_', '-')}"
    model = made_and_trained(make, encoder, revision=commit)
    model.push_to_hub(name)
    PROCESSOR.push_to_hub(name)
    config = AutoModel.from_pretrained(name).config
    assert (config.encoder_name_or_path, config.encoder_revision) == (encoder, commit)
    check_entry_points(name, model, lambda: tiny_model(encoder, revision=commit))


@pytest.mark.slow
@MAKERS
def test_pushed_files_contain_only_trained_parts(make, hub, tmp_path):
    name = f"me/small-{make.__name__.replace('_', '-')}"
    # An encoder that others find; the weights of one on this machine alone would be pushed, too.
    random_encoder(tiny_config("bert", vocab_size=10_000)).push_to_hub("me/encoder-to-find")
    model = make("me/encoder-to-find")
    model.push_to_hub(name)
    sizes = hub.files(name)
    encoder, trained = (
        sum(p.numel() * p.element_size() for n, p in model.named_parameters() if p.requires_grad == trains)
        for trains in (False, True)
    )
    allowed = 3 * trained + 100_000
    assert sum(sizes.values()) <= allowed < encoder, "the bound tells an encoder in the files from none"
    weights = hub.content(name, next(path for path in sizes if path.endswith(".safetensors")))
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert any("point_tokenizer" in tensor for tensor in header)
    frozen = {n.replace(".base_layer", "") for n, p in model.named_parameters() if not p.requires_grad}
    assert not frozen & set(header)


@pytest.mark.slow
@MAKERS
def test_dtype_and_attention_can_be_chosen_when_loading(make, tmp_path):
    model = made_and_trained(make, "bert", large_logits=True)
    model.save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    logits, _ = outputs_of(model)
    eager = AutoModelForPointCloudClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.any2point.encoder.config._attn_implementation == "eager"
    torch.testing.assert_close(outputs_of(eager)[0], logits, rtol=0, atol=1e-5)
    half = AutoModelForPointCloudClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.any2point.encoder.dtype == torch.bfloat16
    assert_nearly_equal(outputs_of(half)[0], logits, 0.1)


@pytest.mark.slow
@MAKERS
def test_loading_gives_no_warnings_and_misses_no_weights(make, tmp_path, recwarn, capfd):
    model = made_and_trained(make, "bert")
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded, info = AutoModelForPointCloudClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded.training
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    output = capfd.readouterr()
    for word in ("MISSING", "UNEXPECTED", "newly initialized", "were not"):
        assert word not in output.out + output.err


@pytest.mark.slow
def test_features_of_an_adapter_can_be_saved_again(tmp_path):
    model = made_and_trained(adapted_model, "bert")
    model.save_pretrained(tmp_path / "classifier")
    features = AutoModel.from_pretrained(tmp_path / "classifier")
    features.save_pretrained(tmp_path / "features")
    again = AutoModel.from_pretrained(tmp_path / "features")
    with torch.no_grad():
        points = PROCESSOR(clouds())["points"]
        assert torch.equal(again(points).pooler_output, outputs_of(model)[1])
