"""Commands about a saved model: info, export, push and space."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.common import (
    AsCsv,
    AsJson,
    Revision,
    check_model,
    find_model,
    kind_of_model,
    load_libraries,
    option,
    read_model_config,
    status,
)
from hf_any3d.cli.outputs import csv_lines
from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import MODEL_TYPES, TASKS, task_of_class
from hf_any3d.utils.messages import model_errors, one_line, print_json, print_line

# Files that define the facts about a model, and packages whose version may change how parameters are counted.
_CONFIGS = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json")
_PACKAGES = ("hf-any3d", "transformers", "peft")
_WEIGHTS = "model.safetensors"
# A part that is opened beside the model; all other weights of types without pretrained parts are in one file. And
# fields with which predictions depend on the batch.
_BESIDE = "text_tower"
_OF_THE_BATCH = ("depth_of_batch", "equal_patches")
_UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}  # transformers leaves out these labels, its default
# Entries of that file that are no parameters: buffers of batch norms, and the file's own metadata.
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked", "__metadata__")
# Files of a training run that are not part of the model; names with an underscore or a dot in front are neither.
_NOT_PUSHED = ("checkpoint-*", "runs", "_*", "*.tmp", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
_REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+")


def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub name of a model.")],
    revision: Revision = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Describe a model: encoder, adapters, parameters, labels, inputs.

    Only its configuration files are downloaded, no weights. Parameters are counted once for each configuration; those
    of a directory that holds all weights are read from the header of the weights.
    """
    commands = ("predict", "zero-shot", "segment", "detect", "features", "reconstruct", "chat")
    name = check_model(model, *commands, revision=revision)
    facts = _stored_facts(name, revision) or facts_of_stored_weights(name)
    if facts is None:
        with status("counting parameters"), model_errors(model):
            load_libraries()
            from hf_any3d.cli.model_facts import model_facts

            facts = model_facts(name, revision)
        store_facts(name, revision, facts)
    if as_json:
        print_json(facts)
    elif as_csv:
        for line in csv_lines([{"fact": fact, "value": _format(value)} for fact, value in facts.items()]):
            print_line(line)
    else:
        width = max(len(fact) for fact in facts)
        for fact, value in facts.items():
            print_line(f"{fact:<{width}}  {_format(value)}")


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "–" if value is None else str(value)


def _facts_file(name: str, revision: str | None) -> Path:
    """Return where the facts about a model are kept: by the content of its configuration files."""
    from huggingface_hub import constants, try_to_load_from_cache

    # Another version may count parameters in another way.
    digest = hashlib.sha256(json.dumps([*map(importlib.metadata.version, _PACKAGES)]).encode())
    for file in _CONFIGS:
        path: Any = Path(name) / file
        if is_published(name):
            from hf_any3d.published import opened_directory

            path = opened_directory(name, revision) / file
        elif not Path(name).is_dir():
            path = try_to_load_from_cache(name, file, revision=revision)
        content = Path(path).read_bytes() if isinstance(path, (str, Path)) and Path(path).is_file() else b""
        # With lengths, so that no content can pass for two.
        digest.update(f"{file} {len(content)} ".encode() + content)
    return Path(constants.HF_HOME) / "hf_any3d" / "facts" / f"{digest.hexdigest()[:32]}.json"


def _stored_facts(name: str, revision: str | None) -> dict[str, Any] | None:
    from hf_any3d.utils.atomic_files import read_json

    try:
        facts = read_json(_facts_file(name, revision))
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None
    return {**facts, "model": name} if isinstance(facts, dict) else None


def store_facts(name: str, revision: str | None, facts: dict[str, Any]) -> None:
    """Keep the facts about a model for the next `info`; a folder that cannot be written is not an error."""
    from hf_any3d.utils.atomic_files import write_json

    try:
        write_json(_facts_file(name, revision), facts)
    except (OSError, importlib.metadata.PackageNotFoundError):
        pass  # counted again next time


