"""Pushes at the same time, and use without a network after one load with it."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout

import datasets
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi, constants
from peft import get_peft_model

from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig, PointCloudProcessor
from tests.forks import results_of
from tests.tiny_encoders import clouds, random_encoder, tiny_config, tiny_model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(points=torch.as_tensor(clouds()[0])[None].float()).logits


def test_two_pushes_at_once_leave_one_complete_model(hub):
    models, name = [tiny_model(), tiny_model()], "me/at-once"
    for number, model in enumerate(models):
        model.config.id2label = {0: f"class {number}", 1: "b", 2: "c"}
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).add_(number)
    HfApi().create_repo(name)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: model.push_to_hub(name), models))
    found = Any2PointForPointCloudClassification.from_pretrained(name)
    # Config, weights and card are from the same push.
    number = int(found.config.id2label[0].removeprefix("class "))
    torch.testing.assert_close(logits(found), logits(models[number]), atol=1e-6, rtol=0)
    assert f"class {number}" in hub.content(name, "README.md").decode().replace("\\", "")


PROGRAM = """
import hf_any3d
import torch
from datasets import load_dataset
from transformers import AutoProcessor, pipeline
name = "me/offline"
classify = pipeline("point-cloud-classification", model=name)
print([round(row["score"], 6) for row in classify(torch.ones(48, 3).cumsum(0).numpy())])
model = hf_any3d.AutoModelForPointCloudClassification.from_pretrained(name)
print(type(model).__name__, AutoProcessor.from_pretrained(name).num_points)
print(hf_any3d.load_point_dataset(name, split="train")["label"][:])
"""


@pytest.mark.slow
def test_everything_loaded_once_opens_offline(hub, capsys):
    random_encoder(tiny_config("bert")).push_to_hub("me/offline-base")
    base = Any2PointForPointCloudClassification.from_encoder_pretrained("me/offline-base", num_tokens=8)
    get_peft_model(base, GuidedAdapterConfig()).push_to_hub("me/offline")
    PointCloudProcessor(num_points=48).push_to_hub("me/offline")
    points = [torch.rand(48, 3).tolist() for _ in range(2)]
    Dataset.from_dict({"points": points, "label": [0, 1]}).push_to_hub("me/offline")
    exec(PROGRAM, {})
    online, asked = capsys.readouterr().out, len(hub.requests)
    (offline,) = results_of(without_network)
    assert len(hub.requests) == asked
    assert offline == online and "48" in online


def without_network() -> str:
    """Run the program in a child as with HF_HUB_OFFLINE=1, and return what it prints."""
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    with redirect_stdout(io.StringIO()) as printed:
        exec(PROGRAM, {})
    return printed.getvalue()
