"""Methods of PEFT on one of our models: what each does, against what its name and its methods' names say.

    python -m studies.peft_methods
    python -m studies.peft_methods OFT "LORA init_lora_weights=pissa"

A tiny point transformer with a head is saved, opened, and adapted by every method that PEFT registers, in linear
layers (norms for LN tuning), with the head trained too. Three large steps train it. Each column is a difference of
scores, in standard deviations of the expected ones, or an error. Rows of several settings of a method are `VARIANTS`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import peft
import torch
import transformers
from peft import PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

from hf_any3d import ActConfig, ActForPointCloudClassification, encoder_linear_pattern

NAMES = {0: "chair", 1: "lamp", 2: "table"}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# Settings without which a method refuses layers of these sizes.
NEEDED: dict[str, dict[str, Any]] = {
    "IA3": {"feedforward_modules": []},
    "BOFT": {"boft_block_size": 2},
    "OFT": {"r": 0, "oft_block_size": 8},
    "ADALORA": {"total_step": 10},
    "VBLORA": {"num_vectors": 8, "vector_length": 8, "topk": 2},
    "FOURIERFT": {"n_frequency": 20},
    "WAVEFT": {"n_frequency": 24},
    "C3A": {"block_size": 8},
    "MISS": {"r": 4},
    "PSOFT": {"r": 8},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [0], "target_modules": ["input_tokens"]},
    "POLY": {"n_tasks": 1, "n_skills": 2, "task_type": "SEQ_CLS"},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1, "target_modules": "attention"},
    "PROMPT_TUNING": {"num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
    "P_TUNING": {"num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
    "PREFIX_TUNING": {"num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
    "CARTRIDGE": {"num_virtual_tokens": 4, "task_type": "SEQ_CLS"},
    "CPT": {"cpt_token_ids": [0, 1, 2, 3], "task_type": "CAUSAL_LM"},
}
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("LORA", {"use_dora": True}),
    ("LORA", {"init_lora_weights": "pissa"}),
    ("LORA", {"init_lora_weights": "pissa_niter_4"}),
    ("LORA", {"init_lora_weights": "olora"}),
    ("LORA", {"bias": "all"}),
    ("MISS", {"init_weights": "bat"}),
    ("OFT", {"use_cayley_neumann": False}),
    ("VERA", {"save_projection": False}),
    ("VBLORA", {"save_only_topk_weights": True}),
)
Measure = Callable[["Trained"], float]


class Trained:
    """A model with an adapter of one method that took three steps, and its scores."""

    def __init__(self, base: str, method: str, settings: dict[str, Any]):
        torch.manual_seed(0)
        self.base = base
        self.points = torch.randn(3, 64, 3)
        self.make = lambda model: config_of(model, method, settings)
        model = self.opened()
        self.before = self.scores(model)
        torch.manual_seed(1)
        self.model = get_peft_model(model, self.make(model))
        self.new = difference(self.scores(self.model), self.before)
        self.step(self.model, 3)
        self.expected = self.scores(self.model)
        self.folder = tempfile.mkdtemp()
        self.model.save_pretrained(self.folder)

    def opened(self, dtype: torch.dtype = torch.float32) -> Any:
        """Open the base model."""
        return ActForPointCloudClassification.from_pretrained(self.base, dtype=dtype)

    @torch.no_grad()
    def scores(self, model: nn.Module) -> torch.Tensor:
        """Return the scores of three clouds, `(3, classes)`."""
        return model.eval()(points=self.points, **self.task_of(model)).logits.float()

    def task_of(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the number of the task of each cloud, for the only method that asks for it."""
        is_poly = isinstance(model, PeftModel) and model.peft_config["default"].peft_type == peft.PeftType.POLY
        return {"task_ids": torch.zeros(3, dtype=torch.long)} if is_poly else {}

    def step(self, model: nn.Module, count: int, size: float = 0.02) -> None:
        """Move every trained number by `size`, `count` times."""
        model.train()
        for _ in range(count):
            model.zero_grad()
            model(points=self.points, labels=torch.arange(3), **self.task_of(model)).loss.backward()
            with torch.no_grad():
                for weight in model.parameters():
                    if weight.requires_grad and weight.grad is not None:
                        weight.sub_(weight.grad.sign() * size)


def config_of(model: nn.Module, method: str, settings: dict[str, Any]) -> PeftConfig:
    """Return the config of a method for the layers of a model."""
    targets: Any = encoder_linear_pattern(model)
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if method == "LN_TUNING":
        targets = [name for name, part in model.named_modules() if isinstance(part, nn.LayerNorm)]
    elif method in ("VERA", "PVERA"):  # layers of one shape
        targets = [name for name, part in linears.items() if part.weight.shape == (24, 24)]
    elif method == "XLORA":  # mixes adapters that are stored
        settings = {"hidden_size": 24, "adapters": {"first": stored_lora(model)}} | settings
    made = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[method]]
    given = {"target_modules": targets, "modules_to_save": ["classifier"]} | NEEDED.get(method, {}) | settings
    # Methods that put prompts before words choose no layers, and some train no head.
    known = {field.name for field in dataclasses.fields(made)}
    return made(**{name: value for name, value in given.items() if name in known})


