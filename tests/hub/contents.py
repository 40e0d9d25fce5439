"""What model repositories may hold, of our models and of a plain BERT: saved alike, opened by the same doors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from peft import AutoPeftModel, AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

from hf_any3d import (
    ActForPointCloudClassification,
    Any2PointForPointCloudClassification,
    AutoModelForPointCloudClassification,
    trainable_module_names,
)
from tests.tiny_act import tiny_act
from tests.tiny_encoders import clouds, random_encoder, tiny_config, tiny_model, with_large_logits


@dataclass(frozen=True)
class Family:
    """A model and what is done with it."""

    new: Callable[[], Any]
    concrete: Any
    auto: Any
    target: str
    head: tuple[str, ...]
    batch: dict[str, torch.Tensor]

    @torch.no_grad()
    def answer(self, model: Any) -> torch.Tensor:
        """Return what a model answers; hidden states where it has no head."""
        return model.eval()(**self.batch)[0]

    def answers(self, model: Any) -> list[torch.Tensor]:
        """Return what a model answers with its head and without it."""
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        return [self.answer(model), self.answer(inner.base_model)]

    def lora(self, with_head: bool = True, **settings: Any) -> LoraConfig:
        """Return the config of an adapter that has an effect before training."""
        head = list(self.head) if with_head else None
        return LoraConfig(target_modules=[self.target], modules_to_save=head, init_lora_weights=False, **settings)


def _new_bert() -> BertForSequenceClassification:
    torch.manual_seed(5)
    return BertForSequenceClassification(tiny_config("bert", num_labels=3)).eval()


def _new_act() -> ActForPointCloudClassification:
    return with_large_logits(tiny_act(ActForPointCloudClassification, num_labels=3)).eval()


def _new_any2point() -> Any2PointForPointCloudClassification:
    random_encoder(tiny_config("bert")).push_to_hub("me/encoder-of-contents")
    return tiny_model("me/encoder-of-contents", large_logits=True).eval()


FAMILIES = {
    "bert": Family(
        _new_bert,
        BertForSequenceClassification,
        AutoModelForSequenceClassification,
        "query",
        ("classifier",),
        {"input_ids": torch.tensor([[1, 5, 7, 9], [2, 8, 3, 4]])},
    ),
    "act": Family(
        _new_act,
        ActForPointCloudClassification,
        AutoModelForPointCloudClassification,
        "qkv",
        ("classifier",),
        {"points": clouds(2)},
    ),
    "any2point": Family(
        _new_any2point,
        Any2PointForPointCloudClassification,
        AutoModelForPointCloudClassification,
        "query",
        tuple(trainable_module_names(tiny_model())),
        {"points": clouds(2)},
    ),
}


def _changed(model: Any, seed: int = 9) -> Any:
    """Train a little: change what an adapter or a head holds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _adapted(family: Family, base: str, name: str = "default", **settings: Any) -> PeftModel:
    model = get_peft_model(family.concrete.from_pretrained(base), family.lora(**settings), adapter_name=name)
    return _changed(model)


def full(family: Family, base: str, folder: Path) -> Any:
    """A full model."""
    model = _changed(family.concrete.from_pretrained(base))
    model.save_pretrained(folder)
    return model


def adapter(family: Family, base: str, folder: Path) -> Any:
    """An adapter with its head."""
    model = _adapted(family, base)
    model.save_pretrained(folder)
    return model


def headless(family: Family, base: str, folder: Path) -> Any:
    """An adapter without the head, which opens on the model that it names."""
    model = _adapted(family, base, with_head=False)
    model.save_pretrained(folder)
    return model


def added(family: Family, base: str, folder: Path) -> Any:
    """An adapter of the model's own `add_adapter`."""
    model = family.concrete.from_pretrained(base)
    model.add_adapter(family.lora(with_head=False))
    model.save_pretrained(folder)
    return model


def merged(family: Family, base: str, folder: Path, **saving: Any) -> Any:
    """A merged model over its adapter's files."""
    model = _adapted(family, base)
    model.save_pretrained(folder)
    model = model.merge_and_unload()
    model.save_pretrained(folder, **saving)
    return model


def merged_in_shards(family: Family, base: str, folder: Path) -> Any:
    """A merged model in several files over its adapter's."""
    return merged(family, base, folder, max_shard_size="20KB")


