"""Requirements on every registered processor; `BUILDERS` defines a small one of each and how to call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from transformers import AutoFeatureExtractor, AutoProcessor

from hf_any3d import (
    MiniGPT3DProcessor,
    PointCloudProcessor,
    PointTransformerV3Processor,
    SpatialLMProcessor,
)
from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.integration.registration import MODELS, PROCESSORS
from tests.chat.tiny_tokenizers import character_tokenizer
from tests.errors import raises
from tests.extensions import HAS_SURVEY
from tests.tiny_spatiallm import tiny_processor

POINTS = 32
TEMPLATE_TEXT = "What is this?"


def clouds(count: int = 3, points: int = 50) -> list[np.ndarray]:
    """Clouds `(points, 3)` of different sizes, all with more points than are kept."""
    random = np.random.default_rng(4)
    return [random.random((points + number, 3), dtype=np.float32) - 0.5 for number in range(count)]


@dataclass(frozen=True)
class Case:
    """A processor and how to call it.

    Args:
        build: Builds a small one; takes settings of its config.
        call: Function of processor, clouds and call arguments that returns the output.
        override: A setting and a non-default value.
        auto_classes: Auto classes that load it.
        keeps_all: Whether the output has all points, filled up to the largest cloud, with colors.
        channels: Channels of a point.
    """

    build: Callable[..., Any]
    call: Callable[..., Any]
    override: tuple[str, Any]
    auto_classes: tuple[type, ...]
    keeps_all: bool = False
    channels: int = 3


def _points(**settings: Any) -> PointCloudProcessor:
    return PointCloudProcessor(**{"num_points": POINTS, "sampling": "farthest", **settings})


def _voxels(**settings: Any) -> PointTransformerV3Processor:
    return PointTransformerV3Processor(**{"num_points": POINTS, "features": ("xyz",), "grid_size": 1e-3, **settings})


def _chat(**settings: Any) -> MiniGPT3DProcessor:
    return MiniGPT3DProcessor(
        _points(), character_tokenizer(), **{"point_token_id": 127, "num_query_tokens": 4, **settings}
    )


def _ask(processor: MiniGPT3DProcessor, given: Any, **arguments: Any) -> Any:
    count = len(given) if isinstance(given, list) else 1
    texts = [f"<PointCloudHere> {TEMPLATE_TEXT}{'?' * number}" for number in range(count)]
    return processor(texts if isinstance(given, list) else texts[0], given, **arguments)


BUILDERS = {
    PointCloudProcessor: Case(
        _points,
        lambda processor, given, **arguments: processor(given, **arguments),
        ("num_points", 16),
        (AutoFeatureExtractor, AutoProcessor),
    ),
    PointTransformerV3Processor: Case(
        _voxels,
        lambda processor, given, **arguments: processor(given, **arguments),
        ("grid_size", 0.03),
        (AutoFeatureExtractor, AutoProcessor),
    ),
    MiniGPT3DProcessor: Case(_chat, _ask, ("max_answer_tokens", 7), (AutoProcessor,)),
    SpatialLMProcessor: Case(
        # Cells so small that every point has its own.
        lambda **settings: tiny_processor(**{"clean": False, "num_bins": 2**20, **settings}),
        lambda processor, given, **arguments: processor(given, **arguments),
        ("num_bins", 640),
        (AutoProcessor,),
        keeps_all=True,
    ),
}
if HAS_SURVEY:
    from hf_any3d import LocalFeaturesProcessor

    BUILDERS[LocalFeaturesProcessor] = Case(
        lambda **settings: LocalFeaturesProcessor(**{"num_points": POINTS, "edges": (0.25, 0.5), **settings}),
        lambda processor, given, **arguments: processor(given, **arguments),
        ("num_points", 16),
        (AutoFeatureExtractor, AutoProcessor),
        channels=3 + len(LocalFeaturesProcessor(edges=(0.25, 0.5)).names()),
    )
REGISTERED = {PROCESSORS.get(config, PointCloudProcessor) for config in MODELS} | {PointCloudProcessor}
ALL = pytest.mark.parametrize("kind", sorted(REGISTERED, key=lambda kind: kind.__name__))


def equal(one: Any, other: Any) -> bool:
    assert set(one) == set(other)
    return all(np.array_equal(np.asarray(one[name]), np.asarray(other[name])) for name in one)


def test_every_registered_processor_is_swept():
    assert set(BUILDERS) == REGISTERED


@ALL
def test_saved_processor_loads_through_every_entry_point(kind, tmp_path):
    case = BUILDERS[kind]
    processor = case.build()
    processor.save_pretrained(tmp_path)
    expected = case.call(processor, clouds())
    for loader in (kind, *case.auto_classes):
        opened = loader.from_pretrained(tmp_path)
        assert type(opened) is kind and opened.to_dict() == processor.to_dict(), loader
        assert equal(case.call(opened, clouds()), expected), loader
    opened.save_pretrained(tmp_path / "again")
    for file in tmp_path.glob("*processor_config.json"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


@ALL
def test_settings_given_at_loading_override_the_saved_ones(kind, tmp_path):
    case = BUILDERS[kind]
    name, value = case.override
    case.build().save_pretrained(tmp_path)
    for loader in (kind, *case.auto_classes):
        opened = loader.from_pretrained(tmp_path, **{name: value})
        assert getattr(opened, name) == value, loader
        opened.save_pretrained(tmp_path / loader.__name__)
        assert getattr(kind.from_pretrained(tmp_path / loader.__name__), name) == value


@ALL
def test_clouds_are_prepared_independently_of_the_batch(kind):
    case = BUILDERS[kind]
    processor, given = case.build(), clouds()
    together = case.call(processor, given)["points"]
    shape = (3, len(given[-1]), 6) if case.keeps_all else (3, POINTS, case.channels)
    assert together.shape == shape and together.dtype == torch.float32
    for number, cloud in enumerate(given):
        count = len(cloud) if case.keeps_all else POINTS
        assert torch.equal(case.call(processor, cloud)["points"][0], together[number, :count])


@ALL
def test_every_form_of_a_cloud_gives_the_same(kind, tmp_path):
    case = BUILDERS[kind]
    processor, cloud = case.build(), clouds(1)[0]
    np.save(tmp_path / "cloud.npy", cloud)
    write_point_cloud(tmp_path / "cloud.ply", PointCloudData(cloud))
    expected = case.call(processor, cloud)
    forms = {
        "tensor": torch.from_numpy(cloud),
        "double": cloud.astype(np.float64),
        "row": {"points": cloud},
        "path": tmp_path / "cloud.npy",
        "text path": str(tmp_path / "cloud.ply"),
        "trimesh": trimesh.PointCloud(cloud),
        "ours": PointCloudData(cloud),
    }
    for name, form in forms.items():
        assert equal(case.call(processor, form), expected), name
    lists = case.call(processor, [cloud.tolist()] if kind is PointCloudProcessor else [cloud])
    assert equal(lists, case.call(processor, [cloud]))
    many = np.stack([one[:50] for one in clouds()])
    if kind is PointCloudProcessor:
        for form in (many, torch.from_numpy(many)):
            assert equal(case.call(processor, form), case.call(processor, list(many)))


@ALL
def test_tensors_and_arrays_hold_the_same_numbers(kind):
    case = BUILDERS[kind]
    processor = case.build()
    tensors, arrays = (case.call(processor, clouds(), return_tensors=form) for form in ("pt", "np"))
    assert all(isinstance(tensors[name], torch.Tensor) and isinstance(arrays[name], np.ndarray) for name in tensors)
    assert equal(tensors, arrays)
    assert equal(case.call(processor, clouds(), return_tensors=None), arrays)


@ALL
def test_bad_clouds_are_refused_before_they_reach_a_model(kind):
    case = BUILDERS[kind]
    processor, cloud = case.build(), clouds(1)[0]
    for number, message in ((np.nan, "finite|NaN"), (np.inf, "finite|infinite")):
        bad = cloud.copy()
        bad[3, 1] = number
        with pytest.raises(ValueError, match=message):
            case.call(processor, bad)
    with raises(ValueError, naming="at least"):
        case.call(processor, cloud[:2])
    with raises(ValueError, naming="cloud 1"):
        case.call(processor, [cloud, cloud[:2]])


@ALL
def test_outputs_are_valid_model_inputs(kind):
    case = BUILDERS[kind]
    processor = case.build()
    assert set(case.call(processor, clouds())) <= set(processor.model_input_names)
    models = [config for config in MODELS if PROCESSORS.get(config, PointCloudProcessor) is kind]
    assert models, "a processor without a model"


@ALL
def test_inputs_are_not_modified(kind):
    case = BUILDERS[kind]
    given = clouds()
    case.call(case.build(), given)
    assert all(np.array_equal(one, other) for one, other in zip(given, clouds(), strict=True))


SIDES = pytest.mark.parametrize("side", ["left", "right"])


@SIDES
def test_padding_is_on_the_requested_side_and_masked(side):
    processor = _chat()
    batch = _ask(processor, clouds(), padding_side=side)
    alone = [processor(f"<PointCloudHere> {TEMPLATE_TEXT}{'?' * n}", cloud) for n, cloud in enumerate(clouds())]
    for row, mask, one in zip(batch["input_ids"], batch["attention_mask"], alone, strict=True):
        length = one["input_ids"].shape[1]
        kept = slice(-length, None) if side == "left" else slice(length)
        assert torch.equal(row[kept], one["input_ids"][0]) and mask[kept].all() and mask.sum() == length
        assert (row[~mask.bool()] == processor.tokenizer.pad_token_id).all()
    with raises(KeyError, naming="middle"):
        _ask(processor, clouds(), padding_side="middle")


def test_chat_template_and_written_prompt_are_the_same():
    processor, cloud = _chat(), clouds(1)[0]
    content = [{"type": "point_cloud", "points": cloud}, {"type": "text", "text": TEMPLATE_TEXT}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages)
    assert text.count("<PointCloudHere>") == 1 and TEMPLATE_TEXT in text
    ours = processor.apply_chat_template(messages, tokenize=True)
    assert equal(processor(text, cloud), ours)
    assert (ours["input_ids"] == 127).sum() == processor.num_query_tokens
    two = processor.apply_chat_template([messages, messages], tokenize=True)
    assert torch.equal(two["input_ids"], ours["input_ids"].repeat(2, 1))
