"""What is known of a model for its card: names, settings of its adapter, and the run of a stock Trainer."""

from transformers import Trainer, TrainingArguments

from hf_any3d import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.model_card import Subject
from hf_any3d.model_card.saving import report_of_trainer
from hf_any3d.model_card.subject import hub_name
from tests.tiny_encoders import clouds, tiny_model


def test_names_of_repositories_are_told_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "here").mkdir()
    assert hub_name("me/there") == "me/there" and hub_name("model") == "model"
    for path in ("me/here", str(tmp_path / "x"), "a/b/c", "me/..", "", None, 3):
        assert hub_name(path) is None


def subject(**given) -> Subject:
    config = given.pop("config", Any2PointConfig(id2label={2: "c", 0: "a", 1: "b"}))
    return Subject(given.pop("model", Any2PointForPointCloudClassification), config, **given)


HISTORY = [
    {"step": 2, "eval_loss": 0.9, "eval_accuracy": 0.1},
    {"step": 4, "loss": 3.0, "learning_rate": 1.0},
    {"step": 4, "eval_loss": 0.5, "eval_accuracy": 1, "eval_runtime": 3.0, "eval_samples_per_second": 1.0},
    {"step": 4, "eval_text": "x", "eval_steps_per_second": 2.0, "eval_jit_compilation_time": 1.0},
]


def trainer(folder, model=None, settings=None, **given) -> Trainer:
    rows = [{"points": cloud, "labels": 0} for cloud in clouds(3)]
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", seed=7, **settings or {})
    made = Trainer(model or tiny_model(), arguments, train_dataset=rows, eval_dataset=rows[:2], **given)
    made.state.log_history, made.state.global_step = HISTORY, 4
    return made


def test_losses_that_are_not_the_models_are_named_so(tmp_path):
    own = trainer(tmp_path, compute_loss_func=lambda *_, **__: 0)
    assert report_of_trainer(own).metrics["evaluation"] == {"loss (of the trainer's own function)": 0.5, "accuracy": 1}
    smoothed = trainer(tmp_path, settings={"label_smoothing_factor": 0.1})
    assert report_of_trainer(smoothed).metrics["evaluation"] == {"loss (label-smoothed)": 0.5, "accuracy": 1}
    smoothed.judges_by_plain_loss = True
    assert report_of_trainer(smoothed).metrics["evaluation"] == {"loss": 0.5, "accuracy": 1}