def facts_of_stored_weights(name: str) -> dict[str, Any] | None:
    """Describe a model in a directory with all its weights, without torch; see `hf_any3d.cli.model_facts`.

    Returns:
        The facts of `model_facts`, or None for models whose parameters cannot be counted in their files: those with an
        adapter, with pretrained parts elsewhere or with frozen parameters, and those on the hub.
    """
    folder = Path(name)
    if not (folder / _WEIGHTS).is_file() or (folder / "adapter_config.json").exists():
        return None
    config = read_model_config(name)
    architecture = str((config.get("architectures") or [""])[0])
    kind = MODEL_TYPES.get(str(config.get("model_type")))
    is_plain = kind is not None and not kind.has_parts and task_of_class(architecture) != "pre-training"
    # A side network is trained beside a frozen transformer.
    is_plain = is_plain and not config.get("side_network") and not set(config.get("parts") or ()) - {_BESIDE}
    if not is_plain or "in_channels" not in config or any(map(config.get, _OF_THE_BATCH)):
        return None
    processor = folder / "preprocessor_config.json"
    try:
        with open(folder / _WEIGHTS, "rb") as file:
            # A safetensors file starts with the length of its header, which has the shapes of all tensors.
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        settings = json.loads(processor.read_text(encoding="utf-8")) if processor.is_file() else {}
        shapes = [entry["shape"] for key, entry in header.items() if key.rpartition(".")[2] not in _NO_PARAMETERS]
        # In JSON the numbers are texts, among which 10 comes before 2.
        labels = [
            label for _, label in sorted(config.get("id2label", _UNNAMED).items(), key=lambda pair: int(pair[0]))
        ]
    except (ValueError, KeyError, TypeError, OSError, MemoryError):
        return None  # damaged; the complete way names what is wrong
    total = sum(map(math.prod, shapes))
    return {
        "model": name,
        "class": architecture,
        "adapter": None,
        "trained parameters": total,
        "total parameters": total,
        "labels": labels,
        "points": settings.get("num_points"),
        "channels": config["in_channels"],
        "tokens": config.get("num_groups"),
        "batch-dependent": [],
    }


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Directory or hub name of a classifier, detector or chat model.")
    ],
    output: Annotated[Path, option("The file to write; for a language model, the folder.")],
    format: Annotated[
        str,
        typer.Option(
            help="onnx; pt2 for a program of torch.export; language-model for that of a chat model, for vLLM."
        ),
    ] = "onnx",
    revision: Revision = None,
) -> None:
    """Write a classifier or detector as ONNX or as a program of torch.export, or the language model of a chat model.

    The file accepts any number of clouds with any number of points, and is compared with the model on
    clouds of other sizes before it is kept. A JSON file next to it has the settings of the processor and the labels.
    A language model is written with its LoRA merged, so that other programs open it.
    """
    if format == "language-model":
        _export_language_model(model, output, revision)
        return
    model = check_model(model, "predict", "detect", revision=revision)
    load_libraries()

    from hf_any3d.export import export_file
    from hf_any3d.integration import auto
    from hf_any3d.processing.point_clouds import PointCloudProcessor

    with status(f"exporting {model}"):
        with model_errors(model):
            kind = kind_of_model(read_model_config(model, revision))
            command = "predict" if kind is None else kind[1]
            auto_class = next(task.auto_class for task in TASKS.values() if task.command == command)
            loaded = getattr(auto, auto_class).from_pretrained(model, revision=revision)
        try:
            processor = PointCloudProcessor.from_pretrained(model, revision=revision or "main")
        except OSError:  # the model was saved without one
            processor = None
        exported = export_file(loaded, output, format, processor=processor)
    print_line(
        f"{exported.path}: {exported.bytes / 1e6:,.1f} MB; outputs differ by at most {exported.worst_difference:.1e}; "
        f"settings in {exported.settings}"
    )


def _export_language_model(model: str, output: Path, revision: str | None) -> None:
    model = check_model(model, "chat", revision=revision)
    load_libraries()

    from hf_any3d.export import export_language_model
    from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
    from hf_any3d.processing.chat import MiniGPT3DProcessor

    with status(f"exporting the language model of {model}"):
        with model_errors(model):
            loaded: Any = MiniGPT3DForConditionalGeneration.from_pretrained(model, revision=revision or "main")
            processor = MiniGPT3DProcessor.from_pretrained(model, revision=revision or "main")
        difference = export_language_model(loaded, output, processor.tokenizer)
    size = sum(file.stat().st_size for file in output.iterdir())
    print_line(f"{output}: {size / 1e6:,.1f} MB; logits differ by at most {difference:.1e}")


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Directory of a saved model or prepared dataset.")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    message: Annotated[str | None, option("Message of the commit.")] = None,
    revision: Annotated[str | None, option("Branch to push to; it must exist. By default main.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a saved model, or a dataset made by `data prepare`, to the hub.

    Checkpoints and logs of the training stay here. An unedited model card gets the name of the repository.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"REPOSITORY is {repository!r}; expected owner/name")
    is_dataset = any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))
    if not is_dataset:
        # With the slash it is a path, never a name on the hub.
        folder = Path(find_model(f"{folder}/"))
        read_model_config(str(folder))
    import huggingface_hub
    from huggingface_hub import constants, errors

    kind = "dataset" if is_dataset else "model"
    api = huggingface_hub.HfApi()
    try:
        with status(f"pushing {folder}"):
            hidden = [path.name for path in folder.glob(".*") if path.name != ".eval_results"]
            # None leaves an organization's default for new repositories as it is; False would make them public.
            made = api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
            if not is_dataset:
                _name_card(folder, made.repo_id)
            commit = api.upload_folder(
                folder_path=folder,
                repo_id=made.repo_id,
                repo_type=kind,
                revision=revision,
                commit_message=message or f"Push {folder.name}",
                # Patterns of files do not match those in a folder of that name.
                ignore_patterns=[pattern for name in (*_NOT_PUSHED, *hidden) for pattern in (name, f"{name}/**")],
            )
    except errors.LocalTokenNotFoundError:
        raise ValueError("pushing needs a login: hf auth login") from None
    # Before HTTPError, from which it derives.
    except errors.HfHubHTTPError as error:
        reason = "not allowed; check the login with hf auth whoami" if _status_of(error) in (401, 403) else str(error)
        raise ValueError(f"{repository}: {reason}") from None
    # Of the client that the hub uses, whichever it is.
    except (errors.HTTPError, errors.OfflineModeIsEnabled) as error:  # pyright: ignore[reportPrivateImportUsage]
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else one_line(error)
        raise OSError(f"{repository}: {constants.ENDPOINT} cannot be reached ({reason})") from None
    if as_json:
        print_json({"repository": made.repo_id, "kind": kind, "url": str(made), "commit": commit.oid})
    else:
        print_line(f"{kind} {made.repo_id}: {made}")


