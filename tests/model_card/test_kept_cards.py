"""What of an earlier card is kept, which cards are replaced, and sections that are added later."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard, ModelCardData

from hf_any3d.model_card import saving
from hf_any3d.model_card.saving import may_be_replaced, save_card, sign_card, write_trainer_card


def card(text="Text.", **data) -> ModelCard:
    return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n# Title\n\n{text}\n\nMade with hf_any3d (x).")


def test_a_card_that_replaces_another_keeps_what_it_does_not_set(tmp_path):
    path = tmp_path / "README.md"
    assert save_card(card(license="mit", language="de", datasets=["me/a"], tags=["a", "b"]), path) == path
    assert save_card(card("New.", tags=["b", "c"]), str(path)) == path
    data = ModelCard.load(path).data
    assert (data.license, data.language, data.datasets, data.tags) == ("mit", "de", ["me/a"], ["b", "c", "a"])
    assert save_card(card("New.", license="bsd", language="en", datasets=["me/b"]), path) == path
    data = ModelCard.load(path).data
    assert (data.license, data.language, data.datasets, data.tags) == ("bsd", "en", ["me/b"], ["b", "c", "a"])
    assert save_card(card("Plain."), tmp_path / "other.md") and ModelCard.load(tmp_path / "other.md").data.tags is None
    edited = path.read_text().replace("New.", "Mine.")
    path.write_text(edited)
    assert save_card(card(), path) is None and path.read_text() == edited
    path.write_bytes(b"# Mine \xff\n")
    assert save_card(card(), path) is None and path.read_bytes() == b"# Mine \xff\n"


@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        ("", True),
        ("---\ntags:\n- a\nlibrary_name: peft\nbase_model: b\npipeline_tag: c\n---\n", True),
        ("---\nlicense: mit\n---\n", False),
        ("# Mine\n", False),
        ("---\na: [\n---\n", False),
        (sign_card("---\ntags:\n- a\n---\n\n# A\n"), True),
        (sign_card("---\ntags:\n- a\n---\n\n# A\n").replace("- a", "- b"), True),
        (sign_card("---\nlicense: mit\n---\n\n# A\n").replace("mit", "bsd"), False),
        (sign_card("# A\n").replace("# A", "# B"), False),
        (f"# A\n\n{saving._TRAINER_TEMPLATE.replace(' ', '  ')}\n", True),
    ],
)
def test_cards_that_nobody_wrote_are_replaced(text, replaced):
    assert may_be_replaced(text) is replaced
    assert sign_card(sign_card("# A\n")) == sign_card("# A\n"), "signed once"


@pytest.mark.parametrize("is_first", [True, False])
def test_a_trainer_may_bring_its_own_card(is_first, tmp_path):
    trainer = SimpleNamespace(
        is_world_process_zero=lambda: is_first,
        args=SimpleNamespace(output_dir=str(tmp_path)),
        build_model_card=lambda: card(license="mit", language="de", datasets=["me/a"], tags=["a"]),
    )
    path = tmp_path / "README.md"
    assert write_trainer_card(trainer) == (path if is_first else None) and path.exists() is is_first
    if not is_first:
        return
    data = ModelCard.load(path).data
    assert (data.license, data.language, data.datasets, data.tags) == ("mit", "de", ["me/a"], ["a"])
    given = {
        "language": "en",
        "license": "bsd\n3",
        "tags": "b",
        "tasks": ["c", "a"],
        "dataset_tags": ["me/b\n", "me/c"],
    }
    assert write_trainer_card(trainer, **given) == path
    data = ModelCard.load(path).data
    assert (data.license, data.language, data.datasets, data.tags) == (
        "bsd 3", "en", ["me/b", "me/c"], ["a", "b", "c"],
    )  # fmt: skip
    path.write_text("# Mine\n")
    assert write_trainer_card(trainer) is None and path.read_text() == "# Mine\n"
