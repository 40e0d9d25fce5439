"""`hf-any3d evaluate` on every kind of model: the figures of its task, or an error that names what fits."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, load_dataset
from transformers import AutoConfig, pipeline

from hf_any3d import ActModel, AutoModelForPointCloudSegmentation, PointCloudProcessor
from hf_any3d.evaluation.detection import detection_metrics
from hf_any3d.evaluation.segmentation import instance_miou, part_ious
from tests.cli.conftest import LABELS, PARTS, run
from tests.tiny_act import tiny_act

pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

CATEGORIES = ["table", "lamp"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A function from names of categories and of point classes to a Parquet file with four clouds of 48 points."""

    def write(names, point_names):
        rng = np.random.default_rng(0)
        path = tmp_path_factory.mktemp("data") / "train.parquet"
        features = Features(
            {
                "points": List(List(Value("float32"), length=3)),
                "label": ClassLabel(names=names),
                "labels": List(ClassLabel(names=point_names)),
            }
        )
        rows = [
            {
                "points": rng.uniform(-1, 1, (48, 3)).astype(np.float32),
                "label": number % 2,
                "labels": [(2 * (number % 2) + point % 2) % len(point_names) for point in range(48)],
            }
            for number in range(4)
        ]
        Dataset.from_list(rows, features=features).to_parquet(path)
        return path.parent

    return write


def evaluate(model, folder, *words):
    return run("evaluate", model, "--dataset", "parquet", "--data-dir", folder, "--split", "train", "--cpu", *words)


@pytest.mark.slow
def test_parts_get_the_ious_of_their_predictions(models, data):
    code, out, err = evaluate(models("parts"), data(CATEGORIES, PARTS), "--json")
    # Nothing of Trainer stands before the answer.
    assert code == 0 and err == "", err
    facts = json.loads(out)
    model = AutoModelForPointCloudSegmentation.from_pretrained(models("parts"))
    processor = PointCloudProcessor.from_pretrained(models("parts"))
    predicted, true = [], []
    rows = load_dataset("parquet", data_dir=str(data(CATEGORIES, PARTS)), split="train").with_format("numpy")
    for row in rows:
        points = processor(row["points"])["points"].reshape(1, -1, 3)
        with torch.no_grad():
            logits = model(points, category=torch.tensor([int(row["label"])])).logits[0]
        own = model.config.category_parts[int(row["label"])]
        predicted.append(np.array(own)[logits[:, own].argmax(dim=1).numpy()])
        true.append(row["labels"])
    ious = part_ious(predicted, true, list(rows["label"]), model.config.category_parts)
    assert facts["metrics"]["train"]["instance_miou"] == pytest.approx(instance_miou(ious), abs=1e-6)
    assert set(facts["class_iou"]["train"]) <= set(PARTS)


def test_figures_are_written_as_json_or_as_a_table(models, data, tmp_path):
    folder = data(CATEGORIES, PARTS)
    code, out, err = evaluate(models("parts"), folder, "--json", "--output", tmp_path / "figures.json")
    assert code == 0, err
    facts = json.loads(out)
    assert json.loads((tmp_path / "figures.json").read_text()) == facts
    code, _, err = evaluate(models("parts"), folder, "--output", tmp_path / "figures.csv")
    assert code == 0, err
    (row,) = csv.DictReader((tmp_path / "figures.csv").read_text().splitlines())
    assert row.pop("split") == "train"
    expected = facts["metrics"]["train"] | {f"iou of {part}": iou for part, iou in facts["class_iou"]["train"].items()}
    timed = {name for name in expected if "second" in name or "runtime" in name}
    assert {name: float(value) for name, value in row.items() if name not in timed} == pytest.approx(
        {name: value for name, value in expected.items() if name not in timed}, abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names", "texts"),
    [
        ("scenes", ["LABEL_0", "LABEL_1", "LABEL_2"], ("mean IoU", "accuracy", "loss")),
        ("zero-shot", PARTS, ("accuracy", "mean class")),
        ("autoencoder", PARTS, ("Chamfer distance (L1)", "Chamfer distance (L2)", "F-score", "loss")),
    ],
)
def test_other_models_get_the_figures_of_their_task(models, data, kind, names, texts):
    code, out, err = evaluate(models(kind), data(CATEGORIES, names), "--max-samples", 2)
    assert code == 0, err
    assert all(text in out for text in texts) and out.startswith("train ") and out.count("\n") == 1


