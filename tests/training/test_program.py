"""The steps that the training programs share."""

import logging
import runpy
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict

from hf_any3d import PointCloudProcessor
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.modeling.act import ActConfig
from hf_any3d.training import program
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments
from hf_any3d.training.program import (
    build_trainer,
    check_processes,
    claim_output,
    data_facts,
    encoder_facts,
    run_program,
    save_and_push,
    start_run,
)
from hf_any3d.training.rows import EpochCallback
from hf_any3d.training.schedules import HeadFirstCallback
from hf_any3d.training.trainer import PointTrainer
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


def test_program_in_a_subprocess_prints_one_error_line(monkeypatch, tmp_path):
    words = ["--output_dir", str(tmp_path), "--validation_fraction", "1"]
    monkeypatch.setattr("sys.argv", ["run_point_cloud_classification.py", *words])
    with raises(SystemExit, naming="--validation_fraction"):
        runpy.run_path(str(ROOT / "examples" / "run_point_cloud_classification.py"), run_name="__main__")


def test_requested_number_of_processes_is_accepted():
    check_processes(1, {})
    check_processes(2, {"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"})
    check_processes(1, {"ACCELERATE_USE_CPU": "True"})
    check_processes(1, {"MASTER_ADDR": "node0"})


@pytest.mark.parametrize(
    ("processes", "environment", "text"),
    [
        # Environment that `accelerate launch --cpu --num_processes 2` sets for its single process.
        (1, {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "a single one"),
        (1, {"WORLD_SIZE": "2"}, "requests 2 processes, but this run has 1; .*nproc_per_node.* unset WORLD_SIZE"),
        (1, {"OMPI_COMM_WORLD_SIZE": "4"}, "requests 4 processes, but this run has 1"),
    ],
)
def test_other_number_of_processes_than_requested_is_an_error(processes, environment, text):
    with pytest.raises(ValueError, match=text):
        check_processes(processes, environment)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"train_file": "/private/me/train.parquet", "test_file": "/private/me/other/test.parquet"},
            {
                "name": "train.parquet",
                "files": {"train": "/private/me/train.parquet", "test": "/private/me/other/test.parquet"},
                "on_hub": False,
                "hub_type": "custom",
            },
        ),
        ({"dataset_name": "shapes"}, {"name": "shapes", "files": {}, "on_hub": False, "hub_type": "shapes"}),
        ({"dataset_name": "me/scans"}, {"name": "me/scans", "files": {}, "on_hub": True, "hub_type": "me/scans"}),
        (
            {"dataset_name": "folder", "data_dir": "/private/me/scans/"},
            {"name": "scans", "files": {}, "on_hub": False, "hub_type": "custom"},
        ),
    ],
)
def test_reports_name_the_data_of_each_split_without_directories(given, expected):
    facts = data_facts(DataArguments(**given), DatasetDict(), "none")
    assert {key: facts[key] for key in expected} == expected


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


def test_linked_output_directory_gives_a_warning_and_a_broken_link_an_error(tmp_path, caplog):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    claim_output(tmp_path / "run")
    release_claims()
    assert f"is a symbolic link; the run is written to {tmp_path / 'disk'}" in caplog.text
    (tmp_path / "disk").rmdir()
    with raises(FileNotFoundError, naming="run: a symbolic link to"):
        claim_output(tmp_path / "run")


def test_the_number_of_processes_is_logged(tmp_path, caplog):
    arguments = PointTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with caplog.at_level(logging.INFO):
        start_run(arguments, logging.getLogger("test"))
    release_claims()
    assert "Training with 1 process on cpu" in caplog.text


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


def test_a_run_of_another_number_of_processes_does_not_start(tmp_path, monkeypatch):
    arguments = quiet(tmp_path)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the environment requests 2 processes, but this run has 1"):
        start_run(arguments, logging.getLogger("test"))


