"""Cards of saving, pushing, PEFT and the stock Trainer; cards written by users are kept."""

import re
from dataclasses import replace
from itertools import chain

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, ModelCardData, parse_eval_result_entries
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertModel, Trainer, TrainingArguments, pipeline

from hf_any3d import (
    ActConfig,
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActModel,
    PointCloudProcessor,
    PointNetConfig,
    PointNetForPointCloudClassification,
    PointTransformerV3ForPointCloudClassification,
    Uni3DConfig,
    encoder_linear_pattern,
)
from hf_any3d.integration.registration import MODELS
from hf_any3d.model_card import Subject, build_model_card, write_trainer_card
from hf_any3d.model_card.saving import may_be_replaced, report_of_trainer, save_card
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from tests.common.models import CASES, first_of_configs
from tests.errors import raises
from tests.model_card.test_building import REPORT
from tests.test_entry_points import lora_model
from tests.tiny_act import tiny_act
from tests.tiny_encoders import adapted_model, clouds, random_encoder, tiny_config, tiny_model
from tests.tiny_ptv3 import tiny_ptv3

PROCESSOR = PointCloudProcessor(num_points=48, sampling="first")
ROWS = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(8))]
EMPTY = "More Information Needed"
REGISTERED = {model for base, heads in MODELS.values() for model in (base, *chain.from_iterable(heads.values()))}
ALL_MODELS = [case for case in CASES if case.model_class in REGISTERED]
# What is pushed is what is saved.
PUSHED = first_of_configs(ALL_MODELS)


@pytest.fixture(scope="module")
def encoder(hub):
    """A tiny encoder with a name on the hub."""
    random_encoder(tiny_config("bert")).push_to_hub("me/cards-encoder")
    return "me/cards-encoder"


def check(card: ModelCard, task: str = "point-cloud-classification", base_model: str | None = None) -> None:
    """Check what every card of this package contains."""
    data = card.data
    is_adapter = "PeftModel" in card.text
    assert (data.library_name, data.pipeline_tag, data.get("base_model")) == ("hf_any3d", task, base_model)
    assert (f"base_model:adapter:{base_model}" in data.tags) == (is_adapter and base_model is not None)
    assert {"hf_any3d", "point-cloud"} <= set(data.tags)
    assert "import hf_any3d" in card.text and "pip install hf-any3d" in card.text and EMPTY not in card.text
    assert f'pipeline("{task}"' in card.text and "base_model: ''" not in str(card)


class CardTrainer(Trainer):
    """Stock Trainer with the cards of this package."""

    create_model_card = write_trainer_card


def trainer(model, directory, kind=CardTrainer, **settings) -> Trainer:
    arguments = TrainingArguments(
        str(directory),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        seed=7,
        **settings,
    )
    return kind(model, arguments, train_dataset=ROWS, eval_dataset=ROWS[:4], processing_class=PROCESSOR)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_model, adapted_model, lora_model])
def test_saved_model_has_a_card(make, encoder, tmp_path):
    make(encoder).save_pretrained(tmp_path / "saved")
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    check(card, base_model=encoder)
    assert ("PeftModel" in card.text) == (make is not tiny_model)
    assert "Classes: LABEL_0, LABEL_1, LABEL_2." in card.text.replace("\\", "")


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_model, adapted_model, lora_model])
def test_pipeline_finds_the_task_in_the_card_of_a_pushed_model(make, encoder, hub):
    name = f"me/pushed-{make.__name__.replace('_', '-')}"
    make(encoder).push_to_hub(name)
    PROCESSOR.push_to_hub(name)
    card = ModelCard.load(name)
    check(card, base_model=encoder)
    assert f'from_pretrained("{name}")' in card.text
    (answer,) = pipeline(model=name)(clouds()[0])
    assert answer["label"].startswith("LABEL_")


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_model, adapted_model])
def test_push_to_hub_while_saving_uploads_the_card(make, encoder, hub, tmp_path):
    name = f"saved-and-pushed-{make.__name__.replace('_', '-')}"
    if make is tiny_model:
        make(encoder).save_pretrained(tmp_path / name, push_to_hub=True, repo_id=f"me/{name}")
        check(ModelCard.load(f"me/{name}"), base_model=encoder)
    else:
        make(encoder).push_to_hub(f"me/{name}", tags=["shapes"])
        card = ModelCard.load(f"me/{name}")
        check(card, base_model=encoder)
        assert "shapes" in card.data.tags


