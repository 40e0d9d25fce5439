"""Names of parts as texts, as the released program makes them, and banks of their vectors."""

import re

import pytest
import torch
from torch.nn.functional import normalize

from hf_any3d import TextBank
from hf_any3d.evaluation.part_names import SHAPENETPART_NAMES, part_embeddings
from hf_any3d.modeling.patchalign3d import clean_label, part_prompts
from hf_any3d.modeling.point_encoders.text_towers import embed_prompts
from tests.errors import raises
from tests.modeling.aligned_case import AlignedCase
from tests.reference.fill import fill

CASE = AlignedCase("patchalign3d_text")
SETTINGS = ("part_only", "part_plus_cat", "ensemble")


class Tower:
    """Stands in for a text tower, as in the stored run."""

    def embed(self, texts, device="cpu"):
        return normalize(torch.stack([torch.from_numpy(fill(f"text:{text}", [64])) for text in texts]), dim=-1)


def prompts(key):
    program, setting, category = (*key.split("."), "none")[:3]
    if program == "inference":  # it always asks for parts of an object
        return part_prompts(CASE.manifest["names"], setting, "object" if setting == "part_plus_cat" else None)
    if category == "none":  # without a category, the evaluation asks for parts alone
        return part_prompts(CASE.manifest["names"], "part_only")
    return part_prompts(CASE.manifest["names"], setting, CASE.manifest["category"])


@pytest.mark.parametrize("key", CASE.manifest["prompts"])
def test_prompts_and_their_vectors_agree(key):
    stored = CASE.manifest["prompts"][key]
    made = prompts(key)
    assert (made if isinstance(stored[0], list) else [text for own in made for text in own]) == stored
    torch.testing.assert_close(embed_prompts(Tower(), made), CASE.expected[key], atol=1e-6, rtol=0)


def test_the_bank_of_a_dataset_agrees():
    assert {name: list(parts) for name, parts in SHAPENETPART_NAMES.items()} == CASE.manifest["part_names"]
    numbers = {"Chair": range(4), "Lamp": range(10, 14)}
    expected = CASE.expected["bank_of_two_categories"]
    found = {}
    for setting in SETTINGS:
        vectors = {
            name: embed_prompts(Tower(), part_prompts(SHAPENETPART_NAMES[name], setting, name)) for name in numbers
        }
        found[setting] = (part_embeddings(vectors, numbers, 50) - expected).abs().max().item()
    assert min(found.values()) <= 1e-6, found
    with raises(ValueError, naming="'Lamp' has 3 vectors; expected"):
        part_embeddings({"Lamp": torch.ones(3, 2)}, numbers, 50)


def test_labels_and_templates_that_make_no_text_are_refused():
    assert clean_label("  Handle's__grip (left) ") == "handle s grip left"
    assert part_prompts(["Arm"], ["{} {x", "b {} c {} d"], "Sofa") == [["arm {x", "b arm c sofa d"]]
    for arguments, message in (
        ((["!?"],), "label '!?' has no letters or digits"),
        ((["a"], "part_plus_cat"), "category is missing, which template 'a {} of a {}' names"),
        ((["a"], []), "expected a list with at least one template"),
        ((["a"], ["part"]), "each with {} for the part"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            part_prompts(*arguments)


def test_a_bank_finds_words_and_is_read_again(tmp_path):
    vectors = torch.randn(2, 8)
    bank = TextBank({"Table_Top": vectors[0], "leg": vectors[1].half()})
    bank.save(tmp_path / "words.safetensors")
    read = TextBank.from_file(tmp_path / "words.safetensors")
    assert read.words == ("leg", "table top") and read.width == 8 and "LEG" in read
    torch.testing.assert_close(read.encode(["table top!"])[0], normalize(vectors[0], dim=0))
    torch.testing.assert_close(read.encode(["leg"]), bank.encode(["leg"]))
    with raises(ValueError, naming="'seat'; it has 2: leg"):
        read.encode(["leg", "seat"])
