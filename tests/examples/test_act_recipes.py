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


def kinds_of(recipe: str) -> tuple[type, ...]:
    """Return the argument classes of a recipe's program."""
    if "autoencoder" in recipe or "pretraining" in recipe:
        return FIRST if "autoencoder" in recipe else SECOND
    if "shapenetpart" in recipe or "s3dis" in recipe:
        data, training = (tasks.SegmentationDataArguments, tasks.SegmentationTrainingArguments)
        return (PointModelArguments, data, AdapterArguments, training)
    return CLASSES


def parsed(recipe: str) -> dict[type, object]:
    """Parse a recipe; returns its arguments by class."""
    kinds = kinds_of(recipe)
    values = parse_arguments(kinds, [str(FOLDER / f"{recipe}.yaml")])
    return {base: value for value in values for base in type(value).__mro__}


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
