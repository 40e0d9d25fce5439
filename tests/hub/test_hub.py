"""The local hub against the libraries that will talk to it."""

import subprocess
import sys

import pytest
import torch
from datasets import Dataset, load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
)

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 8,
}


@pytest.fixture
def bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**TINY)).eval()


def output_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(6)[None]).last_hidden_state


def test_pushed_model_comes_back_equal(hub, bert):
    bert.push_to_hub("me/bert")
    assert {"config.json", "model.safetensors"} <= set(hub.files("me/bert"))
    assert hub.files("me/bert")["model.safetensors"] > sum(p.numel() * 4 for p in bert.parameters())
    torch.testing.assert_close(output_of(AutoModel.from_pretrained("me/bert").eval()), output_of(bert))


def test_pushed_adapter_comes_back_equal_and_small(hub, bert):
    bert.push_to_hub("me/bert-base")
    before = output_of(bert)
    adapted = get_peft_model(bert, LoraConfig(target_modules=["query"], init_lora_weights=False)).eval()
    adapted.push_to_hub("me/bert-lora")
    assert hub.files("me/bert-lora")["adapter_model.safetensors"] < hub.files("me/bert-base")["model.safetensors"]
    loaded = PeftModel.from_pretrained(AutoModel.from_pretrained("me/bert-base"), "me/bert-lora").eval()
    torch.testing.assert_close(output_of(loaded), output_of(adapted))
    assert not torch.allclose(output_of(loaded), before)


def test_trainer_pushes_its_checkpoints_and_card(hub, tmp_path):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**TINY))
    rows = [{"input_ids": [1, 2, 3], "labels": label} for label in (0, 1)]
    args = TrainingArguments(
        tmp_path / "trained",
        max_steps=2,
        save_steps=1,
        push_to_hub=True,
        hub_model_id="me/trained",
        hub_strategy="all_checkpoints",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    trainer.push_to_hub()
    # Later checkpoints wait for no earlier push: only the first is sure to arrive.
    assert {"README.md", "model.safetensors", "checkpoint-1/model.safetensors"} <= set(hub.files("me/trained"))
    loaded = BertForSequenceClassification.from_pretrained("me/trained")
    torch.testing.assert_close(loaded.classifier.weight, model.classifier.weight)


def test_pushed_dataset_loads_and_streams(hub):
    columns = {"points": [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]], "label": [0, 1]}
    Dataset.from_dict(columns).push_to_hub("me/shapes")
    assert any(path.endswith(".parquet") for path in hub.files("me/shapes", kind="dataset"))
    assert load_dataset("me/shapes", split="train").to_dict() == columns
    streamed = load_dataset("me/shapes", split="train", streaming=True)
    assert [row["label"] for row in streamed] == [0, 1]


def test_second_split_joins_the_first(hub):
    Dataset.from_dict({"label": [0, 1]}).push_to_hub("me/two-splits", split="train")
    Dataset.from_dict({"label": [2]}).push_to_hub("me/two-splits", split="test")
    loaded = load_dataset("me/two-splits")
    assert {name: split["label"] for name, split in loaded.items()} == {"train": [0, 1], "test": [2]}


def test_child_process_talks_to_the_same_hub(hub):
    hub.commit("me/child", {"config.json": b"{}"})
    program = "from huggingface_hub import HfApi; print(HfApi().model_info('me/child').sha)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == hub.commits("me/child")[-1]
