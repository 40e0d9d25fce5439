"""What class names reply, and what verdicts and figures follow from replies."""

import json

import pytest

from hf_any3d.evaluation.llm_judge import ClassNameJudge
from hf_any3d.evaluation.llm_judge.verdicts import (
    compute_figures,
    judge_answers,
    prompt_checksum,
    read_verdict,
    verdicts_path,
)
from tests.errors import raises

CLASSES = ["car", "glass box", "tv stand"]


@pytest.mark.parametrize("classes", [[], ["car", ""], ["car", " "], ["car", "Car"], ["tv stand", "TV_stand"]])
def test_class_names_are_different_and_not_empty(classes):
    with pytest.raises(ValueError, match="classes are .*; expected different names"):
        ClassNameJudge(classes)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("a Glass-Box on a car", "1#glass box#named at character 2"),
        ("a tv__stand", "2#tv stand#named at character 2"),
        ("some scar or cars", "-1#NA#names no class"),
        ("my_car_2", "0#car#named at character 3"),
        ("CAR", "0#car#named at character 0"),
        ("glass  \n box", "1#glass box#named at character 0"),
    ],
)
def test_the_class_that_is_named_first_is_the_reply(answer, reply):
    judge = ClassNameJudge(CLASSES)
    assert judge(answer) == reply
    assert (judge.name, judge.settings, judge.revisions) == ("class names", {"classes": 3, "version": "1"}, {"1"})
    assert (tuple(judge.kinds), judge.at_once, judge.reads_prompt) == (("class",), 1, False)


def test_verdicts_have_what_their_kind_asks_for():
    entry = {"object_id": "7", "ground_truth": 1}
    assert read_verdict("same", "T#x", entry) == {"score": 1, "reason": "x", "is_valid": True}
    assert read_verdict("same", "?", entry) == {"score": 0, "reason": "?", "is_valid": False}
    assert read_verdict("caption", "33#x", entry) == {"score": 33, "reason": "x", "is_valid": True}
    assert read_verdict("caption", "0#x", entry) == {"score": 0, "reason": "x", "is_valid": True}
    assert read_verdict("caption", "x", entry) == {"score": -1, "reason": "x", "is_valid": False}
    right = {"score": 1, "class": 1, "class_name": "glass box", "reason": "x", "is_valid": True}
    assert read_verdict("class", "1#box#x", entry, CLASSES) == right
    wrong = {"score": 0, "class": 2, "class_name": "tv stand", "reason": "y", "is_valid": True}
    assert read_verdict("class", "2#stand#y", entry, CLASSES) == wrong
    drawn = [
        read_verdict("class", "?", entry | {"object_id": str(n)}, CLASSES, seed) for n in range(9) for seed in (0, 1)
    ]
    assert drawn == [
        read_verdict("class", "?", entry | {"object_id": str(n)}, CLASSES, seed) for n in range(9) for seed in (0, 1)
    ]
    assert {one["class"] for one in drawn} == {0, 1, 2} and not any(one["is_valid"] for one in drawn)
    assert any(one != other for one, other in zip(drawn[::2], drawn[1::2], strict=True))
    assert all(one["score"] == (one["class"] == 1) and one["class_name"] == CLASSES[one["class"]] for one in drawn)


VERDICTS = [
    {"score": score, "is_valid": is_valid} for score, is_valid in ((1, True), (0, True), (1, False), (1, True))
]


@pytest.mark.parametrize(
    ("kind", "verdicts", "expected"),
    [
        (
            "class",
            VERDICTS,
            {"accuracy": 75, "clean_accuracy": 200 / 3, "correct": 3, "lucky": 1, "total": 4, "invalid": 1},
        ),
        ("class", [], {"accuracy": None, "clean_accuracy": None, "correct": 0, "lucky": 0, "total": 0, "invalid": 0}),
        ("same", VERDICTS, {"accuracy": 200 / 3, "correct": 2, "total": 4, "invalid": 1}),
        ("same", VERDICTS[2:3], {"accuracy": None, "correct": 0, "total": 1, "invalid": 1}),
        ("caption", VERDICTS, {"score": 2 / 3, "total": 4, "invalid": 1}),
        ("caption", [], {"score": None, "total": 0, "invalid": 0}),
    ],
)
def test_figures_are_percent_of_valid_verdicts_or_of_all(kind, verdicts, expected):
    assert compute_figures(kind, verdicts) == {
        name: value if value is None else pytest.approx(value) for name, value in expected.items()
    }


def test_verdicts_are_stored_beside_the_answers_with_all_that_they_depend_on(tmp_path):
    answers = {"prompt": "?", "model": "m", "results": [{"object_id": 1, "ground_truth": 0, "model_output": "a car"}]}
    judge = ClassNameJudge(CLASSES)
    path = verdicts_path(tmp_path / "some.json", judge)
    assert path == tmp_path / "some.judged-by-class-names.json"
    found = judge_answers(answers, "class", judge, path, CLASSES, seed=4)
    assert (
        found
        == json.loads(path.read_text())
        == {
            "prompt": "?",
            "model": "m",
            "judge": {
                "name": "class names",
                "settings": {"classes": 3, "version": "1"},
                "seed": 4,
                "classes_sha256": prompt_checksum("car\nglass box\ntv stand"),
            },
            "judge_revisions": ["1"],
            "figures": {"accuracy": 100, "clean_accuracy": 100, "correct": 1, "lucky": 0, "total": 1, "invalid": 0},
            "results": [
                {
                    **answers["results"][0],
                    "judge_reply": "0#car#named at character 2",
                    **{
                        "score": 1,
                        "class": 0,
                        "class_name": "car",
                        "reason": "named at character 2",
                        "is_valid": True,
                    },
                }
            ],
        }
    )
    with raises(ValueError, naming="'same'; it judges class"):
        judge_answers(answers, "same", judge, path)
