"""The steps that the training programs share."""

import logging
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from hf_any3d import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments
from hf_any3d.training.program import build_trainer, claim_output, data_facts, run_program, start_run
from hf_any3d.training.schedules import HeadFirstCallback
from hf_any3d.utils.atomic_files import release_claims
from tests.errors import raises
from tests.faults.killing import held_by_another
from tests.tiny_encoders import adapted_model, clouds, tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("error", [ValueError("--lr is -1; expected more"), FileNotFoundError("no such file: x")])
def test_user_errors_are_printed_as_one_line_with_exit_code_1(error, monkeypatch, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_program(main)
    assert ended.value.code == f"error: {error}" and capsys.readouterr().err == ""
    monkeypatch.setenv("HF_ANY3D_TRACEBACK", "1")
    with pytest.raises(SystemExit):
        run_program(main)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("error", [None, ValueError, ZeroDivisionError])
def test_the_output_directory_is_free_once_a_program_has_ended(error, tmp_path):
    def main():
        claim_output(tmp_path)
        assert (tmp_path / "_lock").exists()
        if error is not None:
            raise error

    with pytest.raises(SystemExit if error is ValueError else error) if error else nullcontext():
        run_program(main)
    assert list(tmp_path.iterdir()) == []


def test_program_errors_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_program(main)


def test_facts_name_the_splits_that_were_trained_on_if_there_are_several():
    given = {"dataset_name": "me/scans", "train_splits": ["train", "validation"]}
    assert data_facts(DataArguments(**given), DatasetDict(), "none")["trained on"] == ["train", "validation"]
    assert "trained on" not in data_facts(DataArguments(dataset_name="me/scans"), DatasetDict(), "none")


def test_directory_is_not_listed_as_a_hub_dataset(tmp_path, monkeypatch):
    (tmp_path / "me" / "scans").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    facts = data_facts(DataArguments(dataset_name="me/scans"), DatasetDict(), "none")
    assert (facts["name"], facts["on_hub"], facts["hub_type"]) == ("scans", False, "custom")


def test_output_directory_is_locked_until_the_run_ends(tmp_path):
    arguments = PointTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with held_by_another(tmp_path / "_lock") as other:
        with pytest.raises(BlockingIOError, match=f"{tmp_path.name}: process {other} on .* is writing there"):
            start_run(arguments, logging.getLogger("test"))
    (tmp_path / ".metrics.json.somewhere.17.tmp").write_text("half")
    assert start_run(arguments, logging.getLogger("test")) is None
    release_claims()
    assert list(tmp_path.iterdir()) == []


def test_linked_output_directory_gives_a_warning(tmp_path, caplog):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    claim_output(tmp_path / "run")
    release_claims()
    assert f"is a symbolic link; the run is written to {tmp_path / 'disk'}" in caplog.text


@pytest.mark.parametrize(("count", "drops"), [(1, False), (3, False), (4, True)])
def test_a_batch_is_not_dropped_if_it_is_the_only_one(count, drops, tmp_path):
    arguments = PointTrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, dataloader_drop_last=True, use_cpu=True, report_to="none"
    )
    rows = [{"points": cloud, "labels": 0} for cloud in clouds(count)]
    trainer = build_trainer(tiny_model(), arguments, rows, None, PointCloudProcessor())
    assert trainer.args.dataloader_drop_last is drops
    assert len(trainer.get_train_dataloader()) == 1
    # Without rows to judge it by, the last weights are kept.
    assert trainer.args.eval_strategy == "no" and not trainer.args.load_best_model_at_end


def quiet(folder, **settings) -> PointTrainingArguments:
    return PointTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)


ROWS = [{"points": cloud, "labels": 0} for cloud in clouds(4)]


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        # Environment that `accelerate launch --cpu --num_processes 2` sets for its single process.
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
            "requests several processes",
        ),
        (
            {"OMPI_COMM_WORLD_SIZE": "4"},
            "requests 4 processes, but this run has 1; .*nproc_per_node.* unset OMPI_COMM",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, None),
        ({"ACCELERATE_USE_CPU": "True"}, None),
        ({"MASTER_ADDR": "node0"}, None),
    ],
)
def test_another_number_of_processes_than_requested_is_an_error(environment, text, tmp_path, monkeypatch, caplog):
    arguments = quiet(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match=text) if text else nullcontext():
        start_run(arguments, logging.getLogger("test"))
    release_claims()
    assert ("Training with 1 process on cpu" in caplog.text) is (text is None)


def test_a_run_starts_with_its_seed_and_the_newest_checkpoint(tmp_path, caplog):
    logger = logging.getLogger("test")
    for seed in (3, 4):
        assert start_run(quiet(tmp_path, seed=seed), logger) is None
        release_claims()
        drawn = torch.rand(2), np.random.random()
        torch.manual_seed(seed)
        np.random.seed(seed)
        assert torch.equal(torch.rand(2), drawn[0]) and np.random.random() == drawn[1]
    assert logger.level == logging.INFO
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}")
    with caplog.at_level(logging.INFO):
        assert start_run(quiet(tmp_path), logger) == str(tmp_path / "checkpoint-2")
    release_claims()
    assert f"Resuming from {tmp_path / 'checkpoint-2'}; use another --output_dir" in caplog.text
    first = str(tmp_path / "checkpoint-1")
    assert start_run(quiet(tmp_path, resume_from_checkpoint=first), logger) == first
    release_claims()
    assert start_run(quiet(tmp_path, resume_from_checkpoint="false"), logger) is None
    release_claims()


def test_the_head_is_trained_first_without_an_adapter(tmp_path):
    arguments = quiet(tmp_path, head_epochs=2)
    trainer = build_trainer(tiny_model(), arguments, ROWS, None, PointCloudProcessor())
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, HeadFirstCallback)]
    assert callback.epochs == 2
    with raises(ValueError, naming="--head_epochs"):
        build_trainer(adapted_model(), arguments, ROWS, None, PointCloudProcessor())
