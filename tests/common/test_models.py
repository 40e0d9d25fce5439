"""Behavior that users of transformers expect, tested for every registered model class.

What classes do in their own way is tested over all of `CASES`, so that a new model is covered once it is registered;
what layers decide, which all classes of a config share, on one class of each config, in each test another one. With
HF_ANY3D_ALL_PAIRS=1 all tests run over all classes. Features that a class refuses are listed in
tests/common/refusals.py; then the error is tested. Compilation is in test_compiled_models.py.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import accelerate
import pytest
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.integrations.neftune import activate_neftune
from transformers.utils import ModelOutput

from hf_any3d.modeling.layers.forward_contract import CACHE
from hf_any3d.modeling.point_encoders.base_configuration import PointCloudConfig
from tests.common.built import (
    answer,
    built,
    expected_of,
    forget_models as forget_models,
    fresh,
    one_of_each,
    over_cases,
    over_one_of_each,
)
from tests.common.models import CASES, case_of, first_of_configs, registered_classes, relative_difference
from tests.common.refusals import check_refusal
from tests.errors import raises
from tests.turns import ALL_PAIRS, by_turns

HALVES = (torch.bfloat16, torch.float16)
IN_HALF = {torch.bfloat16: 0.15, torch.float16: 0.02}
"""Allowed RMS error of half precision, in standard deviations of the outputs."""
_FIRST = first_of_configs(CASES)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def crossed(turn: int, name: str, values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize over one class of each config, with a value by turns."""
    pairs = by_turns(one_of_each(turn), values)
    return pytest.mark.parametrize(("case", name), pairs, ids=[f"{case.name}-{value}" for case, value in pairs])


over_configs = pytest.mark.parametrize("case", _FIRST, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Function from a case to the directory of its saved model."""

    @functools.cache
    def save(name: str) -> str:
        directory = str(tmp_path_factory.mktemp(name))
        built(name)[0].save_pretrained(directory)
        return directory

    return lambda case: save(case.name)


def body_of(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Return the registered class without a head for the config of a class; that class itself if it is one."""
    return registered_classes(model_class.config_class)[0]


WITH_HEAD = [case for case in CASES if body_of(case.model_class) is not case.model_class]
WITH_CLASSES = [case for case in WITH_HEAD if (case.last_layer or "").startswith(("classifier", "segmenter"))]


@pytest.mark.slow
def test_every_registered_class_has_a_builder():
    assert [case.model_class for case in CASES] == list(registered_classes())
    with raises(LookupError, naming="PreTrainedModel"):
        case_of(PreTrainedModel)


@pytest.mark.slow
@over_cases
def test_tiny_outputs_are_of_order_one_and_differ_between_inputs(case):
    made = expected_of(case).float()
    assert 0.3 < made.std() < 5
    assert (made[0] - made[1]).abs().max() > 0.05 and (made[0] - made[2]).abs().max() > 0.05


@pytest.mark.slow
@over_cases
def test_a_saved_model_is_loaded_bit_for_bit(case, saved):
    again = case.model_class.from_pretrained(saved(case))
    assert torch.equal(answer(case, again), expected_of(case))
    ours, theirs = built(case.name)[0].state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
@crossed(1, "dtype", HALVES)
def test_a_model_runs_saves_and_loads_in_half_precision(case, dtype, saved, tmp_path):
    opened = case.model_class.from_pretrained(saved(case), dtype=dtype)
    made = answer(case, opened)
    assert opened.dtype == dtype
    error = (made.float() - expected_of(case)).square().mean().sqrt() / expected_of(case).std()
    assert 1e-5 < error < IN_HALF[dtype]
    opened.save_pretrained(tmp_path)
    again = case.model_class.from_pretrained(tmp_path)
    assert again.dtype == dtype
    assert torch.equal(answer(case, again), made)


@pytest.mark.slow
@over_cases
@torch.no_grad()  # with gradients, other kernels round otherwise
def test_hidden_states_are_the_inputs_and_outputs_of_layers(case):
    model = fresh(case)
    model.config.output_hidden_states = True
    output = model(**case.batch())
    depth = _depth(model)
    assert len(output.hidden_states) == depth + 1
    stages = len(getattr(model.config, "depths", (depth,)))
    if isinstance(model.config, PointCloudConfig):  # whose layers have different widths
        stages = depth + 1
    elif model.config.model_type == "detr3d":  # tokens, half of them, queries
        stages = 3
    assert len({state.shape for state in output.hidden_states}) == stages
    for before, after in zip(output.hidden_states, output.hidden_states[1:], strict=False):
        assert before.shape != after.shape or relative_difference(after, before) > 1e-2
    assert torch.equal(case.answer_of(output), expected_of(case))
    assert model(**case.batch(), output_hidden_states=False).get("hidden_states") is None


@over_one_of_each(3)
@torch.no_grad()
def test_hidden_states_of_chosen_layers(case):
    model = fresh(case)
    states = model(**case.batch(), output_hidden_states=True).hidden_states
    last = len(states) - 1
    for asked, expected in (([0, -1], {0, last}), ([last], {last}), (-1, {last})):
        output = model(**case.batch(), output_hidden_states=asked)
        assert len(output.hidden_states) == len(states)
        for index, (chosen, state) in enumerate(zip(output.hidden_states, states, strict=True)):
            assert torch.equal(chosen, state) if index in expected else chosen is None
        assert torch.equal(case.answer_of(output), expected_of(case))
    model.config.output_hidden_states = True
    by_config = model(**case.batch()).hidden_states
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(by_config, states, strict=True))
    model.config.output_hidden_states = [0]
    assert [state is not None for state in model(**case.batch()).hidden_states] == [True] + last * [False]


