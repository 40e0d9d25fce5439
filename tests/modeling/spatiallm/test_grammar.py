"""The grammar of layouts: whatever a model would write, with it answers always parse strictly."""

import pytest
import torch
from transformers import GenerationMixin, LogitsProcessorList

from hf_any3d.modeling.spatiallm import Layout
from hf_any3d.modeling.spatiallm.grammar import LayoutGrammar, LayoutLogitsProcessor, State
from tests.chat.tiny_tokenizers import byte_tokenizer, character_tokenizer
from tests.errors import raises
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

CLASSES = ("chair", "dining_chair", "dining table")
TEXT = (
    "wall_0=Wall(0,0,0,47,0,0,29,0)\nwall_1=Wall(0,0,0,0,41,0,29,0)\ndoor_0=Door(wall_1,0,21,9,11,24)\n"
    "window_0=Window(wall_0,16,0,14,21,14)\nbbox_0=Bbox(chair,40,4,4,50,16,13,14)\n"
    "bbox_1=Bbox(dining_chair,1,2,3,4,5,6,7)\nbbox_2=Bbox(dining table,1,2,3,4,5,6,63)"
)


@pytest.fixture
def grammar():
    return LayoutGrammar(64, CLASSES)


def test_what_models_are_trained_to_write_is_of_the_language(grammar):
    state = State()
    for place, character in enumerate(TEXT):
        state = grammar.advance(state, character)
        assert state is not None, TEXT[: place + 1]
        assert grammar.may_end(state) == (TEXT[place + 1 : place + 2] in ("\n", "") or character == "\n")
    assert len(Layout.parse(TEXT, strict=True).entities) == len(TEXT.split("\n"))
    assert grammar.may_end(State()) and set(TEXT) <= grammar.alphabet
    assert max(map(len, TEXT.split("\n"))) < grammar.longest_line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("wall_1", "wall_2"),  # numbers have no gaps
        ("wall_1=W", "wall_01=W"),
        ("Wall(0,0,0,47", "Wall(0,0,0,64"),  # no bin
        ("Wall(0,0,0,47", "Wall(0,0,0,047"),
        ("Wall(0,0,0,47", "Wall(0,0,0,-4"),
        ("Wall(0,0,0,47", "Wall(0,0,0, 4"),
        ("29,0)\nwall_1", "29,0,0)\nwall_1"),  # one number too many
        ("Door(wall_1,", "Door(wall_2,"),  # no such wall
        ("Door(wall_1,", "Door(,"),
        ("Bbox(chair,", "Bbox(chairs,"),
        ("Bbox(chair,", "Bbox(chai,"),
        ("bbox_0=Bbox(chair", "wall_2=Wall(1"),  # order of kinds
        (")\nbbox_0", ")\n\nbbox_0"),
        ("0=Wall", "0=Wal1"),
    ],
)
def test_other_texts_are_not(grammar, old, new):
    assert old in TEXT
    assert grammar.advance(State(), TEXT.replace(old, new, 1)) is None


def test_doors_need_walls_and_kinds_can_be_left_out():
    assert LayoutGrammar(64, CLASSES).advance(State(), "d") is None
    only_boxes = LayoutGrammar(64, CLASSES, ["bbox"])
    assert only_boxes.advance(State(), "w") is None and only_boxes.advance(State(), "bbox_0=Bbox(") is not None
    assert LayoutGrammar(64, ()).advance(State(), "b") is None
    with pytest.raises(ValueError):
        LayoutGrammar(64, CLASSES, ["pose"])
    with raises(ValueError, naming="'a,b'"):
        LayoutGrammar(64, ["a,b"])


