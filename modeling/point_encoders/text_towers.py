"""Text towers: text encoders aligned with an encoder that reads points; they map texts to unit vectors."""

import copy
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging
from transformers.utils.hub import snapshot_download

from hf_any3d.modeling.encoders import UnsupportedEncoder
from hf_any3d.modeling.pretrained_parts.loading import unused_weights_expected
from hf_any3d.modeling.pretrained_parts.sources import EncoderSource, open_recorded, resolve_encoder

POOLINGS = ("mean", "cls", "max")
# Modules of a sentence encoder that `TextTower` implements.
_SUPPORTED_MODULES = {"transformer", "pooling", "normalize"}
_OLD_POOLING_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
# The training length of most sentence encoders; captions are far shorter.
_SENTENCE_LENGTH = 256
_BATCH_SIZE = 64
_TEXTS_PER_STEP = 512  # of the progress bar


def _text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    # A copy, since it is changed below.
    text = copy.deepcopy(config.text_config)
    # If they differ, the checkpoint's own value is right.
    if getattr(config, "projection_dim", None) is not None:
        text.projection_dim = config.projection_dim
    return text


def _positions(config: PreTrainedConfig) -> int:
    return config.max_position_embeddings


@dataclass(frozen=True)
class TextTowerFamily:
    """Functions that embed texts with the checkpoints of one family."""

    name: str  # for tables and messages
    model_types: tuple[str, ...]
    model_class: str | None = None  # of transformers; None for that of `AutoModel`
    text_config: Callable[[PreTrainedConfig], PreTrainedConfig] = _text_config  # of the checkpoint's
    width: Callable[[PreTrainedConfig], int] = lambda config: config.projection_dim  # of the embeddings
    # Embeddings `(texts, width)` by the model, its inputs and the pooling.
    features: Callable[[PreTrainedModel, Mapping[str, torch.Tensor], str | None], torch.Tensor] = (
        lambda model, inputs, pooling: model(**inputs).text_embeds
    )
    max_length: Callable[[PreTrainedConfig], int] = _positions  # in tokens; longer texts are truncated
    fixed_length: bool = False  # whether texts are always padded to that length, without a mask
    pools_words: bool = False  # whether the checkpoint's files define how words are pooled
    # Class of transformers and path of the linear projection into the common space, by tower.
    projections: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def __reduce__(self) -> tuple:
        # By name, as fields may be lambdas, which cannot be pickled.
        return _registered, (self.model_types[0],)


_FAMILIES: dict[str, TextTowerFamily] = {}


def _registered(model_type: str) -> TextTowerFamily:
    return _FAMILIES[model_type]


TEXT_FOLDER = "text_tower"
"""Folder of a saved model with the files of a text tower that has no public name."""


def register_text_tower(family: TextTowerFamily) -> TextTowerFamily:
    """Register a family under each `model_type` of its checkpoints."""
    for model_type in family.model_types:
        _FAMILIES[model_type] = family
    return family


def text_tower_families() -> dict[str, TextTowerFamily]:
    """Return all `model_type` values of checkpoints with a text tower, in the order of registration."""
    return dict(_FAMILIES)


