"""Doors of Python: what people write first, each program in a process that has not imported the package before."""

import json

import pytest
from datasets import Dataset, Features

from hf_any3d.data import PointCloud
from tests.data.clouds import points
from tests.doors.conftest import NEW
from tests.release import named_models

TRAIN = """
from peft import get_peft_model
from transformers import Trainer, TrainingArguments
from hf_any3d import Any2PointForPointCloudClassification, GuidedAdapterConfig, PointCloudProcessor, load_point_dataset
from hf_any3d.data import PointCloudCollator
shapes = load_point_dataset("shapes", split="test").select(range(16))
model = Any2PointForPointCloudClassification.from_encoder_pretrained(
    "sentence-transformers/all-MiniLM-L6-v2",
    id2label=dict(enumerate(shapes.features["label"].names)),
    num_tokens=8,
    tokenizer_neighbors=4,
)
model = get_peft_model(model, GuidedAdapterConfig())
trainer = Trainer(
    model,
    TrainingArguments("outputs/mine", max_steps=2, remove_unused_columns=False, label_names=["labels"]),
    train_dataset=shapes,
    processing_class=PointCloudProcessor(num_points=64),
    data_collator=PointCloudCollator(num_points=64),
)
trainer.train()
trainer.save_model()
"""
DOORS = {
    "pipeline": """
from transformers import pipeline
import hf_any3d
model = pipeline("point-cloud-classification", model="outputs/mine").model
""",
    "auto class": """
from transformers import AutoModel
from hf_any3d import AutoModelForPointCloudClassification
assert AutoModel.from_pretrained("outputs/mine").config.num_labels == 18  # features, without the head
model = AutoModelForPointCloudClassification.from_pretrained("outputs/mine")
""",
    "PeftModel": """
from peft import PeftModel
from hf_any3d import Any2PointForPointCloudClassification
from hf_any3d import load_point_dataset
names = load_point_dataset("shapes", split="test").features["label"].names
base = Any2PointForPointCloudClassification.from_encoder_pretrained(
    "sentence-transformers/all-MiniLM-L6-v2", id2label=dict(enumerate(names)), num_tokens=8, tokenizer_neighbors=4
)
model = PeftModel.from_pretrained(base, "outputs/mine")
""",
}
LOGITS = """
import json, torch
points = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    print(json.dumps(model.eval()(points).logits.tolist()))
"""


@pytest.fixture(scope="module")
def trained(open_shell, tmp_path_factory):
    with named_models(tmp_path_factory.mktemp("named") / "models") as address:
        shell = open_shell(address)
        shell.run(TRAIN)
        yield shell


@pytest.mark.slow
def test_an_adapter_opens_by_three_doors_with_equal_logits(trained):
    answers = []
    for name, door in DOORS.items():
        # One of them where nothing is imported yet, neither by a test nor by a fork's parent.
        environment = NEW if name == "pipeline" else {}
        answers.append(json.loads(trained.run(door + LOGITS, **environment).out.splitlines()[-1]))
    for other in answers[1:]:
        assert [value for row in other for value in row] == pytest.approx(
            [value for row in answers[0] for value in row], abs=1e-5
        )


@pytest.mark.slow
def test_importing_says_nothing_and_one_call_labels_points_of_another_program(shell):
    from tests.cli.conftest import save

    save("scenes", shell.folder / "models" / "scenes")
    program = """
import sys
import hf_any3d
for stream in (sys.stdout, sys.stderr):
    print("imported", file=stream, flush=True)
import numpy as np
points = np.random.default_rng(0).uniform(size=(500, 3))
answer = hf_any3d.segment(points, model="models/scenes")
print(type(answer).__name__, len(answer.labels))
"""
    done = shell.run(program, **NEW)
    assert done.out.startswith("imported\n") and done.err.startswith("imported\n")
    assert "500" in done.out


def test_importing_the_package_after_datasets_is_enough_to_open_its_clouds(shell):
    program = f"""
import datasets
assert "PointCloud" not in datasets.features.features._FEATURE_TYPES
import hf_any3d
print(len(datasets.load_from_disk({str(shell.folder / "saved")!r})[0]["cloud"]["points"]))
"""
    features = Features({"cloud": PointCloud()})
    Dataset.from_dict({"cloud": [points()]}, features).save_to_disk(shell.folder / "saved")
    done = shell.run(program)
    assert done.out == "8\n" and "experimental" not in done.err
