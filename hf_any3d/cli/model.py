"""Commands about a saved model: info, export, push and space."""

from __future__ import annotations

import contextlib
import warnings
from enum import StrEnum
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_any3d.cli.libraries import load_libraries
from hf_any3d.cli.opening import FoundModel, found_model, model_for
from hf_any3d.cli.options import AsCsv, AsJson, Revision, option, output_option
from hf_any3d.cli.outputs import write_results
from hf_any3d.cli.progress import status
from hf_any3d.evaluation.stored_facts import store_facts, stored_facts
from hf_any3d.hub.names import is_folder_name, no_such, skip_hub_if_offline
from hf_any3d.registry import TASKS
from hf_any3d.utils.messages import model_errors, print_json, print_line


def info(
    model: Annotated[str, typer.Argument(help="Directory or Hub name of a model.")],
    revision: Revision = None,
    cost: Annotated[
        bool,
        typer.Option("--cost", help="Also report FLOPs for inference and training, and throughput on this machine."),
    ] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Describe a model: encoder, adapters, parameters, labels, inputs.

    Downloads only configuration files, no weights. Parameter counts are cached for each configuration. Costs are
    measured with random weights on a generated point cloud with as many points as the model's processor keeps.
    """
    # Every model of this package has facts, whatever its command.
    found = model_for(model, *(task.command for task in TASKS.values()), revision=revision)
    name = found.name
    facts = stored_facts(name, found.folder, revision)
    if facts is None:
        with status("counting parameters"), model_errors(model):
            load_libraries()
            from hf_any3d.evaluation.model_facts import model_facts

            facts = model_facts(name, revision)
        store_facts(facts, name, found.folder, revision)
    # Not stored, as it is of this machine.
    if cost:
        with status("counting and timing"), model_errors(model), warnings.catch_warnings():
            load_libraries()
            warnings.simplefilter("ignore")  # of random weights, as these are on purpose
            from hf_any3d.evaluation.model_cost import CostGrowsError, model_cost

            try:
                facts |= model_cost(name, revision)
            except CostGrowsError:
                raise ValueError(
                    f"{name}: --cost is not for models that write, whose cost grows with the text"
                ) from None
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
    if as_json or as_csv:
        return
    width = max(map(len, facts))
    for line in lines:
        print_line(f"{line['fact']:<{width}}  {line['value']}")


def _name_card(found: FoundModel, repository: str) -> None:
    """Write the name of the repository where an unedited card has that of the directory; write a missing card."""
    from hf_any3d.model_card.saving import rename_card, write_model_card

    folder = Path(found.name)
    if (folder / "README.md").is_file():
        rename_card(folder, repository)
        return
    model = _opened(found)
    if model is not None:
        write_model_card(model, folder, repository)


def _opened(found: FoundModel) -> Any:
    """Return the model in a directory, of the class that its config names; None for one of another package."""
    load_libraries()
    from hf_any3d.integration.registration import MODELS

    for base, heads in MODELS.values():
        for model_class in (base, *chain(*heads.values())):
            # By name, as the config has the class of the model as a text.
            if model_class.__name__ == found.architecture:
                with model_errors(found.name):
                    return model_class.from_pretrained(found.name)
    return None


class ExportFormat(StrEnum):
    """Formats of exported models."""

    ONNX = "onnx"
    PT2 = "pt2"
    LANGUAGE_MODEL = "language-model"


def export(
    model: Annotated[str, typer.Argument(help="Directory or Hub name of a classifier, detector or chat model.")],
    output: Annotated[Path, output_option("Output file; for a language model, output folder.")],
    format: Annotated[
        ExportFormat,
        typer.Option(
            help="Format: onnx, pt2 (torch.export program), or language-model (the language model of a chat model, "
            "for vLLM)."
        ),
    ] = ExportFormat.ONNX,
    revision: Revision = None,
) -> None:
    """Export a classifier or detector to ONNX or torch.export, or the language model of a chat model.

    Verifies the outputs of the exported file against the model. Also writes a settings file and, if there is one, the
    model's processor. LoRA weights of a language model are merged, so other programs can load it.
    """
    is_chat = format is ExportFormat.LANGUAGE_MODEL
    commands = ("chat",) if is_chat else ("predict", "detect")
    found = model_for(model, *commands, revision=revision)
    model = found.name
    load_libraries()

    from transformers import AutoProcessor

    from hf_any3d.export import export_file, export_language_model
    from hf_any3d.integration import auto
    from hf_any3d.processing.point_clouds import PointCloudProcessor

    # A config without a class is taken for a classifier's.
    command = "predict" if found.task is None else found.task.command
    task = next(task for task in TASKS.values() if task.command == command)
    auto_class = getattr(auto, task.auto_class)
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
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="Repository on the Hub, owner/name.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    message: Annotated[str | None, option("Commit message.")] = None,
    revision: Annotated[str | None, option("Existing branch to push to; by default main.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a saved model, or a dataset made by `data prepare`, to the Hub.

    Training checkpoints and logs are not uploaded. If you have not edited the model card, the repository name is
    filled in.
    """
    from hf_any3d.hub.pushing import kind_of_folder

    if is_folder_name(repository):
        raise ValueError(f"{repository}: a path; expected the name of a repository on the Hub, owner/name")
    if not folder.is_dir():
        raise FileNotFoundError(no_such(folder, "directory"))
    kind = kind_of_folder(folder)
    named = None
    if kind == "model":
        # With the slash it is a path, never a name on the hub.
        found = found_model(f"{folder}/")
        # A config that cannot be read is an error here, not on the hub.
        _ = found.config
        folder = Path(found.name)
        # Before the upload, since the examples of the card open the repository.
        named = partial(_name_card, found)
    skip_hub_if_offline()
    from hf_any3d.hub.pushing import push_folder

    with status(f"pushing {folder}"):
        pushed = push_folder(folder, repository, kind, named, private=private, revision=revision, message=message)
    if as_json:
        print_json({"repository": pushed.repository, "kind": kind, "url": pushed.url, "commit": pushed.commit})
    else:
        print_line(f"{kind} {pushed.repository}: {pushed.url}")


def space(
    model: Annotated[str, typer.Argument(help="Hub name of the model, owner/name.")],
    output: Annotated[Path, output_option("Output folder; by default space.")] = Path("space"),
    title: Annotated[str | None, option("Title of the page; by default the name of the model.")] = None,
) -> None:
    """Write the files of a Hugging Face Space with a demo of a model: app.py, requirements.txt, README.md."""
    found = found_model(model)
    name = found.name
    if Path(name).is_dir():
        raise ValueError(
            f"{model} is a directory, but a Space opens a model on the Hub; push it first: "
            f"hf-any3d push {model} OWNER/NAME"
        )
    from hf_any3d.hub.spaces import write_space

    kind = "a model" if found.task is None else found.task.kind
    try:
        files = write_space(output, name, kind, title or name.rpartition("/")[2])
    except FileExistsError as error:
        raise FileExistsError(f"{error} for --output") from None
    print_line(f"{output}: {', '.join(files)}")
    print_line(f"try it: python {output / 'app.py'}; publish it: hf upload OWNER/NAME {output} . --repo-type space")
