"""What the programs of classifiers and segmentation models pass on from their arguments to each step of a run."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.model_card.run_report import TEST_CHOOSES, count_parameters
from hf_any3d.training import tasks
from hf_any3d.training.rows import evaluation_rows
from tests.tiny_encoders import tiny_model


class Stop(Exception):
    """Ends a run before it saves."""


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """What each step was given: none of them trains, judges or saves."""
    given = {"model": tiny_model()}

    def noting(name, answer=None):
        def step(*arguments, **settings):
            given[name] = (arguments, settings)
            return answer

        return step

    def stop(*arguments, **facts):
        given["saved"] = (arguments, facts)
        raise Stop

    trainer = SimpleNamespace(train=noting("train"))
    monkeypatch.setattr(tasks, "build_model", noting("built", given["model"]))
    for name in ("build_classification_trainer", "build_segmentation_trainer"):
        monkeypatch.setattr(tasks, name, noting("trainer", trainer))
    monkeypatch.setattr(tasks, "evaluate_splits", noting("judged", ({"test": 1, "validation": 2}, {"test": 3})))
    monkeypatch.setattr(tasks, "evaluate_by_voting", noting("voted", ({"test_voting": 4}, {"test_voting": 5})))
    monkeypatch.setattr(tasks, "evaluate_segmenter", noting("judged", "scores"))
    monkeypatch.setattr(tasks.program, "save_and_push", stop)
    monkeypatch.setattr(tasks.program, "start_run", lambda arguments, logger: f"{arguments.output_dir}/checkpoint-7")
    given["run"] = trainer
    return given


def run(program, folder, **settings):
    words = [f"--output_dir={folder}", "--use_cpu", "--report_to=none", "--seed=5"]
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(json.dumps(one) if isinstance(one, dict) else str(one) for one in values)]
    with pytest.raises(Stop):
        program(words)


def shapes(names: list[str]) -> DatasetDict:
    """Splits of four clouds each."""
    generator = np.random.default_rng(0)
    features = Features({"points": Array2D((50, 3), "float32"), "label": ClassLabel(names=["ball", "box"])})
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"points": list(generator.normal(size=(4, 50, 3)).astype(np.float32)), "label": [0, 1, 0, 1]},
                features=features,
            )
            for name in names
        }
    )


@pytest.mark.parametrize("on_test", [False, True])
@pytest.mark.parametrize("votes", [0, 3])
def test_a_classifier_is_judged_on_what_it_was_not_selected_on(votes, on_test, steps, tmp_path, monkeypatch):
    rows = shapes(["train", "test"] if on_test else ["train", "validation", "test"])
    monkeypatch.setattr(tasks.program, "load_splits", lambda data: (rows, "origin"))
    settings = {"num_points": 32, "voting": votes, "up_axis": "z", "features": ["xyz"], "augment": ["scale"]}
    settings |= {"select_on_test": on_test, "vote_augment": ["jitter"], "model_type": "pointnet"}
    run(tasks.train_classifier, tmp_path, processor_config={"sampling": "first"}, **settings)
    (model, arguments, data, protocol, splits, processor), none = steps["trainer"]
    assert model is steps["model"] and not none and arguments.seed == 5 and protocol.voting == votes
    expected = PointCloudProcessor(num_points=32, up_axis="z", features=["xyz"], sampling="first")
    assert processor.to_dict() == expected.to_dict()
    (task, model_arguments, adapter, labels), config = steps["built"]
    assert (task, model_arguments.model_type, adapter.peft) == (tasks.CLASSES, "pointnet", None)
    assert labels == ["ball", "box"] and config == {"in_channels": 3}
    assert steps["train"] == ((), {"resume_from_checkpoint": f"{tmp_path}/checkpoint-7"})
    (trainer, judged, classes), _ = steps["judged"]
    assert trainer is steps["run"] and classes == labels
    assert list(judged) == (["test"] if on_test else ["validation", "test"])
    for split, own in judged.items():
        assert (own[1]["points"] == evaluation_rows(rows[split], processor)[1]["points"]).all()
    scores = ({"test": 1, "validation": 2}, {"test": 3})
    if votes:
        (trainer, voters, classes, count), _ = steps["voted"]
        assert trainer is steps["run"] and (classes, count) == (labels, 3) and list(voters) == ["test"]
        expected = tasks.voting_rows(rows["test"], processor, data, protocol, 5)
        assert (voters["test"][2]["points"] == expected[2]["points"]).all()
        scores = (scores[0] | {"test_voting": 4}, scores[1] | {"test_voting": 5})
    else:
        assert "voted" not in steps
    (trainer, _, found), facts = steps["saved"]
    assert trainer is steps["run"] and found == scores
    own = tasks.program.data_facts(data, splits, TEST_CHOOSES if on_test else "origin")
    assert facts == {
        "data": own | tasks.protocol_facts(protocol),
        "parameters": count_parameters(model),
        "num_points": 32,
        "checkpoint": f"{tmp_path}/checkpoint-7",
        "start": {"model": None, "tuning": "full"},
    }


@pytest.mark.parametrize(("dataset", "votes"), [("rooms", 1), ("parts", 2)])
def test_a_segmenter_is_built_for_the_task_of_its_data(dataset, votes, steps, tmp_path):
    kind = "rooms" if dataset == "rooms" else "objects"
    sizes = {f"train_{kind}": 3, f"validation_{kind}": 2, f"test_{kind}": 1, "num_points": 60}
    sizes |= {"num_points": 140, "num_objects": 2} if dataset == "rooms" else {}
    settings = {"dataset_name": dataset, "dataset_options": sizes, "num_points": 32, "features": ["xyz"]}
    settings |= {"block_size": 1.5, "block_overlap": 0.25, "scene_votes": votes, "model_type": "pointnet2"}
    run(tasks.train_segmenter, tmp_path, **settings)
    (model, arguments, data, splits, processor, task), none = steps["trainer"]
    assert model is steps["model"] and not none and arguments.seed == 5
    assert task == tasks.find_task(splits["train"]) and task.has_parts is (dataset == "parts")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3, "validation": 2, "test": 1}
    assert processor.to_dict() == tasks.build_segmentation_processor(data, task).to_dict()
    (built, model_arguments, adapter, labels), config = steps["built"]
    assert built == (tasks.PARTS if dataset == "parts" else tasks.SCENES)
    assert (model_arguments.model_type, adapter.peft, labels) == ("pointnet2", None, task.names)
    assert config == tasks.model_settings(task, 3)
    assert steps["train"] == ((), {"resume_from_checkpoint": f"{tmp_path}/checkpoint-7"})
    judged, none = steps["judged"]
    assert judged == (steps["run"], splits, processor, task, votes) and not none
    (trainer, _, scores), facts = steps["saved"]
    assert trainer is steps["run"] and scores == "scores"
    blocks = {"block_size": 1.5, "block_overlap": 0.25} | ({"scene_votes": 2} if votes > 1 else {})
    assert facts == {
        "data": tasks.program.data_facts(data, splits, "the dataset's own split") | blocks,
        "parameters": count_parameters(model),
        "num_points": 32,
        "checkpoint": f"{tmp_path}/checkpoint-7",
        "start": {"model": None, "tuning": "full"},
    }
