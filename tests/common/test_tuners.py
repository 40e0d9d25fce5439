"""PEFT's common tests, for this package's methods and stock methods on every registered model class.

Outputs of the tiny models are of order one, and all comparisons are in standard deviations of the outputs.
"""

import copy
import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModel,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError
from hf_any3d.modeling.pretrained_parts.tensors import own_modules
from tests.common.built import over_one_of_each
from tests.common.models import CASES, Case, case_of, first_of_configs
from tests.common.refusals import check_refusal, feature, refusal_of
from tests.common.tuners import (
    ADAPTED,
    ALL,
    METHODS,
    OWN,
    adapted,
    answer_of,
    assert_apart,
    assert_same,
    base_of,
    config_of,
    name_of,
    registered_here,
    step,
    trained,
)
from tests.errors import raises
from tests.turns import ALL_PAIRS, by_turns, some

ADAPT = feature("adapt", "train an adapter with its default config, save it and load it")
OPEN = feature("open", "load the directory of an adapter as a model")
MERGE = feature("merge", "merge an adapter into the weights")
TASK = feature("task_type", "use the PEFT model of a task type")
PROMPTS = feature("prompts", "learn embeddings that are prepended to words")
MIXED = feature("adapter_names", "run different adapters on the rows of a batch")

SEQUENCE = [case_of(Any2PointForPointCloudClassification), case_of(ActForPointCloudClassification)]
"""Models for tests that depend mostly on the method: with a frozen encoder, and a point transformer."""
WITH_WORDS = [case for case in ADAPTED if "input_ids" in case.batch()]


def pair(case: Case, method: str) -> str:
    """Return the subject for `check_refusal`."""
    return f"{method} on {case.name}"


def fits(case: Case, method: str) -> bool:
    """Return whether a method can adapt a model."""
    return refusal_of(ADAPT, pair(case, method)) is None


def first_of(method: str) -> Case:
    """Return the first of these models that a method can adapt."""
    return next(case for case in SEQUENCE if fits(case, method))


def in_turns(*methods: str) -> pytest.MarkDecorator:
    """Run a test with each of the methods on one of these models that it can adapt, by turns."""
    turns = [
        (method, case if fits(case, method) else first_of(method)) for method, case in by_turns(methods, SEQUENCE)
    ]
    return pytest.mark.parametrize(("method", "case"), dict.fromkeys(turns), ids=name_of)


# Others of PEFT differ in its code alone; the test of pairs has them too.
LIKE_LORA = ("DORA", "IA3", "VERA", "BOFT", "OFT")
BY_OWN_AND_LORA = pytest.mark.parametrize("method", [*OWN, "LORA"])
BY_ALL = pytest.mark.parametrize("method", some(METHODS, left_out=LIKE_LORA))
OWN_AND_LORA_BY_TURNS = in_turns(*OWN, "LORA")
ALL_BY_TURNS = in_turns(*some(METHODS, left_out=LIKE_LORA))