def merged_again(family: Family, base: str, folder: Path) -> Any:
    """A model that was opened with its adapter, merged and saved over it."""
    _adapted(family, base).save_pretrained(folder)
    model = PeftModel.from_pretrained(family.concrete.from_pretrained(base), folder).merge_and_unload()
    model.save_pretrained(folder)
    return model


def merged_headless(family: Family, base: str, folder: Path) -> Any:
    """A merged model over an adapter without a head."""
    model = _adapted(family, base, with_head=False)
    model.save_pretrained(folder)
    model = model.merge_and_unload()
    model.save_pretrained(folder)
    return model


def full_over_adapter(family: Family, base: str, folder: Path) -> Any:
    """Another full model over an adapter's files."""
    _adapted(family, base).save_pretrained(folder)
    return full(family, base, folder)


def adapter_over_full(family: Family, base: str, folder: Path) -> Any:
    """An adapter beside the full model that it was trained on."""
    full(family, base, folder)
    model = _adapted(family, str(folder))
    model.save_pretrained(folder)
    return model


def of_task(family: Family, base: str, folder: Path) -> Any:
    """An adapter with a task type, for which PEFT records no class of the base."""
    model = _adapted(family, base, task_type="SEQ_CLS")
    model.save_pretrained(folder)
    return model


def on_new(family: Family, base: str, folder: Path) -> Any:
    """An adapter without a head on a model that was never saved."""
    model = _changed(get_peft_model(family.new(), family.lora(with_head=False)))
    model.save_pretrained(folder)
    return model


def several(family: Family, base: str, folder: Path) -> Any:
    """An adapter called default, and another one in a folder."""
    model = _adapted(family, base)
    model.add_adapter("other", family.lora())
    model.save_pretrained(folder)
    return model


def named(family: Family, base: str, folder: Path) -> Any:
    """An adapter with a name of its own, in a folder of that name."""
    model = _adapted(family, base, "other")
    model.save_pretrained(folder)
    return model


CONTENTS = {
    make.__name__: make
    for make in (
        full,
        adapter,
        headless,
        added,
        merged,
        merged_in_shards,
        merged_again,
        merged_headless,
        full_over_adapter,
        adapter_over_full,
        of_task,
        on_new,
        several,
        named,
    )
}


def _peft(family: Family, base: str, place: str, **hub: Any) -> Any:
    return PeftModel.from_pretrained(family.concrete.from_pretrained(base), place, **hub)


def _loaded(family: Family, base: str, place: str, **hub: Any) -> Any:
    model = family.concrete.from_pretrained(base)
    model.load_adapter(place, adapter_kwargs=hub)
    return model


DOORS: dict[str, Callable[..., Any]] = {
    "AutoModel": lambda family, base, place, **hub: AutoModel.from_pretrained(place, **hub),
    "auto class": lambda family, base, place, **hub: family.auto.from_pretrained(place, **hub),
    "class": lambda family, base, place, **hub: family.concrete.from_pretrained(place, **hub),
    "AutoPeftModel": lambda family, base, place, **hub: AutoPeftModel.from_pretrained(place, **hub),
    "AutoPeftModel of a task": lambda family, base, place, **hub: (
        AutoPeftModelForSequenceClassification.from_pretrained(place, **hub)
    ),
    "PeftModel": _peft,
    "load_adapter": _loaded,
}
# They open what a place holds; the others ask for its adapter.
OF_MODELS = ("AutoModel", "auto class", "class")


def outcome(family: Family, door: str, base: str, place: str, expected: list[torch.Tensor], **hub: Any) -> str:
    """Tell what comes of opening a place: "equal", "different" or the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = DOORS[door](family, base, place, **hub)
        found = family.answer(model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    alike = [answer for answer in expected if answer.shape == found.shape]
    return "equal" if any(torch.allclose(found, answer, atol=1e-4) for answer in alike) else "different"


def _refuse(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("Connection refused", request=request)


@contextlib.contextmanager
def network(how: str) -> Iterator[None]:
    """Use the hub as usual ("online"), let no request through ("unreachable"), or ask for none ("offline")."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", how == "offline")
        if how == "unreachable":
            set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(_refuse)))
            patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between attempts
        try:
            yield
        finally:
            set_client_factory(default_client_factory)
