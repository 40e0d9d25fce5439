"""Commands about a saved model: info, export, push and space."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
import warnings
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.common import (
    AsCsv,
    AsJson,
    Revision,
    check_model,
    find_model,
    kind_of_model,
    load_libraries,
    opened_folder,
    option,
    read_model_config,
    skip_hub_if_offline,
    status,
)
from hf_any3d.cli.outputs import write_results
from hf_any3d.hub.names import offline_reason
from hf_any3d.registry import TASKS
from hf_any3d.utils.atomic_files import read_json, write_json, write_text
from hf_any3d.utils.messages import model_errors, print_json, print_line

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi, RepoUrl

# Files that define the facts about a model, and packages whose version may change how parameters are counted.
_CONFIGS = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json")
_PACKAGES = ("hf-any3d", "transformers", "peft")
# Files of a training run that are not part of the model; names with an underscore or a dot in front are neither.
_NOT_PUSHED = ("checkpoint-*", "runs", "_*", "*.tmp", "optimizer.pt", "scheduler.pt", "rng_state*.pth")


def info(
    model: Annotated[str, typer.Argument(help="Directory or hub name of a model.")],
    revision: Revision = None,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Add FLOPs of inference and training, and clouds a second on this machine."),
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Describe a model: encoder, adapters, parameters, labels, inputs.

    Only its configuration files are downloaded, no weights. Parameters are counted once for each configuration. The
    cost is that of a generated cloud with as many points as the model's processor keeps, and of random weights.
    """
    # Every model of this package has facts, whatever its command.
    name = check_model(model, *(task.command for task in TASKS.values()), revision=revision)
    facts = None
    # Without a readable store they are counted anew.
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):
        facts = read_json(_facts_file(name, revision))
    if isinstance(facts, dict):
        # Stored by the content of the files, which may lie elsewhere under another name.
        facts["model"] = name
    else:
        with status("counting parameters"), model_errors(model):
            load_libraries()
            from hf_any3d.cli.model_facts import model_facts

            facts = model_facts(name, revision)
        store_facts(name, revision, facts)
    # Not stored, as it is of this machine.
    if cost:
        with status("counting and timing"), model_errors(model), warnings.catch_warnings():
            load_libraries()
            warnings.simplefilter("ignore")  # of random weights, as these are on purpose
            from hf_any3d.cli.model_cost import model_cost

            facts |= model_cost(name, revision)
    lines = []
    for fact, value in facts.items():
        if isinstance(value, list):
            text = ", ".join(map(str, value)) or "none"
        elif isinstance(value, int):
            text = f"{value:,}"
        else:
            text = "–" if value is None else str(value)
        lines.append({"fact": fact, "value": text})
    write_results(facts, lines, None, as_json, as_csv)
    width = max(map(len, facts))
    for line in lines if not as_json and not as_csv else ():
        print_line(f"{line['fact']:<{width}}  {line['value']}")


def _facts_file(name: str, revision: str | None) -> Path:
    """Return where the facts about a model are kept: by the content of its configuration files."""
    from huggingface_hub import constants, try_to_load_from_cache

    folder = opened_folder(name, revision)
    # Another version may count parameters in another way.
    digest = hashlib.sha256(json.dumps([*map(importlib.metadata.version, _PACKAGES)]).encode())
    for file in _CONFIGS:
        path: Any = folder / file if folder else try_to_load_from_cache(name, file, revision=revision)
        # The cache answers with a marker, no path, for a file that a repository does not have.
        content = Path(path).read_bytes() if isinstance(path, (str, Path)) and Path(path).is_file() else b""
        # With lengths, so that no content can pass for two.
        digest.update(f"{file} {len(content)} ".encode() + content)
    return Path(constants.HF_HOME) / "hf_any3d" / "facts" / f"{digest.hexdigest()[:32]}.json"


def store_facts(name: str, revision: str | None, facts: dict[str, Any]) -> None:
    """Keep the facts about a model for the next `info`; a folder that cannot be written is not an error."""
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):  # counted again next time
        write_json(_facts_file(name, revision), facts)


