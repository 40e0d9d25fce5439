"""Programs of transformers, PEFT, datasets and torch without this package, run with its import and without it.

`python plain_program.py True FILE` writes as JSON what each call answers, raises, warns of and logs; `False` leaves
out the import. Auto classes of this package are left out; nothing here is of this package.
"""

import copy
import dataclasses
import hashlib
import inspect
import json
import logging
import os
import pathlib
import re
import sys
import types
import warnings

HAS_IMPORT = sys.argv[1] == "True"
BEFORE = dict(os.environ)

if HAS_IMPORT:
    import hf_any3d  # noqa: F401

import datasets  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import peft  # noqa: E402
import peft.utils.hotswap as peft_hotswap  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
WORDS = {"vocab_size": 20, "pad_token_id": 0, "max_position_embeddings": 16}
MODELS = {
    "bert": transformers.BertConfig(**SIZES, **WORDS),
    "roberta": transformers.RobertaConfig(**SIZES, **WORDS),
    "distilbert": transformers.DistilBertConfig(dim=8, hidden_dim=8, n_heads=2, n_layers=1, **WORDS),
    "gpt2": transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=20),
    "llama": transformers.LlamaConfig(**SIZES, **WORDS, num_key_value_heads=2),
    "vit": transformers.ViTConfig(**SIZES, image_size=8, patch_size=4),
    "dinov2": transformers.Dinov2Config(**SIZES, image_size=8, patch_size=4),
    "clip_text": transformers.CLIPTextConfig(**SIZES, **WORDS, projection_dim=8, eos_token_id=2),
}
TARGETS = {"bert": ["query"], "gpt2": ["c_attn"], "vit": ["q_proj", "query"]}
METHODS = {
    "lora": lambda names: peft.LoraConfig(target_modules=names, init_lora_weights=False),
    "lora by default": lambda names: peft.LoraConfig(),
    "dora": lambda names: peft.LoraConfig(target_modules=names, use_dora=True),
    "ia3": lambda names: peft.IA3Config(target_modules=names, feedforward_modules=[]),
    "loha": lambda names: peft.LoHaConfig(target_modules=names),
    "lokr": lambda names: peft.LoKrConfig(target_modules=names),
    "vera": lambda names: peft.VeraConfig(target_modules=names),
    "ln": lambda names: peft.LNTuningConfig(task_type="FEATURE_EXTRACTION"),
    "prompts": lambda names: peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=2),
    "modules": lambda names: peft.LoraConfig(target_modules=names, modules_to_save=["pooler"]),
}
FOUND: dict[str, object] = {}
LOGGED: list[str] = []


class Handler(logging.Handler):
    """Collect what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        LOGGED.append(f"{record.name}: {record.getMessage()}")


def shown(value):
    """Return an answer as text without addresses and places."""
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.detach().numpy().tobytes()).hexdigest()[:12]
    if isinstance(value, torch.nn.Module):
        return f"{type(value).__module__}.{type(value).__name__} {value}"
    if isinstance(value, datasets.Dataset):
        return f"{value.features} {value[:]}"
    if dataclasses.is_dataclass(value) and hasattr(value, "to_dict"):
        return shown(value.to_dict())
    if isinstance(value, dict):
        return {str(key): shown(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return str(value)


def try_call(name, function, *args, **kwargs):
    """Note what a call answers, raises, warns of and logs; return the answer."""
    LOGGED.clear()
    answer = None
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            answer = function(*args, **kwargs)
            text = shown(answer)
        except BaseException as error:
            text = [type(error).__name__, str(error)]
    assert name not in FOUND, name
    told = sorted({f"{warning.category.__name__}: {warning.message}" for warning in caught})
    place = os.getcwd()
    told = json.dumps([text, told, sorted(set(LOGGED))], default=str).replace(place, ".")
    FOUND[name] = json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", told))
    return answer


def contents(folder):
    """Return the files of a folder with hashes of what is in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(pathlib.Path(folder).rglob("*"))
        if path.is_file()
    }


def inputs_of(kind):
    """Return a batch of a model."""
    if kind in ("vit", "dinov2"):
        return {"pixel_values": torch.linspace(0, 1, 2 * 3 * 64).view(2, 3, 8, 8)}
    return {"input_ids": torch.tensor([[1, 5, 7, 2], [3, 8, 9, 2]])}


@torch.no_grad()
def answer_of(model, kind):
    """Return what a model answers."""
    return model.eval()(**inputs_of(kind))[0]