def test_detectors_get_the_average_precision_of_their_boxes(models, tmp_path):
    rng = np.random.default_rng(0)
    model, boxes, references = models("detector"), {}, []
    names = list(AutoConfig.from_pretrained(model).id2label.values())
    detect = pipeline("point-cloud-object-detection", model=model)
    rule = {"threshold": 0.0, "scores": "per_class", "nms": "turned", "nms_per_class": True, "min_objectness": 0.05}
    predictions = []
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", rng.uniform(-1, 1, (60, 3)))
        answers = detect(str(tmp_path / f"{number}.npy"), **rule)
        predictions.append(
            {
                "boxes": [[*one["box"]["center"], *one["box"]["size"], one["box"]["heading"]] for one in answers],
                "labels": [names.index(one["label"]) for one in answers],
                "scores": [one["score"] for one in answers],
            }
        )
        # Objects are some of the answers; the class "lamp" does not occur.
        right = next(one for one in answers[number:] if one["label"] != "lamp")
        box = {"label": right["label"], **{name: right["box"][name] for name in ("center", "size", "heading")}}
        boxes[f"{number}.npy"] = [box]
        references.append(
            {"boxes": [[*box["center"], *box["size"], box["heading"]]], "labels": [names.index(box["label"])]}
        )
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    code, out, err = run("evaluate", model, tmp_path, "--cpu", "--json")
    assert code == 0, err
    facts, expected = json.loads(out), detection_metrics(predictions, references, names=names)
    for name in ("map_25", "map_50", "recall_25", "recall_50"):
        assert facts["metrics"]["all"][name] == pytest.approx(expected[name], abs=1e-3)
    assert facts["metrics"]["all"]["recall_25"] > 0
    assert facts["class_ap_25"]["all"] == pytest.approx(expected["class_ap_25"], abs=1e-3)
    boxes["0.npy"][0]["label"] = "whale"
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    code, _, err = run("evaluate", model, tmp_path, "--cpu")
    assert code == 1 and "'whale'" in err


@pytest.mark.slow
def test_bad_files_of_a_folder_are_reported_and_left_out(models, tmp_path):
    for number, label in enumerate(LABELS):
        (tmp_path / label).mkdir()
        np.save(tmp_path / label / "cloud.npy", np.random.default_rng(number).uniform(-1, 1, (48, 3)))
    (tmp_path / LABELS[0] / "torn.ply").write_text("ply")
    words = ("evaluate", models("classifier"), "--dataset", "folder", "--data-dir", tmp_path, "--split", "train")
    code, out, err = run(*words, "--cpu")
    assert code == 2 and out.startswith("train ") and "accuracy" in out, err
    assert "torn.ply" in err and f"1 of {len(LABELS) + 1} files could not be used" in err
    code, out, err = run(*words, "--cpu", "--options", '{"on_error": "raise"}')
    assert code == 1 and not out and "torn.ply" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "categories", "names"),
    [
        ("classifier", LABELS, PARTS),
        ("parts", CATEGORIES, PARTS),
        ("scenes", CATEGORIES, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ("zero-shot", CATEGORIES, PARTS),
        ("autoencoder", CATEGORIES, PARTS),
    ],
)
def test_the_page_says_what_goes_wrong_and_shows_the_worst_clouds(kind, categories, names, models, data, tmp_path):
    page = tmp_path / "page.html"
    code, out, err = evaluate(models(kind), data(categories, names), "--output", page, "--json")
    assert code == 0, err
    facts, text = json.loads(out), page.read_text()
    (of_split,) = facts["scans"].values()
    scans = of_split["scans"]
    assert len(scans) == 4 and len({scan["digest"] for scan in scans}) == 4
    assert f"<title>Evaluation of {kind} on data" in text and str(tmp_path) not in text
    # Figures that follow from the scans are those of the evaluation.
    figure = facts["metrics"]["train"][of_split["metric"]]
    if of_split["metric"] == "accuracy":
        right = sum(scan["answer"] == scan["true"] for scan in scans)
        assert figure == pytest.approx(right / 4) and f"{right} of 4 scans" in text
    elif of_split["metric"] == "instance_miou":
        assert figure == pytest.approx(np.mean([scan["value"] for scan in scans]))
    # A reconstruction has no mistakes to show.
    assert ("Confusion matrix" in text) == ("<iframe" in text) == (kind != "autoencoder")
    assert ("answers that differ" in text) == (kind in ("parts", "scenes"))


