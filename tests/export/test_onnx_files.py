"""ONNX files give PyTorch's results for clouds of sizes that they were not traced with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hf_any3d.export import export_onnx
from tests.export.cases import CASES, other_clouds, trained
from tests.turns import some

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


# An export takes many seconds; test_programs.py has the text encoder's graph.
@pytest.fixture(scope="module", params=some(CASES, left_out=["text_with_point_tokenizer", "rotary_with_lora"]))
def exported(request, tmp_path_factory):
    """A model and the path of its file."""
    model = trained(request.param).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx")
    assert model.training, "exporting leaves a model as it was"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return model.eval(), path


@pytest.mark.slow
def test_other_clouds_with_other_numbers_of_points_get_the_labels_of_pytorch(exported):
    model, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "points", model.config.in_channels]
    assert session.get_outputs()[0].shape[0] == "batch"
    labels = set()
    for points in other_clouds(model.config.in_channels):
        with torch.no_grad():
            expected = model(points=points).logits
        (found,) = session.run(["logits"], {"points": points.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
        assert np.array_equal(found.argmax(axis=1), expected.argmax(dim=1).numpy())
        labels.update(found.argmax(axis=1).tolist())
    assert len(labels) > 1, "clouds that all look alike would prove nothing"


@pytest.mark.slow
def test_file_is_valid_and_samples_in_a_loop_of_the_graph(exported):
    _, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (points,) = model.graph.input
    sizes = [size.dim_param or size.dim_value for size in points.type.tensor_type.shape.dim]
    assert points.name == "points" and all(isinstance(size, str) for size in sizes[:2])
    assert [node.op_type for node in model.graph.node].count("Scan") == 1
    assert {opset.domain for opset in model.opset_import} <= {""}, "operators that runtimes would not know"
    assert str(Path(torch.__file__).parent).encode() not in path.read_bytes(), "paths of this machine"