def _status_of(error: Any) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _name_card(folder: Path, repository: str) -> None:
    """Write the name of the repository where an unedited card has that of the directory; write a missing card."""
    from hf_any3d.model_card.saving import may_be_replaced, sign_card, write_model_card

    path = folder / "README.md"
    if not path.is_file():
        load_libraries()
        from hf_any3d.integration.registration import MODELS

        classes = {kind.__name__: kind for base, heads in MODELS.values() for kind in (base, *chain(*heads.values()))}
        architecture = (read_model_config(str(folder)).get("architectures") or [""])[0]
        if architecture in classes:
            with model_errors(folder):
                write_model_card(classes[architecture].from_pretrained(folder), folder, repository)
        return
    from hf_any3d.utils.atomic_files import write_text

    text = path.read_text(encoding="utf-8", errors="replace")
    # A card that someone has edited is pushed as it is.
    if not may_be_replaced(text):
        return
    if (found := re.search(r'pipeline\("[\w-]+", model="([^"]+)"', text)) is None:
        return
    title, new_title = (name.rstrip("/").rpartition("/")[2] for name in (found[1], repository))
    named = text.replace(f'"{found[1]}"', f'"{repository}"').replace(f"\n# {title}\n", f"\n# {new_title}\n")
    named = named.replace(f"\nmodel_name: {title}\n", f"\nmodel_name: {new_title}\n")
    if named != text:
        write_text(path, sign_card(named))


_APP = '''\
"""Page of {model}: upload a cloud and look at the answer."""

from hf_any3d.cli import app

app(["demo", {model!r}, "--host", "0.0.0.0", "--port", "7860"])
'''
_SPACE_CARD = """\
---
title: {title}
emoji: 🪑
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
app_file: app.py
models:
- {model}
tags:
- point-cloud
- 3d
---

# {title}

Upload a point cloud or a mesh, or choose an example; the page answers with \
[{model}](https://huggingface.co/{model}), {kind} of the library hf_any3d.

The same on your machine: `pip install 'hf-any3d[demo]'`, then `hf-any3d demo {model}`.
"""


def space(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub name of the model, owner/name.")],
    output: Annotated[Path, option("Folder to write; by default space.")] = Path("space"),
    title: Annotated[str | None, option("Title of the page; by default the name of the model.")] = None,
) -> None:
    """Write the files of a Space on the hub with the demo of a model: app.py, requirements.txt, README.md."""
    name = find_model(model)
    if Path(name).is_dir():
        raise ValueError(
            f"{model}: a directory, but a Space opens models of the hub: hf-any3d push {model} OWNER/NAME"
        )
    from hf_any3d import __version__
    from hf_any3d.cli.common import kind_of_model
    from hf_any3d.utils.atomic_files import write_text

    kind = kind_of_model(read_model_config(name)) or ("a model", "")
    taken = [file for file in ("app.py", "requirements.txt", "README.md") if (output / file).exists()]
    if taken:
        raise FileExistsError(f"{output / taken[0]} exists; expected a new folder for --output")
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = "6.0.0"
    title = json.dumps(title or name.rpartition("/")[2], ensure_ascii=False)
    card = _SPACE_CARD.format(title=title, model=name, gradio=gradio, kind=kind[0])
    write_text(output / "app.py", _APP.format(model=name))
    write_text(output / "requirements.txt", f"hf-any3d[demo]>={__version__}\ntorch>=2.10\n")
    write_text(output / "README.md", card.replace(f"\n# {title}\n", f"\n# {json.loads(title)}\n"))
    print_line(f"{output}: app.py, requirements.txt, README.md")
    print_line(f"try it: python {output / 'app.py'}; publish it: hf upload OWNER/NAME {output} . --repo-type space")
