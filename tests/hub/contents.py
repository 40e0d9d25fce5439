"""What model repositories may hold, of our models and of a plain BERT: saved alike, opened by the same doors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import torch
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
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
    auto_peft: Any
    target: str
    head: tuple[str, ...]
    batch: dict[str, torch.Tensor]

    @torch.no_grad()
    def answer(self, model: Any) -> torch.Tensor:
        """Return what a model answers; hidden states where it has no head."""
        return model.eval()(**self.batch)[0]

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
        AutoPeftModel,
        "query",
        ("classifier",),
        {"input_ids": torch.tensor([[1, 5, 7, 9], [2, 8, 3, 4]])},
    ),
    "act": Family(
        _new_act,
        ActForPointCloudClassification,
        AutoModelForPointCloudClassification,
        AutoPeftModel,
        "qkv",
        ("classifier",),
        {"points": clouds(2)},
    ),
    "any2point": Family(
        _new_any2point,
        Any2PointForPointCloudClassification,
        AutoModelForPointCloudClassification,
        AutoPeftModel,
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


def merged(family: Family, base: str, folder: Path) -> Any:
    """A merged model over its adapter's files."""
    model = _adapted(family, base)
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
    for make in (full, adapter, headless, added, merged, full_over_adapter, adapter_over_full, several, named)
}


def _peft(family: Family, base: str, place: str, **hub: Any) -> Any:
    return PeftModel.from_pretrained(family.concrete.from_pretrained(base), place, **hub)


def _loaded(family: Family, base: str, place: str, **hub: Any) -> Any:
    model = family.concrete.from_pretrained(base)
    model.load_adapter(place, adapter_kwargs=hub)
    return model


DOORS: dict[str, Callable[..., Any]] = {
    "AutoModel": lambda family, base, place, **hub: AutoModel.from_pretrained(place, **hub),
    "auto": lambda family, base, place, **hub: family.auto.from_pretrained(place, **hub),
    "concrete": lambda family, base, place, **hub: family.concrete.from_pretrained(place, **hub),
    "auto_peft": lambda family, base, place, **hub: family.auto_peft.from_pretrained(place, **hub),
    "peft": _peft,
    "load_adapter": _loaded,
}


def outcome(family: Family, door: str, base: str, place: str, expected: torch.Tensor, **hub: Any) -> str:
    """Tell what comes of opening a place: "equal", "different" or the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = DOORS[door](family, base, place, **hub)
        found = family.answer(model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if found.shape != expected.shape:
        return "opened"
    return "equal" if torch.allclose(found, expected, atol=1e-4) else "different"


def _refuse(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("Connection refused", request=request)


@contextlib.contextmanager
def network(how: str) -> Iterator[None]:
    """Use the hub as usual ("online"), let no request through ("unreachable"), or ask for none ("offline")."""
    if how == "unreachable":
        set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(_refuse)))
    constants.HF_HUB_OFFLINE = how == "offline"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        set_client_factory(default_client_factory)
