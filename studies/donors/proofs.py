"""Proofs that the donors still have their training, as Markdown."""

import ctypes
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from PIL import Image
from scipy.signal import resample_poly
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, PreTrainedModel

from studies.donors.checkpoints import SALIENCY_MODEL
from studies.donors.packages import DONORS, open_package

SENTENCES = (
    "Please open the window, it is very warm in here today.",
    "We will meet again tomorrow morning at nine o'clock.",
    "She sold seven old chairs and a round wooden table.",
    "The quick brown fox jumps over the lazy dog.",
)
"""Spoken to Whisper."""
BEGINNING = "A chair is a piece of furniture that"
QUESTION = "What is the difference between a chair and a table?"
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "first.png"
KINDS = {
    "norms": r"(?i)norm.*weight",
    "layer scales": r"layer_scale",
    "biases": r"bias$",
    "positions": r"position",
    "words": r"embed_tokens|word_embeddings",
    "attention": r"attn|attention",
    "feed-forward": r"mlp|fc\d|intermediate|output\.dense",
    "other": "",
}
"""Kinds of weights, and what is in their names, in the order in which they are tried."""


def open_whole(name: str, root: Path) -> tuple[PreTrainedModel, dict]:
    """Open a donor with its head, and return what was missing and unexpected."""
    config = AutoConfig.from_pretrained(root / name)
    model_class = getattr(transformers, config.architectures[0])
    return model_class.from_pretrained(root / name, dtype=torch.float32, output_loading_info=True)


def weights_table(root: Path) -> str:
    """Tabulate mean, deviation and tails of each kind of weights, next to those of a fresh model."""
    lines = ["| donor | kind | tensors | mean | std | fourth moment | fresh mean | std | moment |", "|---" * 9 + "|"]
    for name in DONORS:
        model, _ = open_whole(name, root)
        rows = defaultdict(list)
        for state in (model, type(model)(model.config)):
            kinds = defaultdict(list)
            for key, value in state.named_parameters():
                kind = next(kind for kind, pattern in KINDS.items() if re.search(pattern, key))
                kinds[kind].append(value.detach().flatten())
            for kind, values in kinds.items():
                joined = torch.cat(values)
                # Of each tensor in units of its own deviation: 3 for the normal distribution of fresh weights.
                moment = torch.stack([((v - v.mean()) / v.std()).pow(4).mean() for v in values]).mean()
                rows[kind, len(values)] += [joined.mean(), joined.std(), moment]
        for (kind, count), found in rows.items():
            cells = " | ".join(
                f"{value:.4f}" if place % 3 < 2 else f"{value:.1f}" for place, value in enumerate(found)
            )
            lines.append(f"| {name} | {kind} | {count} | {cells.replace('nan', '–')} |")
    return "\n".join(lines)


def keys_table(root: Path) -> str:
    """Tabulate how many tensors each donor has, and which its class lacks or has no place for."""
    lines = ["| donor | package | class | tensors | missing | unexpected |", "|---" * 6 + "|"]
    for name, donor in DONORS.items():
        model, report = open_whole(name, root)
        counts = [len(list(model.parameters())), len(report["missing_keys"]), len(report["unexpected_keys"])]
        cells = (donor.title, donor.requirement, type(model).__name__, *map(str, counts))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def dinov2_difference(root: Path) -> tuple[float, float]:
    """Return the largest difference of hidden states from the ONNX model's, and the largest hidden state."""
    with open_package(DONORS["dinov2"], root) as archive:
        model = onnx.load_from_string(archive.read(SALIENCY_MODEL))
    outputs = [f"/backbone/encoder/layer.{number}/Add_1_output_0" for number in range(12)]
    outputs.append("/backbone/layernorm/Add_1_output_0")
    model.graph.output.extend(map(onnx.helper.make_empty_tensor_value_info, outputs))
    picture = np.asarray(Image.open(PICTURE).convert("RGB").resize((224, 224)), np.float32) / 255
    pixels = ((picture - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(outputs, {"input_image": pixels})
    output = AutoModel.from_pretrained(root / "dinov2")(torch.from_numpy(pixels), output_hidden_states=True)
    states = [*output.hidden_states[1:], output.last_hidden_state]
    pairs = list(zip(states, map(torch.from_numpy, expected), strict=True))
    return max((a - b).abs().max().item() for a, b in pairs), max(b.abs().max().item() for _, b in pairs)


def speak(sentence: str) -> np.ndarray:
    """Let espeak-ng speak a sentence: samples at 16 kHz."""
    import espeakng_loader  # of `TOOLS`

    library, chunks = ctypes.CDLL(espeakng_loader.get_library_path()), []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples: "ctypes._Pointer", count: int, events: int) -> int:
        if samples:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    # 2: samples go to the callback before `espeak_Synth` returns. The 1 below: text in UTF-8.
    rate = library.espeak_Initialize(2, 500, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(keep)
    library.espeak_SetVoiceByName(b"en-us")
    text = sentence.encode()
    library.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 0, 0, 1, None, None)
    return resample_poly(np.concatenate(chunks).astype(np.float32) / 32768, 16000, rate)


def transcribe(samples: np.ndarray, root: Path) -> str:
    """Let Whisper write down what was said."""
    processor, (model, _) = AutoProcessor.from_pretrained(root / "whisper"), open_whole("whisper", root)
    features = processor(samples, sampling_rate=16000, return_tensors="pt").input_features
    return processor.batch_decode(model.generate(features), skip_special_tokens=True)[0].strip()


def continuations(root: Path) -> tuple[str, str]:
    """Let SmolLM2 continue a sentence, and answer a question."""
    tokenizer, (model, _) = AutoTokenizer.from_pretrained(root / "smollm2"), open_whole("smollm2", root)
    turn = [{"role": "user", "content": QUESTION}]
    texts = (BEGINNING, tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    answers = []
    for text in texts:
        given = tokenizer(text, return_tensors="pt")
        tokens = model.generate(**given, max_new_tokens=60, do_sample=False)[0, given["input_ids"].shape[1] :]
        answers.append(" ".join(tokenizer.decode(tokens, skip_special_tokens=True).split()))
    return answers[0], answers[1]


def prove(root: Path) -> str:
    """Try all donors, and describe the outcome."""
    difference, largest = dinov2_difference(root)
    continued, answered = continuations(root)
    heard = "; ".join(f'"{sentence}" as "{transcribe(speak(sentence), root)}"' for sentence in SENTENCES)
    return f"""{keys_table(root)}

- **SmolLM2** continues "{BEGINNING} …": "{continued} …". Asked "{QUESTION}": "{answered} …". Its weights were quantized to some 4 bits; here they are the full numbers that these stand for.
- **DINOv2**: hidden states after every layer and after the norm differ by at most {difference:.1e} from those of the ONNX model in onnxruntime, on a picture of this documentation; the largest is {largest:.1f}. 22 tensors of the package are those of the saliency model's own decoder. It is not stated whether the backbone was trained further for saliency.
- **Whisper** writes down what espeak-ng speaks: {heard}.

## Weights

Mean and standard deviation of all numbers of a kind, and the mean fourth moment of its tensors, next to those of a new model of the same sizes. Fresh weights are normally distributed, with a fourth moment of 3; training makes heavier tails, even where the deviation is as before.

{weights_table(root)}
"""  # noqa: E501  lines of Markdown
