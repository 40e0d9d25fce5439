"""Reports of evaluations for tables of several models: one JSON file for each trained model and test split."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType
from transformers import AutoConfig
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.data.catalog import dataset_module
from hf_any3d.data.fingerprints import model_fingerprint
from hf_any3d.model_card.run_report import TEST_CHOOSES, RunReport, package_versions
from hf_any3d.model_card.subject import changed_settings, hub_name
from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.registry import DATASETS, OF_YOUR_FILES

FACTS: dict[str, tuple[tuple[type, ...], str]] = {
    "dataset": ((str,), "the name of a dataset"),
    "encoder": ((str,), "the type of a point encoder, or the name of an encoder of another modality"),
    "method": ((str,), "a PEFT method, or a fine-tuning protocol"),
    "seed": ((int,), "the seed of the training"),
    "random": ((bool,), "true if the encoder had random weights, else false"),
    "selected_on_test": ((bool,), "true if the test split selected the weights, else false"),
}
"""What a table needs besides the figures: types of values, and what they are."""
_MEASURED: dict[str, tuple[tuple[type, ...], str]] = {
    "accuracy": ((float,), "a share"),
    "rows": ((int,), "the number of test clouds"),
    "settings": ((dict,), "settings of the method that are not its defaults"),
    "variant": ((str, type(None)), "the dataset's variant, or null"),
    "model": ((str,), "the checksum of the model's files, or its commit"),
    "versions": ((dict,), "versions of packages"),
}
# Neither a file that is missing nor a hub that cannot be reached is an error.
_IF_THERE: dict[str, Any] = dict.fromkeys(
    ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
)


def known_facts(
    model: str, dataset: str | None, stated: Mapping[str, Any], source: str = "--report-facts"
) -> dict[str, Any]:
    """Collect the facts about a model for its report, from its files and from what is stated.

    The seed, the protocol of a model without an adapter, and what selected the weights are in the metrics.json of its
    training. That an encoder had its pretrained weights is known of one that came from the hub.
    """
    config = AutoConfig.from_pretrained(model)
    adapter = None
    if cached_file(model, ADAPTER_CONFIG_NAME, **_IF_THERE) is not None:
        adapter = PeftConfig.from_pretrained(model)
    file = cached_file(model, "metrics.json", **_IF_THERE)
    run = None if file is None else RunReport.load(file)
    start = {} if run is None else run.start
    # The encoder, and whether its weights were random; None where the config does not say.
    weights = getattr(config, "encoder_weights", None)
    if weights is not None:
        encoder = getattr(config, "encoder_name_or_path", None) or getattr(config, "encoder_trained_from", None)
        is_random = {"pretrained": False, "packaged": False, "random": True}.get(weights)
    else:
        encoder = config.model_type
        base = start.get("model") or getattr(config, "base_name_or_path", None)
        # A directory may hold anything.
        is_on_hub = base is not None and not os.path.exists(base) and hub_name(base) is not None
        is_random = False if is_on_hub else None
    validation = None if run is None else run.data.get("validation")
    facts = {
        "dataset": None if dataset in OF_YOUR_FILES else dataset,
        "encoder": encoder,
        "method": start.get("tuning") if adapter is None else PeftType(adapter.peft_type).value.lower(),
        "seed": None if run is None else run.training.get("seed"),
        "random": is_random,
        # Without a report of the training it is unknown, and not False.
        "selected_on_test": None if validation is None else validation == TEST_CHOOSES,
    }
    for name, value in stated.items():
        types, what = FACTS.get(name, ((), f"some of {', '.join(FACTS)}"))
        # Types have to be the same: True is an int for Python, and no seed.
        if type(value) not in types or facts[name] not in (None, value):
            said = f", as {model} says {facts[name]!r}" if facts.get(name) is not None else ""
            raise ValueError(f"{source} has {name} {value!r}; expected {what}{said}")
        facts[name] = value
    # All at once, so that a second call can state them.
    missing = [name for name in FACTS if facts[name] is None]
    if missing:
        texts = "; ".join(f"{name}: {FACTS[name][1]}" for name in missing)
        raise ValueError(f"{model} does not say {', '.join(missing)}; expected them in {source} ({texts})")
    return facts | {"settings": {} if adapter is None else changed_settings(adapter)}


def evaluation_report(
    model: str,
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    rows: int,
) -> dict[str, Any]:
    """Return the report of a classifier that was evaluated on the whole test split of a dataset."""
    if "test" not in metrics:
        raise ValueError(f"a report is about the split test; evaluated: {', '.join(metrics)}")
    published = _published(facts["dataset"])
    parameters = {} if published is None else inspect.signature(published.load).parameters
    # Without the option, data are of the variant that the loader takes by default.
    variant = options.get("variant", parameters["variant"].default if "variant" in parameters else None)
    report = {**facts, "variant": variant, "rows": rows, **metrics["test"]}
    _check_rows(report)
    config = AutoConfig.from_pretrained(model)
    # The frozen weights, by whichever part of the config has recorded them.
    checksums = {name: getattr(config, f"{name}_checksum", None) for name in ("encoder", "base")}
    return report | {
        "model": model_fingerprint(model),
        "frozen": next((value for value in checksums.values() if value), None),
        "versions": package_versions(),
    }


def read_report(path: Path) -> dict[str, Any]:
    """Read and check a report."""
    with stored_settings(path):
        report = json.loads(path.read_text(encoding="utf-8"))
        for name, (types, what) in {**FACTS, **_MEASURED}.items():
            value = report.get(name)
            # The same types, as no bool may pass for a number; an accuracy above 1 would be one in percent.
            if type(value) not in types or (name == "accuracy" and not 0 <= value <= 1):
                raise ValueError(f"{name}={value!r}; expected {what}")
        _check_rows(report)
    return report


def _check_rows(report: Mapping[str, Any]) -> None:
    """Check the number of test clouds of a dataset of the catalog."""
    published = _published(report["dataset"])
    if published is None:
        return
    variant = report["variant"]
    counts = published.DATASET.expected_counts
    # Without a variant, that of any of them; not all datasets state their counts.
    names = counts if variant is None or not counts else [variant]
    expected = {counts[name]["test"] for name in names if "test" in counts[name]}
    if expected and report["rows"] not in expected:
        name = f"{report['dataset']} {variant}" if variant else report["dataset"]
        numbers = " or ".join(map(str, sorted(expected)))
        raise ValueError(f"rows={report['rows']}; expected {numbers}, the test clouds of {name}")


def _published(dataset: str) -> Any:
    # Loaders of folders and files have no published counts.
    module = dataset_module(dataset) if dataset in DATASETS else None
    return module if hasattr(module, "DATASET") else None
