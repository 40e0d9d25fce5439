"""The study of adapters: what its methods train, that stored runs are not repeated, and what it writes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Value

from hf_any3d import ActModel, OpenShapeModel, PointTransformerV3Model, Uni3DModel
from studies import adapter_methods, adapter_runs, adapters, earlier_recipe
from studies.tables import read_table
from tests.tiny_act import tiny_act
from tests.tiny_aligned import tiny_aligned
from tests.tiny_ptv3 import tiny_ptv3

TINY = {"num_tokens": 8, "tokenizer_neighbors": 4, "tokenizer_width": 8, "head_widths": [8]}
SHARED = ("point_tokenizer", "class_token", "output_norm", "classifier")


@pytest.fixture
def shapes(monkeypatch):
    """Eight training and four test clouds of two classes, in place of the embedded shapes."""
    generator = np.random.default_rng(0)
    features = Features(
        {"points": Array2D((None, 3), "float32"), "label": ClassLabel(names=["ball", "box"]), "group": Value("int32")}
    )

    def rows(count):
        clouds = generator.normal(size=(count, 32, 3)).astype("float32")
        columns = {"points": list(clouds), "label": [i % 2 for i in range(count)], "group": list(range(count))}
        return Dataset.from_dict(columns, features=features)

    made = DatasetDict(train=rows(8), test=rows(4))
    monkeypatch.setattr(adapter_runs, "load_point_dataset", lambda name: made)
    monkeypatch.setitem(earlier_recipe.TRAINING, "per_device_train_batch_size", 4)
    return made


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


def test_run_is_measured_in_its_own_process(shapes, tiny_encoder):
    run = tiny_run("lora", tiny_encoder)
    found = adapters.in_fresh_process(run)
    assert found["train_rows"] == 433 and found["rows"] == 141, "a new process loads the embedded shapes"
    assert 0 <= found["accuracy"] <= 1 and found["loss"] > 0
    assert found["trained_parameters"] > found["encoder_parameters"] > 0
    assert found["peak_memory"] > found["training_memory"] > 0
    assert found["step_cpu_seconds"] > 0 and found["step_seconds"] > 0


def test_probe_on_cached_features_trains_the_layer_of_the_model(shapes, tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    run = tiny_run("probe", tiny_encoder, encoder_learning_rate=0.5)
    found = adapter_runs.train_and_measure(run)
    assert (found["train_rows"], found["rows"]) == (8, 4) and len(list(tmp_path.rglob("features-*.arrow"))) == 1
    assert 0 < found["saved_activations"] < 10_000 and found["stored_bytes"] > 4 * found["trained_parameters"] > 0


@pytest.fixture(scope="module")
def point_encoders(tmp_path_factory):
    """The directories of pretrained point encoders, by prefix of their weights."""
    directories = {}
    builders = {
        ActModel: tiny_act,
        OpenShapeModel: tiny_aligned,
        PointTransformerV3Model: tiny_ptv3,
        Uni3DModel: tiny_aligned,
    }
    for model_class, build in builders.items():
        directory = tmp_path_factory.mktemp(model_class.base_model_prefix)
        build(model_class).save_pretrained(directory)
        directories[model_class.base_model_prefix] = str(directory)
    return directories


@pytest.mark.parametrize("prefix", ["act", "point_transformer_v3", "uni3d"])
def test_run_on_a_point_encoder_is_in_the_table(shapes, point_encoders, prefix, tmp_path, monkeypatch):
    encoder = point_encoders[prefix]
    work = adapter_runs.train_and_measure
    monkeypatch.setattr(adapters, "in_fresh_process", work)
    options = ["--encoder", encoder, "--output-dir", str(tmp_path), "--methods", "guided", "full", "--seeds", "0"]
    adapters.main([*options, "--max-steps", "1"])
    stored = read_table(tmp_path / "adapters.parquet")
    guided, full = stored["rows"]
    assert stored["settings"]["base"] == encoder and not stored["ablations"]
    assert 0 < guided["encoder_parameters"] < guided["trained_parameters"] < full["trained_parameters"]
    assert guided["stored_bytes"] < full["stored_bytes"]
    assert "four grids in space" in (tmp_path / "adapters.md").read_text()


def found(run):
    """Invented results: losses with 5e-3 as best learning rate, accuracies by seed."""
    keys = ("step_seconds", "step_cpu_seconds", "seconds", "cpu_seconds", "mean_class_accuracy", "training_memory")
    loss = abs(np.log10(run.encoder_learning_rate) - np.log10(5e-3))
    sizes = {"trained_parameters": 300_000, "encoder_parameters": 1_000, "saved_activations": 5e6}
    return {key: 0.5 for key in keys} | sizes | {
        "accuracy": 0.7 + 0.01 * run.seed, "loss": loss, "peak_memory": 6e8, "stored_bytes": 2_500_000,
    }  # fmt: skip


@pytest.fixture
def started(monkeypatch):
    """List of the started runs, which return invented results."""
    done = []
    monkeypatch.setattr(adapters, "in_fresh_process", lambda run: done.append(run) or found(run))
    return done


def test_stored_runs_are_not_repeated_and_the_test_split_selects_nothing(started, tmp_path):
    options = ["--output-dir", str(tmp_path), "--methods", "head", "lora", "--ablations", "no_gate", "--views", "1"]
    options += ["--seeds", "0", "1", "--learning-rates", "5e-4", "5e-3"]
    adapters.main(options)
    searched = [run for run in started if run.on_validation]
    assert {(run.method, run.seed) for run in searched} == {("lora", 0), ("guided", 0)} and len(searched) == 4
    judged = [(run.method, run.seed, run.encoder_learning_rate) for run in started if not run.on_validation]
    expected = ["head", "lora", "no_gate", "views_1"]
    rates = {"head": 2e-3}
    assert judged == [(name, seed, rates.get(name, 5e-3)) for name in expected for seed in (0, 1)]
    started.clear()
    adapters.main(options)
    assert not started
    adapters.main([*options, "--epochs", "4"])
    assert len(started) == 4 + 8
    assert not list(tmp_path.rglob("*.tmp"))


def test_table_has_mean_deviation_and_descriptions(started, tmp_path):
    options = ["--output-dir", str(tmp_path), "--methods", "head", "guided", "--ablations", "no_gate", "--views"]
    adapters.main([*options, "--learning-rates", "5e-4", "5e-3"])
    text = (tmp_path / "adapters.md").read_text()
    assert "| guided adapter | 300,000 | 1,000 | 0.005 | 71.0 ± 1.0 |" in text
    assert "| head only | 300,000 | 1,000 | – | 71.0 ± 1.0 |" in text
    assert text.count("| guided adapter |") == 2, "ablations are compared with the guided adapter"
    assert "- **without gates**: as in the paper" in text
    stored = read_table(tmp_path / "adapters.parquet")
    assert [row["method"] for row in stored["rows"]] == ["head", "guided", "no_gate"]
    assert stored["learning_rates"] == {"head": 2e-3, "guided": 5e-3} and len(stored["search"]) == 2
    assert (tmp_path / "adapters.png").read_bytes()[:4] == b"\x89PNG"