def model(kind, config):
    """Build, run, save and open a model."""
    try_call(f"{kind} config", lambda: copy.deepcopy(config).to_dict())
    built = try_call(f"{kind} from_config", transformers.AutoModel.from_config, copy.deepcopy(config))
    try_call(f"{kind} answer", answer_of, built, kind)
    try_call(f"{kind} save", built.save_pretrained, f"models/{kind}")
    try_call(f"{kind} files", contents, f"models/{kind}")
    try_call(f"{kind} AutoConfig", transformers.AutoConfig.from_pretrained, f"models/{kind}")
    opened = try_call(f"{kind} AutoModel", transformers.AutoModel.from_pretrained, f"models/{kind}")
    try_call(f"{kind} opened answer", answer_of, opened, kind)
    for name in ("AutoModelForSequenceClassification", "AutoModelForImageClassification", "AutoModelForCausalLM"):
        try_call(f"{kind} {name}", getattr(transformers, name).from_pretrained, f"models/{kind}")
    try_call(f"{kind} AutoProcessor", transformers.AutoProcessor.from_pretrained, f"models/{kind}")
    try_call(f"{kind} AutoFeatureExtractor", transformers.AutoFeatureExtractor.from_pretrained, f"models/{kind}")
    try_call(f"{kind} AutoTokenizer", transformers.AutoTokenizer.from_pretrained, f"models/{kind}")
    try_call(f"{kind} pipeline", transformers.pipeline, model=f"models/{kind}")
    try_call(f"{kind} get_task", transformers.pipelines.get_task, f"models/{kind}")
    for task in ("text-classification", "image-classification", "feature-extraction"):
        try_call(f"{kind} {task}", transformers.pipeline, task, model=f"models/{kind}")
    try_call(f"{kind} custom pipelines", hasattr, config, "custom_pipelines")
    try_call(f"{kind} copy", lambda: shown(copy.deepcopy(built)))


def adapter(kind, names, method, make):
    """Add an adapter by PEFT and by transformers, run, save and open it."""
    name, folder = f"{kind} {method}", f"adapters/{kind}-{method.replace(' ', '-')}"
    base = transformers.AutoModel.from_pretrained(f"models/{kind}")
    model = try_call(f"{name} get_peft_model", lambda: peft.get_peft_model(base, make(names)))
    if model is None:
        return
    try_call(f"{name} class", lambda: list(map(str, (type(model), type(model).__mro__, type(model.base_model)))))
    try_call(f"{name} config", lambda: model.peft_config["default"])
    try_call(f"{name} answer", answer_of, model, kind)
    try_call(f"{name} save", model.save_pretrained, folder)
    try_call(f"{name} files", contents, folder)
    for opened in ("AutoPeftModel", "AutoPeftModelForFeatureExtraction"):
        again = try_call(f"{name} {opened}", getattr(peft, opened).from_pretrained, folder)
        if again is not None:
            try_call(f"{name} {opened} answer", answer_of, again, kind)
    opened = try_call(f"{name} AutoModel", transformers.AutoModel.from_pretrained, folder)
    if opened is not None:
        try_call(f"{name} AutoModel answer", answer_of, opened, kind)
        try_call(f"{name} AutoModel save", opened.save_pretrained, f"{folder}-again")
    try_call(f"{name} pipeline", transformers.pipeline, "feature-extraction", model=folder)
    try_call(f"{name} pipeline without a task", transformers.pipeline, model=folder)
    base = transformers.AutoModel.from_pretrained(f"models/{kind}")
    try_call(f"{name} PeftModel", peft.PeftModel.from_pretrained, base, folder)
    base = transformers.AutoModel.from_pretrained(f"models/{kind}")
    try_call(f"{name} load_adapter", base.load_adapter, folder)
    base = transformers.AutoModel.from_pretrained(f"models/{kind}")
    try_call(f"{name} add_adapter", base.add_adapter, make(names))
    for call in ("active_adapters", "disable_adapters", "enable_adapters", "get_adapter_state_dict"):
        try_call(f"{name} {call}", getattr(base, call))
    try_call(f"{name} second adapter", model.add_adapter, "other", make(names))
    try_call(f"{name} hotswap", peft_hotswap.hotswap_adapter, model, folder, "default")
    try_call(f"{name} several", model.save_pretrained, f"{folder}-several")
    try_call(f"{name} several files", contents, f"{folder}-several")
    try_call(f"{name} folder", transformers.AutoModel.from_pretrained, "adapters")
    try_call(f"{name} merge", lambda: answer_of(model.merge_and_unload(), kind))


