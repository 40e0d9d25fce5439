"""ACT's recipes have the published values, and each kind of them runs."""

import re
import sys
from types import ModuleType

import numpy as np
import pytest
import yaml
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List

from examples import (
    run_act_autoencoder,
    run_act_pretraining,
    run_point_cloud_classification,
    run_point_cloud_segmentation,
)
from hf_any3d.data.transforms import build_transform
from hf_any3d.modeling.act import ActAutoencoderConfig, ActConfig
from hf_any3d.training import tasks
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments
from hf_any3d.training.models import PointModelArguments
from hf_any3d.training.pretraining import (
    AutoencoderTrainingArguments,
    DistillationTrainingArguments,
    PretrainingDataArguments,
    ProbeArguments,
    StudentArguments,
    TeacherArguments,
)
from hf_any3d.training.protocol import ProtocolArguments
from hf_any3d.training.requests import parse_arguments
from tests.examples.conftest import EXAMPLES, words_of

FOLDER = EXAMPLES / "recipes"
# Of runs in the paper for which there is no program: their values are ours, or those of 3DETR.
WITHOUT_PROGRAM = {"act_scannet", "act_autoencoder_shapenet55_no_prompts"}
RECIPES = sorted(
    p.relative_to(FOLDER).with_suffix("").as_posix()
    for p in FOLDER.rglob("act_*.yaml")
    if p.parent.name != "base" and p.stem not in WITHOUT_PROGRAM
)
# Those for the embedded shapes hold values of ours, not published ones.
OWN = ["shapes_act_autoencoder", "shapes_act_full", "shapes_act_pretraining"]
FIRST = (TeacherArguments, PretrainingDataArguments, AutoencoderTrainingArguments)
SECOND = (StudentArguments, PretrainingDataArguments, ProbeArguments, DistillationTrainingArguments)
CLASSES = (PointModelArguments, DataArguments, ProtocolArguments, AdapterArguments, PointTrainingArguments)
VARIANTS = ("pb_t50_rs", "obj_bg", "obj_only")
HEADS = ("full", "mlp3", "linear")


def published() -> dict[str, tuple]:
    """Return learning rate, weight decay, epochs, batch size, points and patches of each run."""
    frozen = {"full": 5e-4, "mlp3": 1e-3, "linear": 1e-3}
    runs: dict[str, tuple] = {
        "autoencoder_shapenet55": (5e-4, 5e-4, 300, 64, 1024, 64),
        "autoencoder_shapenet55_plain": (5e-4, 5e-4, 300, 64, 1024, 64),
        "pretraining_shapenet55": (1e-3, 0.05, 300, 128, 1024, 64),
        "shapenetpart": (2e-4, 0.05, 300, 16, 2048, 128),
        "s3dis": (2e-4, 0.05, 60, 32, 2048, 128),
    }
    for head, rate in frozen.items():
        runs |= {f"scanobjectnn_{variant}_{head}": (rate, 0.05, 300, 32, 2048, 128) for variant in VARIANTS}
        runs[f"modelnet40_{head}"] = (rate, 0.05, 300, 32, 1024, 64)
        runs[f"modelnet40_8k_{head}"] = (rate, 0.05, 300, 32, 8192, 512)
        runs[f"modelnet40_fewshot_{head}"] = (rate, 0.05, 150, 32, 1024, 64)
    return runs


PUBLISHED = published()


def kinds_of(recipe: str) -> tuple[type, ...]:
    """Return the argument classes of a recipe's program."""
    if "autoencoder" in recipe or "pretraining" in recipe:
        return FIRST if "autoencoder" in recipe else SECOND
    if "shapenetpart" in recipe or "s3dis" in recipe:
        data, training = (
            tasks.SegmentationDataArguments,
            tasks.SegmentationTrainingArguments,
        )
        return (PointModelArguments, data, AdapterArguments, training)
    return CLASSES


def parsed(recipe: str) -> dict[type, object]:
    """Parse a recipe; returns its arguments by class."""
    kinds = kinds_of(recipe)
    values = parse_arguments(kinds, [str(FOLDER / f"{recipe}.yaml")])
    return {base: value for value in values for base in type(value).__mro__}