class ExportFormat(StrEnum):
    """Formats of exported models."""

    ONNX = "onnx"
    PT2 = "pt2"
    LANGUAGE_MODEL = "language-model"


def export(
    model: Annotated[str, typer.Argument(help="Directory or hub name of a classifier, detector or chat model.")],
    output: Annotated[Path, option("The file to write; for a language model, the folder.")],
    format: Annotated[
        ExportFormat,
        typer.Option(help="pt2 is a program of torch.export; language-model that of a chat model, for vLLM."),
    ] = ExportFormat.ONNX,
    revision: Revision = None,
) -> None:
    """Write a classifier or detector as ONNX or as a program of torch.export, or the language model of a chat model.

    The file is compared with the model before it is kept. A file of settings, and the model's processor if it has one,
    are written beside it. The language model is written with its LoRA merged, so that other programs open it.
    """
    is_chat = format is ExportFormat.LANGUAGE_MODEL
    model = check_model(model, *(["chat"] if is_chat else ["predict", "detect"]), revision=revision)
    load_libraries()

    from transformers import AutoProcessor

    from hf_any3d.export import export_file, export_language_model
    from hf_any3d.integration import auto
    from hf_any3d.processing.point_clouds import PointCloudProcessor

    # A config without a class is taken for a classifier's.
    command = (kind_of_model(read_model_config(model, revision)) or ("", "predict"))[1]
    auto_class = getattr(auto, next(task.auto_class for task in TASKS.values() if task.command == command))
    processor: Any = None
    with status(f"exporting {model}"):
        with model_errors(model):
            loaded = auto_class.from_pretrained(model, revision=revision or "main")
            if is_chat:
                processor = AutoProcessor.from_pretrained(model, revision=revision or "main")
        if is_chat:
            # The language model becomes a folder, and all others a single file.
            difference = export_language_model(loaded, output, processor.tokenizer)
            size = sum(file.stat().st_size for file in output.iterdir())
            what = "logits"
            settings = ""
        else:
            with contextlib.suppress(OSError):  # the model was saved without one
                processor = PointCloudProcessor.from_pretrained(model, revision=revision or "main")
            exported = export_file(loaded, output, format.value, processor=processor)
            difference = exported.worst_difference
            size = exported.bytes
            what = "outputs"
            settings = f"; settings in {exported.settings}"
    print_line(f"{output}: {size / 1e6:,.1f} MB; {what} differ by at most {difference:.1e}{settings}")


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
    # As `data prepare` writes it, or Parquet files alone.
    kind = "dataset" if any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet")) else "model"
    if kind == "model":
        # With the slash it is a path, never a name on the hub.
        folder = Path(find_model(f"{folder}/"))
        # A config that cannot be read is an error here, not on the hub.
        read_model_config(str(folder))
    skip_hub_if_offline()
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    # Without a network nothing is tried; the hub's client would take a minute to say so.
    if (reason := offline_reason()) is not None:
        raise OSError(f"{repository}: nothing was pushed, as {reason}")
    api = huggingface_hub.HfApi()
    try:
        url, commit = _push(api, folder, repository, kind, private, revision, message)
    except HfHubHTTPError:  # the hub has answered, and says what is wrong
        raise
    except HTTPError as error:
        text = f"{repository}: not pushed, as the hub cannot be reached ({type(error).__name__})"
        raise OSError(text) from error
    if as_json:
        print_json({"repository": url.repo_id, "kind": kind, "url": str(url), "commit": commit.oid})
    else:
        print_line(f"{kind} {url.repo_id}: {url}")


