"""MiniGPT-3D's four stages, one after the other, on tiny models and a tiny PointLLM tree."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_any3d import AutoModelForPointCloudTextToText, MiniGPT3DProcessor
from hf_any3d.modeling.minigpt3d import STAGES, stage_names
from hf_any3d.training.report import RunReport
from tests.data.catalog.pointllm_trees import write_pointllm
from tests.examples.conftest import load_program, words_of
from tests.examples.minigpt3d_runs import BATCHES, CONFIG, SHORT, tensors_of, write_parts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_pointllm(tmp_path_factory.mktemp("pointllm")))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, str]:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def run(data):
    """Runs the program with small settings and others; gives the report."""
    program = load_program("run_minigpt3d")

    def start(stage: int, output_dir: Path, **settings) -> RunReport:
        own = {"stage": stage, "data_dir": data, "output_dir": str(output_dir), "batch_sizes": BATCHES[stage]}
        return program.main(words_of(SHORT | own | settings))

    return start


@pytest.fixture(scope="module")
def stages(run, parts, tmp_path_factory) -> dict[int, Path]:
    """What each of the four stages left behind."""
    folder = tmp_path_factory.mktemp("stages")
    left = {stage: folder / str(stage) for stage in STAGES}
    run(1, left[1], **parts, model_config=CONFIG)
    for stage in STAGES[1:]:
        run(stage, left[stage], model_name_or_path=str(left[stage - 1]))
    return left


def test_each_stage_changes_what_it_trains_and_nothing_else(stages):
    before = tensors_of(stages[1])
    for stage in (2, 3, 4):
        after = tensors_of(stages[stage])
        model = AutoModelForPointCloudTextToText.from_pretrained(stages[stage])
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        assert changed == set(stage_names(model, stage))
        before = after


def test_what_is_left_behind_answers_and_says_what_it_is(stages):
    for stage, folder in stages.items():
        model, info = AutoModelForPointCloudTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()) and model.config.stage == stage
        report = RunReport.load(folder / "metrics.json")
        assert report.trained_parameters == sum(report.training["trained"].values())
        stored = load_file(folder / "model.safetensors")
        assert not any(name.startswith("point_encoder.") for name in stored)
        assert MiniGPT3DProcessor.from_pretrained(folder).num_query_tokens == 3