def stored_lora(model: nn.Module) -> str:
    """Return the folder of a new LoRA adapter for the layers of a model."""
    folder = tempfile.mkdtemp()
    lora = peft.LoraConfig(target_modules=encoder_linear_pattern(model))
    get_peft_model(copy.deepcopy(model), lora).save_pretrained(folder)
    return folder


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of scores, in their standard deviations."""
    return float((found - expected).abs().max() / expected.std())


def loaded(trained: Trained, dtype: torch.dtype = torch.float32) -> float:
    """Compare with the stored adapter on the base as it was saved."""
    model = PeftModel.from_pretrained(trained.opened(dtype), trained.folder)
    return difference(trained.scores(model), trained.expected)


def loaded_by_transformers(trained: Trained) -> float:
    """Compare with the stored adapter, loaded by the model itself."""
    model = trained.opened()
    model.load_adapter(trained.folder)
    return difference(trained.scores(model), trained.expected)


def disabled(trained: Trained) -> float:
    """Compare the base with the model while its adapter is off."""
    with trained.model.disable_adapter():
        return difference(trained.scores(trained.model), trained.before)


def merged(trained: Trained) -> float:
    """Compare with the merged model."""
    return difference(trained.scores(copy.deepcopy(trained.model).merge_and_unload()), trained.expected)


def unmerged(trained: Trained) -> float:
    """Compare with the model after merging and taking it back."""
    model = copy.deepcopy(trained.model)
    model.merge_adapter()
    model.unmerge_adapter()
    return difference(trained.scores(model), trained.expected)


def beside_another(trained: Trained) -> float:
    """Compare after a second adapter was added, trained and left."""
    model = copy.deepcopy(trained.model)
    model.add_adapter("second", trained.make(trained.opened()))
    model.set_adapter("second")
    trained.step(model, 2)
    model.set_adapter("default")
    return difference(trained.scores(model), trained.expected)


@torch.no_grad()
def grown(trained: Trained) -> float:
    """Return the largest ratio of norms of merged and base weights, after random changes of 0.5: 1 for a rotation."""
    model = copy.deepcopy(trained.model)
    for name, weight in model.named_parameters():
        if weight.requires_grad and ".modules_to_save." not in name:
            weight.add_(0.5 * torch.randn_like(weight))
    after = dict(model.merge_and_unload().named_parameters())
    ratios = []
    for name, weight in trained.opened().named_parameters():
        if weight.ndim == 2 and ".blocks." in name:
            ratios.append(float(after[name].norm() / weight.norm()))
    return max(ratios)


COLUMNS: dict[str, Measure] = {
    "new": lambda trained: trained.new,
    "disabled": disabled,
    "loaded": loaded,
    "loaded, base in bfloat16": lambda trained: loaded(trained, torch.bfloat16),
    "load_adapter": loaded_by_transformers,
    "merged": merged,
    "unmerged": unmerged,
    "beside another": beside_another,
    "norms grown": grown,
}


def rows(chosen: list[str]) -> Iterator[list[str]]:
    """Yield the name of each method and what was measured of it."""
    folder = tempfile.mkdtemp()
    torch.manual_seed(0)
    ActForPointCloudClassification(ActConfig(id2label=NAMES, num_groups=8, group_size=8, **SIZES)).save_pretrained(
        folder
    )
    methods = [
        str(kind.value)
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if tuner.__module__.startswith("peft.") and kind in PEFT_TYPE_TO_CONFIG_MAPPING
    ]
    for method, settings in (*((method, {}) for method in methods), *VARIANTS):
        name = " ".join([method, *(f"{key}={value}" for key, value in settings.items())])
        if chosen and name not in chosen:
            continue
        try:
            trained = Trained(folder, method, settings)
        except Exception as error:  # whatever a method refuses the model with
            yield [name, message(error)]
            continue
        cells = [name]
        for measure in COLUMNS.values():
            try:
                cells.append(f"{measure(trained):.1g}")
            except Exception as error:
                cells.append(message(error))
        yield cells


def message(error: Exception) -> str:
    """Return an error for a cell of the table."""
    text = " ".join(str(error).replace("|", "/").split())
    return f"{type(error).__name__}: {text:.80}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="rows of the table; all by default")
    chosen = parser.parse_args().methods
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| " + " | ".join(["method", *COLUMNS]) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for cells in rows(chosen):
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