def _push(
    api: HfApi, folder: Path, repository: str, kind: str, private: bool, revision: str | None, message: str | None
) -> tuple[RepoUrl, CommitInfo]:
    # Hidden files stay here, except for scores, which the hub lists from this folder.
    hidden = [path.name for path in folder.glob(".*") if path.name != ".eval_results"]
    with status(f"pushing {folder}"):
        # None leaves an organization's default for new repositories as it is; False would make them public.
        url = api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
        # Before the upload, since the examples of the card open the repository.
        if kind == "model":
            _name_card(folder, url.repo_id)
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=url.repo_id,
            repo_type=kind,
            revision=revision,
            commit_message=message or f"Push {folder.name}",
            # Patterns of files do not match those in a folder of that name.
            ignore_patterns=[pattern for name in (*_NOT_PUSHED, *hidden) for pattern in (name, f"{name}/**")],
        )
    return url, commit


def _name_card(folder: Path, repository: str) -> None:
    """Write the name of the repository where an unedited card has that of the directory; write a missing card."""
    from hf_any3d.model_card.saving import may_be_replaced, sign_card, write_model_card

    path = folder / "README.md"
    if not path.is_file():
        load_libraries()
        from hf_any3d.integration.registration import MODELS

        # By name, as the config has the class of the model as a text.
        classes = {kind.__name__: kind for base, heads in MODELS.values() for kind in (base, *chain(*heads.values()))}
        architecture = (read_model_config(str(folder)).get("architectures") or [""])[0]
        if architecture in classes:
            with model_errors(folder):
                write_model_card(classes[architecture].from_pretrained(folder), folder, repository)
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    # The place where the template of cards puts the name.
    example = re.search(r'pipeline\("[\w-]+", model="([^"]+)"', text)
    # A card that someone has edited is pushed as it is.
    if example is None or not may_be_replaced(text):
        return
    # The title is the last part of a name or path.
    title, new_title = (name.rstrip("/").rpartition("/")[2] for name in (example[1], repository))
    # Only these places, since the same word may stand in the text for something else.
    named = text.replace(f'"{example[1]}"', f'"{repository}"').replace(f"\n# {title}\n", f"\n# {new_title}\n")
    named = named.replace(f"\nmodel_name: {title}\n", f"\nmodel_name: {new_title}\n")
    if named != text:
        write_text(path, sign_card(named))


_APP = '''\
"""Page of {model}: upload a cloud and look at the answer."""

from hf_any3d.cli import app

app(["demo", {model!r}, "--host", "0.0.0.0", "--port", "7860"])
'''
_SPACE_NEEDS = "hf-any3d[demo]>={version}\ntorch>=2.10\n"
_SPACE_CARD = """\
---
title: {quoted_title}
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
    model: Annotated[str, typer.Argument(help="Hub name of the model, owner/name.")],
    output: Annotated[Path, option("Folder to write; by default space.")] = Path("space"),
    title: Annotated[str | None, option("Title of the page; by default the name of the model.")] = None,
) -> None:
    """Write the files of a Space on the hub with the demo of a model: app.py, requirements.txt, README.md."""
    name = find_model(model)
    if Path(name).is_dir():
        raise ValueError(f"{model}: a directory; a Space opens a model of the hub: hf-any3d push {model} OWNER/NAME")
    from hf_any3d import __version__

    kind = kind_of_model(read_model_config(name)) or ("a model", "")
    files = {"app.py": _APP, "requirements.txt": _SPACE_NEEDS, "README.md": _SPACE_CARD}
    if existing := [file for file in files if (output / file).exists()]:
        raise FileExistsError(f"{output / existing[0]} exists; expected a new folder for --output")
    # The card has to name a version: that of this machine, or a fixed one where there is none.
    try:
        gradio = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        gradio = "6.0.0"
    title = title or name.rpartition("/")[2]
    values = {"model": name, "title": title, "gradio": gradio, "kind": kind[0], "version": __version__}
    for file, text in files.items():
        # The title of the card as JSON, which is YAML too: it may have colons and quotes.
        write_text(output / file, text.format(**values, quoted_title=json.dumps(title, ensure_ascii=False)))
    print_line(f"{output}: {', '.join(files)}")
    print_line(f"try it: python {output / 'app.py'}; publish it: hf upload OWNER/NAME {output} . --repo-type space")
