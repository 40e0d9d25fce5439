"""What a card says of a model's parts: whole sentences, where the weights are, and what it was made from."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_any3d import (
    Any2PointForPointCloudClassification,
    MiniGPT3DForConditionalGeneration,
    PointFeaturesForPointCloudClassification,
    PointTransformerV3ForZeroShotPointCloudSegmentation,
)
from hf_any3d.model_card import Subject
from hf_any3d.model_card.descriptions import METHODS, Description, describe
from hf_any3d.modeling.act import ActAutoencoder, ActForPointCloudClassification
from hf_any3d.modeling.detr3d import Detr3DForPointCloudObjectDetection
from hf_any3d.modeling.pointnet import PointNetForPointCloudClassification
from hf_any3d.modeling.spatiallm import SpatialLMForConditionalGeneration
from tests.model_card.test_building import REPORT

HERE = "all of them are stored in this repository."
FROM_ADAPTER, AROUND_ENCODER = "build_for_adapter({name}, config, {{}})", "from_encoder_pretrained(config=config)"
LORA = {"method": "lora", "settings": {}}
ADAPTED = ", adapted by the PEFT method `lora`"
CHECKED = "encoder is loaded from `me/text`, and its weights are checked against a checksum."
ANY2POINT = " Method: [Any2Point](https://arxiv.org/abs/2404.07989)."
ACT = "Method: [ACT](https://arxiv.org/abs/2212.08320)"
FIRST = ", first stage"
RUN = replace(REPORT, encoder={}, start={})


def described(model_class, model_type, adapter=None, report=None, left_out=(), **config):
    """Describe a model whose config has these fields alone."""
    subject = Subject(
        model_class, SimpleNamespace(model_type=model_type, **config), adapter or {}, report=report, left_out=left_out
    )
    return describe(subject)


def part(name=None, stored=False):
    return SimpleNamespace(name_or_path=name, stored=stored, is_elsewhere=name is not None and not stored)


def any2point(adapter=None, report=None, **config):
    plain = {"encoder_weights": "pretrained", "encoder_trained_from": None, "tokenizer_weights": "random"}
    plain |= {"encoder_config": None, "encoder_name_or_path": "me/text"}
    return described(Any2PointForPointCloudClassification, "any2point", adapter, report, **plain | config)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {},
            ("A frozen `me/text` reads the points through a trained tokenizer, without adapters", f"The {CHECKED}")
            + ("me/text", "adapter", AROUND_ENCODER, False),
        ),
        (
            {"adapter": LORA, "tokenizer_weights": "generated_shapes"},
            (
                "A frozen `me/text` reads the points through a trained tokenizer that started from weights learned on "
                f"generated shapes{ADAPTED}",
                f"The {CHECKED}",
            )
            + ("me/text", "adapter", AROUND_ENCODER, False),
        ),
        (
            {"encoder_name_or_path": None, "encoder_config": SimpleNamespace(model_type="bert")},
            (
                "A frozen bert encoder reads the points through a trained tokenizer, without adapters",
                "The encoder is stored in this repository.",
            )
            + (None, "adapter", FROM_ADAPTER, False),
        ),
        (
            {"encoder_name_or_path": None},
            (
                "A frozen transformer encoder reads the points through a trained tokenizer, without adapters",
                "The encoder is stored in this repository.",
            )
            + (None, "adapter", FROM_ADAPTER, False),
        ),
        (
            {
                "encoder_trained_from": "me/start",
                "encoder_name_or_path": None,
                "tokenizer_weights": "generated_shapes",
            },
            ("An encoder that started as `me/start` and was changed in training reads the points", HERE)
            + ("me/start", "finetune", FROM_ADAPTER, False),
        ),
        (
            {"encoder_weights": "random"},
            (
                "A control: an encoder of the shape of `me/text` with random weights, not the pretrained ones, reads "
                "the points through a trained tokenizer, without adapters",
                HERE,
            )
            + (None, "adapter", AROUND_ENCODER, True),
        ),
        (
            {"encoder_weights": "shuffled", "encoder_name_or_path": None, "encoder_trained_from": "me/start"},
            (
                "A control: an encoder of the shape of `me/start` with shuffled weights, not the pretrained ones, "
                "reads the points through a trained tokenizer, without adapters",
                HERE,
            )
            + (None, "adapter", FROM_ADAPTER, True),
        ),
        (
            {"encoder_weights": "random", "encoder_name_or_path": None},
            (
                "A control: an encoder with random weights, not the pretrained ones, reads the points through a "
                "trained tokenizer, without adapters",
                HERE,
            )
            + (None, "adapter", FROM_ADAPTER, True),
        ),
        (
            {"report": replace(REPORT, encoder={"name": "me/run"}), "encoder_name_or_path": None},
            (
                "A frozen `me/run` reads the points through a trained tokenizer, without adapters",
                "The encoder is stored in this repository.",
            )
            + ("me/run", "adapter", FROM_ADAPTER, False),
        ),
    ],
)
def test_a_wrap_is_described_by_its_encoder(given, expected):
    what, stored, base_model, relation, program, is_control = expected
    assert any2point(**given) == Description(
        f"{what}.{ANY2POINT}", stored, base_model, relation, program, "", is_control, ("any2point",)
    )


READS = "A point transformer of 7 blocks reads patches of points"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (READS, HERE, None, "finetune")),
        ({"base_name_or_path": "me/base"}, (READS, HERE, None, "finetune")),
        (
            {"base_name_or_path": "me/base", "adapter": LORA},
            (
                f"{READS}, started from `me/base`{ADAPTED}",
                "The frozen ones are loaded from the source in the config and verified with a checksum.",
            )
            + ("me/base", "adapter"),
        ),
        ({"report": RUN}, (f"{READS}, started from random weights", HERE, None, "finetune")),
        (
            {"report": RUN, "tokenizer_weights": "generated_shapes"},
            (f"{READS}, started from weights learned on generated shapes", HERE, None, "finetune"),
        ),
        (
            {"report": replace(RUN, start={"model": "me/start"})},
            (f"{READS}, started from `me/start`", HERE, "me/start", "finetune"),
        ),
        (
            {"encoder_name_or_path": "me/text"},
            (
                f"{READS}. It learned to predict features from an autoencoder around `me/text`",
                f"The teacher's {CHECKED}",
            )
            + (None, "finetune"),
        ),
        (
            {"encoder_name_or_path": "me/text", "adapter": LORA},
            (
                f"{READS}{ADAPTED}. It learned to predict features from an autoencoder around `me/text`",
                "The frozen ones are loaded from the source in the config and verified with a checksum.",
            )
            + (None, "adapter"),
        ),
    ],
)
def test_a_point_transformer_is_described_by_its_start_and_its_teacher(given, expected):
    what, stored, base_model, relation = expected
    found = described(ActForPointCloudClassification, "act3d", **{"num_hidden_layers": 7, "parts": None} | given)
    assert found == Description(f"{what}. {ACT}.", stored, base_model, relation, FROM_ADAPTER, "", False, ("act",))


FOLDS = "a decoder folds patches from"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"encoder_config": None, "encoder_name_or_path": None},
            (f"Patches of points become discrete codes, and {FOLDS} the codes' vectors", HERE, None, FROM_ADAPTER),
        ),
        (
            {"encoder_name_or_path": "me/text"},
            (
                "Patches of points become discrete codes, a frozen `me/text` reads the codes' vectors along with "
                f"learned prompts, and {FOLDS} its output",
                f"The {CHECKED}",
            )
            + ("me/text", AROUND_ENCODER),
        ),
        (
            {"encoder_name_or_path": None},
            (
                "Patches of points become discrete codes, a frozen vit encoder reads the codes' vectors along with "
                f"learned prompts, and {FOLDS} its output",
                HERE,
            )
            + (None, AROUND_ENCODER),
        ),
        (
            {"encoder_name_or_path": None, "report": RUN},
            (
                "Patches of points become discrete codes, a frozen vit encoder with random weights reads the codes' "
                f"vectors along with learned prompts, and {FOLDS} its output",
                HERE,
            )
            + (None, AROUND_ENCODER),
        ),
    ],
)
def test_an_autoencoder_is_described_by_its_teacher(given, expected):
    what, stored, base_model, program = expected
    plain = {"encoder_config": SimpleNamespace(model_type="vit")}
    assert described(ActAutoencoder, "act3d_autoencoder", **plain | given) == Description(
        f"{what}. {ACT}{FIRST}.", stored, base_model, "adapter", program, FIRST, False, ("act",)
    )


class Parts(dict):
    """The parts of a config, and the function that returns one."""

    def __call__(self, name):
        return self[name]


@pytest.mark.parametrize(
    ("parts", "what", "stored", "base_model"),
    [
        ({}, "A ppp model reads the points, {}, and a lll model answers", HERE, None),
        (
            {"point_encoder": part("me/p", stored=True), "language_model": part()},
            "A ppp model reads the points, {}, and a lll model answers",
            HERE,
            None,
        ),
        (
            {"point_encoder": part("me/p"), "language_model": part("me/l"), "qformer": part("me/q")},
            "`me/p` reads the points, {}, and `me/l` answers",
            "The parts `me/p`, `me/l`, `me/q` are loaded from where they are published and checked against checksums.",
            "me/l",
        ),
    ],
)
def test_a_chat_model_is_described_by_its_parts(parts, what, stored, base_model):
    found = described(
        MiniGPT3DForConditionalGeneration,
        "minigpt3d",
        parts=parts or None,
        part=Parts(parts),
        point_config=SimpleNamespace(model_type="ppp"),
        text_config=SimpleNamespace(model_type="lll"),
        num_query_tokens=5,
        stage=3,
    )
    what = what.format("a Q-Former with 5 queries extracts what matters")
    stage = ", after stage 3 of 4 of its training"
    method = f"Method: [MiniGPT-3D](https://arxiv.org/abs/2405.01413){stage}."
    assert found == Description(
        f"{what}. {method}", stored, base_model, "adapter", FROM_ADAPTER, stage, False, ("minigpt3d",)
    )


@pytest.mark.parametrize(
    ("parts", "weights", "features", "expected"),
    [
        ({}, "packaged", ["encoder"], ("", HERE, None, False)),
        ({}, "random", ["encoder"], (", a control: the point encoder has random weights", HERE, None, True)),
        ({}, "random", ["descriptors"], ("", HERE, None, False)),
        (
            {"encoder": part("me/e"), "other": part("me/s", stored=True), "views": part("me/v")},
            "packaged",
            ["encoder"],
            ("", "`me/e`, `me/v`: loaded from where it is published and checked against a checksum.", "me/e", False),
        ),
    ],
)
def test_features_are_described_by_their_sets(parts, weights, features, expected):
    more, stored, base_model, is_control = expected
    found = described(
        PointFeaturesForPointCloudClassification,
        "point_features",
        parts=parts or None,
        part=Parts(parts),
        encoder_weights=weights,
        features=features,
        described_features="All of them",
    )
    assert found == Description(
        f"All of them describe a cloud{more}. Method: Point features.",
        stored,
        base_model,
        "finetune",
        FROM_ADAPTER,
        "",
        is_control,
        ("point_features",),
    )


BOXES = "A detection transformer with 3 decoder layers reads tokens, and answers with 9 boxes"


@pytest.mark.parametrize(
    ("encoder", "more", "stored", "base_model", "program"),
    [
        (None, "", HERE, None, FROM_ADAPTER),
        (part(), "", HERE, None, FROM_ADAPTER),
        (part("me/p", stored=True), ". The point encoder started as `me/p`", HERE, "me/p", FROM_ADAPTER),
        (
            part("me/text"),
            ". The point encoder is `me/text`",
            f"The point {CHECKED}",
            "me/text",
            "from_point_encoder_pretrained(config=config)",
        ),
    ],
)
def test_a_detector_is_described_by_the_encoder_under_its_decoder(encoder, more, stored, base_model, program):
    found = described(
        Detr3DForPointCloudObjectDetection,
        "detr3d",
        point_encoder_config=encoder and "config",
        part=Parts({"point_encoder": encoder}),
        decoder_layers=3,
        described_tokens="tokens",
        num_queries=9,
    )
    method = "Method: [3DETR](https://arxiv.org/abs/2109.08141)."
    assert found == Description(
        f"{BOXES}{more}. {method}", stored, base_model, "finetune", program, "", False, ("3detr",)
    )


@pytest.mark.parametrize("adapter", [None, LORA])
def test_a_layout_writer_is_described_by_its_encoder_and_its_language_model(adapter, monkeypatch):
    monkeypatch.setattr("hf_any3d.model_card.subject.opens_from_adapter", lambda *_: True)
    found = described(
        SpatialLMForConditionalGeneration,
        "spatiallm",
        adapter,
        point_config=SimpleNamespace(depths=[1, 2, 3]),
        text_config=SimpleNamespace(model_type="qwen2", num_hidden_layers=24),
        grid_size=0.025,
    )
    what = (
        "A Point Transformer V3 of 6 blocks reads voxels of 2.5 cm, and a qwen2 language model of 24 layers writes a "
        f"line for each wall, door, window and box{ADAPTED if adapter else ''}"
    )
    method = "Method: [SpatialLM](https://arxiv.org/abs/2506.07491)."
    relation = "adapter" if adapter else "finetune"
    assert found == Description(f"{what}. {method}", HERE, None, relation, FROM_ADAPTER, "", False, ("spatiallm",))


def test_the_method_is_that_of_the_class_before_that_of_the_type():
    find3d = described(
        PointTransformerV3ForZeroShotPointCloudSegmentation, "point_transformer_v3", num_hidden_layers=22
    )
    assert (
        find3d.tags == ("find3d", "point_transformer_v3")
        and "[Find3D](https://arxiv.org/abs/2411.13550)" in find3d.what
    )
    assert find3d.what.startswith("A Point Transformer V3 of 22 blocks leads voxels of an object")
    assert "Method: mine." in described(PointNetForPointCloudClassification, "mine").what
    assert {name for name, method in METHODS.items() if method.paper is None} == {"point_features"}


@pytest.mark.parametrize(
    ("rows", "bank", "told"),
    [
        (0, 5, ""),
        (
            40,
            0,
            " Beside a label stands `unknown`, how unlike the 40 clouds of the training a cloud is, from 0 to 1.",
        ),
        (40, 252, " a cloud is and how like 252 drawn things of no class, from 0 to 1."),
    ],
)
def test_an_unknown_score_is_told_with_what_it_knows(rows, bank, told):
    settings = {"unknown_rows": rows, "unknown_bank_rows": bank, "unknown_share": 0.039 if bank else None}
    found = described(PointNetForPointCloudClassification, "pointnet", **settings)
    assert ("gets no label, as of none of the classes: at most 4 %" in found.what) is bool(rows and bank)
    assert told in found.what and ("unknown" in found.what) is bool(rows)
    assert found.what.endswith("Method: [PointNet](https://arxiv.org/abs/1612.00593).") is not bool(rows)


@pytest.mark.parametrize(
    ("opens", "left_out", "stored"),
    [(True, (), HERE), (False, (), "only those of the adapter are stored in this repository."), (False, ("a",), HERE)],
)
def test_an_adapter_that_does_not_open_by_itself_is_told_from_a_whole_model(opens, left_out, stored, monkeypatch):
    monkeypatch.setattr("hf_any3d.model_card.subject.opens_from_adapter", lambda *_: opens)
    found = described(PointNetForPointCloudClassification, "pointnet", LORA, left_out=left_out)
    assert found.stored == stored and found.relation == "adapter" and ADAPTED in found.what
    plain = described(PointNetForPointCloudClassification, "pointnet")
    assert plain.stored == HERE and plain.relation == "finetune"