def _depth(model: PreTrainedModel) -> int:
    for name in ("text_config", "encoder_config"):
        if getattr(model.config, name, None) is not None:
            return getattr(model.config, name).num_hidden_layers
    return model.config.num_hidden_layers


@pytest.mark.slow
@over_one_of_each(4)
def test_only_eager_attention_returns_attention_weights(case):
    model = fresh(case)
    with check_refusal("attention", case.name) as is_supported:
        model.set_attn_implementation("sdpa")
    if not is_supported:
        with raises(ValueError, naming="output_attentions"):
            model(**case.batch(), output_attentions=True)
        return
    with raises(ValueError, naming="attn_implementation"):
        model(**case.batch(), output_attentions=True)
    model.set_attn_implementation("eager")
    output = model(**case.batch(), output_attentions=True)
    assert len(output.attentions) == _depth(model)
    for weights in output.attentions:
        assert weights.ndim == 4 and len(weights) == 3
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert relative_difference(case.answer_of(output), expected_of(case)) < 1e-4


@pytest.mark.slow
@over_configs
def test_eager_attention_matches_sdpa(case, saved):
    eager = case.model_class.from_pretrained(saved(case), attn_implementation="eager")
    assert relative_difference(answer(case, eager), expected_of(case)) < 1e-4


@pytest.mark.slow
@over_configs
def test_flex_attention_matches_sdpa(case):
    model = fresh(case)
    with check_refusal("attention", case.name) as is_supported:
        model.set_attn_implementation("flex_attention")
    assert case.model_class._supports_flex_attn == is_supported
    # Attention is computed by a function that can be chosen; servers such as vLLM ask before they put in their own.
    assert case.model_class.is_backend_compatible() == is_supported
    if is_supported:
        parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
        assert {part.config._attn_implementation for part in parts} == {"flex_attention"}
        with torch.compiler.set_stance("force_eager"):
            made = answer(case, model)
        assert relative_difference(made, expected_of(case)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.model_class.can_generate()], ids=lambda case: case.name
)
@torch.no_grad()
def test_labels_may_be_shifted_already(case):
    model, labeled = fresh(case), case.labeled()
    labels = labeled.pop("labels")
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    expected = model(**labeled, labels=labels).loss
    others = labels.roll(1, dims=1)
    assert abs(model(**labeled, labels=others).loss - expected) > 1e-3
    assert torch.equal(model(**labeled, shift_labels=shifted).loss, expected)
    assert torch.equal(model(**labeled, labels=others, shift_labels=shifted).loss, expected)
    count = (shifted != -100).sum()
    parts = [
        model(**labeled, **given, num_items_in_batch=2 * count).loss
        for given in ({"labels": labels}, {"shift_labels": shifted})
    ]
    torch.testing.assert_close(torch.stack(parts), expected.expand(2) / 2)


@pytest.mark.parametrize("case", [case for case in CASES if case.labels], ids=lambda case: case.name)
@torch.no_grad()
def test_outputs_that_trainers_gather_have_a_row_for_each_cloud(case):
    model = fresh(case)
    ignored = getattr(model.config, "keys_to_ignore_at_inference", ["past_key_values"])
    for name, value in model(**case.labeled(4)).items():
        assert name in ("loss", CACHE, *ignored) or len(value) == 4, name


