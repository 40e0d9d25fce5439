"""Selecting the checkpoint to resume from, and removing incomplete ones."""

import json
import logging
import os

import pytest
import torch

from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.checkpoints import (
    check_run,
    checkpoint_to_resume,
    find_problem,
    list_files,
    newest_first,
    remove_incomplete,
)
from hf_any3d.training.trainer import PointTrainer
from tests.errors import raises
from tests.tiny_encoders import clouds, tiny_model

ROWS = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(8))]


def checkpoint(folder, step, listed=True, age=0):
    """Write a fake checkpoint that is `age` seconds old."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (path / name).write_text(f"{name} of {step}")
    if listed:
        list_files(path, step)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    time = path.stat().st_mtime - age
    os.utime(path / "trainer_state.json", (time, time))
    return path


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("content", [None, "", '{"global_step": 2'])
def test_checkpoint_without_a_complete_state_is_skipped_with_a_warning(tmp_path, caplog, listed, content):
    whole, torn = checkpoint(tmp_path, 10, listed), checkpoint(tmp_path, 20, listed)
    (torn / "trainer_state.json").unlink()
    if content is not None:
        (torn / "trainer_state.json").write_text(content)
    for asked in (None, True, "true"):
        caplog.clear()
        assert checkpoint_to_resume(tmp_path, asked) == str(whole)
        assert "checkpoint-20 is skipped: its trainer_state.json is" in caplog.text
    with raises(ValueError, naming="trainer_state.json"):
        checkpoint_to_resume(tmp_path, str(torn))


def test_checkpoint_whose_files_differ_from_its_list_is_incomplete(tmp_path):
    path = checkpoint(tmp_path, 10)
    assert find_problem(path) is None
    (path / "optimizer.pt").write_text("half")
    assert find_problem(path) == "its optimizer.pt has 4 bytes; expected 18"
    (path / "optimizer.pt").unlink()
    assert find_problem(path) == "its optimizer.pt is missing"
    other = checkpoint(tmp_path, 20)
    (other / "trainer_state.json").write_text('{"global_step": 10}')
    assert find_problem(other) == "its trainer_state.json is of step 10, its other files of step 20"


def test_requesting_a_checkpoint_without_a_complete_one_is_an_error(tmp_path):
    (checkpoint(tmp_path, 10) / "trainer_state.json").unlink()
    assert checkpoint_to_resume(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="no complete checkpoint to resume from"):
        checkpoint_to_resume(tmp_path, True)


def test_checkpoint_without_an_optimizer_is_kept_but_not_used(tmp_path, caplog):
    path = checkpoint(tmp_path, 10, listed=False)
    (path / "optimizer.pt").unlink()
    assert checkpoint_to_resume(tmp_path) is None and "save_only_model" in caplog.text
    with raises(ValueError, naming="save_only_model"):
        checkpoint_to_resume(tmp_path, path)
    remove_incomplete(tmp_path, 20)
    assert path.is_dir()


def test_run_that_was_started_again_resumes_from_its_own_checkpoint(tmp_path):
    checkpoint(tmp_path, 100, age=3600)
    assert checkpoint_to_resume(tmp_path) == str(tmp_path / "checkpoint-100")
    own = checkpoint(tmp_path, 10)
    assert checkpoint_to_resume(tmp_path) == str(own)


def test_incomplete_checkpoints_and_one_of_the_same_step_are_removed(tmp_path, caplog):
    first, torn, same = (checkpoint(tmp_path, step) for step in (10, 15, 20))
    (torn / "trainer_state.json").unlink()
    remove_incomplete(tmp_path, 20)
    assert first.is_dir() and not torn.exists() and not same.exists()
    assert "checkpoint-15 is removed:" in caplog.text


def trainer(directory, steps, **settings):
    arguments = PointTrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=1,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **{"eval_strategy": "no", **settings},
    )
    torch.manual_seed(0)
    return PointTrainer(tiny_model(), arguments, train_dataset=ROWS, eval_dataset=ROWS[:5])


@pytest.mark.slow
def test_last_complete_checkpoint_is_never_replaced_by_an_incomplete_one(tmp_path, caplog):
    """With save_total_limit 1, and equal modification times, the stock Trainer keeps the one of the highest step."""
    trainer(tmp_path, 2, save_total_limit=1).train()
    torn = checkpoint(tmp_path, 9)
    (torn / "trainer_state.json").unlink()
    resumed = trainer(tmp_path, 3, save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-9 is skipped" in caplog.text
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert find_problem(tmp_path / "checkpoint-3") is None and resumed.state.global_step == 3


@pytest.mark.slow
def test_trainer_refuses_an_incomplete_checkpoint(tmp_path):
    run = trainer(tmp_path, 1)
    run.train()
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_bytes(b"half")
    with raises(ValueError, naming="optimizer.pt"):
        trainer(tmp_path, 2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.slow
def test_moved_run_finds_its_best_checkpoint(tmp_path, caplog):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}
    first = trainer(tmp_path / "here", 2, **settings)
    first.train()
    best = first.state.best_global_step
    (tmp_path / "here").rename(tmp_path / "there")
    moved = trainer(tmp_path / "there", 2, **settings)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "there" / f"checkpoint-{best}")
    assert moved.evaluate()["eval_loss"] == pytest.approx(first.state.best_metric, rel=1e-5)


@pytest.mark.slow
def test_missing_best_checkpoint_is_not_reported(tmp_path, caplog):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"}
    trainer(tmp_path, 2, **settings).train()
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    state |= {"best_global_step": 7, "best_metric": -1.0, "best_model_checkpoint": str(tmp_path / "checkpoint-7")}
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(json.dumps(state))
    with caplog.at_level(logging.WARNING):
        resumed = trainer(tmp_path, 3, **settings)
        resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-7 does not exist any more" in caplog.text and resumed.state.best_global_step == 3


def test_a_failed_save_keeps_the_model_of_an_earlier_run_whole(tmp_path):
    run = trainer(tmp_path, 1, save_total_limit=1)
    run.save_model()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert {"model.safetensors", "config.json"} <= before.keys()

    class Full(type(run.model)):
        def save_pretrained(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    full = PointTrainer(Full(run.model.config), run.args, train_dataset=ROWS, eval_dataset=ROWS[:5])
    with pytest.raises(OSError, match="could not be saved .No space left on device.; with enough disk space"):
        full.save_model()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before


def test_a_checkpoint_without_a_config_and_a_model_without_one_are_not_compared(tmp_path):
    check_run(tmp_path, tiny_model(), 8)
    (tmp_path / "config.json").write_text('{"model_type": "act3d"}')
    check_run(tmp_path, torch.nn.Linear(1, 1), 8)
    with raises(ValueError, naming="model_type"):
        check_run(tmp_path, tiny_model(), 8)


def test_of_copies_without_their_times_that_of_the_highest_step_is_the_newest(tmp_path):
    paths = [checkpoint(tmp_path, step, age=age) for step, age in ((100, 0.6), (9, 0.3), (20, 0))]
    assert newest_first(tmp_path) == [paths[0], paths[2], paths[1]]
    os.utime(paths[1] / "trainer_state.json", (0, paths[2].stat().st_mtime + 5))
    assert newest_first(tmp_path) == [paths[1], paths[2], paths[0]]


def test_only_directories_named_by_a_step_are_checkpoints(tmp_path):
    own = checkpoint(tmp_path, 3)
    own.rename(tmp_path / "checkpoint-3-best")
    (tmp_path / "checkpoint-7").write_text("a file")
    assert newest_first(tmp_path) == [] and checkpoint_to_resume(tmp_path) is None
    remove_incomplete(tmp_path)
    assert (tmp_path / "checkpoint-3-best").is_dir()


@pytest.mark.parametrize("content", ["{", "[1]", '{"step": 10}', '{"step": 10, "files": ["a"]}'])
def test_a_damaged_list_of_files_is_told(tmp_path, content):
    path = checkpoint(tmp_path, 10)
    (path / "checkpoint_files.json").write_text(content)
    assert find_problem(path) == "its checkpoint_files.json is damaged"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["pytorch_model.bin", "optimizer.pt"], None),
        (["adapter_model.bin", "optimizer.bin"], None),
        (["global_step3/states.pt"], None),
        (["optimizer.pt"], "it has no weights"),
        (["adapter_model.bin"], "it has no state of an optimizer, as with save_only_model"),
    ],
)
def test_weights_and_optimizer_have_the_names_of_several_libraries(tmp_path, files, problem):
    path = tmp_path / "checkpoint-3"
    for name in [*files, "trainer_state.json"]:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    if problem is None:
        assert checkpoint_to_resume(tmp_path, path) == str(path)
    else:
        with pytest.raises(ValueError, match=f"checkpoint-3: cannot be resumed from: {problem}"):
            checkpoint_to_resume(tmp_path, path)


def test_steps_of_a_resumed_run_have_as_many_rows(tmp_path):
    for step, rows in ((1, 8), (2, [4, 2]), (3, None)):
        list_files(checkpoint(tmp_path, step, listed=False), step, rows)
    model = tiny_model()
    check_run(tmp_path / "checkpoint-1", model, 8)
    check_run(tmp_path / "checkpoint-2", model, [4, 2])
    check_run(checkpoint(tmp_path, 4, listed=False), model, 8)  # of the stock Trainer
    with raises(ValueError, naming="checkpoint-1 has rows_per_step 8, and this run 16"):
        check_run(tmp_path / "checkpoint-1", model, 16)
    run = trainer(tmp_path / "run", 1, gradient_accumulation_steps=3)
    assert run.rows_per_step == 12
