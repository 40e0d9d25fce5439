"""Asking a model the published questions: what is asked and stored, and which files are refused."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from hf_any3d.evaluation.chat_evaluation import judge_protocols
from hf_any3d.evaluation.question_answering import (
    PROTOCOLS,
    answer_question,
    colored_cloud,
    find_protocol,
    read_earlier_results,
    read_results,
)
from tests.errors import raises

CLASSES = PROTOCOLS["modelnet40-instruction"]
CAPTIONS = PROTOCOLS["objaverse-caption"]


def rows(ids="abc", colors=None) -> Dataset:
    cloud = Sequence(Sequence(Value("float32")))
    kinds = {"points": cloud, "label": ClassLabel(names=["cup", "sofa"]), "object_id": Value("string")}
    kinds["caption"] = Value("string")
    columns = {"points": [np.full((3, 3), number) for number in range(len(ids))], "object_id": list(ids)}
    columns |= {"label": [number % 2 for number in range(len(ids))], "caption": [f"a {name}" for name in ids]}
    if colors is not None:
        columns["colors"], kinds["colors"] = [np.full((3, 3), colors) for _ in ids], cloud
    return Dataset.from_dict(columns, features=Features(kinds)).with_format("numpy")


def answer(path, given=None, model=lambda clouds, *_: ["A Cup."] * len(clouds), protocol=CLASSES, **settings):
    return answer_question(rows() if given is None else given, protocol, model, path, {"model": "m"}, **settings)


def test_protocols_are_found_by_name():
    assert find_protocol("objaverse-caption") is CAPTIONS
    with raises(ValueError, naming="'caption' is unknown; expected one"):
        find_protocol("caption")


def test_the_truth_is_a_class_with_its_name_or_a_caption():
    assert CLASSES.items(rows())[1] == {"object_id": "b", "ground_truth": 1, "label_name": "sofa"}
    assert CAPTIONS.items(rows())[1] == {"object_id": "b", "ground_truth": "a b"}
    with raises(ValueError, naming="caption"):
        CAPTIONS.items(rows().remove_columns("caption"))
    with raises(ValueError, naming="an object_id occurs twice"):
        CLASSES.items(rows("aba"))


def test_each_batch_is_asked_with_its_seed_and_the_settings(tmp_path):
    asked, drawn = [], []

    def model(clouds, question, settings):
        asked.append((len(clouds), question, settings["num_beams"], settings["top_k"]))
        drawn.append(torch.rand(1).item())
        return ["It is a CUP.###and more"] * len(clouds)

    stored = answer(tmp_path / "a.json", model=model, settings={"top_k": 7}, batch_size=2, seed=5)
    assert asked == [(2, CLASSES.question, CLASSES.settings["num_beams"], 7)] + [
        (1, CLASSES.question, CLASSES.settings["num_beams"], 7)
    ]
    expected = [torch.manual_seed(seed) and torch.rand(1).item() for seed in (5, 7)]
    assert drawn == expected
    assert (stored["prompt"], stored["protocol"], stored["model"]) == (CLASSES.question, CLASSES.name, "m")
    assert (stored["batch_size"], stored["seed"], stored["settings"]["top_k"]) == (2, 5, 7)
    assert [one["model_output"] for one in stored["results"]] == ["it is a cup."] * 3
    assert len({one["cloud_sha256"] for one in stored["results"]}) == 3
    assert json.loads((tmp_path / "a.json").read_text())["results"] == stored["results"]
    # All answers are there, and none is asked for again.
    assert answer(tmp_path / "a.json", model=None, settings={"top_k": 7}, batch_size=2, seed=5)["results"]


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_size": 3}, {"settings": {"top_k": 8}}])
def test_answers_of_other_settings_are_kept(change, tmp_path):
    answer(tmp_path / "a.json", batch_size=2)
    with pytest.raises(ValueError, match=rf"a.json: was made with {next(iter(change))} .*now .*use another folder"):
        answer(tmp_path / "a.json", **{"batch_size": 2} | change)


def test_answers_about_other_objects_or_clouds_are_kept(tmp_path):
    answer(tmp_path / "a.json", rows("ab"))
    with raises(ValueError, naming="a.json"):
        answer(tmp_path / "a.json", rows("xb"))
    with raises(ValueError, naming="'a' is about another cloud"):
        answer(tmp_path / "a.json", rows("abc", colors=0.5))
    assert len(answer(tmp_path / "a.json", rows("abc"))["results"]) == 3
    # Files of the published programs have no digests.
    stored = json.loads((tmp_path / "a.json").read_text())
    for one in stored["results"]:
        del one["cloud_sha256"]
    (tmp_path / "a.json").write_text(json.dumps(stored))
    assert len(answer(tmp_path / "a.json", rows("abcd", colors=0.5))["results"]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", r'expected {"prompt": …, "results": \[…\]} with an object_id in each result'),
        ('{"results": 1}', "with an object_id in each result"),
        ('{"results": [1]}', "with an object_id in each result"),
        ('{"results": [{"object_id": 1}, {"object_id": 1}]}', "an object_id occurs twice; expected each object once"),
    ],
)
def test_files_that_hold_no_answers_are_refused(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json: .*{message}"):
        read_results(tmp_path / "a.json")


def test_earlier_answers_have_the_same_header_as_a_file_holds_it(tmp_path):
    assert read_earlier_results(tmp_path / "a.json", {"x": 1}) == []
    results = [{"object_id": 1}, {"object_id": "1"}]
    (tmp_path / "a.json").write_text(json.dumps({"sizes": [1, 2], "names": {"3": 4}, "results": results}))
    assert read_earlier_results(tmp_path / "a.json", {"sizes": (1, 2), "names": {3: 4}}) == results
    with pytest.raises(ValueError, match="was made with more None, now 1; use another"):
        read_earlier_results(tmp_path / "a.json", {"sizes": (1, 2), "more": 1})


def test_clouds_are_points_with_colors_from_0_to_1_or_black():
    points = np.arange(12.0).reshape(3, 4)
    found = colored_cloud({"points": points})
    assert found.dtype == np.float32 and found.tolist() == np.column_stack([points[:, :3], np.zeros((3, 3))]).tolist()
    bytes_ = colored_cloud({"points": points, "colors": np.full((3, 3), 255, np.uint8)})
    np.testing.assert_allclose(bytes_[:, 3:], 1)
    assert colored_cloud({"points": points, "colors": None})[:, 3:].max() == 0


def test_summaries_keep_protocols_and_leave_out_what_is_none(tmp_path):
    answer(tmp_path / f"{CLASSES.name}.json")
    earlier = {"objaverse-caption": {"answers": 9}, "unheard": 1}
    (tmp_path / "summary.json").write_text(json.dumps(earlier))
    found = judge_protocols([CLASSES], tmp_path, None, ["cup"])
    assert found == {CLASSES.name: {"model": "m", "revision": None, "answers": 3}}
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == {"objaverse-caption": {"answers": 9}, **found}