def test_of_several_processes_the_first_one_locks_the_directory_and_logs(tmp_path, monkeypatch):
    hidden = []
    monkeypatch.setattr(program.transformers.logging, "disable_progress_bar", lambda: hidden.append("transformers"))
    monkeypatch.setattr(program.datasets, "disable_progress_bars", lambda: hidden.append("datasets"))
    start_run(quiet(tmp_path / "first"), logging.getLogger("test"))
    assert (tmp_path / "first" / "_lock").exists() and not hidden
    release_claims()
    monkeypatch.setattr(PointTrainingArguments, "process_index", 1)
    monkeypatch.setattr(PointTrainingArguments, "should_log", False)
    start_run(quiet(tmp_path / "second"), logging.getLogger("test"))
    assert not (tmp_path / "second" / "_lock").exists() and hidden == ["transformers", "datasets"]
    assert logging.getLogger("test").level == logging.WARNING


@pytest.mark.parametrize(("count", "size"), [(3, 2), (7, 4), (8, 4), (0, 4)])
def test_rows_of_one_incomplete_batch_are_divided_among_processes(count, size, tmp_path, monkeypatch):
    monkeypatch.setattr(PointTrainingArguments, "world_size", 2)
    made = []
    arguments = quiet(tmp_path, per_device_train_batch_size=4, dataloader_drop_last=True)
    build_trainer(tiny_model(), arguments, ROWS[:1] * count, None, None, lambda *given, **more: made.append(given))
    drops = count in (0, 8)
    assert arguments.dataloader_drop_last is drops
    assert arguments.per_device_train_batch_size == (4 if drops else -(-count // 2))


def test_trainers_set_the_epoch_of_their_rows_and_store_the_processor(tmp_path):
    processor = PointCloudProcessor()
    trainer = build_trainer(tiny_model(), quiet(tmp_path), ROWS, ROWS[:2], processor, data_collator=len)
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, EpochCallback)]
    assert callback.rows is trainer.train_dataset is ROWS and trainer.eval_dataset == ROWS[:2]
    assert trainer.processing_class is processor and trainer.data_collator is len
    assert trainer.args.eval_strategy == "epoch" and trainer.args.load_best_model_at_end
    assert not any(isinstance(one, HeadFirstCallback) for one in trainer.callback_handler.callbacks)


def test_the_head_is_trained_first_in_one_process_and_without_an_adapter(tmp_path, monkeypatch):
    arguments = quiet(tmp_path, head_epochs=2)
    trainer = build_trainer(tiny_model(), arguments, ROWS, None, PointCloudProcessor())
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, HeadFirstCallback)]
    assert callback.epochs == 2
    with raises(ValueError, naming="--head_epochs"):
        build_trainer(adapted_model(), arguments, ROWS, None, PointCloudProcessor())
    monkeypatch.setattr(PointTrainingArguments, "world_size", 2)
    with raises(ValueError, naming="--head_epochs"):
        build_trainer(tiny_model(), arguments, ROWS, None, PointCloudProcessor())
    with raises(ValueError, naming="--head_epochs"):
        quiet(tmp_path, head_epochs=-1)


def finished(folder, monkeypatch, **settings):
    """Save the result of a run that has not trained; returns what is shown of it, the report and its name."""
    settings = {"gradient_accumulation_steps": 3, "warmup_steps": 0.25, "max_grad_norm": 0.5} | settings
    settings |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "license": "mit"}
    trainer = PointTrainer(tiny_model(num_labels=2), quiet(folder, **settings), processing_class=PointCloudProcessor())
    trainer.state.max_steps = 8
    claim_output(Path(folder))
    trainer.confusions = {"test": "matrix"}
    shown, metrics, scores = [], {"test": {"accuracy": 0.5}}, {"test": {"a": 1.0}}
    monkeypatch.setattr(program, "write_run_results", lambda *given, **more: shown.append((given, more)))
    report, name = save_and_push(
        trainer,
        Stopwatch(),
        (metrics, scores),
        data={"name": "shapes", "rows": {}, "points": 64},
        parameters=(5, 9),
        num_points=64,
        checkpoint="checkpoint-1",
        start={"model": None},
        schedules={"temperature": "falls"},
    )
    return shown, report, name, trainer