def test_every_published_run_has_a_recipe():
    assert {recipe.removeprefix("act_") for recipe in RECIPES if "/" not in recipe} == set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_published_values(recipe):
    run = recipe.removeprefix("released/").removeprefix("act_")
    rate, decay, epochs, batch, points, groups = PUBLISHED[run]
    found = parsed(recipe)
    data, training = found[DataArguments], found[PointTrainingArguments]
    model = next(found[kind] for kind in (PointModelArguments, StudentArguments, TeacherArguments) if kind in found)
    config = ActAutoencoderConfig if TeacherArguments in found else ActConfig
    settings = config(**model.model_config)
    assert (training.learning_rate, training.weight_decay) == (rate, decay)
    assert (training.per_device_train_batch_size, data.num_points) == (batch, points)
    assert (settings.num_groups, settings.group_size) == (groups, 32)
    assert training.dataloader_drop_last and data.validation_fraction == 0
    assert (training.optim, training.adam_beta1, training.adam_beta2) == ("adamw_torch", 0.9, 0.999)

    schedule, segments = training.epoch_schedule, run in ("shapenetpart", "s3dis")
    assert (schedule.epochs, schedule.warmup_epochs, schedule.warmup_lr) == (epochs, 10, 1e-6)
    # Programs for segmentation end with epoch 299 or 59, all others count from 0 to 300.
    assert training.num_train_epochs == epochs + (not segments) and schedule.repeat_first == (not segments)
    assert schedule.min_lr == (1e-6 if segments else 1e-7)
    assert training.max_grad_norm == (0 if "shapenet55" in run else 10)
    assert training.weight_decay_on == "matrices"
    plain = segments or run.endswith("plain")
    assert training.no_weight_decay == (
        [] if plain else [r"prompts\.tokens$" if "auto" in run else r"class_token\.token$"]
    )
    assert training.two_steps_per_batch == ("/" in recipe and segments)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "autoencoder" in recipe])
def test_first_stage_has_the_published_sizes_and_schedules(recipe):
    found = parsed(recipe)
    settings, training = (
        ActAutoencoderConfig(**found[TeacherArguments].model_config),
        found[AutoencoderTrainingArguments],
    )
    plain, released = recipe.endswith("plain"), "/" in recipe
    assert found[TeacherArguments].teacher == ("none" if plain else "google/vit-base-patch16-384")
    assert (settings.num_codes, settings.hidden_size) == (8192, 256 if plain else 384)
    assert (settings.num_prompts, settings.prompt_depth) == (64, "deep")
    assert (settings.noise_in_eval, settings.sampling_min_squared_norm) == (released, 1e-3 if released else None)
    schedules = training.schedules()
    assert [schedules["temperature"](step) for step in (0, 50_000, 100_000)] == pytest.approx([1, 0.53125, 0.0625])
    assert [schedules["kl_weight"](step) for step in (9_999, 60_000, 110_000)] == pytest.approx([0, 0.05, 0.1])
    assert training.metric_for_best_model == "chamfer_l1" and training.load_best_model_at_end
    assert found[PretrainingDataArguments].select_on_test and not found[DataArguments].augment


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "pretraining" in recipe])
def test_second_stage_has_the_published_sizes(recipe):
    found = parsed(recipe)
    settings, released = ActConfig(**found[StudentArguments].model_config), "/" in recipe
    assert (settings.mask_ratio, settings.mask_type, settings.distillation_loss) == (0.8, "random", "cosine")
    assert (settings.hidden_size, settings.num_hidden_layers, settings.num_attention_heads) == (384, 12, 6)
    assert (settings.decoder_num_hidden_layers, settings.decoder_num_attention_heads) == (2, 6)
    assert (settings.drop_path_rate, settings.decoder_drop_path_rate, settings.class_token_loss) == (0.1, 0.1, False)
    assert (settings.noisy_targets, settings.teacher_in_training_mode) == (released, released)
    assert settings.encode_visible_only is not released
    data = found[DataArguments]
    scale, shift = build_transform(data.augment).transforms
    assert (scale.low, scale.high, scale.per_axis, shift.limit) == (2 / 3, 3 / 2, True, 0.2)
    assert data.train_splits == ["train", "test"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "scanobj" in recipe or "modelnet" in recipe])
def test_classifier_is_tuned_as_published(recipe):
    found = parsed(recipe)
    model, data, protocol = found[PointModelArguments], found[DataArguments], found[ProtocolArguments]
    head = recipe.rsplit("_", 1)[1]
    settings = ActConfig(**model.model_config)
    assert model.model_type == "act3d" and model.tuning == {"mlp3": "mlp-3"}.get(head, head)
    assert list(settings.head_widths) == ([] if head == "linear" else [256, 256])
    assert (settings.head_dropout, settings.drop_path_rate) == (0.5, 0.1)
    assert found[PointTrainingArguments].label_smoothing_factor == 0
    assert protocol.augment_whole and protocol.select_on_test == ("/" in recipe) and protocol.voting == 0
    chain = build_transform(data.augment).transforms
    assert chain[-2 if "norm" in data.augment[-1] else -1].axis == "y"
    if "scanobjectnn" in recipe:
        assert protocol.processor_config == {"sampling": "farthest", "center": False, "scale": None}
        assert data.dataset_options["variant"] in recipe
    else:
        farthest = [part.num_points for part in chain if hasattr(part, "min_squared_norm")]
        assert farthest == ([] if "8k" in recipe else [1200])
        assert protocol.processor_config["extent"] == "all" and protocol.processor_config["scale"] == "unit_sphere"