def crossed_with(name: str, values: Sequence[Any]) -> pytest.MarkDecorator:
    """Run a test with our methods and LoRA, each with a value on one of the models that it can adapt, by turns."""
    crossed = []
    for number, (method, value) in enumerate(by_turns((*OWN, "LORA"), values)):
        case = SEQUENCE[(number + number // 2) % 2]
        crossed.append((case if fits(case, method) else first_of(method), method, value))
    ids = [f"{case.name}-{method}-{value}" for case, method, value in crossed]
    return pytest.mark.parametrize(("case", "method", name), crossed, ids=ids)


TASK_TYPES = ["FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM"]


def tried_pairs() -> list[tuple[Case, str]]:
    """Return the models and methods that fit and are tried together: all of them with HF_ANY3D_ALL_PAIRS=1.

    Otherwise our methods and two of PEFT on the models above, its others on one of them, and on any other class one by
    turns: methods depend only on the layers, which models of the same config have in common.
    """
    chosen: list[tuple[Case, str]] = []
    few = some(METHODS, left_out=LIKE_LORA)
    # A directory of an adapter would lack what is pretrained in full.
    adapted_alone = [case for case in ADAPTED if getattr(case.model_class, "takes_adapters", True)]
    for number, case in enumerate(adapted_alone):
        fitting = [method for method in METHODS if fits(case, method)]
        if not ALL_PAIRS and case in SEQUENCE:
            turn = SEQUENCE.index(case)
            fitting = [method for method in fitting if method in few or LIKE_LORA.index(method) % 2 == turn]
        elif not ALL_PAIRS:
            fitting = [method for method in fitting if method in few]
            fitting = [fitting[3 * number % len(fitting)]]
        chosen += [(case, method) for method in fitting]
    return chosen


PAIRS = tried_pairs()
# Which methods a model refuses follows from its config.
_ASKED = ALL if ALL_PAIRS else [*SEQUENCE, *first_of_configs(ALL), *(case for case in ALL if case not in CASES)]
REFUSED = {case: [method for method in METHODS if not fits(case, method)] for case in _ASKED}
# All task types on a model of points and one of words, one by turns on a class of each other config.
_WHOLE = [SEQUENCE[0], next(case for case in WITH_WORDS if case.model_class.can_generate())]
_TYPED = ADAPTED if ALL_PAIRS else [*_WHOLE, *first_of_configs(ADAPTED)]
TASK_PAIRS = [(case, task_type) for case, task_type in by_turns(ADAPTED, TASK_TYPES, _WHOLE) if case in _TYPED]
# Half of the adapters are loaded in little memory: each method on every other model, and other methods on the others.
_MODELS = list(dict.fromkeys(case for case, _ in PAIRS))
IN_LOW_MEMORY = {both for both in PAIRS if (_MODELS.index(both[0]) + METHODS.index(both[1])) % 2}
# Directories of adapters open as models too: of all methods on the models above, of one method on every other class.
_OPEN = [
    (case, method)
    for case, method in PAIRS
    if method in (*OWN, "LORA") and fits(case, method) and fits(case, "BITFIT")
]
_FIRST = {case: (case, method) for case, method in reversed(_OPEN)}.values()
OPENED = {both for both in _OPEN if ALL_PAIRS or both[0] in SEQUENCE or both in _FIRST}
# By the class or by PEFT's automatic one, by turns.
BY_CLASS, BY_PEFT = ({both for both in PAIRS if ALL_PAIRS or PAIRS.index(both) % 2 == turn} for turn in (0, 1))


def state_of(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return an adapter's tensors under their names without PeftModel."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name.removeprefix("base_model.model."): tensor for name, tensor in state.items()}


def own_names(model: torch.nn.Module) -> list[str]:
    """Return the names of parameters that an adapter added."""
    prefix = model.base_model.prefix
    return [name for name, _ in model.named_parameters() if prefix in name or ".modules_to_save." in name]


@pytest.mark.slow
def test_every_own_method_is_covered():
    assert set(registered_here()) == set(OWN)


@functools.cache
def bare_of(case: Case) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return a base model's output and tensors."""
    base = base_of(case)
    return answer_of(case, base), base.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case, methods in REFUSED.items() if methods], ids=name_of)
def test_methods_that_do_not_fit_are_refused_and_leave_the_model_as_it_was(case):
    base = base_of(case)
    names = list(base.state_dict())
    for method in REFUSED[case]:
        with check_refusal(ADAPT, pair(case, method)):
            get_peft_model(base, config_of(method, base))
        assert list(base.state_dict()) == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this adapter leaves out")
@pytest.mark.parametrize(("case", "method"), PAIRS, ids=[pair(*both) for both in PAIRS])
def test_only_the_adapter_trains_and_its_directory_loads_equal(case, method, tmp_path):
    bare, frozen = bare_of(case)
    model = adapted(case, method)
    own = own_names(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= set(own)
    inside = [name for name in own if ".modules_to_save." not in name]
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in inside}
    step(case, model)
    moved = [name for name, p in model.named_parameters() if name in inside and not torch.equal(p, before[name])]
    assert len(moved) >= 2
    # Base weights are unchanged, including statistics of norms.
    originals = {own.name: own.module for own in own_modules(model.get_base_model())}
    for name, tensor in frozen.items():
        path, _, leaf = name.rpartition(".")
        assert torch.equal(getattr(originals[path], leaf), tensor), name
    expected = answer_of(case, model)
    assert_apart(expected, bare)
    with model.disable_adapter():
        assert_same(answer_of(case, model), bare)
    model.save_pretrained(tmp_path)
    opened = PeftModel.from_pretrained(base_of(case), tmp_path, low_cpu_mem_usage=(case, method) in IN_LOW_MEMORY)
    assert_same(answer_of(case, opened), expected)
    assert not any(tensor.is_meta for tensor in opened.state_dict().values())
    assert not [name for name, p in opened.named_parameters() if p.requires_grad]
    if (case, method) in OPENED & BY_CLASS:
        with check_refusal(OPEN, case.name) as is_supported:
            opened = case.model_class.from_pretrained(tmp_path)
        if is_supported:
            assert_same(answer_of(case, opened), expected)
    if (case, method) in OPENED & BY_PEFT and refusal_of(OPEN, case.name) is None:
        assert_same(answer_of(case, AutoPeftModel.from_pretrained(tmp_path)), expected)


@pytest.mark.slow
@ALL_BY_TURNS
def test_unloading_restores_the_base_model(case, method):
    model = adapted(case, method)
    unloaded = model.unload()
    assert type(unloaded) is case.model_class
    assert not [name for name, module in unloaded.named_modules() if isinstance(module, BaseTunerLayer)]
    assert unloaded.state_dict().keys() == base_of(case).state_dict().keys()
    assert_same(answer_of(case, unloaded), answer_of(case, base_of(case)))


@pytest.mark.slow
@ALL_BY_TURNS
def test_several_adapters_coexist(case, method, tmp_path):
    first, second = trained(case, method, seed=1), trained(case, method, seed=5)
    answers = [answer_of(case, model) for model in (first, second)]
    assert_apart(*answers)
    second.save_pretrained(tmp_path / "second")
    model = first
    model.load_adapter(tmp_path / "second", adapter_name="second")
    assert_same(answer_of(case, model), answers[0])
    for name, expected in (("second", answers[1]), ("default", answers[0])):
        model.set_adapter(name)
        assert_same(answer_of(case, model), expected)
        assert {n for n, p in model.named_parameters() if p.requires_grad} <= {
            n for n in own_names(model) if name in n
        }
    # Only what is asked for is stored.
    model.save_pretrained(tmp_path / "one", selected_adapters=["second"])
    assert [path.name for path in (tmp_path / "one").iterdir() if path.is_dir()] == ["second"]
    assert not (tmp_path / "one" / "adapter_config.json").exists()
    assert_same(answer_of(case, PeftModel.from_pretrained(base_of(case), tmp_path / "one" / "second")), answers[1])
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert not [name for name in model.state_dict() if "second" in name.split(".")]
    assert_same(answer_of(case, model), answers[0])
    model.load_adapter(tmp_path / "second", adapter_name="second")
    model.delete_adapter("default")
    assert model.active_adapters == ["second"]
    assert_same(answer_of(case, model), answers[1])


@pytest.mark.slow
@ALL_BY_TURNS
def test_merging_keeps_the_outputs(case, method):
    model = trained(case, method)
    expected = answer_of(case, model)
    with check_refusal(MERGE, method) as is_supported:
        model.merge_adapter(safe_merge=True)
    if not is_supported:
        with check_refusal(MERGE, method):
            model.merge_and_unload()
        assert_same(answer_of(case, model), expected)
        return
    assert_same(answer_of(case, model), expected, 1e-3)
    model.unmerge_adapter()
    assert_same(answer_of(case, model), expected, 1e-3)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is case.model_class
    assert not [name for name, module in merged.named_modules() if isinstance(module, BaseTunerLayer)]
    assert_same(answer_of(case, merged), expected, 1e-3)


@pytest.mark.slow
@BY_OWN_AND_LORA
def test_one_config_fits_several_models(method):
    shared = OWN[method]() if method in OWN else LoraConfig(target_modules=["fc1", "fc2"])
    kept = copy.deepcopy(shared)
    fitting = [case for case in SEQUENCE if fits(case, method)]
    for case in (*fitting, fitting[0]):
        again, alone = (get_peft_model(base_of(case), config) for config in (shared, copy.deepcopy(kept)))
        assert again.get_nb_trainable_parameters() == alone.get_nb_trainable_parameters()
        assert own_names(again) == own_names(alone)
    if method in OWN:
        written = {"base_model_name_or_path"}  # by PEFT
        assert {key: value for key, value in vars(shared).items() if key not in written} == {
            key: value for key, value in vars(kept).items() if key not in written
        }


@pytest.mark.slow
@OWN_AND_LORA_BY_TURNS
def test_counts_and_status_report_trained_parameters(case, method):
    model = adapted(case, method)
    own = [p for p in model.parameters() if p.requires_grad]
    trains, everything = model.get_nb_trainable_parameters()
    assert trains == sum(p.numel() for p in own) and everything == sum(p.numel() for p in model.parameters())
    status = get_model_status(model)
    assert (status.peft_types, status.trainable_params) == ({"default": method}, trains)
    assert (status.enabled, status.active_adapters, status.merged_adapters) == (True, ["default"], [])
    layers = get_layer_status(model)
    wrapped = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) >= len(wrapped) >= 2
    with model.disable_adapter():
        assert get_model_status(model).enabled is False


