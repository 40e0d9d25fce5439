import json

import numpy as np
import pytest
import yaml
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Value, load_dataset

from hf_any3d.data import add_preview, load_point_dataset, push_point_dataset
from hf_any3d.data.parquet.publishing import card_metadata, card_text, split_statistics
from tests.data.parquet.toy import COUNTS, cloud, load_toy, write_tree
from tests.errors import raises


@pytest.fixture
def splits(tmp_path, cache_dir):
    return load_toy(write_tree(tmp_path / "toy"), cache_dir)


def head_and_text(hub, name):
    _, head, text = hub.content(name, "README.md", kind="dataset").decode().split("---\n", 2)
    return yaml.safe_load(head), text


def test_previews_are_small_files_that_datasets_alone_reads(hub, splits, tmp_path):
    mesh = pytest.importorskip("datasets.features.mesh", reason="datasets has it from 5.0 on")
    push_point_dataset(splits, "me/toy-preview", private=True, preview=True)
    rows = load_dataset("me/toy-preview", cache_dir=str(tmp_path / "other"), split="test")
    assert isinstance(rows.features["preview"], mesh.Mesh)
    drawn = rows[3]["preview"]
    np.testing.assert_allclose(drawn.vertices, cloud("test", 3), atol=1e-6)
    _, text = head_and_text(hub, "me/toy-preview")
    assert "| preview | Mesh, a .ply file for viewers |" in text
    small = add_preview(splits["test"], num_points=4)
    assert len(small.cast_column("preview", mesh.Mesh(decode=True))[3]["preview"].vertices) == 4
    with pytest.raises((ValueError, KeyError)):
        add_preview(small)
    with pytest.raises((ValueError, KeyError)):
        add_preview(splits["test"].remove_columns("points"))


def test_the_card_has_the_info_of_the_dataset(hub, splits):
    push_point_dataset(splits, "me/toy-card", private=True, title="Toy clouds")
    head, text = head_and_text(hub, "me/toy-card")
    assert head["pretty_name"] == "Toy clouds" and head["size_categories"] == ["n<1K"]
    assert head["license"] == "other" and head["license_link"] == "https://example.org/terms"
    assert {split["name"]: split["num_examples"] for split in head["dataset_info"]["splits"]} == COUNTS
    assert head["configs"][0]["data_files"][0]["split"] == "train"
    assert "# Toy clouds" in text and "Clouds for tests." in text and "@misc{toy}" in text
    assert "Other: for tests alone https://example.org/terms" in text and "Homepage: https://example.org/toy" in text
    assert "| points | Array2D (points, 3) float32 |" in text and "| label | ClassLabel, 3 classes |" in text
    assert "| train | 12 | 5 to 16 |" in text and "| 1 | tile | 4 | 1 |" in text
    statistics = json.loads(hub.content("me/toy-card", "meta/stats.json", kind="dataset"))
    assert statistics["format_version"] == 1
    points = np.concatenate([cloud("test", number) for number in range(4)])
    assert statistics["splits"]["test"] == {
        "num_rows": 4,
        "points_per_cloud": {"min": 5, "mean": 6.5, "max": 8},
        "num_points": 26,
        "bounds": {"min": points.min(0).tolist(), "max": points.max(0).tolist()},
        "labels": {"cup": 1, "mug": 2, "tile": 1},
    }


@pytest.mark.parametrize("split", ["train", "test", None])
def test_a_single_dataset_is_pushed_under_the_name_of_its_split(hub, splits, split):
    rows = splits[split or "train"]
    if split is None:
        rows = Dataset(rows.data, info=rows.info)
    name = f"me/toy-{split}"
    push_point_dataset(rows, name, private=True)
    (pushed,) = head_and_text(hub, name)[0]["dataset_info"]["splits"]
    assert (pushed["name"], pushed["num_examples"]) == (split or "train", COUNTS[split or "train"])
    with raises(TypeError, naming="expected a DatasetDict or a Dataset"):
        push_point_dataset([rows], name, private=True)


def test_the_snippet_of_the_card_runs_without_this_package(hub, splits, tmp_path, monkeypatch):
    push_point_dataset(splits, "me/toy-snippet", private=True)
    _, text = head_and_text(hub, "me/toy-snippet")
    code = text.split("```python\n")[1].split("```")[0]
    assert "hf_any3d" not in code
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert names["row"]["points"].shape == (5, 3)


