"""The study of adapters: what its methods train, and a run in a process of its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from studies import adapter_methods, adapters

TINY = {"num_tokens": 8, "tokenizer_neighbors": 4, "tokenizer_width": 8, "head_widths": [8]}
SHARED = ("point_tokenizer", "class_token", "output_norm", "classifier")


def tiny_run(method, encoder, **changes):
    run = adapters.Run(method, 0, 1e-3, False, "shapes", encoder, TINY, {"max_steps": 1})
    return replace(run, **changes)


def trained_parts(method, encoder):
    model = adapter_methods.build_adapted(method, 0, ["a", "b"], encoder, TINY)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("method", "mark"),
    [
        ("bitfit", "bitfit_bias"),
        ("ia3", "ia3_l"),
        ("prompt", "prompt_tokens_embedding"),
        ("lora", "lora_"),
        ("side", "side_tuning_"),
        ("bottleneck", "guided_adapter_"),
        ("guided", "guided_adapter_"),
        ("full", ".encoder."),
        ("head", None),
    ],
)
def test_methods_differ_only_in_what_they_train_inside_the_encoder(tiny_encoder, method, mark):
    trained = trained_parts(method, tiny_encoder)
    around = {name for name in trained if ".encoder." not in name}
    plain = {name.partition("base_model.model.")[2] or name for name in around}
    plain = {name.replace(".modules_to_save.default", "") for name in plain}
    assert plain == trained_parts("head", tiny_encoder)
    assert {name.removeprefix("any2point.").partition(".")[0] for name in plain} == set(SHARED)
    inside = trained - around
    assert bool(inside) == (mark is not None) and all(mark in name for name in inside)


def test_ablations_change_one_setting_each(tiny_encoder):
    build = adapter_methods.build_adapted

    def made(name):
        return build(name, 0, ["a", "b"], tiny_encoder, TINY).get_base_model()

    guided = made("guided")
    for name, field, value in (
        ("no_projection", "token_places", "order"),
        ("random_positions", "token_places", "random"),
        ("views_2", "num_views", 2),
    ):
        changed = made(name).config.to_diff_dict()
        expected = guided.config.to_diff_dict()
        assert changed.pop(field) == value and expected.pop(field, None) != value
        assert changed == expected
    weight = "any2point.encoder.encoder.layer.0.base_layer.output.dense.weight"
    assert not torch.equal(made("random_encoder").get_parameter(weight), guided.get_parameter(weight))
    assert torch.equal(made("no_guidance").get_parameter(weight), guided.get_parameter(weight))


def test_run_is_measured_in_its_own_process(tiny_encoder):
    run = tiny_run("lora", tiny_encoder)
    found = adapters.in_fresh_process(run)
    assert found["train_rows"] == 433 and found["rows"] == 141, "a new process loads the embedded shapes"
    assert 0 <= found["accuracy"] <= 1 and found["loss"] > 0
    assert found["trained_parameters"] > found["encoder_parameters"] > 0
    assert found["peak_memory"] > found["training_memory"] > 0
    assert found["step_cpu_seconds"] > 0 and found["step_seconds"] > 0


def found(run):
    """Invented results: losses with 5e-3 as best learning rate, accuracies by seed."""
    keys = ("step_seconds", "step_cpu_seconds", "seconds", "cpu_seconds", "mean_class_accuracy", "training_memory")
    loss = abs(np.log10(run.encoder_learning_rate) - np.log10(5e-3))
    sizes = {"trained_parameters": 300_000, "encoder_parameters": 1_000, "saved_activations": 5e6}
    return {key: 0.5 for key in keys} | sizes | {
        "accuracy": 0.7 + 0.01 * run.seed, "loss": loss, "peak_memory": 6e8, "stored_bytes": 2_500_000,
    }  # fmt: skip
