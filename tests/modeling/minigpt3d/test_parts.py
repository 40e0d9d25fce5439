import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration

from hf_any3d.modeling.minigpt3d import build_from_parts
from tests.modeling.minigpt3d.tiny_model import PLACES, POINT_TOKEN, clouds, tiny_config, tiny_model

CONFIG = {"point_mlp_widths": (18,), "num_query_experts": 4, "router_width": 8, "projector_width": 24}
LORA = {"text_lora": {"r": 4}, "qformer_lora": {"r": 2, "target_modules": ["query", "key", "value"]}}


def blip2() -> Blip2ForConditionalGeneration:
    vision = {"hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    qformer = tiny_config().qformer_config.to_dict() | {"hidden_dropout_prob": 0.1}
    text = {"model_type": "opt", "vocab_size": 24, "hidden_size": 16, "ffn_dim": 8, "word_embed_proj_dim": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=vision | {"image_size": 8, "patch_size": 4},
            qformer_config=qformer,
            text_config=text,
            num_query_tokens=PLACES,
        )
    )
    model.query_tokens.data.normal_()
    return model


def test_parts_are_opened_from_their_repositories(tmp_path):
    torch.manual_seed(0)
    source, released = tiny_model(text_lora=None, qformer_lora=None), blip2()
    source.point_encoder.save_pretrained(tmp_path / "eyes")
    source.language_model.save_pretrained(tmp_path / "words")
    released.save_pretrained(tmp_path / "blip2")
    names = (tmp_path / "eyes", tmp_path / "blip2", tmp_path / "words")
    model = build_from_parts(*names, point_token_id=POINT_TOKEN, **CONFIG, **LORA)

    for queries in model.bridge.experts.queries:
        assert torch.equal(queries, released.query_tokens[0])
    ours, theirs = model.bridge.qformer.encoder.layer[0], released.qformer.encoder.layer[0]
    assert torch.equal(ours.attention.attention.query.base_layer.weight, theirs.attention.attention.query.weight)
    assert torch.equal(ours.output_query.LayerNorm.weight, theirs.output_query.LayerNorm.weight)
    assert model.config.qformer_config.hidden_dropout_prob == 0.0
    assert {part.config._attn_implementation for part in (model.point_encoder, model.language_model)} == {"sdpa"}
    points = torch.stack(clouds(40))
    assert torch.equal(model.encode(points), source.encode(points))
    words = torch.tensor([[2, 3, 4]])
    assert torch.equal(model(words).logits, source(words).logits)


def test_the_q_former_may_be_untrained():
    source = tiny_model(text_lora=None, qformer_lora=None)
    config = CONFIG | {"qformer_config": tiny_config().qformer_config, "num_query_tokens": PLACES}
    model = build_from_parts(source.point_encoder, None, source.language_model, point_token_id=POINT_TOKEN, **config)
    assert model.language_model is source.language_model and model.point_encoder is source.point_encoder
    assert model.get_point_features(clouds(40)).shape == (1, PLACES, 16)
