"""The recipes of 3DETR's four published runs have the settings of the released program."""

import json

import pytest

from hf_any3d.data.annotations.boxes import DrawPoints, build_changes
from hf_any3d.modeling.detr3d import Detr3DConfig
from hf_any3d.modeling.detr3d.configuration_detr3d import RELEASED, RELEASED_RADII
from hf_any3d.training.detection import Detection
from hf_any3d.training.requests import parse_arguments
from tests.cli.conftest import run
from tests.data.published_changes import published_changes
from tests.examples.conftest import EXAMPLES
from tests.modeling.aligned_case import FOLDER as REFERENCE

FOLDER = EXAMPLES / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("3detr*.yaml"))
COSTS = ("giou_cost", "class_cost", "center_cost", "objectness_cost")
WEIGHTS = ("giou_loss_weight", "class_loss_weight", "no_object_weight", "center_loss_weight", "size_loss_weight")


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_has_the_published_values(recipe):
    model, data, training = parse_arguments(Detection.argument_classes(), [str(FOLDER / f"{recipe}.yaml")])
    is_scannet, is_masked = recipe.endswith("scannet"), recipe.startswith("3detrm")
    config = Detr3DConfig(**model.model_config)
    assert {name: getattr(config, name) for name in RELEASED} == RELEASED
    radii = None if config.attention_radii is None else tuple(config.attention_radii)
    assert radii == (pytest.approx(RELEASED_RADII) if is_masked else None)
    assert (config.num_queries, config.num_heading_bins) == ((256, 1) if is_scannet else (128, 12))
    assert (config.num_tokens, config.encoder_layers, config.decoder_layers) == (2048, 3, 8)
    dropout = 0.3 if is_scannet and is_masked else 0.1
    assert (config.encoder_dropout, config.dropout, config.head_dropout) == (dropout, 0.1, 0.3)
    assert [getattr(config, name) for name in COSTS] == ([2, 1, 0, 0] if is_scannet else [3, 1, 5, 5])
    class_weight = 0.8 if recipe == "3detrm_sunrgbd" else 1
    weights = [1, class_weight, 0.25, 5, 1] if is_scannet else [0, class_weight, 0.1, 5, 1]
    assert [getattr(config, name) for name in WEIGHTS] == weights
    assert (config.heading_class_loss_weight, config.heading_residual_loss_weight) == (0.1, 0.5)
    assert (data.dataset_name, data.num_points) == (
        ("scannet_detection", 40_000) if is_scannet else ("sunrgbd", 20_000)
    )
    expected = published_changes("scannet" if is_scannet else "sunrgbd", data.num_points).changes
    # Points are drawn at the end, which changes nothing but the order of random numbers.
    assert build_changes(data.augment).changes == [one for one in expected if not isinstance(one, DrawPoints)]
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.max_grad_norm) == (1080, 8, 0.1)
    assert (training.weight_decay, training.weight_decay_on, training.seed) == (0.1, "all", 0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    stored = json.loads((REFERENCE / "detr3d_schedule.json").read_text())["runs"][
        "scannet" if is_scannet else "sunrgbd"
    ]
    assert training.learning_rate == stored["arguments"]["base_lr"]
    for fraction, rate in zip(stored["fraction"], stored["lr"], strict=True):
        assert training.epoch_schedule.rate(fraction * 1080, training.learning_rate) == pytest.approx(rate, rel=1e-9)


def test_the_command_finds_the_recipe_of_the_package_and_asks_for_the_data(tmp_path):
    made = run("train", "3detrm_scannet.yaml", "--data_dir", tmp_path, "--output_dir", tmp_path / "out")
    assert made.code == 1 and "no scene*_vert.npy" in made.err and "votenet" in made.err
