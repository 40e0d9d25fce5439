"""MiniGPT-3D's four stages in order, on tiny models and a tiny PointLLM folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from examples import run_minigpt3d
from hf_any3d import AutoModelForPointCloudTextToText
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.minigpt3d import STAGES, stage_names, trained_names
from tests.conftest import let_directories_be_names
from tests.examples.act_runs import assert_equal_weights, losses_of
from tests.examples.conftest import EXAMPLES, words_of
from tests.examples.minigpt3d_runs import BATCHES, CONFIG, SHORT, tensors_of, write_parts, write_talks

# What no public part holds and no stage before the fourth has trained.
FRESH = ("bridge.experts.", "bridge.projector.", "low_rank_")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_talks(tmp_path_factory.mktemp("pointllm")))


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, str]:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def run(data):
    """Run the program with small settings and further ones; returns the report."""

    def start(stage: int, output_dir: Path, **settings) -> RunReport:
        own = {"stage": stage, "data_dir": data, "output_dir": str(output_dir), "batch_sizes": BATCHES.get(stage, [1])}
        return run_minigpt3d.main(words_of(SHORT | own | settings))

    return start


@pytest.fixture(scope="module")
def stages(run, parts, tmp_path_factory) -> dict[int, Path]:
    """Directory of each stage's model."""
    folder = tmp_path_factory.mktemp("stages")
    left = {stage: folder / str(stage) for stage in STAGES}
    with pytest.MonkeyPatch.context() as patch:
        let_directories_be_names(patch)
        run(1, left[1], **parts, model_config=CONFIG)
        for stage in STAGES[1:]:
            run(stage, left[stage], model_name_or_path=str(left[stage - 1]))
    return left


@pytest.mark.slow
def test_each_stage_changes_only_what_it_trains(stages):
    before = tensors_of(stages[1])
    for stage in STAGES[1:]:
        after = tensors_of(stages[stage])
        model = AutoModelForPointCloudTextToText.from_pretrained(stages[stage])
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        assert changed == {f"minigpt3d.{name}" for name in stage_names(model, stage)}
        before = after


@pytest.mark.slow
def test_only_trained_and_new_weights_are_stored(stages):
    for folder in stages.values():
        stored = load_file(folder / "model.safetensors")
        model, info = AutoModelForPointCloudTextToText.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values())
        trained = {f"minigpt3d.{name}" for name in trained_names(model)}
        assert trained <= stored.keys()
        assert all(any(part in name for part in FRESH) for name in stored.keys() - trained)
        size = 4 * sum(model.get_parameter(name).numel() for name in stored)
        assert size < (folder / "model.safetensors").stat().st_size < size + 8000 + 100 * len(stored)


@pytest.mark.slow
def test_reports_and_cards_name_what_was_trained(stages):
    for stage, folder in stages.items():
        report = RunReport.load(folder / "metrics.json")
        assert report.trained_parameters == sum(report.training["trained"].values())
        assert report.metrics["validation"]["perplexity"] == pytest.approx(
            np.exp(report.metrics["validation"]["loss"]), rel=1e-6
        )
        assert report.start["stage"] == stage and report.training["steps"] == 2
        assert report.seconds["training"] > 0 and report.peak_memory["process"] > 0
        assert set(report.training["batch_size"]) == set(report.data["ratios"])
        card = ModelCard.load(folder / "README.md")
        assert card.data.pipeline_tag == "point-cloud-text-to-text"
        assert f"after stage {stage} of 4" in card.text and "language_model`" in card.text
    assert report.training["trained"] == {"bridge experts": report.trained_parameters}


@pytest.mark.slow
def test_resumed_run_has_the_losses_of_an_uninterrupted_one(run, stages, tmp_path, caplog):
    settings = {"model_name_or_path": str(stages[2]), "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    settings |= {"step_cosine": {"warmup_steps": 2}, "gradient_accumulation_steps": 2}
    full = run(3, tmp_path / "full", **settings)
    shutil.copytree(tmp_path / "full" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
    resumed = run(3, tmp_path / "resumed", **settings)
    assert (
        resumed.training["resumed_from"].endswith("checkpoint-3")
        and resumed.metrics["validation"] == (full.metrics["validation"])
    )
    assert resumed.metrics["train"]["loss"] == pytest.approx(full.metrics["train"]["loss"], rel=1e-3)
    assert len(losses_of(tmp_path / "full" / "checkpoint-6")) == 6
    assert losses_of(tmp_path / "resumed" / "checkpoint-6") == losses_of(tmp_path / "full" / "checkpoint-6")
    assert_equal_weights(tmp_path / "resumed", tmp_path / "full")
    assert "missing keys" not in caplog.text
    checkpoint, model = (tmp_path / "full" / name / "model.safetensors" for name in ("checkpoint-6", ""))
    assert checkpoint.stat().st_size == model.stat().st_size


@pytest.mark.slow
def test_stages_run_from_the_hub(hub, run, parts, tmp_path, monkeypatch, caplog):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(EXAMPLES / "data" / "chair.ply", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    names = {}
    for part, folder in parts.items():
        names[part] = f"me/{part.replace('_', '-')}"
        hub.commit(names[part], {file.name: file.read_bytes() for file in Path(folder).iterdir()})
    pushed = {"push_to_hub": True, "max_steps": 1}
    run(1, tmp_path / "1", **names, model_config=CONFIG, hub_model_id="me/talks-1", **pushed)
    run(2, tmp_path / "2", model_name_or_path="me/talks-1", hub_model_id="me/talks-2", **pushed)
    assert "which others do not have" not in caplog.text
    files = hub.files("me/talks-2")
    assert {"config.json", "processor_config.json", "README.md", "model.safetensors", "metrics.json"} <= files.keys()
    for recorded in json.loads(hub.content("me/talks-2", "config.json"))["parts"].values():
        assert len(recorded["revision"]) == 40 and recorded["checksum"].startswith("tensors-sha256:")
    # Another commit of a part changes nothing for a model that names the first.
    hub.commit("me/language-model", {"model.safetensors": b"other weights"})
    card = hub.content("me/talks-2", "README.md").decode()
    blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model_name_or_path": "x"}, "--model_name_or_path and --point_encoder"),
        ({"batch_sizes": [2, 2]}, "--batch_sizes 2 2; expected 1 numbers above 0, for brief"),
        ({"batch_sizes": [9]}, "dataset 0 has 3 rows"),
        ({"step_cosine": {"epochs": 4}}, "--max_steps 2; expected a multiple of 4 epochs"),
        ({"frozen_in_half": True}, "--frozen_in_half needs --bf16 or --fp16"),
        (
            {"frozen_in_half": True, "bf16": True, "store_parts": True},
            "--frozen_in_half needs a language",
        ),
    ],
)
def test_wrong_arguments_are_named(run, parts, tmp_path, settings, text):
    with pytest.raises(ValueError, match=text):
        run(**{"stage": 1, "output_dir": tmp_path, "model_config": CONFIG} | parts | settings)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.slow
def test_stages_in_another_order_are_refused(run, stages, tmp_path):
    for stage, before in ((1, 1), (3, 1), (2, 3), (4, 2)):
        with pytest.raises(ValueError, match=rf"--stage {stage} of .*, a model of stage {before}; expected "):
            run(stage, tmp_path, model_name_or_path=str(stages[before]))


@pytest.mark.slow
def test_checkpoint_of_another_stage_is_refused(run, stages, tmp_path):
    run(2, tmp_path, model_name_or_path=str(stages[1]), save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match="checkpoint-2 has stage 2, and this run 3"):
        run(3, tmp_path, model_name_or_path=str(stages[2]))
