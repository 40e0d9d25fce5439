"""Encoders that nobody declared, made here: understood if they do what attention does, refused if they do more."""

import copy
import gc

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_any3d import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.modeling.encoders import UnsupportedEncoder, discover, find_family
from hf_any3d.modeling.encoders.fitted_rotation import fit_rotation
from hf_any3d.modeling.encoders.skeleton import Skeleton
from tests.any_encoders import small_config
from tests.errors import raises
from tests.tiny_encoders import SMALL, clouds

WIDTH = 24


class NewsConfig(PreTrainedConfig):
    model_type = "news_of_next_month"
    hidden_size: int = WIDTH
    num_hidden_layers: int = 2
    vocab_size: int = 40
    looks_back: bool = False
    shifts: bool = False
    reads_ids: bool = False
    repeats: bool = False
    fails: bool = False
    projects: bool = False
    wants_values: bool = False
    blocks: int = 1


class Block(nn.Module):
    """Attention and a feed-forward part, under names of its own; `twist` rotates neighboring channels."""

    def __init__(self, config: NewsConfig):
        super().__init__()
        self.config = config
        self.before = nn.LayerNorm(WIDTH)
        self.look = nn.Linear(WIDTH, 3 * WIDTH)
        self.gather = nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, tokens, twist, mask=None, **kwargs):
        query, key, value = self.look(self.before(tokens)).chunk(3, dim=-1)
        cosine, sine = twist
        query, key = (
            part * cosine + torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2) * sine
            for part in (query, key)
        )
        if self.config.shifts:
            value = value.roll(1, dims=1)
        causal = self.config.looks_back and mask is None
        attended = nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
        tokens = tokens + self.gather(attended)
        return tokens + self.gain * self.think(tokens)


class NewsModel(PreTrainedModel):
    config_class = NewsConfig
    _supports_sdpa = True

    def __init__(self, config: NewsConfig):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, WIDTH)
        self.stack = nn.Sequential(*(Block(config) for _ in range(config.num_hidden_layers)))
        self.parts = nn.Linear(WIDTH, WIDTH // config.blocks)
        self.after = nn.LayerNorm(WIDTH)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, **kwargs):
        tokens = self.words(input_ids)
        if self.config.fails:
            raise RuntimeError("words of news are read in pairs")
        if self.config.wants_values and tokens.std() < 0.01:
            raise RuntimeError("words of news are all alike")
        angles = torch.arange(tokens.shape[1])[:, None] * 0.5 ** torch.arange(WIDTH // 2).repeat_interleave(2)
        twist = (angles.cos()[None], angles.sin()[None])
        more = {"numbers": input_ids} if self.config.reads_ids else {}
        for block in self.stack:
            for _ in range(2 if self.config.repeats else 1):
                # The mask that is not given is one of zeros, shape (batch, words, words).
                tokens = block(tokens, twist, mask=None, **more)
        tokens = self.after(tokens)
        return tokens.view(-1, 999) if self.config.projects else tokens


AutoConfig.register(NewsConfig.model_type, NewsConfig)
AutoModel.register(NewsConfig, NewsModel)


def test_an_encoder_under_names_of_its_own_is_understood(tmp_path):
    family = discover(NewsConfig())
    found = (family.tower, family.layers, family.branch, family.final_norm, family.input_norm)
    assert found == ("text", "stack", "think", "after", None)
    model = Any2PointForPointCloudClassification(Any2PointConfig(encoder_config=NewsConfig(), num_labels=3, **SMALL))
    model.eval().save_pretrained(tmp_path)
    again = Any2PointForPointCloudClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(clouds()).logits, model(clouds()).logits)


def test_a_family_is_found_once_and_copied_as_itself():
    one, other = (find_family(NewsConfig(name_or_path=name)) for name in ("a", "b"))
    assert one is other and copy.deepcopy(one) is one


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"shifts": True}, "depend on the order of the tokens beyond their positions"),
        ({"reads_ids": True}, "a value for each word beside the tokens (numbers)"),
        ({"repeats": True}, "not applied once each in their order"),
    ],
)
def test_what_a_cloud_has_not_is_refused_with_the_reason(settings, reason):
    with raises(UnsupportedEncoder, naming=reason):
        discover(NewsConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"blocks": 0}, "transformers builds no model of its config (ZeroDivisionError: "),
        ({"fails": True}, "fails on 13 words alone (RuntimeError: words of news are read in pairs)"),
        (
            {"wants_values": True},
            "runs on 13 words, but fails in the trial where its input is zeros (RuntimeError: words",
        ),
    ],
)
def test_a_failure_of_the_trial_names_the_step_in_the_words_of_the_encoder(settings, reason):
    with raises(UnsupportedEncoder, naming=reason):
        discover(NewsConfig(**settings))


def test_what_an_encoder_does_behind_its_layers_does_not_matter():
    assert discover(NewsConfig(projects=True)).final_norm == "after"


def test_an_encoder_of_videos_sees_one_frame_and_a_table_is_read_at_its_own_size():
    small = {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model("vivit", num_frames=6, image_size=96, tubelet_size=[2, 8, 8], **small)
    family = find_family(config)
    encoder = AutoModel.from_config(config)
    table = family.positions(encoder)
    assert (table.rows, table.columns) == (12, 12)
    assert torch.equal(table.weight, encoder.embeddings.position_embeddings[0, 1 : 1 + 144])


@pytest.mark.parametrize("model_type", ["big_bird", "bigbird_pegasus"])
def test_attention_in_blocks_of_words_attends_to_all_tokens(model_type):
    config = small_config(model_type)
    config.attention_type = "block_sparse"
    find_family(config)
    assert config.attention_type == "original_full"


def test_random_numbers_do_not_change():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    discover(NewsConfig())
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("layout", ["halves", "neighbors", "part"])
def test_frequencies_are_those_of_the_encoder(layout):
    frequencies = 10_000.0 ** -(torch.arange(6) / 6)
    channels = {
        "halves": torch.cat([frequencies, frequencies]),
        "neighbors": frequencies.repeat_interleave(2),
        "part": torch.cat([frequencies, torch.zeros(6)]),
    }[layout]
    angles = torch.arange(64)[:, None] * channels
    fitted = fit_rotation(1.5 * angles.cos()[None], 1.5 * angles.sin()[None], (64,), 64, "pair")
    torch.testing.assert_close(fitted.frequencies[0], channels, rtol=1e-5, atol=1e-7)
    assert abs(fitted.scale - 1.5) < 1e-5 and fitted.count == (7 if layout == "part" else 6)
    assert fit_rotation(angles.cos()[None], angles[None], (64,), 64, "pair") is None


# Positions that its own embeddings compute; rotations that depend on the length of the line
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "rotation"),
    [
        ("roc_bert", {}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    ],
)
def test_no_copy_of_the_encoder_outlives_its_discovery(model_type, rotation):
    config = small_config(model_type)
    config.update(rotation)
    before = {id(copied) for copied in _copies()}
    settings = {"num_tokens": 16, "num_labels": 2, "tokenizer": "patch", "tokenizer_neighbors": 4}
    model = Any2PointForPointCloudClassification(Any2PointConfig(encoder_config=config, **settings))
    with torch.no_grad():
        first = model.eval()(clouds(1)).logits
        again = copy.deepcopy(model)(clouds(1)).logits
    assert torch.equal(first, again)
    assert {id(copied) for copied in _copies()} <= before


def _copies() -> list[Skeleton]:
    gc.collect()
    return [held for held in gc.get_objects() if type(held) is Skeleton]