def trainers():
    """Train models, with labels that are smoothed, and with adapters of a name of their own."""
    rows = [{"input_ids": [1, 5, 7, 2], "labels": number % 2} for number in range(4)]
    words = [{"input_ids": [1, 5, 7, 2], "labels": [1, 5, 7, 2]} for _ in range(4)]
    kinds = {
        "classifier": (transformers.BertForSequenceClassification, "bert", rows),
        "language model": (transformers.GPT2LMHeadModel, "gpt2", words),
    }
    for name, (model_class, kind, data) in kinds.items():
        for smoothing in (0.0, 0.1):
            for adapts in (False, True):
                case = f"{name} {smoothing} {adapts}"
                torch.manual_seed(0)
                model = model_class(copy.deepcopy(MODELS[kind]))
                if adapts:
                    config = peft.LoraConfig(target_modules=TARGETS[kind])
                    model = peft.get_peft_model(model, config, adapter_name="mine")
                arguments = try_call(
                    f"{case} arguments",
                    lambda case=case, smoothing=smoothing: transformers.TrainingArguments(
                        f"runs/{case}".replace(" ", "-"),
                        max_steps=2,
                        save_steps=1,
                        eval_steps=1,
                        eval_strategy="steps",
                        load_best_model_at_end=True,
                        label_smoothing_factor=smoothing,
                        report_to="none",
                        use_cpu=True,
                        disable_tqdm=True,
                        logging_steps=1,
                    ),
                )
                FOUND.pop(f"{case} arguments")  # they have times
                trainer = try_call(
                    f"{case} trainer", transformers.Trainer, model, arguments, train_dataset=data, eval_dataset=data
                )
                FOUND[f"{case} trainer"] = [str(type(each)) for each in trainer.callback_handler.callbacks]
                try_call(f"{case} train", lambda trainer=trainer: round(trainer.train().training_loss, 6))
                logs = [{key: log.get(key) for key in ("loss", "eval_loss")} for log in trainer.state.log_history]
                FOUND[f"{case} log"] = shown(logs)
                FOUND[f"{case} callbacks"] = [str(type(each)) for each in trainer.callback_handler.callbacks]
                FOUND[f"{case} files"] = sorted(contents(arguments.output_dir))
                try_call(f"{case} weights", lambda model=model: [*model.state_dict().values()])
                model.requires_grad_(False)
                batch = {key: torch.tensor([row[key] for row in data]) for key in ("input_ids", "labels")}
                try_call(f"{case} nothing to train", trainer.compute_loss, model, batch)


def data():
    """Make data sets of values of all kinds."""
    image = Image.new("L", (2, 2))
    columns = {
        "numbers": [1, None, 3],
        "floats": [0.5, 1.5, 2.5],
        "texts": ["a", None, "c"],
        "lists": [[1], [], None],
        "dicts": [{"a": 1}, {"a": None}, {"a": 2}],
        "arrays": [np.arange(2), np.arange(3), np.arange(1)],
        "tensors": [torch.arange(2), torch.arange(3), torch.arange(1)],
        "images": [image, None, image],
        "lists of images": [[image], [image, image], None],
        "objects": [object(), object(), None],
        "types": [int, str, None],
        "mixed": [1, "a", None],
        "paths": [pathlib.Path("a"), pathlib.Path("b"), None],
        "object array": np.array([1, "a", None], dtype=object),
        "dates": list(pd.date_range("2020-01-01", periods=3)),
    }
    rows = datasets.Dataset.from_dict({"number": [0, 1, 2]})
    for name, values in columns.items():
        try_call(f"from_dict of {name}", lambda values=values: datasets.Dataset.from_dict({"x": values}))
        try_call(f"from_list of {name}", lambda values=values: datasets.Dataset.from_list([{"x": x} for x in values]))
        frame = pd.DataFrame({"x": pd.Series(list(values), dtype=object)})
        try_call(f"from_pandas of {name}", datasets.Dataset.from_pandas, frame)
        try_call(f"add_column of {name}", rows.add_column, "x", values)
        try_call(f"map to {name}", rows.map, lambda row, values=values: {"x": values[row["number"]]})
        try_call(f"typed {name}", datasets.arrow_writer.TypedSequence, values)
        FOUND.pop(f"typed {name}")
        typed = datasets.Features({"x": datasets.Value("string")})
        try_call(f"texts of {name}", lambda v=values, t=typed: datasets.Dataset.from_dict({"x": v}, features=t))


