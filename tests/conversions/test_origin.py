"""What every converter returns and writes: facts, settings, license and classes.

Of license and classes, that is what the owners of a file state, or the authors of their own files.
"""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig

from hf_any3d.conversions.origin import known_origin
from hf_any3d.registry import RECORDS
from tests.conversions.converters import CONVERTERS
from tests.conversions.written import STORED, written_in
from tests.turns import ALL_PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:.*depend on the other clouds of a batch:UserWarning")

TAKES = {name: converter.takes for record in RECORDS.values() for name, converter in record.converters.items()}


# Of the kinds of files of one program, one is converted again with what its owner states.
STATED = {converter.program: name for name, converter in CONVERTERS.items()}.values()


@pytest.fixture(scope="module", params=CONVERTERS)
def converted(request, tmp_path_factory):
    """A converter's name, a directory with the file `mine.pth`, `others` and the model in `out`, and the facts."""
    converter, folder = CONVERTERS[request.param], tmp_path_factory.mktemp(request.param)
    (folder / "others").mkdir()
    converter.prepare(folder / "others")
    torch.save(converter.content(), folder / "mine.pth")
    return request.param, folder, converter.convert(folder / "mine.pth", folder / "out", folder / "others")


@pytest.mark.slow
def test_every_converter_returns_the_facts_that_it_documents(converted):
    converter, folder, facts = converted
    opened, output = CONVERTERS[converter], folder / "out"
    documented = re.search(r"Facts by name: (.+?)(?:\n\s*\n|\Z)", opened.program.__doc__, re.DOTALL)
    assert facts.keys() == set(re.findall(r"`(\w+)`", documented[1]))
    assert facts["output"] == str(output)
    assert facts.get("bytes") in (None, sum(file.stat().st_size for file in output.rglob("*") if file.is_file()))
    if "model" in facts:
        (architecture,) = json.loads((output / "config.json").read_text())["architectures"]
        assert facts["model"] == architecture
    if converter.startswith("act") and converter != "act-adapter":
        taught = converter in ("act-dvae", "act-pretrain")
        assert facts["teacher"] == ("kept in the directory" if taught else None)
    assert isinstance(facts.get("parameters", {}), (int, dict)) and facts.get("parameters", 1)
    # Beside the weights it writes the settings with which the released program computes.
    assert written_in(output) == json.loads(STORED.read_text(encoding="utf-8"))[converter]


@pytest.mark.slow
def test_a_file_of_anybody_says_nothing_of_the_authors_and_all_that_its_owner_states(converted):
    name, folder, _ = converted
    converter = CONVERTERS[name]
    takes = TAKES[converter.program.__name__]
    card = folder / "out" / "README.md"
    # Parts of a model, and encoders of other modalities, have no card.
    assert card.is_file() == ("license" in takes)
    if not card.is_file():
        return
    # The card of the authors' terms has other words before them.
    assert ModelCard.load(card).data.license == "unknown" and "## License\n\nUnknown: fill it in" in card.read_text()
    assert "weights of the authors," not in card.read_text()
    text = (folder / "out" / "config.json").read_text()
    assert "weights_license" not in text
    labels = AutoConfig.from_pretrained(folder / "out").id2label
    is_named = "classes" in takes and "id2label" in json.loads(text)
    # A variant, which has to be given here, is that of a data set.
    if is_named and "variant" not in takes:
        assert all(label == f"LABEL_{number}" for number, label in labels.items())
    if name not in STATED and not ALL_PAIRS:
        return
    stated = {"license": "mit"}
    if is_named:
        stated["classes"] = tuple(f"kind {number}" for number in labels)
    with known_origin(**stated):
        converter.convert(folder / "mine.pth", folder / "stated", folder / "others")
    card = folder / "stated" / "README.md"
    assert ModelCard.load(card).data.license == "mit" and "## License\n\nmit, as stated by" in card.read_text()
    if is_named:
        assert AutoConfig.from_pretrained(folder / "stated").id2label == dict(enumerate(stated["classes"]))
        with (
            known_origin(classes=("one",)),
            pytest.raises(ValueError, match="1 names of classes are given"),
        ):
            converter.convert(folder / "mine.pth", folder / "refused", folder / "others")
