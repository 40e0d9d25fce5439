#!/usr/bin/env bash
# Equally near neighbors: torch and ONNX Runtime choose different ones.
#
# One would guess: `torch.topk` returns the lowest indices among equal values, as NumPy's stable sort and the operator
# TopK of ONNX do, so that a model and its export group the same neighbors.
# What happens: torch on a CPU returns any of them, in any order; ONNX Runtime the lowest, as the operator's text asks.
# On a grid of points (voxel centers, range images, scans with rounded coordinates) ties are the rule: here, a seventh of
# the points gets another set of six neighbors.
# Matters to: who compares a model with its export on such clouds; the difference is no error of either.
# Versions: torch 2.13.0 (CPU), onnx 1.23.2, onnxruntime 1.32.0. Seen on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv --without-pip "$folder/venv"
python3 -m pip --python "$folder/venv" install --quiet --no-compile torch==2.13.0 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

places = np.arange(8, dtype=np.float32)
grid = np.stack(np.meshgrid(places, places, places, indexing="ij"), -1).reshape(-1, 3)
distances = ((grid[:, None] - grid[None]) ** 2).sum(-1)  # exact: small whole numbers
node = helper.make_node("TopK", ["distances", "count"], ["values", "indices"], largest=0)
graph = helper.make_graph(
    [node], "neighbors",
    [helper.make_tensor_value_info("distances", TensorProto.FLOAT, distances.shape)],
    [helper.make_tensor_value_info("values", TensorProto.FLOAT, None),
     helper.make_tensor_value_info("indices", TensorProto.INT64, None)],
    [helper.make_tensor("count", TensorProto.INT64, [1], [6])],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
values, indices = session.run(None, {"distances": distances})
ours = torch.topk(torch.from_numpy(distances), 6, largest=False)
lowest = np.argsort(distances, axis=1, kind="stable")[:, :6]
others = int((np.sort(ours.indices.numpy()) != np.sort(indices)).any(axis=1).sum())
print("torch", torch.__version__, "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
print("guess: the same neighbors for all 512 points of a grid")
print(f"seen:  equal distances: {np.array_equal(values, ours.values.numpy())}; other neighbors for {others} points")
print(f"seen:  onnxruntime returns the lowest indices: {np.array_equal(indices, lowest)}")
same = others > 20 and np.array_equal(indices, lowest) and np.array_equal(values, ours.values.numpy())
raise SystemExit(None if same else "the behavior has changed")
PYTHON
