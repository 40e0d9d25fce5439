"""Asking a model the published questions: what is asked and stored, and which files are refused."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from hf_any3d.evaluation.question_answering import PROTOCOLS, answer_question, read_results
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


def test_the_truth_is_a_class_with_its_name_or_a_caption():
    assert CLASSES.items(rows())[1] == {"object_id": "b", "ground_truth": 1, "label_name": "sofa"}
    assert CAPTIONS.items(rows())[1] == {"object_id": "b", "ground_truth": "a b"}
    with raises(ValueError, naming="caption"):
        CAPTIONS.items(rows().remove_columns("caption"))
    with raises(ValueError, naming="an object_id occurs twice"):
        CLASSES.items(rows("aba"))


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_size": 3}, {"settings": {"top_k": 8}}])
def test_answers_of_other_settings_are_kept(change, tmp_path):
    answer(tmp_path / "a.json", batch_size=2)
    with pytest.raises(ValueError, match=rf"a.json was made with {next(iter(change))} .*now .*use another folder"):
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
