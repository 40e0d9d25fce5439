"""Baselines and controls: models without a pretrained encoder, trained on the same rows as those with one."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline, set_seed

from hf_any3d import (
    Any2PointForPointCloudClassification,
    Any2PointForZeroShotPointCloudClassification,
    AutoModelForPointCloudClassification,
    PointTokenizerConfig,
)
from hf_any3d.modeling.any2point import Any2PointConfig
from hf_any3d.training import tasks
from hf_any3d.training.arguments import AdapterArguments
from hf_any3d.training.models import CLASSES, SCENES, PointModelArguments, build_model
from hf_any3d.training.requests import parse_arguments
from tests.errors import raises
from tests.examples.conftest import EXAMPLES, tiny_shapes, words_of
from tests.tiny_encoders import clouds, random_encoder, tiny_config

SIZES = {"num_tokens": 8, "tokenizer_neighbors": 4, "model_config": {"tokenizer": "patch", "tokenizer_width": 24}}
MODELS = {
    "pretrained": SIZES,
    "shuffled": SIZES | {"encoder_weights": "shuffled"},
    "none": SIZES | {"encoder_weights": "none"},
    "pointnet": {"model_type": "pointnet", "model_config": {"hidden_sizes": [8, 16], "head_widths": [8]}},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    random_encoder(tiny_config("bert")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def runs(encoder, tmp_path_factory):
    """For each model: its folder, the trainer, and the batches that it was trained on."""
    root, found = tmp_path_factory.mktemp("runs"), {}
    shapes = tiny_shapes(rows=16, points=96)
    for split in ("train", "test"):
        shapes[split].to_parquet(root / f"{split}.parquet")
    build = tasks.Classification.build_trainer
    settings = {
        "encoder_name_or_path": encoder,
        "train_file": str(root / "train.parquet"),
        "test_file": str(root / "test.parquet"),
        "dataset_options": {"cache_dir": str(root / "cache")},
        "validation_fraction": 0.0,
        "num_points": 64,
        "augment": ["shuffle", "scale", "jitter"],
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    for name, own in MODELS.items():
        batches, trainers = [], []

        def recorded(*args, batches=batches, trainers=trainers):
            trainer = build(*args)
            collate = trainer.data_collator
            trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
            trainers.append(trainer)
            return trainer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tasks.Classification, "build_trainer", recorded)
            report = tasks.train_classifier(words_of(settings | own | {"output_dir": str(root / name)}))
        found[name] = (root / name, trainers[0], batches, report)
    return found


@pytest.mark.slow
def test_models_of_equal_seeds_are_trained_on_equal_rows_and_augmentation(runs):
    expected = runs["pretrained"][2]
    steps = runs["pretrained"][1].state.max_steps
    assert steps == 4 and not torch.equal(expected[0]["points"], expected[2]["points"])
    for name, (_, _, batches, _) in runs.items():
        assert len(batches) == len(expected), name
        for ours, theirs in zip(batches, expected, strict=True):
            assert torch.equal(ours["points"], theirs["points"]), name
            assert torch.equal(ours["labels"], theirs["labels"]), name


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_saved_model_is_the_trained_one_and_its_card_names_the_control(runs, name):
    folder, trainer, _, report = runs[name]
    points = clouds(3, 64)
    expected = trainer.model.eval()(points=points).logits
    torch.testing.assert_close(
        AutoModelForPointCloudClassification.from_pretrained(folder).eval()(points).logits, expected
    )
    answer = pipeline("point-cloud-classification", model=str(folder))(points[0].numpy(), top_k=1)[0]
    assert answer["label"] == trainer.model.config.id2label[int(expected[0].argmax())]
    features = pipeline("point-cloud-feature-extraction", model=str(folder))(points[0].numpy())
    assert features["centers"].shape == (len(features["tokens"]), 3) and features["pooled"].ndim == 1
    card = ModelCard.load(folder / "README.md")
    assert ("control" in card.data.tags) == (name in ("shuffled", "none"))
    text = {
        "shuffled": "with shuffled weights, not the pretrained ones",
        "none": "the tokenizer and head of an Any2Point model without its encoder",
        "pointnet": "keeps the maximum of each feature over the cloud, started from random weights",
    }
    assert text.get(name, "") in card.text
    stored = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert stored["encoder"].get("weights") == (name if name == "shuffled" else None)
    assert report.start.get("encoder weights") == ("none" if name == "none" else None)


def test_random_and_shuffled_encoders_leave_all_other_weights_as_they_are(encoder):
    states = {}
    for weights in ("pretrained", "random", "shuffled"):
        set_seed(5)
        model = Any2PointForPointCloudClassification.from_encoder_pretrained(
            encoder, encoder_weights=weights, num_labels=3, num_tokens=8, tokenizer_neighbors=4, token_scale=None
        )
        states[weights] = model.state_dict()
        assert not any(parameter.requires_grad for parameter in model.any2point.encoder.parameters())
    pretrained = states["pretrained"]
    inside = [name for name in pretrained if name.startswith("any2point.encoder.encoder.") and "weight" in name]
    for weights in ("random", "shuffled"):
        other = states[weights]
        assert other.keys() == pretrained.keys()
        for name, tensor in pretrained.items():
            if not name.startswith("any2point.encoder."):
                assert torch.equal(other[name], tensor), name
            elif weights == "shuffled":
                assert torch.equal(other[name].flatten().sort().values, tensor.flatten().sort().values), name
        assert inside and not any(torch.equal(other[name], pretrained[name]) for name in inside if "Norm" not in name)


def test_the_space_of_texts_needs_the_pretrained_encoder(encoder):
    with raises(ValueError, naming="encoder_weights"):
        Any2PointForZeroShotPointCloudClassification.from_encoder_pretrained(encoder, encoder_weights="random")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_weights": "zero"}, "encoder_weights='zero'; expected one of 'pretrained', 'random'"),
        ({"encoder_weights": "none", "model_type": "pointnet"}, "pointnet, which has no frozen encoder"),
        (
            {"encoder_weights": "random", "model_name_or_path": "act"},
            "--model_type act3d, which has no frozen encoder",
        ),
        (
            {"encoder_weights": "none", "encoder_attention_dropout": 0.1},
            "--encoder_attention_dropout 0.1 has no effect",
        ),
        ({"model_config": {"encoder_weights": "random"}}, "use --encoder_weights instead"),
    ],
)
def test_contradicting_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PointModelArguments(**settings)


def test_models_without_an_encoder_refuse_what_needs_one(encoder):
    arguments = PointModelArguments(encoder_weights="none", encoder_name_or_path=encoder)
    with raises(ValueError, naming="--peft"):
        build_model(CLASSES, arguments, AdapterArguments(peft="lora"), ["chair"])
    with pytest.raises(ValueError, match="only for classification; this is semantic segmentation"):
        build_model(SCENES, arguments, AdapterArguments(), ["chair"])
    config = Any2PointConfig(encoder_config=tiny_config("bert"), pooling=("cls",))
    with raises(ValueError, naming="'max', 'mean': there is no"):
        PointTokenizerConfig.without_encoder(config)


def test_settings_of_a_recipe_for_another_model_are_left_out():
    recipe = str(EXAMPLES / "recipes" / "quickstart.yaml")
    kinds = tasks.Classification.argument_classes()
    plain, data, *_ = parse_arguments(kinds, [recipe])
    model, same_data, _, adapter, training = parse_arguments(kinds, [recipe, "--model_type", "pointnet"])
    assert (model.model_type, model.model_config, model.num_layers, adapter.peft) == ("pointnet", {}, None, None)
    assert same_data == data and training.learning_rate == 4e-3
    model, _, _, adapter, _ = parse_arguments(kinds, [recipe, "--encoder_weights", "none"])
    assert model.model_config == plain.model_config and model.encoder_weights == "none"
    assert (adapter.peft, adapter.peft_config) == (None, {})
    model, _, _, adapter, _ = parse_arguments(kinds, [recipe, "--encoder_weights", "random"])
    assert (model.encoder_weights, adapter.peft) == ("random", "guided_adapter")