@pytest.mark.parametrize("make", [tiny_model, adapted_model])
def test_trainer_pushes_a_card_of_its_run(make, encoder, hub, tmp_path):
    name = f"me/trained-{make.__name__.replace('_', '-')}"
    run = trainer(
        make(encoder),
        tmp_path / "run",
        push_to_hub=True,
        hub_model_id=name,
        eval_strategy="steps",
        eval_steps=1,
        label_smoothing_factor=0.1,
    )
    run.train()
    run.push_to_hub(
        tags="mine", license="mit", dataset="my shapes", dataset_args="<turned>", dataset_tags=["me/shapes"]
    )
    card = ModelCard.load(name)
    check(card, base_model=encoder)
    assert card.data.license == "mit" and "mine" in card.data.tags and card.data.datasets == ["me/shapes"]
    assert "| options | &lt;turned&gt; |" in card.text
    loss = run.state.log_history[-2]["eval_loss"]
    assert f"{loss:.4g}" in card.text and "label-smoothed" in card.text
    assert "| seed | 7 |" in card.text and "| steps | 2 |" in card.text and "my shapes" in card.text
    (answer,) = pipeline(model=name)(clouds()[0])
    assert answer["label"].startswith("LABEL_")


@pytest.mark.parametrize("make", [tiny_model, adapted_model])
def test_stock_trainer_writes_its_own_card_of_a_run(make, encoder, tmp_path):
    run = trainer(make(encoder), tmp_path, Trainer)
    run.save_model()
    run.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "the information the Trainer had access to" in text
    run.save_model()
    check(ModelCard.load(tmp_path / "README.md"), base_model=encoder)


def test_each_saved_adapter_has_its_own_card(encoder, tmp_path):
    model = lora_model(encoder)
    model.add_adapter("second", LoraConfig(r=2, target_modules=encoder_linear_pattern(model.get_base_model())))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="leaves out"):
        model.save_pretrained(tmp_path / "both")
    first, second = (ModelCard.load(tmp_path / "both" / folder / "README.md") for folder in ("", "second"))
    check(first, base_model=encoder)
    assert "is not a complete model" in second.text and "is not a complete model" not in first.text
    assert model.active_adapter == "second"


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL_MODELS, ids=lambda case: case.name)
def test_every_registered_model_is_saved_and_pushed_with_its_card(case, hub, tmp_path):
    name = f"me/card-of-{case.name}"
    model = case.build()
    model.save_pretrained(tmp_path / "saved")
    cards = [ModelCard.load(tmp_path / "saved" / "README.md")]
    if case in PUSHED:
        model.push_to_hub(name)
        cards.append(ModelCard.load(name))
    for card in cards:
        assert "hf_any3d" in card.data.tags and card.data.library_name == "hf_any3d"
        assert EMPTY not in card.text and "pip install hf-any3d" in card.text


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_model, adapted_model])
def test_card_of_a_changed_encoder_states_that_it_is_stored(make, encoder, tmp_path, monkeypatch):
    model = make(encoder)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        next(base.any2point.layer_stack.layers[0].parameters()).add_(1.0)
    model.save_pretrained(tmp_path / "changed")
    PROCESSOR.save_pretrained(tmp_path / "changed")
    card = ModelCard.load(tmp_path / "changed" / "README.md")
    assert f"An encoder that started as `{encoder}` and was changed" in card.text and "frozen" not in card.text
    assert (card.data.base_model, card.data.base_model_relation) == (encoder, "finetune")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(
        r"```python\n(.*?)```", card.text.replace('classify("chair.ply", top_k=3)', "None"), re.DOTALL
    ):
        exec(block.partition("logits =")[0], names)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](clouds()).logits, model.eval()(points=clouds()).logits)


def test_local_directory_is_no_base_model(tmp_path):
    adapted_model("bert").save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    check(ModelCard(text))
    assert "base_model" not in text and str(tmp_path) not in text and "/tiny-encoders/" not in text


def test_model_without_a_description_is_refused():
    class Own(LibraryModelMixin, BertModel):
        pass

    config = tiny_act(ActModel).config
    config.model_type = "own"
    with raises(ValueError, naming="'Own' of hf_any3d.model_card.TASKS"):
        build_model_card(Subject(Own, config), "me/model")


