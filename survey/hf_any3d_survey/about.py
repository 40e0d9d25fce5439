"""Record of the package: what it brings to hf_any3d; see `hf_any3d.extensions`."""

from pathlib import Path

from hf_any3d.extensions import Extension

SCENE_MODEL = str(Path(__file__).with_name("scene_model"))
"""Directory of the model of tiles that comes with the package."""
EXTENSION = Extension(
    models=("hf_any3d_survey.local_features",),
    tasks=("hf_any3d_survey.inventory",),
    pipelines=("hf_any3d_survey.segmentation.pipeline",),
    commands="hf_any3d_survey.commands",
    learning="hf_any3d_survey.tiles.request_builder",
    default_models={"point-cloud-inventory": SCENE_MODEL},
    file_models={"local_features": "hf_any3d_survey.commands.evaluate_tiles:evaluate_tiles"},
)
