"""What is written beside an exported file, and how its outputs are compared, on stand-ins for models."""

import importlib.metadata
import json
from types import SimpleNamespace

import pytest
import torch

from hf_any3d.export import onnx
from hf_any3d.export.onnx import FORMATS, ExportedFile, Format, compare, export_file
from hf_any3d.export.programs import _nearest

ONE, TWO = ("logits",), ("logits", "pred_boxes")


class Model(torch.nn.Module):
    """Answers each cloud with the sums of its channels, and with boxes that are far from the origin."""

    def __init__(self, names=TWO, training=True):
        super().__init__()
        self.names, self.seen = names, []
        self.device = torch.device("cpu")
        labels = {2: "lamp", 0: "bottle", 1: "chair"}
        self.config = SimpleNamespace(num_labels=3, num_queries=9, in_channels=6, id2label=labels)
        self.train(training)

    def forward(self, points):
        assert not self.training and not torch.is_grad_enabled()
        self.seen.append((tuple(points.shape), points.min().item(), points.max().item()))
        sums = points.sum(dim=1)
        return {"logits": sums[:, :3], "pred_boxes": 1000 + sums[:, None, :].expand(-1, 9, -1)}


@pytest.fixture(autouse=True)
def of_stand_ins(monkeypatch):
    monkeypatch.setattr(onnx, "exportable", lambda model: model)
    monkeypatch.setattr(onnx, "output_names", lambda model: model.names)
    monkeypatch.setattr(onnx, "least_points", lambda model: 17)


def answer(model, change=None):
    """A file that gives what a model gives, but for a change of one output."""
    other = Model(model.names, training=False)

    def run(points):
        with torch.no_grad():
            output = other(points)
        if change is not None:
            output = change(output)
        found = tuple(output[name] for name in model.names)
        return found if len(found) > 1 else found[0]

    return run


@pytest.mark.parametrize("names", [ONE, TWO])
def test_outputs_are_compared_on_two_batches_of_random_clouds(names):
    model = Model(names)
    assert compare(model, answer(model)) == 0 and model.training
    (first, *low), (second, *more) = model.seen
    assert (first, second) == ((1, 54, 6), (3, 535, 6))
    assert -1 <= low[0] < -0.9 and 0.9 < low[1] <= 1 and -1 <= more[0] < -0.99 and 0.99 < more[1] <= 1
    again = Model(names)
    compare(again, answer(again))
    assert again.seen == model.seen, "the same clouds every time"


def test_the_largest_difference_of_all_outputs_is_returned():
    model = Model()
    # Of the first output in the first batch, of the second in the second.
    for name, size in (("logits", 1), ("pred_boxes", 3)):

        def change(output, name=name, size=size):
            add = 0.05 if name == "pred_boxes" else 2e-5
            return output | ({name: output[name] + add} if len(output["logits"]) == size else {})

        found = compare(model, answer(model, change))
        assert found == pytest.approx(0.05 if name == "pred_boxes" else 2e-5, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda output: output | {"logits": output["logits"].flip(1)}, "logits differ by .*; expected at most"),
        (lambda output: output | {"pred_boxes": output["pred_boxes"] + 0.2}, "3? ?clouds? .*pred_boxes differ by 0.2"),
        (
            lambda output: output | {"pred_boxes": output["pred_boxes"][:, :2]},
            r"pred_boxes \(1, 2, 6\); expected \(1, 9, 6\)",
        ),
        (lambda output: output | {"logits": output["logits"] * float("nan")}, "logits differ by nan"),
    ],
)
def test_files_with_other_outputs_are_refused(change, message):
    model = Model()
    with pytest.raises(ValueError, match=message):
        compare(model, answer(model, change))
    assert model.training


def test_labels_must_be_equal_even_where_differences_are_small():
    class Equal(Model):
        def forward(self, points):
            logits = torch.zeros(len(points), 3)
            logits[:, 1] = self.least
            return {"logits": logits}

    model, other = Equal(ONE), Equal(ONE, training=False)
    model.least, other.least = 1e-6, -1e-6
    with pytest.raises(
        ValueError, match="1 clouds of 54 points: logits differ by 2e-06; expected at most 0.0001 and equal"
    ):
        compare(model, lambda points: other(points)["logits"])
    other.least = 2e-6
    assert compare(model, lambda points: other(points)["logits"]) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("names", "output"),
    [
        (ONE, {"name": "logits", "shape": ["batch", 3]}),
        (
            TWO,
            [
                {"name": "logits", "shape": ["batch", 9, 4]},
                {"name": "pred_boxes", "shape": ["batch", 9, 7]},
            ],
        ),
    ],
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_settings_are_written_beside_a_file_whose_outputs_agree(is_whole, names, output, tmp_path, monkeypatch):
    model = Model(names)
    if is_whole:
        model.config.encoder_name_or_path = "me/ä"
    processor = SimpleNamespace(to_dict=lambda: {"num_points": 48}) if is_whole else None

    def write(given, path):
        assert given is model and path.name == "model.v1.onnx" and path.parent.parent == tmp_path
        path.write_bytes(b"0" * 70)
        path.with_name("model.v1.onnx.data").write_bytes(b"0" * 500)

    packages = ("numpy", "onnx") if is_whole else ()
    monkeypatch.setitem(FORMATS, "odd", Format(write, lambda path: answer(model), packages))
    exported = export_file(model, str(tmp_path / "model.v1.onnx"), "odd", processor=processor)
    assert exported == ExportedFile(tmp_path / "model.v1.onnx", tmp_path / "model.v1.json", 570, 0.0)
    text = exported.settings.read_text(encoding="utf-8")
    expected = {
        "version": 1,
        "format": "odd",
        "input": {"name": "points", "shape": ["batch", "points", 6], "dtype": "float32", "min_points": 17},
        "output": output,
        "labels": ["bottle", "chair", "lamp"],
        "processor": {"num_points": 48} if is_whole else None,
        "encoder": "me/ä" if is_whole else None,
        "made_with": {name: importlib.metadata.version(name) for name in ("hf-any3d", "torch", *packages)},
        "worst_difference": 0.0,
    }
    assert text == json.dumps(expected, indent=2, ensure_ascii=False) + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.v1.json", "model.v1.onnx", "model.v1.onnx.data"]


def test_neighbors_of_a_program_are_the_nearest_with_ties_in_order():
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(0, 3, (2, 40, 5), generator=generator).float()
    query = torch.rand(2, 7, 5, generator=generator)
    query[:, :3] = points[:, :3]
    index, squares = _nearest(query, points, 6, "any")
    exact = ((query[:, :, None, :3] - points[:, None, :, :3]) ** 2).sum(dim=-1)
    order = exact.argsort(dim=-1, stable=True)[..., :6]
    assert torch.equal(index, order)
    torch.testing.assert_close(squares, exact.gather(-1, order))
    assert squares.dtype == torch.float32 and index.dtype == torch.int64
