"""The study of parts by name: its words."""

from hf_any3d import load_point_dataset
from studies import parts_by_name


def test_every_word_has_another_and_no_word_is_both():
    names = load_point_dataset("parts", split="test").features["labels"].feature.names
    words = {name.split(" ", 1)[1] for name in names}
    assert words == set(parts_by_name.OTHER_WORDS) and not words & set(parts_by_name.OTHER_WORDS.values())