@pytest.mark.slow
@crossed_with("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_take_adapters_in_either_precision(case, method, dtype):
    expected = answer_of(case, adapted(case, method))
    for lifted, own in ((True, torch.float32), (False, dtype)):
        base = base_of(case).to(dtype)
        torch.manual_seed(1)
        model = get_peft_model(base, config_of(method, base), autocast_adapter_dtype=lifted)
        prefix = model.base_model.prefix
        assert {p.dtype for name, p in model.named_parameters() if prefix in name} == {own}
        assert_same(answer_of(case, model), expected, 0.25)
        model.train()
        loss = case.loss_of(model)
        loss.backward()
        gradients = [p.grad for name, p in model.named_parameters() if prefix in name and p.requires_grad]
        assert loss.isfinite() and all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.slow
@OWN_AND_LORA_BY_TURNS
def test_adapters_are_injected_by_config_and_by_state(case, method):
    model = trained(case, method)
    expected, state = answer_of(case, model), state_of(model)
    config = copy.deepcopy(model.peft_config["default"])
    for by_state in (None, state):
        base = inject_adapter_in_model(config, base_of(case), state_dict=by_state)
        assert type(base) is case.model_class
        report = set_peft_model_state_dict(base, state)
        assert not report.unexpected_keys
        assert_same(answer_of(case, base), expected)


# The layers of IDPT, PPT and APPT follow from the config: most of them have no tensors.
@pytest.mark.slow
@in_turns(*(method for method in (*OWN, "LORA") if method not in ("IDPT", "PPT", "APPT")))
def test_layers_are_chosen_by_the_state_that_is_injected(case, method):
    if method == "GUIDED_ADAPTER":  # the first layer owns the shared attention
        settings = {"share_attention": False}
    else:
        settings = {}
    state = state_of(trained(case, method, **settings))
    layers = [re.search(r"layers\.(\d+)\.", name) for name in state]
    some = {n: t for (n, t), layer in zip(state.items(), layers, strict=True) if layer and layer.group(1) == "1"}
    base = base_of(case)
    with pytest.warns(RuntimeWarning, match="an inconsistency was discovered"):
        inject_adapter_in_model(config_of(method, base, **settings), base, state_dict=some)
    wrapped = [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    assert wrapped and all(".layers.1" in name for name in wrapped)


@pytest.mark.slow
@OWN_AND_LORA_BY_TURNS
def test_adapter_methods_of_transformers_work(case, method, tmp_path):
    model = trained(case, method)
    expected, bare = answer_of(case, model), answer_of(case, base_of(case))
    model.save_pretrained(tmp_path)
    base = base_of(case)
    base.load_adapter(tmp_path, adapter_name="default")
    assert_same(answer_of(case, base), expected)
    base.disable_adapters()
    assert_same(answer_of(case, base), bare)
    base.enable_adapters()
    assert_same(answer_of(case, base), expected)
    base.add_adapter(config_of(method, base_of(case)), adapter_name="fresh")
    assert base.active_adapters() == ["fresh"]
    base.set_adapter("default")
    assert_same(answer_of(case, base), expected)
    base.delete_adapter("fresh")
    assert list(base.peft_config) == ["default"]


@pytest.mark.slow
@crossed_with("reentrant", [False, True])
def test_recomputed_layers_give_the_same_gradients(case, method, reentrant):
    def gradients(recompute):
        model = adapted(case, method).train()
        if recompute:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        case.loss_of(model).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    inside = [name for name in plain if ".modules_to_save." not in name]
    assert max(float(plain[name].abs().max()) for name in inside) > 1e-3
    for name, gradient in plain.items():
        assert recomputed[name] is not None, name
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@BY_ALL
def test_copies_are_independent(method):
    case = first_of(method)
    model = trained(case, method)
    expected = answer_of(case, model)
    copied = copy.deepcopy(model)
    assert_same(answer_of(case, copied), expected)
    step(case, copied)
    assert_apart(answer_of(case, copied), expected, 1e-3)
    assert_same(answer_of(case, model), expected)


@pytest.mark.slow
@OWN_AND_LORA_BY_TURNS
def test_adapter_of_one_base_is_refused_on_another(case, method, tmp_path):
    trained(case, method).save_pretrained(tmp_path)
    other = base_of(case)
    with torch.no_grad():
        # A norm of a pretrained layer.
        dict(other.named_parameters())[
            next(name for name, p in other.named_parameters() if ".layers.0." in name and p.ndim == 1)
        ].add_(0.1)
    if case.owns_encoder:
        # A changed encoder is recognized by its recorded checksum.
        other.config.encoder_checksum = "sha256:" + 64 * "0"
    with pytest.raises(EncoderMismatchError, match="Other weights would change results"):
        PeftModel.from_pretrained(other, tmp_path)


@pytest.mark.slow
@BY_ALL
def test_one_adapter_runs_for_the_full_batch(method):
    case = first_of(method)
    # PEFT mixes modules that are trained in full within a batch only if they are linear.
    settings = {} if method in OWN else {"modules_to_save": None}
    model = adapted(case, method, **settings | ({"init_lora_weights": False} if method == "LORA" else {}))
    expected = answer_of(case, model)
    with check_refusal(MIXED, method) as is_supported, torch.no_grad():
        rows = model(**case.batch(), adapter_names=["default", "__base__", "default"]).logits
    if is_supported:
        assert_same(rows[[0, 2]], expected[[0, 2]])
        assert_same(rows[[1]], answer_of(case, base_of(case))[[1]])
        # An error leaves nothing behind that later batches would get.
        with raises(ValueError, naming="adapter_names"):
            model(**case.batch(), adapter_names=["default"])
    assert_same(answer_of(case, model), expected)


@pytest.mark.usefixtures("directories_are_names")
@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in (*OWN, "LORA") if fits(SEQUENCE[0], method)])
def test_modules_to_save_are_the_users_choice(method, tmp_path):
    case = SEQUENCE[0]
    chosen = {"modules_to_save": ["classifier"]}
    base = base_of(case)
    config = config_of(method, base, **chosen) if method in OWN else LoraConfig(target_modules=["q_proj"], **chosen)
    model = get_peft_model(base, config)
    step(case, model)
    expected = answer_of(case, model)
    others = [name for name, p in model.named_parameters() if p.requires_grad and model.base_model.prefix not in name]
    assert others and all("classifier.modules_to_save.default" in name for name in others)
    with pytest.warns(UserWarning, match="this adapter leaves out point_tokenizer, class_token, output_norm"):
        model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]
    assert_same(answer_of(case, PeftModel.from_pretrained(base_of(case), tmp_path)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "task_type"), TASK_PAIRS, ids=name_of)
