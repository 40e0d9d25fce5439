"""The recipes of Any2Point and APPT have the published values, and each kind of them runs."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features
from peft import get_peft_model
from transformers import AutoConfig, ViTConfig

from examples import quickstart, run_point_cloud_classification
from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.data.transforms import build_transform
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.modeling.any2point.point_tokenizer import FullPointTokenizer
from hf_any3d.training.arguments import AdapterArguments, DataArguments, ModelArguments, PointTrainingArguments
from hf_any3d.training.protocol import ProtocolArguments
from hf_any3d.training.requests import parse_arguments
from hf_any3d.tuners import APPTConfig, GuidedAdapterConfig
from tests.examples.conftest import EXAMPLES, words_of
from tests.tiny_encoders import saved_encoder
from tests.turns import ALL_PAIRS

FOLDER = EXAMPLES / "recipes"
RECIPES = sorted(p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("any2point_*.yaml"))
KINDS = (ModelArguments, DataArguments, ProtocolArguments, AdapterArguments, PointTrainingArguments)
APPT = ["appt_scanobjectnn_pb_t50_rs", "released/appt_scanobjectnn"]
ENCODERS = {"clip": "clip_text_model", "dinov2": "dinov2", "imagebind": "imagebind_audio"}


def parsed(recipe: str, *words: str):
    return parse_arguments(KINDS, [str(FOLDER / f"{recipe}.yaml"), *words])


def kind_of(recipe: str) -> tuple[str, str]:
    """Return encoder and dataset of a recipe by its name."""
    parts = Path(recipe).name.split("_")
    return parts[1], "scan" if parts[2] == "scanobjectnn" else "modelnet"


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "/" in recipe])
def test_released_recipe_has_the_settings_of_converted_checkpoints(recipe):
    encoder, dataset = kind_of(recipe)
    variant = VARIANTS[f"{encoder}-{dataset}"]
    model, _, protocol, adapter, _ = parsed(recipe)
    expected = {name: value for name, value in variant.model.items() if name != "id2label"}
    ours = {name: value for name, value in model.model_config.items() if name in expected}
    assert Any2PointConfig(**ours).to_dict() == Any2PointConfig(**expected).to_dict()
    assert {name: adapter.peft_config.get(name) for name in variant.adapter} == variant.adapter
    assert protocol.select_on_test and (model.tower, model.encoder_name_or_path) in (
        (variant.encoder_tower, variant.encoder_name),
        (None, "outputs/imagebind_audio"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "without_head", "head"),
    [
        ("any2point_clip_scanobjectnn_pb_t50_rs", 948_312, 463_631),
        ("any2point_dinov2_scanobjectnn_pb_t50_rs", 800_760, 463_631),
        ("any2point_imagebind_scanobjectnn_pb_t50_rs", 874_536, 463_631),
        ("any2point_clip_modelnet40", 948_312, 470_568),
        ("any2point_dinov2_modelnet40", 800_760, 470_568),
        ("any2point_imagebind_modelnet40", 800_760, 470_568),
    ][:: 1 if ALL_PAIRS else 2],
)
def test_recipe_trains_as_many_parameters_as_its_program(recipe, without_head, head):
    encoder, dataset = kind_of(recipe)
    variant = VARIANTS[f"{encoder}-{dataset}"]
    settings, _, _, adapter, _ = parsed(recipe)
    # In true size, with shapes but no numbers.
    with torch.device("meta"):
        encoder_config = AutoConfig.for_model(**variant.encoder)
        config = Any2PointConfig(
            encoder_config=encoder_config, id2label=variant.model["id2label"], **settings.model_config
        )
        model = Any2PointForPointCloudClassification(config)
        model = get_peft_model(model, GuidedAdapterConfig(**adapter.peft_config))
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    in_head = sum(size for name, size in sizes.items() if "classifier" in name)
    assert (sum(sizes.values()) - in_head, in_head) == (without_head, head)


@pytest.mark.parametrize("recipe", APPT)
def test_recipes_of_appt_have_the_settings_of_its_program(recipe):
    model, _, protocol, adapter, training = parsed(recipe)
    config = Any2PointConfig(encoder_config=ViTConfig(), **model.model_config, num_labels=15)
    assert (config.released.pooler_dropout, config.head_dropout, config.head_widths) == (0.1, 0.4, [512, 256])
    widths = [config.encoder_config.hidden_size // division for division in (8, 4, 2, 1, 1)]
    with torch.device("meta"):
        tokenizer = FullPointTokenizer(config, config.encoder_config.hidden_size)
    assert [tokenizer.embed.out_features, *(stage.lift.out_channels for stage in tokenizer.stages)] == widths
    smoothed = torch.full((15,), training.label_smoothing_factor / 15)
    assert smoothed[:-1].sum().item() == pytest.approx(0.2)
    assert [training.epoch_schedule.rate(epoch, 5e-4) for epoch in (0, 200, 299)] == pytest.approx([5e-4, 1e-4, 1e-4])
    is_released = recipe in APPT[1:]
    assert (APPTConfig(**adapter.peft_config) == APPTConfig.published()) == is_released == protocol.select_on_test


def random_clouds(rows: int, seed: int) -> Dataset:
    """Generate spheres and clouds of 1300 points, with normals after the coordinates."""
    generator = np.random.default_rng(seed)
    points = generator.standard_normal((rows, 1300, 6)).astype(np.float32)
    points[::2, :, :3] /= np.linalg.norm(points[::2, :, :3], axis=2, keepdims=True)
    features = Features({"points": Array2D((1300, 6), "float32"), "label": ClassLabel(names=["sphere", "cloud"])})
    return Dataset.from_dict({"points": list(points), "label": [i % 2 for i in range(rows)]}, features=features)


@pytest.fixture
def loaded(monkeypatch) -> list[dict]:
    """Replaces the datasets of the catalog; lists the options that each was loaded with."""
    requested = []

    def load(data_dir=None, **options):
        requested.append(options)
        return DatasetDict(train=random_clouds(5, 0), test=random_clouds(5, 1))

    module = ModuleType("hf_any3d.data.catalog.fake")
    module.load = load
    for name in ("scanobjectnn", "modelnet40", "modelnet40_fewshot"):
        monkeypatch.setitem(sys.modules, f"hf_any3d.data.catalog.{name}", module)
    return requested


SHORT = {
    "num_tokens": 8,
    "tokenizer_neighbors": 4,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "max_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "seed": 3,
}


# Every base file once; the others differ from these in numbers and options alone.
@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "any2point_clip_scanobjectnn_obj_bg",
        "any2point_imagebind_modelnet40",
        "any2point_dinov2_modelnet40_fewshot",
        "released/any2point_clip_modelnet40",
        "released/any2point_dinov2_scanobjectnn",
        "released/any2point_imagebind_scanobjectnn",
    ],
)
def test_recipe_runs(loaded, tmp_path, recipe):
    encoder, dataset = kind_of(recipe)
    settings = SHORT | {"encoder_name_or_path": saved_encoder(ENCODERS[encoder]), "output_dir": str(tmp_path)}
    report = run_point_cloud_classification.main([str(FOLDER / f"{recipe}.yaml"), *words_of(settings)])
    assert report.training["steps"] == 1 and report.training["lr_scheduler"] == "epoch_cosine"
    assert set(report.metrics) == {"test"} and report.data["points"] == 1024
    chosen = recipe.startswith("released")
    text = (tmp_path / "README.md").read_text()
    assert ("on the test split itself" in text) is chosen and bool(report.selection) is chosen
    variant = "_".join(Path(recipe).name.split("_")[3:]) or "pb_t50_rs"
    few = {"way": 5, "shot": 10, "fold": 0} if recipe.endswith("fewshot") else {}
    assert loaded == [few if dataset == "modelnet" else {"variant": variant}]


@pytest.mark.slow
def test_the_recipe_of_appt_runs(loaded, tmp_path):
    settings = SHORT | {"encoder_name_or_path": saved_encoder("vit"), "output_dir": str(tmp_path)}
    report = run_point_cloud_classification.main([str(FOLDER / f"{APPT[0]}.yaml"), *words_of(settings)])
    assert report.training["steps"] == 1 and not report.selection
    assert loaded == [{"variant": "pb_t50_rs"}]


def test_the_quickstart_and_the_program_read_the_same_recipe():
    model, data, protocol, adapter, training = parsed("quickstart")
    assert (model.num_layers, model.encoder_name_or_path) == (quickstart.MODEL["num_layers"], quickstart.ENCODER)
    assert not model.model_config and set(quickstart.MODEL) == {"num_layers"}
    assert GuidedAdapterConfig.light(**adapter.peft_config) == GuidedAdapterConfig(**quickstart.ADAPTER)
    assert data.augment == quickstart.AUGMENTATION and len(build_transform(data.augment).transforms) == 4
    own = quickstart.training_arguments(training.output_dir, seed=training.seed)
    for name in quickstart.TRAINING:
        assert getattr(training, name) == getattr(own, name), name
    assert training.label_smoothing_factor == quickstart.LABEL_SMOOTHING
