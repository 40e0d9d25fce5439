"""Small settings, random models and small data for dry runs of published tables: the same programs, in seconds.

A dry run keeps what a recipe says about the method, and replaces what takes time or has to be fetched: data,
pretrained models, sizes and the number of steps.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

import hf_any3d  # noqa: F401  registers models
from examples.repeat.published_tables import CHAT, PICTURES, QUESTIONS, WEIGHTS, Step
from examples.shapes_chat.conversations import write_tree
from hf_any3d.data import load_point_dataset
from hf_any3d.modeling.act import ActConfig, ActForPartSegmentation, ActModel
from hf_any3d.modeling.dgcnn import DgcnnConfig, DgcnnForSemanticSegmentation
from hf_any3d.modeling.encoders import build_encoder, composite_checkpoints
from hf_any3d.modeling.pointnet import PointNetConfig, PointNetForPointCloudClassification
from hf_any3d.modeling.recon import ReconModel
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.recipes import merge
from hf_any3d.training.segmentation_rows import parts_of_categories
from hf_any3d.utils.atomic_files import write_json

FEW_SHOT: Mapping[str, Any] = {"way": 2, "shot": 2, "test_per_class": 2}
FOLDS = 2

# Of every training program.
_TRAINING: Mapping[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_train_samples": 8,
    "max_eval_samples": 4,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "logging_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "use_cpu": True,
    "fp16": False,
}
# About the files of a dataset, or numbers of points and steps that small data do not have.
_LEFT_OUT = (
    "dataset_options",
    "train_splits",
    "augment",
    "augment_whole",
    "vote_augment",
    "output_dir",
    "step_cosine",
    "class_weighting",
)
_PATCHES: Mapping[str, Any] = {"num_groups": 8, "group_size": 8}
_TRANSFORMER: Mapping[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_AUTOENCODER: Mapping[str, Any] = {
    **_PATCHES,
    "hidden_size": 16,
    "num_codes": 16,
    "graph_input_width": 16,
    "graph_widths": [16, 16],
    "coarse_width": 16,
    "folding_width": 16,
}
_ROOMS: Mapping[str, Any] = {"train_rooms": 4, "validation_rooms": 2, "test_rooms": 2, "num_points": 1024}
_OBJECTS: Mapping[str, Any] = {"train_objects": 8, "validation_objects": 4, "test_objects": 4, "num_points": 256}
_JUDGED: Mapping[str, Mapping[str, Any]] = {"shapes": {}, "parts": _OBJECTS, "rooms": _ROOMS}
"""Small data on which random models are evaluated in place of the authors' weights, with their options."""