TOKENIZERS = {
    "characters": character_tokenizer,
    "bytes": byte_tokenizer,
    "merges": lambda: byte_tokenizer("wa", "ll", "12", "1,", "),", "Wx", "ch", "9)", "b0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("limit", [None, 400])
def test_random_choices_always_parse_strictly(name, limit, grammar):
    tokenizer = TOKENIZERS[name]()
    generator = torch.Generator().manual_seed(len(name))
    held = LayoutLogitsProcessor(tokenizer, grammar, max_new_tokens=limit)
    end = tokenizer.eos_token_id
    ids, finished, lengths = torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, dtype=torch.bool), set()
    for _ in range(limit or 250):
        scores = torch.randn(3, len(tokenizer) + 5, generator=generator)
        scores[:, end] -= 2 if limit is None else 100  # some never end by themselves
        masked = held(ids, scores)
        assert torch.equal(masked[masked > -torch.inf], scores[masked > -torch.inf])
        chosen = masked.argmax(dim=1)
        ids = torch.cat([ids, torch.where(finished, end, chosen)[:, None]], dim=1)
        finished |= chosen == end
    assert limit is None or finished.all()
    for row, ended in zip(ids[:, 2:].tolist(), finished.tolist(), strict=True):
        text = tokenizer.decode([number for number in row if number != end], clean_up_tokenization_spaces=False)
        if not ended:  # cut off in the middle of a line
            text = text.rpartition("\n")[0]
        layout = Layout.parse(text, strict=True)
        assert not layout.dropped
        lengths.add(len(layout.entities))
    assert limit is None or min(lengths) >= 4


def test_rows_of_beams_may_change_places(grammar):
    tokenizer = byte_tokenizer()
    held = LayoutLogitsProcessor(tokenizer, grammar)
    first, second = (tokenizer(text)["input_ids"] for text in ("wall_0=Wa", "bbox_0=Bb"))
    for length in range(len(first)):
        held(torch.tensor([first[:length], second[:length]], dtype=torch.long), torch.zeros(2, 300))
    swapped = held(torch.tensor([second, first]), torch.zeros(2, 300))
    assert [tokenizer.decode(row) for row in (swapped > -torch.inf).nonzero()[:, 1:]] == ["o", "l"]
    # Nothing of it was seen before.
    fresh = LayoutLogitsProcessor(tokenizer, grammar)
    fresh(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 300))
    assert torch.equal(fresh(torch.tensor([second, first]), torch.zeros(2, 300)), swapped)


def test_what_cannot_be_written_is_an_error(grammar):
    with raises(ValueError, naming="'é'"):
        LayoutLogitsProcessor(character_tokenizer(), LayoutGrammar(64, ["é"]))
    held = LayoutLogitsProcessor(byte_tokenizer(), grammar)
    held(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 300))
    wrong = torch.tensor([byte_tokenizer()("zz")["input_ids"]])
    with raises(ValueError, naming="'z', which is not of"):
        held(wrong, torch.zeros(1, 300))


@pytest.mark.parametrize("given", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_answers_of_a_random_model_parse(given):
    processor = tiny_processor(num_bins=64, stride=2, clean=False, classes=["chair", "bed"])
    model = fitting_spatiallm(processor)
    assert isinstance(model, GenerationMixin)
    torch.manual_seed(1)
    clouds = [torch.rand(50, 6, generator=torch.Generator().manual_seed(seed)).numpy() * 3 for seed in (0, 1)]
    for cloud in clouds:
        cloud[:, 3:] /= 3
    rooms = processor.read(clouds)
    inputs = processor(rooms)
    held = processor.grammar(max_new_tokens=150)
    assert isinstance(held, LogitsProcessorList)
    answers = model.generate(**inputs, max_new_tokens=150, logits_processor=held, **given)
    found = processor.decode_layouts(answers[:, inputs["input_ids"].shape[1] :], rooms, strict=True)
    assert {box.label for layout in found for box in layout.boxes} <= {"chair", "bed"}
    if not given:
        with raises(ValueError, naming="line 1"):
            free = model.generate(**inputs, max_new_tokens=30)[:, inputs["input_ids"].shape[1] :]
            processor.decode_layouts(free, rooms, strict=True)