def test_subclass_is_described_as_the_class_that_it_derives_from():
    class Own(ActForPointCloudClassification):
        pass

    config = tiny_act(ActForPointCloudClassification).config
    subjects = Subject(Own, config), Subject(ActForPointCloudClassification, config)
    assert len({build_model_card(subject, "me/model").text for subject in subjects}) == 1


def test_models_of_other_libraries_keep_their_cards(tmp_path):
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    bert.save_pretrained(tmp_path / "bert")
    assert not (tmp_path / "bert" / "README.md").exists()
    get_peft_model(bert, LoraConfig(target_modules=["query"])).save_pretrained(tmp_path / "adapter")
    assert EMPTY in (tmp_path / "adapter" / "README.md").read_text()


def test_card_of_an_adapter_without_the_model_around_it_promises_no_pipeline(tmp_path):
    base = PointNetForPointCloudClassification(PointNetConfig(hidden_sizes=[8], head_widths=[8]))
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "This adapter is not a complete model. It works only on the exact model" in card.text
    assert "pipeline(" not in card.text and "only those of the adapter are stored" in card.text
    assert card.data.pipeline_tag is None


@pytest.mark.parametrize("metadata", ["a: [", "- a", "1: a", "ignore_metadata_errors: true"])
def test_card_with_damaged_metadata_is_kept(metadata, tmp_path):
    path = tmp_path / "README.md"
    tiny_act(ActModel).save_pretrained(tmp_path)
    path.write_text(damaged := path.read_text().replace("---\n", f"---\n{metadata}\n", 1))
    tiny_act(ActModel).save_pretrained(tmp_path)
    assert path.read_text() == damaged


OWN = "---\nlicense: mit\n---\n# Mine\n\nI wrote this.\n"


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_model, adapted_model])
def test_card_written_by_a_user_is_kept(make, encoder, hub, tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "README.md").write_text(OWN)
    model = make(encoder)
    model.save_pretrained(directory)
    run = trainer(model, directory)
    run.create_model_card()
    assert (directory / "README.md").read_text() == OWN
    name = f"me/own-card-{make.__name__.replace('_', '-')}"
    HfApi().create_repo(name, exist_ok=True)
    HfApi().upload_file(path_or_fileobj=OWN.encode(), path_in_repo="README.md", repo_id=name)
    model.push_to_hub(name)
    assert "I wrote this." in hub.content(name, "README.md").decode()


def test_the_card_of_a_run_has_the_license_and_language_that_are_given(encoder, tmp_path):
    run = trainer(tiny_model(encoder), tmp_path)
    run.state.log_history = [{"step": 0, "eval_accuracy": 0.5, "eval_loss": 1.25}]
    run.create_model_card(license="mit\nmore", language="en")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit more" and card.data.language == "en"
    assert "1.25" in card.text and "evaluation" in card.text
    assert report_of_trainer(run).data["rows"] == {"train": len(ROWS), "evaluation": 4}


def test_generated_card_is_replaced_until_it_is_edited(encoder, tmp_path):
    model, path = tiny_model(encoder), tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    model.config.id2label = {0: "chair", 1: "lamp", 2: "sofa"}
    model.save_pretrained(tmp_path)
    assert "chair, lamp, sofa" in path.read_text()
    for edited in (
        path.read_text() + "\nBeware of stools.\n",
        path.read_text().replace("---\n", "---\nlicense: mit\n", 1),
    ):
        path.write_text(edited)
        model.config.id2label = {0: "a", 1: "b", 2: "c"}
        model.save_pretrained(tmp_path)
        assert path.read_text() == edited


def test_card_reformatted_by_the_hub_may_be_replaced(encoder, tmp_path):
    tiny_model(encoder).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.tags.append("more")
    assert may_be_replaced(str(card).replace("\n", "\r\n")) and may_be_replaced(str(card))


def test_untouched_templates_may_be_replaced():
    template = ModelCard.from_template(ModelCardData(library_name="peft", base_model=""))
    assert may_be_replaced(str(template)) and may_be_replaced("") and not may_be_replaced(OWN)
    assert not may_be_replaced(str(template).replace("[More Information Needed]", "Classifies stools.", 1))