def test_data_without_an_open_license_are_not_published(hub, splits):
    for private in (None, False):
        with pytest.raises(ValueError, match="me/toy-public would be public, and their license is 'other: for tests"):
            push_point_dataset(splits, "me/toy-public", private=private)
    push_point_dataset(splits, "me/toy-public", rights_confirmed=True)
    assert head_and_text(hub, "me/toy-public")[0]["license"] == "other"


def test_private_does_not_make_a_public_repository_private(hub, splits):
    push_point_dataset(splits, "me/toy-open", license="cc-by-4.0", rights_confirmed=True)
    assert head_and_text(hub, "me/toy-open")[0]["license"] == "cc-by-4.0"
    with pytest.raises(ValueError, match="me/toy-open would be public"):
        push_point_dataset(splits, "me/toy-open", private=True)


def test_another_license_does_not_open_data_whose_terms_are_known(hub, splits):
    with pytest.raises(ValueError, match="me/toy-mit would be public, and their license is 'other: for tests"):
        push_point_dataset(splits, "me/toy-mit", license="mit")
    splits["train"].info.license = "mit"
    with raises(ValueError, naming="'train': 'mit', 'test': 'other: for"):
        push_point_dataset(splits, "me/toy-mit", private=True)
    with pytest.raises(ValueError, match="me/toy-mit would be public, and their license is 'other: for tests"):
        push_point_dataset(splits, "me/toy-mit", license="mit")


def test_data_of_unknown_license_need_a_license(hub, cache_dir):
    shapes = load_point_dataset("shapes", cache_dir=cache_dir)
    for split, rows in shapes.items():
        shapes[split] = rows.select(range(4)).select_columns(["points", "label"])
        assert "CC BY 3.0" in shapes[split].info.license
        shapes[split].info.license = None
    with pytest.raises(ValueError, match="me/own would be public, and their license is not known"):
        push_point_dataset(shapes, "me/own")
    push_point_dataset(shapes, "me/own", license="cc0-1.0")
    head, text = head_and_text(hub, "me/own")
    assert head["license"] == "cc0-1.0" and "Array2D (1024, 3)" in text


def test_rows_without_points_are_refused(splits):
    for name in splits:
        splits[name] = splits[name].remove_columns("points")
    with pytest.raises(ValueError, match="split train: no column 'points' among"):
        push_point_dataset(splits, "me/none", private=True)


def test_untrusted_names_are_escaped_in_the_card():
    nasty = ["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "a\n---\n# b", "c|d`e", "\x1b[31mred"]
    columns = {"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=nasty), nasty[3]: Value("string")}
    features = Features(columns)
    info = DatasetInfo(
        features=features, description="Good.\n---\n<b>bold</b>", citation="@misc{a}\n```\n# b", homepage=nasty[1]
    )
    rows = {"points": [np.zeros((2, 3), np.float32)], "label": [0], nasty[3]: ["a"]}
    splits = DatasetDict(test=Dataset.from_dict(rows, features=features, info=info))
    statistics = split_statistics("test", splits["test"])
    text = card_text("me/x", nasty[2], splits, f"other: {nasty[0]} https://a.org/b", {"test": statistics})
    head = str(card_metadata(nasty[2], f"other {nasty[2]}", 1).to_yaml())
    for whole in (text, head):
        assert "\x1b" not in whole and not any(line.startswith("---") for line in whole.split("\n"))
    assert "<img" not in text and "<b>" not in text and "](java" not in text.replace("\\]", "")
    assert text.count("```") == 4 and "https://a.org/b" in text
    assert next(line for line in text.split("\n") if line.startswith("# ")) == "# a --- \\# b"
    for line in text.split("\n"):
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (3, 4, 6), line


@pytest.mark.parametrize(
    ("num_rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (9_999_999, "1M<n<10M"), (10_000_000, "n>10M")],
)
def test_sizes_have_the_categories_of_the_hub(num_rows, category):
    assert card_metadata("clouds", "mit", num_rows).to_dict()["size_categories"] == [category]
