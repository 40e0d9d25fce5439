"""MiniGPT-3D's files as their authors' programs write them, full-size or small."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from hf_any3d.conversions.minigpt3d.parts import read_qformer
from tests.chat.tiny_tokenizers import character_tokenizer
from tests.hub import LocalHub
from tests.reference.fill import fill

FOLDER = Path(__file__).parents[1] / "reference"
ENCODER, LANGUAGE_MODEL = "pc_encoder.", "llama_model.base_model.model."
_PHI = {"model_type": "phi", "torch_dtype": "float16", "architectures": ["PhiForCausalLM"]}
# Small widths by the pattern of a name. The depth is that of the manifest.
_SMALLER: tuple[tuple[str, dict[int, int]], ...] = (
    (r"pc_encoder\.reduce_dim", {384: 64, 256: 24}),
    (r"pc_encoder\.encoder\.", {128: 8, 256: 24, 512: 48}),
    (r"pc_encoder\.", {384: 64, 1152: 192, 1536: 128}),
    (r"point_2_Qformer_proj\.", {384: 64, 768: 96, 1408: 40}),
    (r"Qformer\.bert\.embeddings\.position_ids", {}),
    (r"Qformer\.|query_tokens|query_expert", {768: 64, 3072: 96, 1408: 40, 32: 6}),
    (r"query_router\.", {768: 128, 256: 20}),
    (r"llama_proj", {768: 64, 4096: 72}),
    (r"llama_model\..*lora", {64: 4}),
)
_TRAINED = {
    1: r"point_2_Qformer_proj\.",
    3: r"point_2_Qformer_proj\.|query_tokens$|llama_proj|.*lora_|Qformer\.bert\.encoder\..*LayerNorm\.weight$"
    r"|llama_model\..*norm\.weight$",
    4: r"query_",
    0: r"llama_proj|llama_model\..*(lora_|norm\.weight$)",
}


class Originals:
    """All files of the end-to-end case.

    Args:
        small: Whether widths are small.
        blocks: Layers of the point encoder that are kept; all if left out.
    """

    def __init__(self, small: bool = True, blocks: int | None = None):
        self.small, self.blocks = small, 1 if small and blocks is None else blocks
        self.manifest = json.loads((FOLDER / "minigpt3d_full.json").read_text())

    @cached_property
    def state(self) -> dict[str, torch.Tensor]:
        """The released program's complete model, without aliases."""
        return {
            name: torch.from_numpy(fill(name, self._size(name, shape), dtype))
            for name, (shape, dtype) in self.manifest["state"].items()
            if not (block := re.search(r"blocks\.(\d+)\.", name)) or self.blocks is None or int(block[1]) < self.blocks
        }

    def point_encoder(self) -> dict[str, Any]:
        """`point_model.pth`."""
        return {"base_model": self._below(ENCODER), "epoch": 250, "metrics": {"acc": 0.5}}

    def blip2(self) -> dict[str, Any]:
        """`blip2_pretrained_flant5xxl.pth`: the Q-Former before any LoRA, and the parts for images and text."""
        state = {name: t for name, t in self.state.items() if name.startswith("Qformer.") and "lora_" not in name}
        state["query_tokens"] = self.blip2_queries
        others = ["ln_vision.weight", "ln_vision.bias", "t5_proj.weight", "t5_proj.bias"]
        others += ["Qformer.cls.predictions.bias", "Qformer.bert.encoder.layer.0.intermediate.dense.bias"]
        return {"model": state | {name: torch.ones(3) for name in others}}

    @cached_property
    def blip2_queries(self) -> torch.Tensor:
        return torch.from_numpy(fill("blip2.query_tokens", self.state["query_tokens"].shape))

    def phi(self, with_norms: bool = False) -> dict[str, torch.Tensor]:
        """Phi-2 in the layout of the authors' folder; `with_norms` adds the norms of the case."""
        own = {name: t for name, t in self._below(LANGUAGE_MODEL).items() if "lora_" not in name}
        return {name: t for name, t in own.items() if with_norms or not re.search(r"(q|k|post)_layernorm", name)}

    def phi_config(self) -> dict[str, Any]:
        return _PHI | self.manifest["constructor"]["llm"] | {"bos_token_id": 1, "eos_token_id": 2}

    def stage(self, number: int) -> dict[str, Any]:
        """A checkpoint of a training stage; 0 is the one that training starts from."""
        trained = {name: tensor for name, tensor in self.state.items() if re.match(_TRAINED[number], name)}
        if number:
            encoder = self._below(ENCODER)
            trained |= {f"point_encoder.{name}": tensor for name, tensor in encoder.items()}
            trained |= {ENCODER + n: t for n, t in encoder.items() if re.search("running|num_batches", n)}
            trained["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
        if number == 4:
            trained["query_expert_dict.0"] = trained["query_tokens"].clone()
        optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]}
        return {"model": trained, "optimizer": optimizer, "config": {"run": {"seed": 42}}, "scaler": {}, "epoch": 2}

    def write(self, directory: Path, *stages: int, with_norms: bool = False) -> dict[str, Path]:
        """Write parts and stages; returns arguments of `convert_minigpt3d`."""
        directory.mkdir(exist_ok=True)
        torch.save(self.point_encoder(), directory / "point_model.pth")
        torch.save(self.blip2(), directory / "blip2.pth")
        write_phi(directory / "Phi_2", self.phi(with_norms), self.phi_config())
        arguments = {
            "point_encoder": directory / "point_model.pth",
            "qformer": directory / "blip2.pth",
            "language_model": directory / "Phi_2",
        }
        for number, option in zip(stages, ("checkpoint", "second_checkpoint"), strict=False):
            arguments[option] = directory / f"stage_{number}.pth"
            torch.save(self.stage(number), arguments[option])
        return arguments

    def publish(self, hub: LocalHub, directory: Path) -> tuple[tuple[str, str], dict[str, Path]]:
        """Commit the files as they are published, BLIP-2's Q-Former in a repository of its own.

        Returns:
            The names of the repositories, and the arguments of `convert_minigpt3d` for the same files.
        """
        names = ("YuanTang96/MiniGPT-3D", "Salesforce/blip2-flan-t5-xxl")
        paths = self.write(directory, 3, 4)
        files = {f"params_weight/Phi_2/{file.name}": file.read_bytes() for file in paths["language_model"].iterdir()}
        files["params_weight/Phi_2/pytorch_model.bin"] = b"the same again, which is not fetched"
        files["params_weight/pc_encoder/point_model.pth"] = paths["point_encoder"].read_bytes()
        for stage, option in ((3, "checkpoint"), (4, "second_checkpoint")):
            file = f"MiniGPT_3D_stage_{stage}"
            files[f"params_weight/{file}/{file}.pth"] = paths[option].read_bytes()
        hub.commit(names[0], files, in_lfs=True)
        blip2 = directory / "blip2"
        read_qformer(paths["qformer"]).save(blip2, torch.float32)
        weights = {"model-1.safetensors": {"vision_model.bias": torch.ones(2)}, "model-2.safetensors": {}}
        weights["model-2.safetensors"] = load_file(blip2 / "model.safetensors")
        index = {"weight_map": {key: file for file, tensors in weights.items() for key in tensors}}
        others = {file: save(tensors) for file, tensors in weights.items()}
        others |= {"model.safetensors.index.json": json.dumps(index).encode()}
        hub.commit(names[1], others | {"config.json": (blip2 / "config.json").read_bytes()}, in_lfs=True)
        return names, paths

    def _below(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.state.items() if name.startswith(prefix)}

    def _size(self, name: str, shape: list[int]) -> list[int]:
        if not self.small:
            return shape
        table = next((sizes for pattern, sizes in _SMALLER if re.match(pattern, name)), {})
        return [table.get(size, size) for size in shape]


def write_phi(directory: Path, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write a directory of Phi, with a toy tokenizer."""
    directory.mkdir()
    save_file(state, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    character_tokenizer().save_pretrained(directory)


def options(arguments: dict[str, Any]) -> list[str]:
    """Convert arguments of a conversion to words of the command line, the files without their roles."""
    settings = {name: value for name, value in arguments.items() if name in ("dtype", "tokenizer", "stage")}
    files = [str(value) for name, value in arguments.items() if name not in settings]
    return [*files, *(str(word) for name, value in settings.items() for word in (f"--{name}", value))]
