"""A SpatialLM in the published layout opens by its published name, reads a scan and answers in the scan's frame."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import AutoProcessor, pipeline

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.hub.licenses import ACCEPT
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.modeling.spatiallm import Layout
from hf_any3d.published import open_published, published_directory
from tests.cli.conftest import run
from tests.conversions.spatiallm_originals import Released
from tests.pipelines.test_room_layouts import CORNER, ROOM, Dictated, assert_room, scan
from tests.published.test_published import forget
from tests.turns import some

QWEN, LLAMA = "manycore-research/SpatialLM1.1-Qwen-0.5B", "manycore-research/SpatialLM1.1-Llama-1B"
pytestmark = pytest.mark.filterwarnings("ignore:the processor's code_template lacks", "ignore:the answer")


@pytest.fixture(params=some([(QWEN, "qwen"), (LLAMA, "llama")], left_out=[(QWEN, "qwen")]), ids=lambda param: param[1])
def published(request, hub, tmp_path, monkeypatch):
    name, kind = request.param
    released = Released(kind)
    files = released.files(tmp_path / "released")
    if kind == "llama":  # in several files, as large models are stored
        halves = [dict(list(released.state.items())[start::2]) for start in (0, 1)]
        index = {"weight_map": {key: f"model-{n}.safetensors" for n, half in enumerate(halves) for key in half}}
        from safetensors.torch import save

        files |= {f"model-{n}.safetensors": save(half) for n, half in enumerate(halves)}
        files |= {"model.safetensors.index.json": json.dumps(index).encode()}
        del files["model.safetensors"]
    hub.commit(name, files | {"README.md": b"# SpatialLM\n"}, in_lfs=True)
    monkeypatch.delenv(ACCEPT, raising=False)
    yield name, released
    monkeypatch.undo()
    huggingface_hub.delete_repo(name)
    forget(name)


@pytest.mark.slow
def test_a_published_name_opens_and_answers_in_the_frame_of_a_scan(published, tmp_path, libraries_as_they_were):
    name, released = published
    with pytest.raises(ValueError, match=f"{name}: the weights are under CC-BY-NC-4.0 .* forbids commercial use"):
        open_published(name)
    model = open_published(name, accept_license=True)
    assert model.name_or_path == name and model.config.published["non_commercial"] is True
    expected = released.case.model.spatiallm.input_projection.weight
    assert torch.equal(model.spatiallm.input_projection.weight, expected)
    assert "license: cc-by-nc-4.0" in (published_directory(name) / "README.md").read_text()
    detect = pipeline("point-cloud-object-detection", model=name)
    text = ROOM.quantized(1280).write()
    # That of the cleaned scan, which has lost its outermost points.
    corner = detect.processor.read(scan())[0].corner
    words = Dictated(detect.processor.tokenizer, text)
    assert_room(detect(scan(), logits_processor=[words]), corner)
    # What the weights themselves say, whatever it is, is a layout in meters within the scan's cube.
    write = pipeline("point-cloud-text-to-text", model=name)
    (answer,) = write(scan(), max_new_tokens=20)
    assert Layout.from_dict(answer["layout"]) == Layout.parse(answer["generated_text"])
    own = scan()
    write_point_cloud(tmp_path / "room.ply", PointCloudData(own[:, :3], colors=own[:, 3:]))
    code, out, err = run("info", name, "--json")
    assert code == 0 and json.loads(out)["class"] == "SpatialLMForConditionalGeneration", err
    assert np.allclose(AutoProcessor.from_pretrained(name).read(tmp_path / "room.ply")[0].corner, CORNER, atol=0.2)


def test_every_published_name_has_the_same_terms():
    names = [name for name, entry in PUBLISHED.items() if entry.system.convert == "convert_spatiallm"]
    assert {QWEN, LLAMA} < set(names) and len(names) == 4
    assert all(PUBLISHED[name].system.non_commercial for name in names)