def test_a_finished_run_is_saved_with_its_report_card_and_page(tmp_path, monkeypatch):
    shown, report, name, trainer = finished(tmp_path / "run", monkeypatch)
    assert RunReport.load(tmp_path / "run" / "metrics.json") == report and name == str(tmp_path / "run")
    assert (report.trained_parameters, report.total_parameters) == (5, 9) and "total" in report.seconds
    assert report.metrics == {"test": {"accuracy": 0.5}} and report.class_accuracy == {"test": {"a": 1.0}}
    assert report.encoder == encoder_facts(trainer.model.config) and report.adapter == {} and report.peak_memory
    assert report.start == {"model": None} and report.selection == {} and report.data["name"] == "shapes"
    own = {
        "gradient_accumulation_steps": 3,
        "processes": 1,
        "warmup_steps": 2,
        "weight_decay_on": "trainer",
        "no_weight_decay": [],
        "max_grad_norm": 0.5,
        "device": "cpu",
        "resumed_from": "checkpoint-1",
        "temperature": "falls",
    }
    assert own.items() <= report.training.items() and report.training["batch_size"] == 48
    assert report.training["lr_scheduler"] == "cosine" and "two_steps_per_batch" not in report.training
    ((folder,), page) = shown[0]
    assert folder == name and page["title"] == "run" and page["confusions"] == {"test": "matrix"}
    assert page["history"] is trainer.state.log_history
    assert (page["metrics"], page["class_scores"]) == (report.metrics, report.class_accuracy)
    card = (tmp_path / "run" / "README.md").read_text()
    assert "license: mit" in card and "64" in card and "accuracy" in card
    assert not (tmp_path / "run" / "_lock").exists()


def test_schedules_of_released_programs_are_in_the_report(tmp_path, monkeypatch):
    schedule = {"warmup_epochs": 1}
    _, report, _, trainer = finished(tmp_path, monkeypatch, epoch_cosine=schedule, two_steps_per_batch=True)
    assert report.training["lr_scheduler"] == "epoch_cosine" and "warmup_steps" not in report.training
    assert report.training["epoch_cosine"] == trainer.args.epoch_cosine
    assert report.training["two_steps_per_batch"] is True


def test_other_processes_write_no_page_and_no_report(tmp_path, monkeypatch):
    monkeypatch.setattr(PointTrainer, "is_world_process_zero", lambda self: False)
    shown, *_ = finished(tmp_path, monkeypatch)
    assert not shown and not (tmp_path / "metrics.json").exists()


def test_a_pushed_run_is_named_by_its_repository(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(PointTrainer, "push_to_hub", lambda self: order.append(self.report))
    monkeypatch.setattr(PointTrainer, "save_model", lambda self: order.append("saved"))
    monkeypatch.setattr(PointTrainer, "init_hf_repo", lambda self: setattr(self, "hub_model_id", "me/mine"))
    shown, report, name, trainer = finished(tmp_path, monkeypatch, push_to_hub=True, hub_model_id="me/mine")
    assert order == [report] and name == "me/mine" and shown[0][1]["title"] == "me/mine"
    assert "me/mine" in str(trainer.build_model_card())


def test_facts_of_an_encoder_are_those_of_its_config():
    config = tiny_model().config
    facts = encoder_facts(config)
    assert list(facts) == ["name", "model_type", "tower", "layers", "revision", "checksum"]
    assert (facts["name"], facts["layers"], facts["model_type"]) == (config.encoder_name_or_path, 2, "bert")
    assert (facts["revision"], facts["checksum"]) == (config.encoder_revision, config.encoder_checksum)
    assert encoder_facts(ActConfig()) == {}
    config.encoder_weights = "shuffled"
    assert encoder_facts(config) == {**facts, "weights": "shuffled"}