@pytest.mark.slow
@over_cases
def test_return_dict_false_returns_a_tuple(case):
    model = fresh(case)
    inputs = case.batch() if case.labels is None else case.labeled()
    whole = model(**inputs)
    made = model(**inputs, return_dict=False)
    assert isinstance(whole, ModelOutput) and isinstance(made, tuple)
    _assert_alike(made, whole.to_tuple())


@pytest.mark.slow
@over_one_of_each(5)
def test_the_config_chooses_tuples(case):
    model = fresh(case)
    inputs = case.batch() if case.labels is None else case.labeled()
    whole = model(**inputs)
    model.config.return_dict = False
    with check_refusal("return_dict", case.name):
        _assert_alike(model(**inputs), whole.to_tuple())
        assert isinstance(model(**inputs, return_dict=True), ModelOutput)


def _assert_alike(ours, theirs) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, (tuple, list)):
        for one, other in zip(ours, theirs, strict=True):
            _assert_alike(one, other)


@pytest.mark.slow
@over_cases
def test_an_unknown_keyword_is_named(case):
    with raises(TypeError, naming="labls"):
        fresh(case)(**case.batch(), labls=torch.zeros(3))


def own_names(model: torch.nn.Module) -> list[str]:
    """Return the names of a model's own tensors, those in no child."""
    return [name for own in (model.named_parameters, model.named_buffers) for name, _ in own(recurse=False)]


@pytest.mark.slow
@crossed(2, "where", ("cpu", "disk", "map"))
def test_offloaded_weights_give_the_same_output(case, where, tmp_path):
    model = fresh(case)
    cpu = torch.device("cpu")
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device=cpu)
    elif where == "disk":
        accelerate.disk_offload(model, str(tmp_path), execution_device=cpu)
    else:
        # Every other child on disk.
        children = [name for name, child in model.named_children() if list(child.parameters())]
        places = {name: "disk" if number % 2 else "cpu" for number, name in enumerate(children)}
        places |= {name: "cpu" for name in own_names(model)}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)
    assert where == "map" or all(parameter.is_meta for parameter in model.parameters())
    assert relative_difference(answer(case, model), expected_of(case)) < 1e-4
    assert where == "map" or all(parameter.is_meta for parameter in model.parameters())


# The pretraining of ACT has a frozen encoder inside a model inside.
_OFFLOADED = CASES if ALL_PAIRS else [*_FIRST, *(case for case in CASES if case.name == "ActForPreTraining")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "share"), by_turns(_OFFLOADED, (0.4, 0.8)), ids=lambda value: getattr(value, "name", None)
)
def test_what_memory_does_not_hold_is_left_on_disk(case, share, saved, tmp_path):
    memory = {"cpu": int(share * sum(parameter.nbytes for parameter in built(case.name)[0].parameters()))}
    given = {"device_map": "auto", "max_memory": memory, "offload_folder": str(tmp_path)}
    opened = case.model_class.from_pretrained(saved(case), **given)
    held = [parameter for parameter in opened.parameters() if not parameter.is_meta]
    assert "disk" in opened.hf_device_map.values() and sum(each.nbytes for each in held) <= memory["cpu"]
    assert relative_difference(answer(case, opened), expected_of(case)) < 1e-4


@pytest.mark.slow
@over_one_of_each(6)
def test_a_copy_is_equal_and_independent(case):
    model = fresh(case)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(answer(case, twin), expected_of(case))


@pytest.mark.slow
@over_cases
def test_outputs_do_not_depend_on_the_rest_of_the_batch(case):
    model = fresh(case)
    batch = case.batch()
    for row in (0, 2):
        own = {
            name: value[row : row + 1]
            if isinstance(value, torch.Tensor) and len(value.shape) and name not in ("text_embeds",)
            else value
            for name, value in batch.items()
        }
        with torch.no_grad():
            alone = case.answer_of(model(**own))
        assert relative_difference(alone, expected_of(case)[row : row + 1]) < 1e-4


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@over_cases
def test_a_saved_config_is_equal(case, tmp_path):
    config = built(case.name)[0].config
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(config)
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()


_NORMED = [case for case in _FIRST if "layer_norm_eps" in case.model_class.config_class.__dataclass_fields__]


