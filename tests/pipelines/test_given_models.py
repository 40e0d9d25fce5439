"""Pipelines take models as they are in memory: in training, compiled, with adapters."""

import copy

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_any3d import PointCloudProcessor, PointTransformerV3Processor
from hf_any3d.chat import ChatSession
from hf_any3d.modeling.point_transformer_v3 import PointTransformerV3ForPointCloudSegmentation
from hf_any3d.pipelines import scene_features
from tests.chat.tiny_chat_model import cloud as colored_cloud, tiny_chat_pipeline
from tests.errors import raises
from tests.pipelines.test_non_finite_answers import TASKS as BUILDERS
from tests.pipelines.test_room_layouts import scan
from tests.tiny_encoders import adapted_model, clouds
from tests.tiny_ptv3 import tiny_ptv3
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

CASES = {
    **{task: (task, build, arguments) for task, (build, _, arguments) in BUILDERS.items()},
    "adapter": ("point-cloud-classification", adapted_model, {"top_k": None}),
    "adapter-features": ("point-cloud-feature-extraction", adapted_model, {}),
    "layouts": ("point-cloud-object-detection", None, {"max_new_tokens": 4}),
}


def prepared(case):
    task, build, arguments = CASES[case]
    if build is None:
        processor = tiny_processor(num_bins=1280, stride=2, clean=False)
        return task, fitting_spatiallm(processor), processor, arguments
    boxes = {"center": False, "scale": None} if "detection" in task else {}
    return task, build().eval(), PointCloudProcessor(num_points=48, sampling="first", **boxes), arguments


def given(case):
    return np.stack([scan(0), scan(1)]) if case == "layouts" else clouds(2).numpy()


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, (float, np.ndarray)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    else:
        assert found == expected


@pytest.mark.filterwarnings("ignore:.*cut off before its end|.*lines that are no walls")
@pytest.mark.parametrize("case", CASES)
def test_a_model_in_training_answers_as_in_evaluation_and_stays_as_it_is(case):
    task, model, processor, arguments = prepared(case)
    answer = pipeline(task, model=model, processor=processor)
    rooms = given(case)
    expected = answer(rooms, **arguments)
    model.train()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    assert_same(answer(rooms, **arguments), expected)
    assert [module.training for module in model.modules()] == modes and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*cut off before its end|.*lines that are no walls")
@pytest.mark.parametrize("case", CASES)
def test_a_compiled_model_answers_as_the_model(case):
    task, model, processor, arguments = prepared(case)
    rooms = given(case)
    expected = pipeline(task, model=model, processor=processor)(rooms, **arguments)
    compiled = pipeline(task, model=torch.compile(model), processor=processor)
    with torch.compiler.set_stance("force_eager"):  # the wrapper without the minutes of the compiler
        assert_same(compiled(rooms, **arguments), expected)


def test_a_model_in_memory_needs_a_processor():
    with raises(ValueError, naming="processor is missing"):
        pipeline("point-cloud-classification", model=adapted_model())


def test_chats_and_scenes_with_a_model_in_training_answer_as_in_evaluation(tmp_path):
    chat = tiny_chat_pipeline()
    expected = chat(colored_cloud(), text="What is this?")
    chat.model.train()
    chat.answerer.forget()
    assert chat(colored_cloud(), text="What is this?") == expected
    assert ChatSession(chat, colored_cloud()).ask("What is this?") == expected[0]["generated_text"]
    model = tiny_ptv3(PointTransformerV3ForPointCloudSegmentation, drop_path_rate=0.9)
    processor = PointTransformerV3Processor(features=["xyz", "rgb"], grid_size=0.1)
    room = np.random.default_rng(0).random((300, 6), dtype=np.float32)
    features = scene_features(model, processor, room, tmp_path / "a.npy")
    again = scene_features(model.train(), processor, room, tmp_path / "b.npy")
    np.testing.assert_allclose(again, features, atol=1e-5)
    assert model.training