@pytest.mark.parametrize("prefix", ["", "released/"])
def test_segmentation_is_as_published(prefix):
    parts, scenes = (parsed(f"{prefix}act_{name}") for name in ("shapenetpart", "s3dis"))
    assert parts[DataArguments].train_splits == ["train", "validation"]
    for found in (parts, scenes):
        scale, shift = build_transform(found[DataArguments].augment).transforms
        assert (scale.low, scale.high, scale.per_axis, shift.limit) == (0.8, 1.25, False, 0.1)
    data, training = scenes[DataArguments], scenes[PointTrainingArguments]
    assert data.dataset_options == {"test_area": 5} and data.up_axis == "z"
    assert (data.block_size, data.block_overlap, data.min_block_points, data.scene_votes) == (1.0, 0.5, 1025, 3)
    assert training.class_weighting == pytest.approx(1 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*RECIPES, *OWN])
def test_recipe_has_its_own_command(recipe):
    text = (FOLDER / f"{recipe}.yaml").read_text()
    program = re.search(r"python (examples/run_\w+\.py) ", text)[1]
    assert (EXAMPLES.parent / program).is_file() and f"{program} examples/recipes/{recipe}.yaml" in text
    if recipe in RECIPES:
        assert yaml.safe_load(text)["output_dir"] == f"outputs/recipes/{recipe}"
    assert parsed(recipe)[PointTrainingArguments].output_dir == yaml.safe_load(text)["output_dir"]


def made_up_clouds(rows: int, seed: int, points: int, parts: bool = False) -> Dataset:
    """Clouds of two classes, or with named parts."""
    generator = np.random.default_rng(seed)
    clouds = generator.standard_normal((rows, points, 3)).astype(np.float32)
    columns = {"points": list(clouds), "label": [i % 2 for i in range(rows)]}
    features = {"points": Array2D((points, 3), "float32"), "label": ClassLabel(names=["ball", "box"])}
    if parts:
        names = ["ball top", "ball bottom", "box top", "box bottom"]
        columns["labels"] = [2 * (i % 2) + (cloud[:, 1] < 0) for i, cloud in enumerate(clouds)]
        features["labels"] = List(ClassLabel(names=names))
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture
def datasets(monkeypatch) -> None:
    """Replaces the datasets of the catalog."""
    module = ModuleType("hf_any3d.data.catalog.fake")

    def load(data_dir=None, **options):
        parts = options.pop("parts", False)
        splits = {name: made_up_clouds(4, seed, 300, parts) for seed, name in enumerate(("train", "test"))}
        return DatasetDict(**splits, **({"validation": made_up_clouds(4, 2, 300, True)} if parts else {}))

    module.load = load
    for name in ("scanobjectnn", "modelnet40", "modelnet40_fewshot", "shapenet55", "shapenetpart"):
        monkeypatch.setitem(sys.modules, f"hf_any3d.data.catalog.{name}", module)


SHORT = {
    "num_points": 64,
    "per_device_train_batch_size": 2,
    "max_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "report_to": "none",
}
CUT = {"num_groups": 8, "group_size": 4, "hidden_size": 16}
TINY = {**CUT, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.slow
def test_recipes_of_all_stages_run_in_order(datasets, tmp_path, tiny_encoder):
    def start(program: ModuleType, recipe: str, output: str, **settings):
        settings = SHORT | {"output_dir": str(tmp_path / output)} | settings
        return program.main([str(FOLDER / f"{recipe}.yaml"), *words_of(settings)])

    narrow = {"num_codes": 16, "graph_input_width": 16, "graph_widths": [16], "num_prompts": 2}
    start(
        run_act_autoencoder,
        "act_autoencoder_shapenet55",
        "one",
        teacher=tiny_encoder,
        model_config={**CUT, **narrow, "coarse_width": 16, "folding_width": 16},
    )
    decoder = {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    report = start(
        run_act_pretraining,
        "released/act_pretraining_shapenet55",
        "two",
        autoencoder=str(tmp_path / "one"),
        model_config={**TINY, **decoder},
    )
    assert report.data["rows"] == {"train": 8} and report.data["trained on"] == ["train", "test"]
    short = ["subsample:num_points=64", "rotate:axis=y"]
    for recipe in ("act_scanobjectnn_obj_bg_mlp3", "act_modelnet40_fewshot_linear"):
        report = start(
            run_point_cloud_classification,
            recipe,
            recipe,
            model_name_or_path=str(tmp_path / "two"),
            model_config=TINY,
            augment=short,
        )
        assert set(report.metrics) == {"test"} and report.start["tuning"] == recipe.rsplit("_", 1)[1].replace(
            "p3", "p-3"
        )
    report = start(
        run_point_cloud_segmentation,
        "released/act_shapenetpart",
        "parts",
        model_name_or_path=str(tmp_path / "two"),
        model_config={**TINY, "segmentation_layers": [0, 1], "propagation_widths": [16, 16]},
        dataset_options={"parts": True},
    )
    assert report.training["two_steps_per_batch"] and report.data["rows"] == {"train": 8, "test": 4}
