import numpy as np
import pytest
from datasets import ClassLabel, Dataset

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.point_encoders.text_towers import embed_texts, open_text_tower
from hf_any3d.training.text_rows import CaptionedDataset, caption_texts, readable
from tests.tiny_encoders import clouds
from tests.tiny_text_towers import LABELS, tiny_zero_shot_model

PROCESSOR = PointCloudProcessor(num_points=48)


@pytest.fixture(scope="module")
def tower():
    return open_text_tower(tiny_zero_shot_model().config)


@pytest.fixture(scope="module")
def rows():
    rows = Dataset.from_dict({"points": list(clouds(3).numpy()), "label": [0, 1, 2]})
    return rows.cast_column("label", ClassLabel(names=LABELS))


def test_captions_fill_every_template_and_class_names_replace_missing_ones():
    texts = caption_texts(["night_stand", "lamp"], ["Bedside table ", None], ["a {}", "{}!"])
    assert texts == [["a bedside table", "bedside table!"], ["a lamp", "lamp!"]]
    assert caption_texts(["night_stand"], templates=["{}"]) == [["night stand"]]
    assert readable("flower__pot ") == "flower pot"


def test_captions_with_a_held_out_class_are_replaced_by_the_class_name():
    captions = ["Sofa bed", "Bedside table", "Garden bench", "Embedded screen"]
    texts = caption_texts(["chair"] * 4, captions, ["{}"], forbidden=["bed", "night_stand"])
    assert texts == [["chair"], ["chair"], ["garden bench"], ["embedded screen"]]


def test_each_epoch_draws_a_text_of_the_row_by_the_seed(rows, tower):
    texts = caption_texts(LABELS, templates=["a {}", "{}", "the {}"])
    drawn = CaptionedDataset(rows, PROCESSOR, texts, tower, seed=5)
    seen = set()
    for epoch in range(12):
        drawn.epoch = epoch
        row = drawn[1]
        assert set(row) == {"points", "label", "text_embeds"}
        own = [np.allclose(row["text_embeds"], vector, atol=1e-5) for vector in embed_texts(tower, texts[1])]
        assert sum(own) == 1
        seen.add(own.index(True))
        again = CaptionedDataset(rows, PROCESSOR, texts, tower, seed=5)
        again.epoch = epoch
        assert np.array_equal(again.__getitems__([2, 1])[1]["text_embeds"], row["text_embeds"])
    assert seen == {0, 1, 2}


def test_without_a_seed_the_first_text_is_used(rows, tower):
    fixed = CaptionedDataset(rows, PROCESSOR, [["a chair", "x"], ["a lamp"], ["a table"]], tower)
    for epoch in range(3):
        fixed.epoch = epoch
        np.testing.assert_allclose(fixed[0]["text_embeds"], tower.embed(["a chair"])[0], atol=1e-5)
