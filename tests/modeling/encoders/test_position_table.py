import pytest
import torch

from hf_any3d.modeling.encoders import PositionTable, encoder_families
from tests.tiny_encoders import random_encoder, tiny_config


def line(length=5, hidden=3):
    return PositionTable("line", torch.randn(length, hidden), 1, length)


def plane(rows=3, columns=5, hidden=4):
    return PositionTable("plane", torch.randn(rows * columns, hidden), rows, columns)


def grid(table):
    """All integer coordinates of a plane, (rows * columns, 2), column first."""
    row, column = torch.meshgrid(torch.arange(table.rows), torch.arange(table.columns), indexing="ij")
    return torch.stack([column, row], dim=-1).reshape(-1, 2).float()


def test_entries_are_returned_at_integer_coordinates():
    on_line, on_plane = line(), plane()
    assert torch.equal(on_line.lookup(torch.arange(5.0)[:, None]), on_line.weight)
    assert torch.equal(on_plane.lookup(grid(on_plane)), on_plane.weight)


def test_line_is_linear_between_two_entries():
    table = line()
    for fraction in (0.25, 0.5, 0.9):
        expected = table.weight[2] * (1 - fraction) + table.weight[3] * fraction
        torch.testing.assert_close(table.lookup(torch.tensor([2 + fraction])), expected)


def test_plane_is_bilinear_between_four_entries():
    table = plane()
    entries = table.weight.view(3, 5, 4)
    found = table.lookup(torch.tensor([1.25, 0.5]))  # column, row
    upper = 0.75 * entries[0, 1] + 0.25 * entries[0, 2]
    lower = 0.75 * entries[1, 1] + 0.25 * entries[1, 2]
    torch.testing.assert_close(found, (upper + lower) / 2)


def test_coordinates_outside_are_clamped_to_the_border():
    table = line()
    outside = table.lookup(torch.tensor([[-3.0], [4.0], [4.5], [1e9]]))
    assert torch.equal(outside, table.weight[[0, 4, 4, 4]])
    entries = plane()
    corners = entries.lookup(torch.tensor([[-1.0, -1.0], [9.0, -1.0], [-1.0, 9.0], [9.0, 9.0]]))
    assert torch.equal(corners, entries.weight[[0, 4, 10, 14]])


def test_single_entry_is_constant():
    table = line(length=1)
    assert torch.equal(table.lookup(torch.tensor([[0.0], [0.7], [-2.0]])), table.weight.expand(3, -1))
    one = plane(1, 1)
    assert torch.equal(one.lookup(torch.rand(6, 2)), one.weight.expand(6, -1))


def table_of(model_type, **changes):
    encoder = random_encoder(tiny_config(model_type, **changes))
    return encoder, encoder_families()[model_type].positions(encoder)


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


@pytest.mark.parametrize("model_type", ["vit", "dinov2"])
def test_images_wider_than_high_have_more_columns_than_rows(model_type):
    # Dinov2's embeddings assume squares, but its table has one entry per patch.
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


# After rows or tokens that belong to no place.
TABLES = {
    "opt": lambda encoder: encoder.decoder.embed_positions.weight[2:],
    "xglm": lambda encoder: encoder.embed_positions.weights[2:],
    "mpnet": lambda encoder: encoder.embeddings.position_embeddings.weight[encoder.config.pad_token_id + 1 :],
    "gpt2": lambda encoder: encoder.wpe.weight,
    "distilbert": lambda encoder: encoder.embeddings.position_embeddings.weight,
    "clip_text_model": lambda encoder: encoder.embeddings.position_embedding.weight,
    "siglip_text_model": lambda encoder: encoder.embeddings.position_embedding.weight,
    "whisper": lambda encoder: encoder.encoder.embed_positions.weight,
    "deit": lambda encoder: encoder.embeddings.position_embeddings[0, 2:],
    "ijepa": lambda encoder: encoder.embeddings.position_embeddings[0],
    "vit_mae": lambda encoder: encoder.embeddings.position_embeddings[0, 1:],
    "vit_msn": lambda encoder: encoder.embeddings.position_embeddings[0, 1:],
    "dpt": lambda encoder: encoder.embeddings.position_embeddings[0, 1:],
    "dinov2_with_registers": lambda encoder: encoder.embeddings.position_embeddings[0, 1:],
    "siglip_vision_model": lambda encoder: encoder.embeddings.position_embedding.weight,
    "siglip2_vision_model": lambda encoder: encoder.embeddings.position_embedding.weight,
    "audio-spectrogram-transformer": lambda encoder: encoder.embeddings.position_embeddings[0, 2:],
    "imagebind_audio": lambda encoder: encoder.embeddings.position_embeddings[0, 1:],
}
SIZES = {"audio-spectrogram-transformer": (3, 5), "imagebind_audio": (3, 5)}


@pytest.mark.parametrize("model_type", TABLES)
def test_tables_are_those_of_the_embeddings(model_type):
    encoder, table = table_of(model_type)
    assert torch.equal(table.weight, TABLES[model_type](encoder))
    is_line = encoder_families()[model_type].tower == "text" or model_type == "whisper"
    size = (1, len(table.weight)) if is_line else SIZES.get(model_type, (4, 4))
    assert (table.kind, table.rows, table.columns) == ("line" if is_line else "plane", *size)


@pytest.mark.parametrize("model_type", ["t5", "llama", "wav2vec2", "deberta", "beit", "data2vec-vision", "dinov3_vit"])
def test_other_encoders_have_no_table(model_type):
    encoder, table = table_of(model_type)
    on_plane = encoder_families()[model_type].tower == "vision"
    assert table == PositionTable(*(("plane", None, 4, 4) if on_plane else ("line", None, 1, None)))


@pytest.mark.parametrize("model_type", ["beit", "data2vec-vision"])
def test_absolute_positions_of_patches_are_optional(model_type):
    encoder, table = table_of(model_type, use_absolute_position_embeddings=True, image_size=(32, 80))
    assert (table.rows, table.columns) == (2, 5)
    assert torch.equal(table.weight, encoder.embeddings.position_embeddings[0, 1:])


def test_positions_of_deberta_are_optional():
    encoder, table = table_of("deberta-v2", position_biased_input=True)
    assert torch.equal(table.weight, encoder.embeddings.position_embeddings.weight) and table.kind == "line"


@pytest.mark.parametrize(
    ("model_type", "changes", "final", "first"),
    [
        ("opt", {"do_layer_norm_before": True}, "decoder.final_layer_norm", None),
        ("opt", {"do_layer_norm_before": False}, None, None),
        ("beit", {"use_mean_pooling": True}, "pooler.layernorm", None),
        ("beit", {"use_mean_pooling": False}, "layernorm", None),
        ("data2vec-vision", {"use_mean_pooling": True}, None, None),
        ("data2vec-vision", {"use_mean_pooling": False}, "layernorm", None),
        ("wav2vec2", {"do_stable_layer_norm": False, "feat_extract_norm": "group"}, None, "encoder.layer_norm"),
        ("wav2vec2", {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}, "encoder.layer_norm", None),
        ("clip_vision_model", {}, "post_layernorm", "pre_layrnorm"),
        ("bert", {}, None, "embeddings.LayerNorm"),
    ],
)
def test_norms_depend_on_the_config(model_type, changes, final, first):
    encoder, family = random_encoder(tiny_config(model_type, **changes)), encoder_families()[model_type]
    for path, expected in ((family.final_norm, final), (family.input_norm, first)):
        norm = family.norm_of(encoder, path)
        assert norm is (None if expected is None else encoder.get_submodule(expected))