MALICIOUS = [
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "a\n---\nlicense: evil\n---\n# b",
    "a|b`c",
    "\x1b[31mred\x1b[0m",
    "```\nimport os\n",
    "a\u202eb",
    "\ud800",
]


@pytest.mark.parametrize("on_hub", [True, False])
def test_the_main_score_of_a_test_split_on_the_hub_is_listed_there(on_hub, tmp_path):
    report = replace(
        REPORT,
        data=REPORT.data | {"on_hub": on_hub},
        metrics=REPORT.metrics | {"test": {"accuracy": 0.5, "mean_class_accuracy": 0.25, "loss": 1.0}},
    )
    save_card(build_model_card(Subject.from_model(tiny_model(), report), "me/model"), tmp_path / "README.md")
    files = [*tmp_path.glob(".eval_results/*.yaml")]
    assert [file.name for file in files] == (["me_scans.yaml"] if on_hub else [])
    for file in files:
        (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
        assert (entry.dataset_id, entry.task_id, entry.value, entry.notes) == ("me/scans", "default", 0.5, "Accuracy")


def test_untrusted_names_are_escaped(encoder, tmp_path):
    model = tiny_model(encoder, num_labels=len(MALICIOUS), id2label=dict(enumerate(MALICIOUS)))
    report = replace(
        REPORT,
        data={
            "name": MALICIOUS[2],
            "files": {"test": "/private/me/<b>.parquet"},
            "augmentation": MALICIOUS,
            "on_hub": False,
        },
        metrics={"test": {"accuracy": 0.5, "loss": 1.0}},
        class_accuracy={"test": dict.fromkeys(MALICIOUS, 0.5)},
        adapter={"method": "lora", "settings": {"target_modules": MALICIOUS[0]}},
    )
    card = build_model_card(Subject.from_model(model, report), MALICIOUS[2] + "/" + MALICIOUS[1])
    text = str(card)
    read = ModelCard(text)
    assert read.data.to_dict().get("license") is None and read.data.eval_results[0].dataset_name == "<b>.parquet"
    body = read.text
    prose = re.sub(r"```python\n.*?```", "", body, flags=re.DOTALL)
    assert "<img" not in prose and "](javascript" not in prose.replace("\\]", "") and "\x1b" not in text
    assert not any(mark in text for mark in ("\u202e", "\ud800")) and "/private/me" not in text
    assert [line for line in prose.split("\n") if line.startswith("# ")] == [body.strip().split("\n")[0]]
    for line in body.split("\n"):
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (3, 5), line
    blocks = [block for block in body.split("```python\n")[1:]]
    for block in blocks:
        compile(block.split("```")[0], "card", "exec")


def test_card_of_a_part_segmenter_quotes_its_categories(tmp_path):
    tiny_act(ActForPartSegmentation, category_names=['ta"ble\n', "lamp"]).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert 'category="ta\\"ble\\n"' in text


def test_cards_repeat_a_license_that_forbids_commercial_use(hub, tmp_path):
    published = {"name": "facebook/sonata", "weights_license": "CC-BY-NC-4.0", "non_commercial": True}
    sentence = "made from weights, `facebook/sonata`, under CC-BY-NC-4.0, which forbids its commercial use too"
    model = tiny_ptv3(PointTransformerV3ForPointCloudClassification, published=published)
    model.save_pretrained(tmp_path / "full")
    adapter = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    adapter.push_to_hub("me/cards-sonata-lora")
    pushed = ModelCard(hub.content("me/cards-sonata-lora", "README.md").decode())
    for card in (ModelCard.load(tmp_path / "full" / "README.md"), pushed):
        assert card.data.license == "cc-by-nc-4.0" and sentence in card.text
    as_part = ActConfig(student_config=Uni3DConfig(published=published))
    assert ModelCard(str(build_model_card(Subject(ActForPreTraining, as_part), "x"))).data.license == "cc-by-nc-4.0"
    free = tiny_ptv3(PointTransformerV3ForPointCloudClassification, published={**published, "non_commercial": False})
    card = build_model_card(Subject.from_model(free), "x")
    assert card.data.license is None and "License" not in card.text
    stated = build_model_card(Subject(type(free), model.config), "x", license="other")
    assert stated.data.license == "other" and sentence in stated.text