def find_text_tower(config: PreTrainedConfig) -> TextTowerFamily:
    """Return the family of a checkpoint's config.

    Raises:
        UnsupportedEncoder: No family of text towers has this `model_type`.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedEncoder(
            f"an encoder of model_type '{config.model_type}' has no text tower that is aligned with it, so clouds "
            f"cannot be compared with texts; checkpoints of {', '.join(sorted(_FAMILIES))} have one"
        )
    return family


class TextTower:
    """A frozen text encoder with its tokenizer, which maps texts to unit vectors.

    It is no `nn.Module`, so that a model that uses it neither counts nor saves its weights.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, family: TextTowerFamily, pooling: str | None = None):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.family = family
        self.pooling = pooling
        # Tokenizers without a limit of their own state 10^30.
        self.max_length = min(int(tokenizer.model_max_length), family.max_length(model.config))

    def tokenize(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Tokenize texts to `input_ids` and `attention_mask`, `(texts, tokens)` each."""
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"texts is {texts!r}; expected a list with at least one text")
        for text in texts:
            # Tokenizers refuse lone surrogates, such as bytes of a command line that are no text.
            if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
                raise ValueError(f"texts has {text!r}; expected words of whole characters")
        # A tower that was trained on padded texts without a mask (SigLIP) counts the padding as part of the text.
        padding = "max_length" if self.family.fixed_length else "longest"
        encoded = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded.get("attention_mask", torch.ones_like(encoded["input_ids"])),
        }

    @torch.no_grad()
    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed tokenized texts as float32 unit vectors `(texts, width)` on the device of `input_ids`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        # The tower is not a submodule, so moving the model that uses it leaves the tower where it was.
        self.model.to(input_ids.device)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return nn.functional.normalize(self.family.features(self.model, inputs, self.pooling).float(), dim=-1)

    def embed(self, texts: Sequence[str], device: torch.device | str = "cpu") -> torch.Tensor:
        """Embed texts as unit vectors `(texts, width)`, independently of each other."""
        inputs = self.tokenize(texts)
        parts = zip(*(values.split(_BATCH_SIZE) for values in inputs.values()), strict=True)
        return torch.cat([self.features(ids.to(device), mask.to(device)) for ids, mask in parts])


def text_tower_settings(
    name_or_path: str | os.PathLike, revision: str | None = None, text_pooling: str | None = None
) -> dict[str, Any]:
    """Return `text_width` and `text_pooling`, the fields of a model's config on the text tower of an encoder.

    The pooling of a sentence encoder is `text_pooling`, "mean", "cls" or "max", or by default that in its files.
    """
    source = resolve_encoder(name_or_path, revision)
    config = AutoConfig.from_pretrained(source.path)
    family = find_text_tower(config)
    if text_pooling is not None and (text_pooling not in POOLINGS or not family.pools_words):
        allowed = f"one of {', '.join(map(repr, POOLINGS))}" if family.pools_words else f"None for {family.name}"
        raise ValueError(f"text_pooling={text_pooling!r}; expected {allowed}")
    # Its files say how it was trained, and another pooling gives vectors without meaning.
    if family.pools_words and text_pooling is None:
        text_pooling = sentence_pooling(source)
    return {"text_width": family.width(family.text_config(config)), "text_pooling": text_pooling}


def open_text_tower(config: PreTrainedConfig, part: str = "encoder") -> TextTower:
    """Load the text tower of the `part` of a config, even if the encoder was changed and is stored with the model."""
    source, checkpoint, family = _find_checkpoint(config, part)
    model = _load(source, family.model_class, family.text_config(checkpoint))
    # By commit, cached files are found without the network.
    name = source.path if source.revision is None else source.name
    tokenizer = AutoTokenizer.from_pretrained(name, revision=source.revision or "main")
    # If its files are missing, transformers silently returns a tokenizer that knows no words.
    if tokenizer("chair")["input_ids"] == tokenizer("lamp")["input_ids"]:
        raise ValueError(f"encoder {source.name!r}: its files have no tokenizer, or one that takes chair for lamp")
    return TextTower(model, tokenizer, family, getattr(config, "text_pooling", None))


def own_projection(config: PreTrainedConfig) -> torch.Tensor | None:
    """Return the checkpoint's own projection of the model's encoder into the space of texts, `(text_width, hidden)`.

    For a sentence encoder, this is the identity; None if the checkpoint has none, or one of another shape.
    """
    source, checkpoint, family = _find_checkpoint(config, "encoder")
    hidden = config.encoder_config.hidden_size
    if family.pools_words:
        return torch.eye(hidden)
    if config.encoder_tower not in family.projections:
        return None
    name, path = family.projections[config.encoder_tower]
    tower = family.text_config(checkpoint) if config.encoder_tower == "text" else checkpoint.vision_config
    # As for the text tower: the checkpoint's own value is right.
    if getattr(checkpoint, "projection_dim", None) is not None:
        tower.projection_dim = checkpoint.projection_dim
    weight = _load(source, name, tower).get_submodule(path).weight.detach()
    return weight if weight.shape == (config.text_width, hidden) else None


def embed_texts(tower: TextTower, texts: Sequence[str]) -> np.ndarray:
    """Embed many texts as unit vectors `(texts, width)`, with a progress bar."""
    starts = range(0, len(texts), _TEXTS_PER_STEP)
    bar = logging.tqdm(starts, desc="texts", disable=len(starts) < 2 or None)
    return np.concatenate([tower.embed(texts[start : start + _TEXTS_PER_STEP]).numpy() for start in bar])


def embed_prompts(
    tower: TextTower, prompts: Sequence[Sequence[str]], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Embed labels as unit vectors `(labels, width)`, the mean direction of their texts."""
    vectors = tower.embed([text for own in prompts for text in own], device)
    # (labels, texts of each, width), averaged over the texts.
    return nn.functional.normalize(vectors.unflatten(0, (len(prompts), -1)).mean(dim=1), dim=-1)


def sentence_pooling(source: EncoderSource) -> str:
    """Return the pooling of a sentence encoder, one of `POOLINGS`, from the files of its repository."""
    modules = _read_json(source, "modules.json") or []
    kinds = [str(part.get("type", "")).rsplit(".", 1)[-1].lower() for part in modules]
    unknown = [kind for kind in kinds if kind not in _SUPPORTED_MODULES]
    if unknown:
        raise UnsupportedEncoder(f"{source.name}: its sentences pass a module {unknown[0]!r}")
    folder = next((part["path"] for part, kind in zip(modules, kinds, strict=True) if kind == "pooling"), None)
    settings = _read_json(source, f"{folder or '1_Pooling'}/config.json")
    if settings is None:
        raise UnsupportedEncoder(
            f"{source.name}: its files do not define how it embeds sentences (1_Pooling/config.json); if it was "
            f"trained for this, give text_pooling, one of {', '.join(map(repr, POOLINGS))}"
        )
    # Newer files name the pooling; older ones have a flag for each kind. Those by our names come first.
    named = settings.get("pooling_mode")
    flags = [key for key, on in settings.items() if key.startswith("pooling_mode_") and on]
    others = [key for key in flags if key not in _OLD_POOLING_NAMES]
    if named:
        chosen = [named, *others]
    else:
        chosen = [*(pooling for key, pooling in _OLD_POOLING_NAMES.items() if key in flags), *others]
    # Several poolings are concatenated, which no text tower here does.
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise UnsupportedEncoder(
            f"{source.name}: pools words by {chosen}; expected one of {', '.join(map(repr, POOLINGS))}"
        )
    return chosen[0]


def _read_json(source: EncoderSource, file: str) -> Any:
    if source.revision is None:
        path = Path(source.path) / file
    else:
        cached = cached_file(
            source.name,
            file,
            revision=source.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        path = None if cached is None else Path(cached)
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def store_text_tower(config: PreTrainedConfig, directory: str | os.PathLike, part: str = "encoder") -> None:
    """Store a text tower that has no public name beside a model that is being saved: the files that it came from."""
    # A model without a record of one never had any, and the hub is not asked.
    if part not in (config.parts or {}):
        return
    named = config.part(part).name_or_path
    source = _stored_text_tower(config) if named is None else Path(named)
    if source is not None and source.is_dir() and source.absolute() != Path(directory, TEXT_FOLDER).absolute():
        shutil.copytree(source, Path(directory, TEXT_FOLDER), dirs_exist_ok=True)


def _stored_text_tower(config: PreTrainedConfig) -> Path | None:
    """Return the folder with the text tower of a saved model, which is fetched if need be; None if it has none."""
    name = config.name_or_path
    if not name or os.path.isdir(name):
        folder = Path(name or "", TEXT_FOLDER)
        return folder if name and folder.is_dir() else None
    fetched = snapshot_download(
        name, revision=getattr(config, "_commit_hash", None), allow_patterns=f"{TEXT_FOLDER}/*"
    )
    return Path(fetched, TEXT_FOLDER) if Path(fetched, TEXT_FOLDER).is_dir() else None


def _find_checkpoint(config: PreTrainedConfig, part: str) -> tuple[EncoderSource, PreTrainedConfig, TextTowerFamily]:
    encoder = config.part(part)
    if encoder.name_or_path is None:
        stored = _stored_text_tower(config)
        if stored is None:
            raise ValueError("the config names no encoder, whose text tower is needed; give text_embeds")
        encoder = dataclasses.replace(encoder, name_or_path=os.fspath(stored), revision=None)
    if encoder.stored:  # the checksum is that of the changed encoder
        encoder = dataclasses.replace(encoder, checksum=None)
    source = open_recorded(encoder)
    checkpoint = AutoConfig.from_pretrained(source.path)
    return source, checkpoint, find_text_tower(checkpoint)


def _load(source: EncoderSource, model_class: str | None, config: PreTrainedConfig) -> PreTrainedModel:
    build = AutoModel if model_class is None else getattr(transformers, model_class)
    with unused_weights_expected():  # the other tower
        model, report = build.from_pretrained(
            source.path, config=config, dtype=torch.float32, output_loading_info=True
        )
    # A pooler may be missing, since words are pooled here.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise UnsupportedEncoder(f"{source.name}: the text tower lacks {', '.join(missing[:8])}")
    return model


# The families.


def _pooled_words(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], pooling: str | None) -> torch.Tensor:
    words = model(**inputs).last_hidden_state  # (texts, tokens, hidden)
    mask = inputs["attention_mask"].unsqueeze(-1).to(words.dtype)
    if pooling == "cls":
        return words[:, 0]
    if pooling == "max":
        return words.masked_fill(mask == 0, -torch.inf).amax(dim=1)
    return (words * mask).sum(dim=1) / mask.sum(dim=1)


def _positions_after_padding(config: PreTrainedConfig) -> int:
    # RoBERTa's positions start after the row of its padding.
    return config.max_position_embeddings - config.pad_token_id - 1


register_text_tower(
    TextTowerFamily(
        name="CLIP",
        model_types=("clip",),
        model_class="CLIPTextModelWithProjection",
        projections={
            "text": ("CLIPTextModelWithProjection", "text_projection"),
            "vision": ("CLIPVisionModelWithProjection", "visual_projection"),
        },
    )
)
for name, model_type, model_class in (
    ("SigLIP", "siglip", "SiglipTextModel"),
    ("SigLIP 2", "siglip2", "Siglip2TextModel"),
):
    register_text_tower(
        TextTowerFamily(
            name=name,
            model_types=(model_type,),
            model_class=model_class,
            width=lambda config: config.projection_size,
            # Without a mask, as in training.
            features=lambda model, inputs, pooling: model(input_ids=inputs["input_ids"]).pooler_output,
            fixed_length=True,
            projections={"text": (model_class, "head")},
        )
    )
register_text_tower(
    TextTowerFamily(
        name="CLAP",
        model_types=("clap",),
        model_class="ClapTextModelWithProjection",
        max_length=_positions_after_padding,
    )
)
for model_types, max_length in (
    (("bert", "ernie", "mpnet", "distilbert", "electra", "modernbert", "nomic_bert"), _positions),
    (("roberta", "xlm-roberta", "camembert"), _positions_after_padding),
):
    register_text_tower(
        TextTowerFamily(
            name="sentence encoders",
            model_types=model_types,
            text_config=lambda config: config,
            width=lambda config: config.hidden_size,
            features=_pooled_words,
            # The default argument keeps this turn's function; a closure would read that of the last turn.
            max_length=lambda config, positions=max_length: min(positions(config), _SENTENCE_LENGTH),
            pools_words=True,
        )
    )
