"""MiniGPT-3D's files in the widths of the stored runs, from the authors' files to the stored numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from hf_any3d import AutoModelForPointCloudTextToText
from hf_any3d.cli import app
from tests.conversions.minigpt3d_originals import Originals, options
from tests.forks import results_of
from tests.modeling.minigpt3d.conversations import POINT_TOKEN, prompt_batch, training_batch
from tests.modeling.minigpt3d.reference_case import ReferenceCase
from tests.reference.fill import fill, points


def run(*arguments):
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="module")
def case():
    return ReferenceCase("full")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The conversions of stage III's file, and of stage III's with stage IV's."""
    directory = tmp_path_factory.mktemp("released")
    arguments = Originals(small=False).write(directory / "in", 3, 4, with_norms=True)
    run(*options(arguments), "--output", directory / "mqe")
    del arguments["second_checkpoint"]
    run(*options(arguments), "--output", directory / "stage3")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def clouds():
    return torch.from_numpy(points("minigpt3d_full", 2, 8192, 6))


def placed(batch, model):
    """A batch with the model's own point token."""
    places = batch["input_ids"] == POINT_TOKEN
    return batch | {"input_ids": batch["input_ids"].masked_fill(places, model.config.point_token_id)}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage3", "mqe"])
@torch.no_grad()
def test_opened_model_reaches_the_stored_loss_and_logits(folders, case, clouds, stage):
    model = AutoModelForPointCloudTextToText.from_pretrained(folders / stage)
    batch = placed(training_batch(case.manifest), model)
    outputs = model(**batch, points=clouds)
    assert case.difference(f"{stage}.llm_tokens", outputs.point_features) < 1e-4
    assert case.difference(f"{stage}.logits", outputs.logits, where=batch["attention_mask"] == 1) < 1e-4
    assert case.difference(f"{stage}.loss", outputs.loss[None]) < 1e-5
    if stage == "mqe":
        assert case.difference("mqe.router_logits", outputs.router_logits) < 1e-5
        assert_answers_are_the_stored_ones(model, case, outputs.point_features)


def assert_answers_are_the_stored_ones(model, case, features):
    prompt = "<s>[INST] <PC><PointCloudHere></PC> <s>[INST] {} [/INST]"
    questions = case.manifest["input"]["generate"]["questions"]
    batch = placed(prompt_batch([prompt.format(question) for question in questions]), model)
    output = model.generate(
        **batch,
        point_features=features,
        max_new_tokens=8,
        do_sample=False,
        repetition_penalty=1.0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(output.sequences[:, batch["input_ids"].shape[1] :], case["generate.tokens"].long())
    assert case.difference("generate.step_logits", torch.stack(output.logits, dim=1)) < 1e-4


@pytest.mark.slow
@torch.no_grad()
def test_opened_point_encoder_reaches_the_stored_tokens(tmp_path):
    case = ReferenceCase("encoder", prefix="point_encoder.")
    state = {name: torch.from_numpy(fill(name, *spec)) for name, spec in case.manifest["state"].items()}
    torch.save({"base_model": state}, tmp_path / "point_model.pth")
    run(tmp_path / "point_model.pth", "--output", tmp_path / "parts")
    encoder = AutoModel.from_pretrained(tmp_path / "parts" / "point_encoder")
    output = encoder(torch.from_numpy(points("minigpt3d_encoder", 2, 8192, 6)))
    assert case.difference("centers", output.centers) == 0
    assert case.difference("tokens", output.last_hidden_state) < 1e-4


class BridgeOriginals(Originals):
    """The case of the bridge, with a language model of full width and one small layer."""

    def __init__(self):
        super().__init__(small=False)
        phi = {"hidden_size": 2560, "num_hidden_layers": 1, "num_attention_heads": 32, "intermediate_size": 64}
        widths = {80: 2560, 240: 7680, 320: 64, 20: 80}
        state = {}
        for name, (shape, dtype) in self.manifest["state"].items():
            if name.startswith("llama_model.") and ".layers.1." not in name and ".layers.2." not in name:
                state[name] = [[widths.get(size, size) for size in shape], dtype]
            elif name.startswith("pc_encoder."):
                state[name] = [shape, dtype]
        bridge = ReferenceCase("bridge").manifest["state"]
        constructor = {"llm": self.manifest["constructor"]["llm"] | phi}
        self.manifest = {"state": state | bridge, "constructor": constructor}


@pytest.mark.slow
@torch.no_grad()
def test_opened_bridge_reaches_the_stored_tokens(tmp_path):
    def convert():
        run(*options(BridgeOriginals().write(tmp_path / "in", 3, 4)), "--output", tmp_path / "out")

    results_of(convert)  # elsewhere, as it takes more memory than all other tests
    bridge = AutoModelForPointCloudTextToText.from_pretrained(tmp_path / "out").bridge
    shutil.rmtree(tmp_path / "in")
    case = ReferenceCase("bridge")
    tokens = torch.from_numpy(np.float32(4) * points("minigpt3d_bridge", 2, 513, 384) - np.float32(2))
    for stage in ("mqe", "soft", "constant", "stage3"):
        bridge.config.use_query_experts = stage != "stage3"
        bridge.config.router = {"mqe": "sparse", "stage3": "sparse"}.get(stage, stage)
        assert case.difference(f"{stage}.llm_tokens", bridge(tokens).tokens) < 5e-4, stage
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["hidden_size"] == 2560 and config["projector_width"] == 4096
