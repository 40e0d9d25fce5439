import pytest
import torch

from hf_any3d.modeling.encoders import PositionTable, find_family
from tests.tiny_encoders import random_encoder, tiny_config


def line(length=5, hidden=3):
    return PositionTable("line", torch.randn(length, hidden), 1, length)


def plane(rows=3, columns=5, hidden=4):
    return PositionTable("plane", torch.randn(rows * columns, hidden), rows, columns)


def test_coordinates_outside_are_clamped_to_the_border():
    table = line()
    outside = table.lookup(torch.tensor([[-3.0], [4.0], [4.5], [1e9]]))
    assert torch.equal(outside, table.weight[[0, 4, 4, 4]])
    entries = plane()
    corners = entries.lookup(torch.tensor([[-1.0, -1.0], [9.0, -1.0], [-1.0, 9.0], [9.0, 9.0]]))
    assert torch.equal(corners, entries.weight[[0, 4, 10, 14]])


def table_of(model_type, **changes):
    encoder = random_encoder(tiny_config(model_type, **changes))
    return encoder, find_family(encoder.config).positions(encoder)


def test_bert_positions_include_the_type_embedding():
    encoder, table = table_of("bert")
    embeddings = encoder.embeddings
    expected = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    assert (table.kind, table.columns) == ("line", 40)
    assert torch.equal(table.weight, expected)


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_roberta_positions_start_after_the_padding_index(padding):
    encoder, table = table_of("roberta", pad_token_id=padding)
    # The position of the first word of a text without padding in transformers.
    ids = torch.full((1, 4), 7)
    first = type(encoder.embeddings).create_position_ids_from_input_ids(ids, encoder.embeddings.padding_idx)[0, 0]
    expected = encoder.embeddings.position_embeddings.weight[first]
    assert torch.equal(table.weight[0], expected + encoder.embeddings.token_type_embeddings.weight[0])
    assert table.columns == 40 - padding - 1


def vision_entry(encoder, special, row, column, columns):
    weight = getattr(encoder.embeddings, "position_embeddings", None)
    weight = encoder.embeddings.position_embedding.weight if weight is None else weight[0]
    return weight[special + row * columns + column]


@pytest.mark.parametrize("model_type", ["vit", "vit_mae"])
def test_images_wider_than_high_have_more_columns_than_rows(model_type):
    encoder, table = table_of(model_type, image_size=(32, 80))
    assert (table.rows, table.columns) == (2, 5)
    assert torch.equal(table.lookup(torch.tensor([4.0, 1.0])), vision_entry(encoder, 1, 1, 4, 5))


def test_spectrogram_rows_are_frequencies_and_columns_are_time():
    encoder, table = table_of("audio-spectrogram-transformer")
    assert (table.kind, table.rows, table.columns) == ("plane", 3, 5)
    # Probe the order of the model's patches with a single peak.
    spectrogram = torch.zeros(1, 56, 36)  # (batch, time, mel bins), as the processor makes it
    patches = encoder.embeddings.patch_embeddings
    background = patches(spectrogram)[0]
    spectrogram[0, 54, 18] = 1.0  # the last patch in time, the second in frequency
    peak = (patches(spectrogram)[0] - background).abs().amax(dim=-1)
    expected = {row * table.columns + 4 for row in range(3) if 10 * row <= 18 < 10 * row + 16}
    assert set(peak.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize("model_type", ["t5", "llama", "wav2vec2", "deberta", "beit", "data2vec-vision", "dinov3_vit"])
def test_other_encoders_have_no_table(model_type):
    encoder, table = table_of(model_type)
    on_plane = find_family(tiny_config(model_type)).tower == "vision"
    assert table == PositionTable(*(("plane", None, 4, 4) if on_plane else ("line", None, 1, None)))
