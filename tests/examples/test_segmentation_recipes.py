"""A step of each segmentation recipe, on little data."""

import pytest
import yaml

from examples import run_point_cloud_segmentation
from hf_any3d.model_card.run_report import RunReport
from tests.examples.conftest import EXAMPLES

LITTLE = {
    "rooms": {"train_rooms": 2, "validation_rooms": 1, "test_rooms": 1, "num_points": 1024},
    "parts": {"train_objects": 6, "validation_objects": 6, "test_objects": 6, "num_points": 256},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LITTLE))
def test_recipe_trains_for_a_step(name, tiny_encoder, tmp_path):
    settings = yaml.safe_load((EXAMPLES / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert settings["dataset_name"] == name and settings["output_dir"] == f"outputs/{name}"
    settings |= {"encoder_name_or_path": tiny_encoder, "num_layers": 1, "max_steps": 1, "output_dir": str(tmp_path)}
    settings |= {"dataset_options": LITTLE[name], "num_points": 256, "use_cpu": True, "disable_tqdm": True}
    # The few steps of this run would all lie before the first evaluation.
    settings["eval_delay"] = 0
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    report = run_point_cloud_segmentation.main([str(tmp_path / "recipe.yaml")])
    assert report.training["steps"] == 1
    assert report.training["learning_rate"] == settings["learning_rate"]
    assert report.adapter["settings"].items() >= settings["peft_config"].items()
    assert RunReport.load(tmp_path / "metrics.json") == report
