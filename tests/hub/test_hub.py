"""The local hub against the libraries that will talk to it."""

import subprocess
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, upload_folder
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
)

from tests.errors import raises

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


def test_snapshot_brings_all_files_and_folders(hub, tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\nA card.\n")
    (tmp_path / "inner" / "points.npy").write_bytes(b"\x93NUMPY and more")
    HfApi().create_repo("me/folder")
    upload_folder(repo_id="me/folder", folder_path=tmp_path)
    copy = snapshot_download("me/folder", local_dir=tmp_path / "copy")
    assert (tmp_path / "copy" / "inner" / "points.npy").read_bytes() == b"\x93NUMPY and more"
    assert copy == str(tmp_path / "copy")
    assert HfApi().model_info("me/folder").library_name == "transformers"


def test_commit_serves_its_own_files_after_a_later_push(hub):
    first = hub.commit("me/history", {"config.json": b"first"})
    HfApi().upload_file(path_or_fileobj=b"second", path_in_repo="config.json", repo_id="me/history")

    def read(revision):
        with open(hf_hub_download("me/history", "config.json", revision=revision), "rb") as file:
            return file.read()

    assert (read(first), read("main")) == (b"first", b"second")
    assert [commit.commit_id for commit in HfApi().list_repo_commits("me/history")] == hub.commits("me/history")[::-1]


def test_branch_and_tag_name_commits(hub):
    first = hub.commit("me/named", {"config.json": b"first"})
    HfApi().create_tag("me/named", tag="v1")
    HfApi().create_branch("me/named", branch="next")
    HfApi().upload_file(path_or_fileobj=b"2", path_in_repo="config.json", repo_id="me/named", revision="next")
    assert HfApi().model_info("me/named", revision="v1").sha == first == HfApi().model_info("me/named").sha
    assert hub.content("me/named", "config.json", revision="next") == b"2"


def test_existing_repository_is_created_only_when_that_is_allowed(hub):
    first = hub.commit("me/twice", {"a.txt": b"a"})
    assert HfApi().create_repo("me/twice", exist_ok=True).repo_id == "me/twice"
    with raises(HfHubHTTPError, naming="409"):
        HfApi().create_repo("me/twice")
    assert HfApi().model_info("me/twice").sha == first


def test_push_on_an_outdated_parent_is_refused(hub):
    outdated = hub.commit("me/race", {"a.txt": b"a"})
    hub.commit("me/race", {"a.txt": b"b"})
    with raises(HfHubHTTPError, naming="412"):
        HfApi().upload_file(path_or_fileobj=b"c", path_in_repo="a.txt", repo_id="me/race", parent_commit=outdated)
    assert hub.content("me/race", "a.txt") == b"b"


def test_deleted_files_and_repositories_are_gone(hub):
    hub.commit("me/shrinking", {"a.txt": b"a", "b/c.txt": b"c", "b/d.txt": b"d"})
    HfApi().delete_folder("b", "me/shrinking")
    assert set(hub.files("me/shrinking")) == {"a.txt"}
    HfApi().delete_file("a.txt", "me/shrinking")
    assert not hub.files("me/shrinking")
    HfApi().delete_repo("me/shrinking")
    assert not HfApi().repo_exists("me/shrinking")


def test_download_of_a_part_gives_that_part(hub):
    hub.commit("me/ranges", {"digits.txt": b"0123456789"})
    url = f"{hub.url}/me/ranges/resolve/main/digits.txt"
    with urlopen(Request(url, headers={"Range": "bytes=2-4"})) as response:
        assert (response.status, response.read()) == (206, b"234")
        assert response.headers["Content-Range"] == "bytes 2-4/10"


def test_missing_repository_file_and_revision_are_told_apart(hub):
    hub.commit("me/present", {"config.json": b"{}"})
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/absent", "config.json")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("absent")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/present", "absent.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/present", "config.json", revision="absent")
    with raises(OSError, naming="me/absent"):
        AutoModel.from_pretrained("me/absent")


def test_child_process_talks_to_the_same_hub(hub):
    hub.commit("me/child", {"config.json": b"{}"})
    program = "from huggingface_hub import HfApi; print(HfApi().model_info('me/child').sha)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == hub.commits("me/child")[-1]


def test_unknown_request_is_recorded(hub):
    with raises(HTTPError, naming="501"):
        urlopen(f"{hub.url}/api/no/such/route/at/all")
    assert hub.unknown.pop() == "GET /api/no/such/route/at/all"
