"""What converted models say of license and classes: what their owners state, or the authors of their own files."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig

from hf_any3d.conversions.origin import known_origin
from hf_any3d.registry import RECORDS
from tests.conversions.converters import CONVERTERS

TAKES = {name: converter.takes for record in RECORDS.values() for name, converter in record.converters.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERTERS)
def test_a_file_of_anybody_says_nothing_of_the_authors_and_all_that_its_owner_states(name, tmp_path):
    converter = CONVERTERS[name]
    takes = TAKES[converter.program.__name__]
    (tmp_path / "others").mkdir()
    converter.prepare(tmp_path / "others")
    torch.save(converter.content(), tmp_path / "mine.pth")
    converter.convert(tmp_path / "mine.pth", tmp_path / "out", tmp_path / "others")
    card = tmp_path / "out" / "README.md"
    # Parts of a model, and encoders of other modalities, have no card.
    assert card.is_file() == ("license" in takes)
    if not card.is_file():
        return
    # The card of the authors' terms has other words before them.
    assert ModelCard.load(card).data.license == "unknown" and "## License\n\nUnknown: fill it in" in card.read_text()
    assert "weights of the authors," not in card.read_text()
    text = (tmp_path / "out" / "config.json").read_text()
    assert "weights_license" not in text
    labels = AutoConfig.from_pretrained(tmp_path / "out").id2label
    is_named = "classes" in takes and "id2label" in json.loads(text)
    # A variant, which has to be given here, is that of a data set.
    if is_named and "variant" not in takes:
        assert all(label == f"LABEL_{number}" for number, label in labels.items())
    stated = {"license": "mit"}
    if is_named:
        stated["classes"] = tuple(f"kind {number}" for number in labels)
    with known_origin(**stated):
        converter.convert(tmp_path / "mine.pth", tmp_path / "stated", tmp_path / "others")
    card = tmp_path / "stated" / "README.md"
    assert ModelCard.load(card).data.license == "mit" and "## License\n\nmit, as stated by" in card.read_text()
    if is_named:
        assert AutoConfig.from_pretrained(tmp_path / "stated").id2label == dict(enumerate(stated["classes"]))
        with (
            known_origin(classes=("one",)),
            pytest.raises(ValueError, match="1 names of classes are given"),
        ):
            converter.convert(tmp_path / "mine.pth", tmp_path / "refused", tmp_path / "others")