def test_models_of_a_task_type_equal_those_without(case, task_type, tmp_path):
    with check_refusal(TASK, f"{task_type} on {case.name}") as is_supported:
        base = base_of(case)
        torch.manual_seed(1)
        config = config_of("LORA", base, task_type=task_type, init_lora_weights=False)
        model = get_peft_model(base, config).eval()
        found = answer_of(case, model)
    if not is_supported:
        return
    assert_same(found, _answer_without_task_type(case))
    if case.labels is not None:
        assert case.loss_of(model).isfinite()


@functools.cache
def _answer_without_task_type(case: Case) -> torch.Tensor:
    base = base_of(case)
    torch.manual_seed(1)
    return answer_of(case, get_peft_model(base, config_of("LORA", base, init_lora_weights=False)))


@pytest.mark.slow
@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
@over_one_of_each(1, ADAPTED)
def test_prompt_methods_train_or_are_refused(case, method):
    reads_words = "input_ids" in case.batch()
    task_type = "CAUSAL_LM" if reads_words and case.labels is not None else "FEATURE_EXTRACTION"
    base = base_of(case)
    torch.manual_seed(1)
    settings = {"encoder_hidden_size": 8} if method is PromptEncoderConfig else {}
    config = method(task_type=task_type, num_virtual_tokens=3, **settings)
    with check_refusal(PROMPTS, f"{config.peft_type.value} on {case.name}") as is_supported:
        model = get_peft_model(base, config)
        inputs = case.batch()
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        found = case.answer_of(model(**inputs))
    if not is_supported:
        return
    length = case.batch()["input_ids"].shape[1]
    bare = answer_of(case, base_of(case))
    assert_apart(found[:, -length:].detach(), bare)
    found.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert gradients and all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 1e-5 for g in gradients)
    if task_type == "CAUSAL_LM":  # other models lack what PEFT needs here
        with model.disable_adapter(), torch.no_grad():
            assert_same(case.answer_of(model(**inputs)), bare)


WITHOUT_EFFECT = {
    r"^ReconForZeroShot.*\.2\.(attention|mlp)\.": "two queries alone count, which read patches before the last block",
    r"\.pooler\.dense$": "frozen encoders keep a pooler that is not used for point tokens",
    r"\.experts\.router\.": "without a load balancing loss the router has no gradient",
    r"autoencoder\.": "the teacher of pretraining computes targets without gradients",
    r"generator\.": "PointGPT generates patches for a loss that its case lacks",
}


@pytest.mark.slow
@over_one_of_each(2, ADAPTED)
def test_lora_on_all_linear_layers_has_an_effect_in_each(case):
    base = base_of(case)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    case.loss_of(model.train()).backward()
    idle = {
        name.partition(".lora_")[0]
        for name, p in model.named_parameters()
        if ".lora_" in name and (p.grad is None or p.grad.abs().max() == 0)
    }
    unexplained = {name for name in idle if not any(re.search(why, f"{case.name} {name}") for why in WITHOUT_EFFECT)}
    assert not unexplained
    assert len(model.targeted_module_names) > len(idle)