@pytest.mark.parametrize("case", _NORMED, ids=lambda case: case.name)
def test_every_norm_has_the_eps_of_the_config(case):
    model = case.build(layer_norm_eps=0.25)
    eps = {name: part.eps for name, part in model.named_modules() if isinstance(part, torch.nn.LayerNorm)}
    # The norm of patches has an eps of its own.
    patches = {"embeddings.norm": model.config.patch_norm_eps} if hasattr(model.config, "patch_norm_eps") else {}
    assert eps and eps == dict.fromkeys(eps, 0.25) | patches


@pytest.mark.slow
@over_cases
def test_weights_share_memory_only_where_they_are_tied(case):
    model = fresh(case)
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel():
            other = seen.setdefault(tensor.data_ptr(), name)
            assert other == name or {other, name} & set(model.all_tied_weights_keys), f"{name} is {other}"
    if getattr(model.config, "tie_word_embeddings", False) and model.get_output_embeddings() is not None:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.slow
@over_cases
def test_the_vocabulary_of_language_models_can_be_resized(case):
    model = fresh(case)
    with check_refusal("resize_token_embeddings", case.name) as is_supported:
        model.resize_token_embeddings(30)
    if is_supported:
        assert model.get_input_embeddings().weight.shape[0] == 30
        made = answer(case, model)
        known = made if case.answer != "logits" else made[..., : expected_of(case).shape[-1]]
        assert relative_difference(known, expected_of(case)) < 1e-5


@pytest.mark.parametrize("case", WITH_CLASSES, ids=lambda case: case.name)
def test_a_head_documents_its_own_forward(case):
    model_class, body = case.model_class, body_of(case.model_class)
    assert model_class.forward is not body.forward and "Args:" in (model_class.forward.__doc__ or "")
    assert model_class.forward.__module__.rpartition(".")[2].startswith("modeling_")


@pytest.mark.slow
@over_one_of_each(7, WITH_CLASSES)
def test_other_labels_get_a_new_head_and_keep_other_weights(case, saved):
    more = {"num_labels": 7}
    with pytest.raises((RuntimeError, ValueError), match="(?i)mismatch|size"):
        case.model_class.from_pretrained(saved(case), **more)
    opened = case.model_class.from_pretrained(saved(case), ignore_mismatched_sizes=True, **more)
    assert answer(case, opened).shape[-1] == 7
    ours, theirs = built(case.name)[0].state_dict(), opened.state_dict()
    changed = (
        {name for name, tensor in ours.items() if not torch.equal(theirs[name], tensor)}
        if (ours.keys() == theirs.keys()) and all(ours[n].shape == theirs[n].shape for n in ours)
        else {
            name
            for name, tensor in ours.items()
            if tensor.shape != theirs[name].shape or not torch.equal(theirs[name], tensor)
        }
    )
    assert changed == {name for name in ours if name.startswith(f"{case.last_layer}.")}


@pytest.mark.slow
@pytest.mark.parametrize("case", WITH_HEAD, ids=lambda case: case.name)
def test_weights_load_with_and_without_a_head(case, saved):
    model = built(case.name)[0]
    prefix = case.model_class.base_model_prefix
    base_class = body_of(case.model_class)
    assert type(getattr(model, prefix)) is base_class
    base, report = base_class.from_pretrained(saved(case), output_loading_info=True)
    assert not report["missing_keys"]
    own = getattr(model, prefix).state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in base.state_dict().items())


@pytest.mark.slow
@over_one_of_each(8)
def test_neftune_noise_affects_training_only(case):
    model = fresh(case)
    handle = activate_neftune(model, 5.0)
    assert torch.equal(answer(case, model), expected_of(case))
    plain = fresh(case).train()
    model.train()
    with torch.no_grad():
        torch.manual_seed(0)
        without = case.answer_of(plain(**case.batch()))
        torch.manual_seed(0)
        noisy = case.answer_of(model(**case.batch()))
    assert relative_difference(noisy, without) > 1e-2
    handle.remove()


@pytest.mark.slow
@over_one_of_each(9)
def test_inputs_of_frozen_models_can_require_gradients(case):
    model = fresh(case).requires_grad_(False)
    seen = []
    model.enable_input_require_grads()
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    assert case.answer_of(model(**case.batch())).requires_grad
    # A student of Point-BERT reads mixed clouds, too.
    assert set(seen) == {True}
    model.disable_input_require_grads()
    assert not case.answer_of(model(**case.batch())).requires_grad
