import json

import numpy as np
import pytest
from datasets import Array2D, List, Value

from hf_any3d import load_point_dataset
from hf_any3d.data.catalog import objaverse_captions
from hf_any3d.data.catalog.objaverse_captions import DATASET
from hf_any3d.data.catalog.pointllm_annotations import to_messages
from hf_any3d.data.parquet.publishing import card_text
from tests.data.catalog.pointllm_trees import (
    BROKEN,
    COMPLEX,
    RESERVED,
    TEST,
    TRAIN,
    brief,
    caption,
    cloud,
    talk,
    write_minigpt,
    write_pointllm,
)
from tests.errors import raises

SPLITS = {"train": TRAIN, "validation": [RESERVED[0], RESERVED[2]], "test": TEST}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree that no test changes."""
    return write_pointllm(tmp_path_factory.mktemp("pointllm"))


@pytest.fixture
def load(cache_dir):
    def load(root, **options):
        return load_point_dataset("objaverse_captions", data_dir=root, cache_dir=cache_dir, verify=False, **options)

    return load


def annotations(root, name, change):
    """Change an annotation file."""
    path = next(root.rglob(f"PointLLM_{name}.json"))
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_brief_rows_have_the_cloud_the_conversation_and_the_caption(tree, load, streaming):
    splits = load(tree, streaming=streaming)
    assert list(splits) == list(SPLITS)
    for split, names in SPLITS.items():
        rows = list(splits[split])
        assert [row["object_id"] for row in rows] == names
        for row in rows:
            table = cloud(row["object_id"])
            np.testing.assert_array_equal(row["points"], table[:, :3])
            np.testing.assert_array_equal(row["colors"], table[:, 3:])
            assert list(row["conversations"]) == brief(row["object_id"])["conversations"]
            assert row["caption"] == caption(row["object_id"]) and row["conversation_type"] == "simple_description"
        assert splits[split].features == {
            "points": Array2D((8192, 3), "float32"),
            "colors": Array2D((8192, 3), "float32"),
            "object_id": Value("string"),
            "conversation_type": Value("string"),
            "conversations": List({"from": Value("string"), "value": Value("string")}),
            "caption": Value("string"),
        }
        assert splits[split].info.homepage == DATASET.homepage and splits[split].info.license.startswith("other: ")


def test_clouds_left_in_their_files_are_read_with_their_row(tmp_path, load):
    root = write_pointllm(tmp_path)
    copied, left = load(root), load(root, copy_clouds=False)
    for split, names in SPLITS.items():
        assert len(left[split]) == len(names)
        last, expected = left[split][-1], copied[split].with_format("numpy")[-1]
        assert last.keys() == expected.keys() and last["object_id"] == names[-1]
        np.testing.assert_array_equal(last["points"], expected["points"])
    np.save(root / "8192_npy" / f"{TRAIN[0]}_8192.npy", np.ones((8192, 6)))
    assert (left["train"][0]["points"] == 1).all() and not (copied["train"][0]["points"] == 1).any()


def test_minigpt_lists_reserved_objects_whose_captions_are_among_all(tmp_path, load):
    splits = load(write_minigpt(tmp_path), streaming=True)
    found = {split: [row["object_id"] for row in rows] for split, rows in splits.items()}
    assert found == {**SPLITS, "validation": [RESERVED[2], RESERVED[0]]}


def test_without_the_filtered_file_the_reserved_objects_are_left_out_of_all(tmp_path, load):
    root = write_minigpt(tmp_path)
    filtered = root / "data" / "anno_data" / objaverse_captions.FILTERED
    filtered.unlink()
    splits = load(root, streaming=True, splits=["train"])
    assert [row["object_id"] for row in splits["train"]] == TRAIN
    ids = filtered.parent / "val_object_ids_3000.txt"
    ids.unlink()
    with pytest.raises(FileNotFoundError):
        load(root, streaming=True, splits=["train"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "wanted"),
    [("complex", [0, 1, 2, 3, 4]), ("detailed", [0]), ("single_round", [1, 2, 4]), ("multi_round", [3])],
)
def test_complex_conversations_are_chosen_by_their_type(tree, load, which, wanted):
    splits = load(tree, which=which, streaming=True)
    rows = list(splits["train"])
    assert [row["object_id"] for row in rows] == [COMPLEX[number]["object_id"] for number in wanted]
    assert [list(row["conversations"]) for row in rows] == [COMPLEX[number]["conversations"] for number in wanted]
    assert ("caption" in rows[0]) == (which == "detailed")
    assert [row["object_id"] for row in splits["test"]] == TEST


def test_no_object_is_in_two_splits_even_if_files_overlap(tmp_path, load):
    root = write_pointllm(tmp_path)
    more = json.dumps(talk(RESERVED[0], "single_round")) + ", " + json.dumps(talk(TEST[0], "single_round"))
    annotations(root, "complex_instruction_70K", lambda text: f"[{more}, {text[1:]}")
    splits = load(root, which="complex", streaming=True)
    assert [row["object_id"] for row in splits["train"]] == [entry["object_id"] for entry in COMPLEX]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_objects_reserved_later_leave_the_training_rows(tmp_path, load, streaming):
    root = write_pointllm(tmp_path)
    file = root / "anno_data" / objaverse_captions.VALIDATION
    text = file.read_text()
    file.unlink()
    options = {"splits": ["train"], "streaming": streaming}
    assert len(list(load(root, **options)["train"])) == 3
    file.write_text(text.replace(RESERVED[0], TRAIN[1]))
    assert [row["object_id"] for row in load(root, **options)["train"]] == [TRAIN[0], TRAIN[2]]


def test_the_two_objects_with_broken_colors_come_only_without_colors(tmp_path, load):
    root = write_pointllm(tmp_path)
    for name in BROKEN:
        np.save(root / "8192_npy" / f"{name}_8192.npy", cloud(name) * [1, 1, 1, np.nan, np.nan, np.nan])
    rows = load(root, splits="train", colors=False)["train"]
    assert rows["object_id"][:].tolist() == [BROKEN[0], *TRAIN, BROKEN[1]] and "colors" not in rows.column_names
    assert load(root, splits="train")["train"]["object_id"][:].tolist() == TRAIN


def test_only_some_objects_or_the_first_rows_are_converted(tree, load):
    splits = load(tree, ids=[TRAIN[2], TEST[0]])
    assert {split: rows["object_id"][:].tolist() for split, rows in splits.items()} == {
        "train": [TRAIN[2]],
        "test": TEST,
    }
    assert load(tree, limit=1).num_rows == {"train": 1, "validation": 1, "test": 1}
    with pytest.raises(ValueError, match=f"ids names 1 objects without conversations of train in .*'{TEST[0]}'"):
        load(tree, ids=[TRAIN[0], TEST[0]], splits=["train"])


def test_only_files_of_the_requested_splits_need_to_exist(tmp_path, load):
    root = write_pointllm(tmp_path)
    for name in (objaverse_captions.FILTERED, objaverse_captions.COMPLEX, objaverse_captions.VALIDATION):
        (root / "anno_data" / name).unlink()
    assert load(root, splits=["test"]).num_rows == {"test": 1}
    with pytest.raises(FileNotFoundError, match=rf"missing anno_data/{objaverse_captions.COMPLEX}\nGet the files by"):
        load(root, which="complex", splits=["train"])
    file = objaverse_captions.TEST
    (root / "anno_data" / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing anno_data/{file}, .*_val_3000_GT\.json\n"):
        load(root, splits=["validation"])


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_missing_clouds_are_named_or_left_out(tmp_path, load, streaming):
    root = write_pointllm(tmp_path)
    (root / "8192_npy" / f"{TRAIN[1]}_8192.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing 8192_npy/{TRAIN[1]}_8192\.npy\nGet the files by"):
        load(root, streaming=streaming)
    rows = load(root, streaming=streaming, on_error="skip")["train"]
    assert [row["object_id"] for row in rows] == [TRAIN[0], TRAIN[2]]


def objects(path):
    np.save(path, np.array([{}], object), allow_pickle=True)


DAMAGES = {
    "bytes after the header": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    r"shape \(100, 6\)": lambda path: np.save(path, np.zeros((100, 6))),
    r"shape \(8192, 3\)": lambda path: np.save(path, np.zeros((8192, 3))),
    "colors has NaN": lambda path: np.save(path, np.full((8192, 6), [0, 0, 0, 0, 0, np.nan])),
    "would have to be unpickled, which is refused": objects,
}


@pytest.mark.slow
@pytest.mark.parametrize("message", DAMAGES)
def test_damaged_clouds_are_named_or_left_out(tmp_path, load, message):
    root = write_pointllm(tmp_path)
    path = root / "8192_npy" / f"{TRAIN[1]}_8192.npy"
    DAMAGES[message](path)
    with pytest.raises(ValueError):
        load(root, splits=["train"])
    with pytest.raises(ValueError):
        list(load(root, splits=["train"], streaming=True)["train"])
    rows = load(root, splits=["train"], streaming=True, on_error="skip")["train"]
    assert [row["object_id"] for row in rows] == [TRAIN[0], TRAIN[2]]


def test_a_repaired_cloud_is_read_again(tmp_path, load):
    root = write_pointllm(tmp_path)
    path = root / "8192_npy" / f"{TRAIN[0]}_8192.npy"
    assert load(root, splits=["train"])["train"][0]["points"][0, 0] == cloud(TRAIN[0])[0, 0]
    path.unlink()
    np.save(path, np.ones((8192, 6)))
    assert load(root, splits=["train"])["train"][0]["points"][0, 0] == 1


def test_damaged_json_is_located_and_never_skipped(tmp_path, load):
    root = write_pointllm(tmp_path)
    name = "brief_description_660K_filtered"
    annotations(root, name, lambda text: text.replace('"gpt"', '"gpt', 3).replace('"gpt', '"gpt"', 2))
    for on_error in ("raise", "skip"):
        with raises(ValueError, naming=name):
            load(root, on_error=on_error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [(TRAIN[1], "../../secret"), ('"conversations"', '"talks"'), ('"human"', '"system"'), ('"<point>', '7, "x": "')],
)
def test_malformed_entries_are_named_or_left_out(tmp_path, load, old, new):
    root = write_pointllm(tmp_path)

    def change(text):
        start = text.index("object_id", text.index(TRAIN[0]) + 40)
        return text[:start] + text[start:].replace(old, new, 1)

    annotations(root, "brief_description_660K_filtered", change)
    with pytest.raises(ValueError):
        load(root, streaming=True)
    rows = load(root, streaming=True, on_error="skip")["train"]
    assert [row["object_id"] for row in rows] == [TRAIN[0], TRAIN[2]]


def test_published_lengths_are_checked(tree, cache_dir):
    with pytest.raises(ValueError):
        load_point_dataset("objaverse_captions", data_dir=tree, cache_dir=cache_dir, streaming=True)


def test_the_card_describes_conversations(tree, load):
    splits = load(tree, splits=["test"])
    statistics = {"test": {"num_rows": 1, "points_per_cloud": {"min": 1, "max": 1}, "bounds": {"min": [], "max": []}}}
    text = card_text("me/talks", "Talks", splits, splits["test"].info.license, statistics)
    assert "| conversations | list of (from: string, value: string) |" in text
    assert "| colors | Array2D (8192, 3) float32 |" in text and "ODC-By" in text and "xu2024pointllm" in text


def test_conversations_become_messages_for_chat_templates():
    assert to_messages(talk(TRAIN[0], "multi_round", rounds=2)["conversations"]) == [
        {"role": "user", "content": [{"type": "point_cloud"}, {"type": "text", "text": "Question 0?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Answer 0."}]},
        {"role": "user", "content": [{"type": "text", "text": "Question 1?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Answer 1."}]},
    ]
