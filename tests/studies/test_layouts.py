"""The study of layouts: moved rooms come back, answers are judged, points of other rooms are a control."""

import numpy as np
import pytest
from datasets import Dataset
from torch import nn

from hf_any3d.data import load_point_dataset
from hf_any3d.modeling.spatiallm import Layout
from studies import layouts


@pytest.fixture(scope="module")
def splits():
    return load_point_dataset("rooms_with_layouts", train_rooms=3, validation_rooms=0, test_rooms=2, num_points=2500)


class Knowing:
    """Stands in for a trained model: writes the true layout of each room that it is asked about, if it is upright.

    Args:
        processor: The processor.
        rows: The rooms.
    """

    cloud_inputs = ("points", "grid_coord", "point_mask")

    def __init__(self, processor, rows: Dataset):
        self.processor, self.rooms = processor, processor.read(list(rows["points"]))
        texts = [
            processor.answer(Layout.parse(text), room) for text, room in zip(rows["layout"], self.rooms, strict=True)
        ]
        self.texts = dict(zip((len(room.points) for room in self.rooms), texts, strict=True))

    def generate(self, input_ids, point_mask, **others):
        import torch

        tokenizer = self.processor.tokenizer
        # The room that is most like this one: alignment moves points between voxels.
        counts = [min(self.texts, key=lambda own: abs(own - int(mask.sum()))) for mask in point_mask]
        batch = tokenizer([self.texts[count] for count in counts], padding=True, return_tensors="pt")
        return torch.cat([input_ids, batch["input_ids"]], dim=1)


def test_what_a_knowing_model_finds(splits):
    processor = layouts.build_processor(splits)
    model = Knowing(processor, splits["test"])
    found = layouts.judge(model, processor, splits["test"])
    assert found["wall_50"] == 1 and found["objects_25"] > 0.9 and found["malformed"] == 0 and found["rooms"] == 2
    other = layouts.judge(model, processor, splits["test"], control="another room")
    assert other["wall_50"] < 1
    assert layouts.judge(model, processor, splits["test"], moved="all")["wall_50"] == 0
    back = layouts.judge(model, processor, splits["test"], moved="all", align=True)
    assert back["rooms"] == 2 and back["entities"] == found["entities"]


def test_the_tokenizer_writes_every_layout(splits):
    processor = layouts.build_processor(splits)
    for row in splits["test"]:
        (room,) = processor.read(np.asarray(row["points"]))
        text = processor.answer(Layout.parse(row["layout"]), room)
        ids = processor.tokenizer(text)["input_ids"]
        assert processor.tokenizer.decode(ids) == text and len(ids) < layouts.MOST_TOKENS


def test_numbers_of_a_new_model_start_near_their_neighbors(splits):
    processor = layouts.build_processor(splits)
    tokens = [f",{number}" for number in (50, 51, 130)] + ["50", "51", "130"]
    ids = processor.tokenizer.convert_tokens_to_ids(tokens)
    assert len(set(ids)) == 6 and None not in ids
    likeness = []
    for waves in (0.0, 0.1):
        model = layouts.build_model(processor, 0, waves=waves)
        words = nn.functional.normalize(model.get_input_embeddings().weight[ids], dim=1)
        likeness.append((words @ words.T).tolist())
    for first, second, far in ((0, 1, 2), (3, 4, 5)):
        assert likeness[1][first][second] > likeness[1][first][far] + 0.2
        assert likeness[1][first][second] > likeness[0][first][second] + 0.2