def processes():
    """Note settings of the process, and what is in tables and name spaces of the libraries."""
    FOUND["threads"] = [torch.get_num_threads(), torch.get_num_interop_threads()]
    FOUND["types"] = [str(torch.get_default_dtype()), torch.is_grad_enabled(), str(np.geterr())]
    FOUND["filters of warnings"] = [str(each) for each in warnings.filters]
    names = ("transformers", "peft", "datasets", "torch", "bitsandbytes", "torchao", "huggingface_hub", "")
    FOUND["levels"] = {name: logging.getLogger(name).level for name in names}
    FOUND["verbosity"] = [transformers.logging.get_verbosity(), datasets.logging.get_verbosity()]
    FOUND["callbacks"] = [str(each) for each in transformers.trainer.DEFAULT_CALLBACKS]
    FOUND["minimum of PEFT"] = sys.modules["transformers.integrations.peft"].MIN_PEFT_VERSION
    for module in (transformers, transformers.models.auto, peft, datasets, torch):
        known = set(dir(module)) if module is not transformers else set(transformers.__all__)
        added = []
        for name, value in vars(module).items():
            if not isinstance(value, types.ModuleType) and getattr(value, "__module__", "").startswith("hf_any3d"):
                added.append(name)
        FOUND[f"names of {module.__name__}"] = [len(known) > 10, added]


def wrapped():
    """Note where functions of the libraries are not their own, which a model of this package would need."""
    places = [
        (peft.PeftModel, "__init__"),
        (peft_hotswap, "hotswap_adapter_from_state_dict"),
        (transformers.Trainer, "compute_loss"),
        (transformers.Trainer, "push_to_hub"),
        (transformers.pipelines, "get_task"),
        (datasets.Dataset, "from_pandas"),
        (datasets.Dataset, "add_column"),
        (datasets.arrow_writer.TypedSequence, "__init__"),
    ]
    for owner, name in places:
        function = inspect.getattr_static(owner, name)
        function = getattr(function, "__func__", function)
        FOUND[f"{owner.__name__}.{name}"] = [function.__module__, function.__code__.co_filename.rpartition("/")[2]]


NAMES = [None, 3, 0.5, True, b"bert", b"\xff", bytearray(b"x"), ["a"], [], ("a",), {}, {1}, int, np.zeros(2)]
NAMES += ["", " ", ".", "./gone", "gone/model", "outputs/run", "owner/gone", "a/b/c", "a--b..c", "a\0b", "x" * 300]
NAMES += ["file", "empty", pathlib.Path("gone"), pathlib.Path("empty"), "~/gone", "https://example.invalid/x"]
NAMES += ["list", "damaged", "adapters", "without-type", "code"]
FURTHER = [{"subfolder": "x"}, {"subfolder": 3}, {"revision": "v1"}, {"revision": 3}, {"local_files_only": True}]


def errors():
    """Open what is none, by all auto classes."""
    bert = transformers.BertModel(copy.deepcopy(MODELS["bert"]))
    openers = {}
    for module in (transformers, peft):
        for name in sorted(dir(module)):
            if name.startswith("Auto") and "PointCloud" not in name:
                try:
                    openers[name] = getattr(module, name).from_pretrained
                except Exception:  # it needs a package that is not installed
                    continue
    openers["PeftModel"] = lambda *args, **kwargs: peft.PeftModel.from_pretrained(bert, *args, **kwargs)
    openers["load_adapter"] = lambda *args, subfolder="", **kwargs: bert.load_adapter(
        *args, adapter_kwargs={"subfolder": subfolder}, **kwargs
    )
    for name, opener in openers.items():
        for value in NAMES:
            try_call(f"{name}({value!r})", opener, value)
        for further in FURTHER:
            for value in (None, 3, "owner/gone", "empty"):
                try_call(f"{name}({value!r}, {further})", opener, value, **further)
    for task in (None, "text-classification", 3, "gone"):
        for value in NAMES:
            try_call(f"pipeline({task!r}, {value!r})", transformers.pipeline, task, model=value)


def prepare():
    """Make the files that are opened."""
    for folder, text in (
        ("list", "[1]"),
        ("damaged", '{"model_type'),
        ("without-type", "{}"),
        ("code", '{"auto_map": {"AutoConfig": "code.Config"}, "model_type": "gone"}'),
    ):
        os.makedirs(folder)
        for name in ("config.json", "adapter_config.json", "preprocessor_config.json", "tokenizer_config.json"):
            pathlib.Path(folder, name).write_text(text)
    os.makedirs("empty")
    pathlib.Path("file").write_text("x")
    words = {word: number for number, word in enumerate(("[UNK]", "[PAD]", "a", "chair"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    for kind in ("bert", "gpt2"):
        fast.save_pretrained(f"models/{kind}")


def main():
    """Run everything."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    processes()
    handler = Handler(logging.WARNING)
    for name in ("", "transformers", "datasets", "peft"):
        logging.getLogger(name).addHandler(handler)
    prepare()
    for kind, config in MODELS.items():
        model(kind, config)
    for kind, names in TARGETS.items():
        for method, make in METHODS.items():
            adapter(kind, names, method, make)
    for part in (trainers, data, errors, wrapped):
        part()
    # Some are of torch.
    FOUND["environment"] = {name: value for name, value in os.environ.items() if BEFORE.get(name) != value}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(FOUND))


main()