@pytest.mark.slow
def test_data_are_named_as_for_a_training(models, data, tmp_path):
    for number, label in enumerate(LABELS):
        for split, count in (("train", 2), ("test", 1)):
            (tmp_path / "scans" / split / label).mkdir(parents=True)
            for cloud in range(count):
                points = np.random.default_rng([number, cloud]).uniform(-1, 1, (48, 3))
                np.save(tmp_path / "scans" / split / label / f"{cloud}.npy", points)
    model, scans = models("classifier"), tmp_path / "scans"
    (code, out, err), long = run("evaluate", model, scans, "--cpu"), ("--dataset", "folder", "--data-dir", scans)
    assert code == 0 and out.startswith("test ") and "no split" not in err
    assert run("evaluate", model, *long, "--cpu").out == out
    train = run("evaluate", model, scans, "--split", "train", "--cpu").out
    assert train.startswith("train ") and train != out
    code, out, err = run("evaluate", model, scans / "train", "--cpu")
    assert code == 0 and out == train.replace("train ", "all ") and "not a test" not in err
    test = tmp_path / "held_out" / "test"
    shutil.copytree(scans / "test", test)
    code, out, err = run("evaluate", model, test.parent, "--cpu")
    assert code == 0 and out == run("evaluate", model, scans, "--cpu").out and "no split" not in err, err
    (tmp_path / "recipe.yaml").write_text("dataset_name: folder\nvalidation_fraction: 0.5\n")
    words = ("evaluate", model, "--recipe", tmp_path / "recipe.yaml", "--data-dir", test.parent, "--cpu")
    assert run(*words).out == out
    file = data(CATEGORIES, ["LABEL_0", "LABEL_1", "LABEL_2"]) / "train.parquet"
    assert run("evaluate", models("scenes"), file, "--cpu").out.startswith("all ")
    for words, text in (
        ((), "DATA is missing"),
        ((scans, "--data-dir", scans), f"--data-dir {scans} cannot be combined with DATA"),
        ((scans, "--split", "validation"), f"{scans}: its data has no split 'validation'; there are test, train"),
        ((tmp_path / "scnas",), f"did you mean {scans}?"),
    ):
        code, out, err = run("evaluate", model, *words, "--cpu")
        assert code == 1 and out == "" and text in err, err


@pytest.mark.slow
def test_what_does_not_fit_is_one_line(models, data, tmp_path):
    folder = data(CATEGORIES, ["top", "leg", "foot", "pole", "shade"])
    tiny_act(ActModel).save_pretrained(tmp_path / "encoder")
    for model, words, text in (
        (models("parts"), (), "split train has the classes of points ['top', 'leg'"),
        (models("parts"), ("--voting", 2), "--voting is only for classifiers"),
        (models("chat"), (), "is a chat model; use hf-any3d chat"),
        (str(tmp_path / "encoder"), (), "hf-any3d features"),
        (models("classifier"), (), f"expected the model's, {LABELS}"),
    ):
        code, out, err = evaluate(model, folder, *words)
        assert code == 1 and out == "" and text in err and err.splitlines()[-1].startswith("error: "), err