# Sizes of random encoders, by the names that tables give them.
_ENCODERS = {
    "openai/clip-vit-large-patch14": "clip",
    "openai/clip-vit-base-patch16": "clip",
    "facebook/dinov2-base": "dinov2",
    "outputs/imagebind_audio": "imagebind_audio",
    "google-bert/bert-base-uncased": "bert",
    "FacebookAI/roberta-base": "roberta",
    "google/vit-base-patch16-384": "vit",
    "facebook/deit-base-distilled-patch16-384": "deit",
    "facebook/vit-mae-base": "vit_mae",
    "MIT/ast-finetuned-audioset-10-10-0.4593": "audio-spectrogram-transformer",
    "openai/whisper-small": "whisper",
}
_WIDTHS: Mapping[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_TEXT: Mapping[str, Any] = {
    "vocab_size": 30,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_IMAGE: Mapping[str, Any] = {"image_size": 64, "patch_size": 16}
_SOUND: Mapping[str, Any] = {"num_mel_bins": 36}
_OWN_SIZES: Mapping[str, Mapping[str, Any]] = {
    "bert": _TEXT,
    "roberta": _TEXT,
    "clip_text_model": _TEXT,
    "clip_vision_model": _IMAGE,
    "vit": _IMAGE,
    "deit": _IMAGE,
    "vit_mae": {**_IMAGE, "mask_ratio": 0.0},
    "dinov2": _IMAGE,
    "imagebind_audio": {**_SOUND, "num_frames": 56},
    "audio-spectrogram-transformer": {**_SOUND, "max_length": 56, "patch_size": 16},
    "whisper": {
        "d_model": 48,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "vocab_size": 30,
        "max_source_positions": 40,
        "max_target_positions": 8,
        "num_mel_bins": 8,
        **{f"{name}_token_id": number for name, number in (("pad", 1), ("bos", 0), ("eos", 2))},
        "decoder_start_token_id": 0,
    },
}


class DryRun:
    """Small settings for the steps of a table, with random models in a folder.

    Args:
        folder: Folder for models and settings; made when they are needed.
    """

    folds = FOLDS
    few_shot = FEW_SHOT

    def __init__(self, folder: Path):
        self.folder = folder

    def write_settings(self, step: Step, settings: Mapping[str, Any], before: Path | None) -> Path:
        """Write small settings in place of those of a recipe; `before` is the folder of the step before, if any."""
        small = self.settings_of(step.program, settings)
        if before is not None and step.start is not None:
            small.pop(step.start, None)
        text = json.dumps(small, sort_keys=True)
        return write_json(self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json", small)

    def settings_of(self, program: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return small settings of a program."""
        kept = {name: value for name, value in settings.items() if name not in _LEFT_OUT}
        training = _TRAINING if program.endswith(".py") else {}
        small = merge({**kept, **training}, _SMALL[program](kept))
        if "peft" in small:
            small["peft_config"] = merge(small.get("peft_config", {}), _small_adapter(small))
        for name in ("encoder_name_or_path", "teacher"):
            if small.get(name) not in (None, "none"):
                small[name] = self.encoder(small[name])
        for name in ("model_name_or_path", "point_encoder"):
            if program not in (CHAT, WEIGHTS) and small.get(name):
                small[name] = self.point_transformer(small[name])
        if program == WEIGHTS:
            small["model_name_or_path"] = self.judged_model(small["dataset_name"])
        if program == CHAT and small["stage"] == 1:
            small.pop("model_name_or_path", None)
            small |= self.chat_parts()
        if program in (CHAT, QUESTIONS):
            small["data_dir"] = str(self.conversations())
        return small

    def encoder(self, name: str) -> str:
        """Return the folder of a random encoder of the architecture of a published one."""
        model_type = _ENCODERS[name]
        folder = self.folder / model_type.replace("-", "_")
        if not folder.is_dir():
            torch.manual_seed(0)
            if model_type in composite_checkpoints():
                towers = {
                    f"{tower}_config": _config(f"{model_type}_{tower}_model").to_dict()
                    for tower in composite_checkpoints()[model_type]
                }
                encoder = AutoModel.from_config(AutoConfig.for_model(model_type, projection_dim=16, **towers))
            else:
                encoder = build_encoder(_config(model_type))
            encoder.save_pretrained(folder)
        return str(folder)

    def point_transformer(self, name: str) -> str:
        """Return the folder of a random point transformer, in place of a pretrained one."""
        model_class = ReconModel if name == "outputs/recon" else ActModel
        folder = self.folder / model_class.config_class.model_type
        if not folder.is_dir():
            torch.manual_seed(0)
            model_class(model_class.config_class(**_PATCHES, **_TRANSFORMER)).save_pretrained(folder)
        return str(folder)

    def judged_model(self, dataset: str) -> str:
        """Return the folder of a random model with the classes of a small dataset, in place of published weights."""
        folder = self.folder / f"judged_{dataset}"
        if folder.is_dir():
            return str(folder)
        torch.manual_seed(0)
        features = load_point_dataset(dataset, split="test", **_JUDGED[dataset]).features
        names = features["label"].names if dataset == "shapes" else features["labels"].feature.names
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
        processor: dict[str, Any] = {}
        if dataset == "shapes":
            model: Any = PointNetForPointCloudClassification(PointNetConfig(**labels))
        elif dataset == "parts":
            sizes = {**_PATCHES, **_TRANSFORMER, "segmentation_layers": [0, 1], "propagation_widths": [16, 16]}
            categories = features["label"].names
            parts = {
                "category_names": categories,
                "category_parts": list(parts_of_categories(names, categories) or ()),
            }
            model = ActForPartSegmentation(ActConfig(**sizes, **parts, **labels))
        else:
            model = DgcnnForSemanticSegmentation(DgcnnConfig(in_channels=6, **labels))
            processor = {"center": "room", "scale": None, "up_axis": "z", "block_size": 2.5}
        model.save_pretrained(folder)
        PointCloudProcessor(num_points=64, **processor).save_pretrained(folder)
        return str(folder)

    def chat_parts(self) -> dict[str, str]:
        """Return the folders of random parts of a MiniGPT-3D."""
        names = {part: self.folder / f"chat_{part}" for part in ("point_encoder", "language_model")}
        if not names["language_model"].is_dir():
            torch.manual_seed(0)
            points = {"in_channels": 6, "patch_pooled_width": 24}
            ActModel(ActConfig(**{**_PATCHES, **_TRANSFORMER, **points})).save_pretrained(names["point_encoder"])
            tokenizer = byte_tokenizer()
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            text = AutoConfig.for_model(
                "llama", **_WIDTHS, vocab_size=len(tokenizer), max_position_embeddings=2048, **ends
            )
            AutoModelForCausalLM.from_config(text).save_pretrained(names["language_model"])
            tokenizer.save_pretrained(names["language_model"])
        return {**{part: str(path) for part, path in names.items()}, "qformer": "none"}

    def conversations(self) -> Path:
        """Return a folder with conversations about some embedded shapes, and two test clouds of ModelNet40."""
        folder = self.folder / "conversations"
        if not folder.is_dir():
            splits = load_point_dataset("shapes")
            write_tree(folder, splits["train"].select(range(6)), splits["test"].select(range(2)))
            clouds = np.random.default_rng(0).normal(size=(2, 8192, 6)).astype(np.float32)
            with (folder / "modelnet40_test_8192pts_fps.dat").open("wb") as file:
                pickle.dump([list(clouds), [np.array([number], np.int32) for number in range(2)]], file)
        return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


def _config(model_type: str) -> Any:
    return AutoConfig.for_model(model_type, **{**_WIDTHS, **_OWN_SIZES[model_type]})


def _small_adapter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a PEFT method in place of those that two layers of eight tokens do not allow."""
    small: dict[str, Any] = {"idpt": {"neighbors": 4, "prompt_layers": [1]}, "ppt": _PATCHES}.get(settings["peft"], {})
    if "layers_to_transform" in settings.get("peft_config", {}):
        return {**small, "layers_to_transform": [1]}
    return small


def _classification(settings: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {"dataset_name": "shapes", "num_points": 64}
    if settings["dataset_name"] == "modelnet40_fewshot":
        small |= {"max_train_samples": None, "max_eval_samples": None}  # rows are drawn from all
    if "model_name_or_path" in settings:
        return {**small, "model_config": _PATCHES}
    tokens = {"num_tokens": 8, "tokenizer_neighbors": 4, "tokenizer_blocks": [1, 1, 1], "head_widths": [16]}
    return {**small, "model_config": tokens}


def _segmentation(settings: Mapping[str, Any]) -> dict[str, Any]:
    name, options = ("rooms", _ROOMS) if settings["dataset_name"] == "s3dis" else ("parts", _OBJECTS)
    layers = {"segmentation_layers": [0, 1], "propagation_widths": [16, 16]}
    blocks = {"block_size": 2.5, "min_block_points": 1, "scene_votes": 1} if name == "rooms" else {}
    small = {"dataset_name": name, "dataset_options": options, "num_points": 64, **blocks}
    return {**small, "model_config": {**_PATCHES, **layers}}


def _detection(settings: Mapping[str, Any]) -> dict[str, Any]:
    rooms = {**_ROOMS, "headings": settings["model_config"]["num_heading_bins"] > 1}
    sizes = {"decoder_layers": 2, "num_queries": 16, "num_tokens": 64}
    on_encoder = {"point_encoder_config": _PATCHES} if "point_encoder" in settings else {}
    return on_encoder | {
        "dataset_name": "rooms_with_boxes",
        "dataset_options": rooms,
        "num_points": 256,
        "model_config": sizes,
    }


def _autoencoder(settings: Mapping[str, Any]) -> dict[str, Any]:
    prompts = min(2, settings.get("model_config", {}).get("num_prompts", 0))
    sizes = {**_AUTOENCODER, "num_prompts": prompts}
    return {
        "dataset_name": "shapes",
        "num_points": 64,
        "pictured_clouds": min(2, settings.get("pictured_clouds", 0)),
        "model_config": sizes,
    }


def _pretraining(settings: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {"dataset_name": "shapes", "num_points": 64}
    if settings.get("probe_every"):
        small |= {"probe_every": 1, "probe_dataset": "shapes"}
    student = {**_TRANSFORMER, "class_token_layer": 1}
    decoder = {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return {**small, "model_config": {**student, **decoder}}


def _chat(settings: Mapping[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {
        "dataset_options": {"verify": False},
        "num_points": 64,
        "max_eval_samples": 0,
        "batch_sizes": [2] * len(settings["conversations"]),
    }
    if settings["stage"] == 1:
        qformer = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        small["model_config"] = {
            "point_mlp_widths": [24],
            "qformer_config": {**qformer, "encoder_hidden_size": 24},
            "num_query_tokens": 4,
            "router_width": 8,
            "projector_width": 24,
        }
    return small


def _questions(settings: Mapping[str, Any]) -> dict[str, Any]:
    generation = {"max_new_tokens": 10, "num_beams": 1}
    data = {"dataset_options": {"verify": False}, "max_samples": 2}
    return {**data, "generation": generation, "judges": ["fixed"], "sentence_encoder": None, "simcse": None}


def _weights(settings: Mapping[str, Any]) -> dict[str, Any]:
    name = {"shapenetpart": "parts", "s3dis": "rooms"}.get(settings["dataset_name"], "shapes")
    return {"dataset_name": name, "dataset_options": dict(_JUDGED[name]), "max_samples": 4, "use_cpu": True}


def _picture(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"dataset_name": "shapes"}


_SMALL = {
    "run_point_cloud_classification.py": _classification,
    "run_point_cloud_segmentation.py": _segmentation,
    "run_point_cloud_object_detection.py": _detection,
    "run_act_autoencoder.py": _autoencoder,
    "run_act_pretraining.py": _pretraining,
    CHAT: _chat,
    QUESTIONS: _questions,
    PICTURES: _picture,
    WEIGHTS: _weights,
}
"""What each program gets in place of its recipe's data and sizes."""
