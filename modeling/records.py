"""The record in a model's folder: what it declares of itself, as plain data.

`about.py` of each folder with a model has a `RECORD`. `hf_any3d.registry` reads them before torch is loaded, so that
such a file imports this module and the standard library alone, and names classes and functions by text. The registry,
the public names, conversions and what `hf-any3d convert` recognizes, the table of published checkpoints, cards, help
texts and tables of the pages are made from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FEATURES = "point-cloud-feature-extraction"
"""The task of models without a head."""
POINT_ENCODER = "act3d"
"""Model type of the point transformer that models with a point encoder as a part have by default."""
LICENSE = {"license": "license of the weights, such as mit; by default the card says unknown"}
# Options of `hf-any3d convert` that several conversions take, and what they are for; see `Converter.takes`.
DATASET = {
    "dataset": "dataset to take the label names from: scanobjectnn, modelnet40, shapenetpart, s3dis, scannet, "
    "scannet200, nuscenes, waymo, sunrgbd or none; by default chosen by the number of labels"
}
CLASSES = {"classes": "comma-separated class names, or a file with one name per line"}
HEADS = {"num_attention_heads": "attention heads"}
PATCHES = {"num_groups": "patches per cloud", "group_size": "points per patch"}
POINTS = {"num_points": "points per cloud"}
REVISION = {"revision": "branch, tag or commit of a named encoder"}


@dataclass(frozen=True)
class Method:
    """Published method that the models of a type implement.

    Attributes:
        name: Its name.
        paper: Number of its paper on arXiv; None if there is none.
        tags: Tags of cards.
        reads: Sentence for cards on how a model reads a cloud; `{config.num_hidden_layers}` is a setting. Empty if it
            depends on more.
    """

    name: str
    paper: str | None
    tags: tuple[str, ...]
    reads: str = ""


@dataclass(frozen=True)
class ModelType:
    """A model type and its classes, which the package has in its `__init__.py`.

    Attributes:
        config: Class of the configuration.
        base: Model without a head.
        heads: Task -> models with a head for it. Of several, the saved architecture decides.
        part_heads: Those for the parts of an object of a known category, not the objects of a scene.
        processor: Module and class.
        network: Module of the package and class of a head in torch alone, which commands open in half the time; see
            `hf_any3d.tasks.direct`.
        steps: Task -> module and class of what its pipeline does with that network.
        has_frozen_encoder: Whether training starts from a pretrained encoder of another modality, which stays frozen.
        is_point_encoder: Whether training can start from a saved model of this type, pretrained on point clouds.
        has_parts: Whether a saved model may leave the weights of pretrained parts in other repositories.
        exported: Model classes that are written as ONNX or as a program of torch.export. Not for models that look for
            the points of a ball in a way that depends on their number, or whose operators depend on the cloud.
        exported_in: Models that are exported with one of this type as a part of them: "features" computes numbers of
            a cloud with it, "detector" has its decoder on it.
        captures_steps: Whether a training step can be captured as a CUDA graph.
        embeds_further_patches: Whether adapters can have its encoder embed more patches of the clouds that it reads.
        says: What it is, in a few words for the help of commands.
        method: What it implements; None if that is not published.
        methods: Model class -> its method, where that is another one.
        cards: Model class -> name of its text in `hf_any3d.model_card.TASKS`, where that is not the text of its task.
        composition: What the models consist of, which decides how a card describes them; see
            `hf_any3d.model_card.descriptions`.
        package: That of the record; the registry fills it in.
    """

    config: str
    base: str
    heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    part_heads: tuple[str, ...] = ()
    processor: str = "hf_any3d.processing.point_clouds.PointCloudProcessor"
    network: str | None = None
    steps: Mapping[str, str] = field(default_factory=dict)
    has_frozen_encoder: bool = False
    is_point_encoder: bool = False
    has_parts: bool = False
    exported: tuple[str, ...] = ()
    exported_in: tuple[str, ...] = ()
    captures_steps: bool = False
    embeds_further_patches: bool = False
    says: str = ""
    method: Method | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)
    cards: Mapping[str, str] = field(default_factory=dict)
    composition: str = "encoder"
    package: str = ""

    def models(self) -> dict[str, str]:
        """Return its model classes with their tasks, the one without a head first."""
        # A model may have several tasks: the last one counts.
        named = {name: task for task, names in self.heads.items() for name in names}
        # The base may be listed among the heads, then its task is the one there.
        return {self.base: named.get(self.base, FEATURES)} | named


@dataclass(frozen=True)
class LanguageModel:
    """A language model that transformers lacks.

    Attributes:
        config: Class of the configuration.
        body: Model without a head.
        model: Model with a language modeling head.
        lora_targets: Modules that LoRA adapts by default.
    """

    config: str
    body: str
    model: str
    lora_targets: tuple[str, ...]


@dataclass(frozen=True)
class Converter:
    """A public function of `hf_any3d.conversions`.

    Attributes:
        module: Module below `hf_any3d.conversions` that has it; of an extension, by its full name.
        needs: Its arguments for files that have to be given.
        of_parts: Function that converts files of the system among which no `checkpoint` is.
        title: Whose files it converts, for help texts; needed where it takes options.
        takes: Option of `hf-any3d convert` -> what it is for, for help texts.
        chosen_by: Option that no other conversion takes and that chooses this one before a file is read, so that its
            own errors tell what is wrong with the file.
    """

    module: str
    needs: tuple[str, ...] = ("checkpoint",)
    of_parts: str | None = None
    title: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)
    chosen_by: str | None = None


@dataclass(frozen=True)
class Program:
    """A program whose checkpoints can be converted, or one kind of its files.

    Attributes:
        title: Its name, for messages.
        convert: Public function of `hf_any3d.conversions`.
        marks: Regular expression with which the name of some tensor begins -> arguments of `convert` that it shows.
            The first that is found counts; without one of them a file is another program's. Without any, files are
            those that `hf_any3d.conversions.point_starts` finds under the title.
        recognizer: In place of marks, module and function below `hf_any3d.conversions`, from the names of the tensors
            to those arguments, or None for another program's; of an extension, by its full name.
        role: Argument of `convert` that takes the file.
        entry: Key that the file must have beside that of its tensors.
    """

    title: str
    convert: str
    marks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    recognizer: str | None = None
    role: str = "checkpoint"
    entry: str | None = None


@dataclass(frozen=True)
class System:
    """Properties that the published checkpoints of one program have in common.

    Attributes:
        title: Its name, for messages and tables.
        convert: Public function of `hf_any3d.conversions`, with arguments `checkpoint` and `output`.
        model_class: Public class that a converted checkpoint opens with.
        code_license: License of the authors' program.
        page: Page of the authors' program.
        weights_license: License of the weights.
        license_source: Where the latter is stated.
        non_commercial: Whether it forbids commercial use, so that the user must agree first.
    """

    title: str
    convert: str
    model_class: str
    code_license: str
    page: str
    weights_license: str = "see the model card"
    license_source: str = "the model card, which was not read here"
    non_commercial: bool = False


@dataclass(frozen=True)
class BorrowedPart:
    """Tensors of a model in the layout of transformers, which a checkpoint lacks.

    Attributes:
        repository: Its name on the hub.
        prefixes: Beginnings of the names of the tensors that are used.
    """

    repository: str
    prefixes: tuple[str, ...]


@dataclass(frozen=True)
class PublishedFile:
    """One published checkpoint.

    Attributes:
        path: The file in the repository.
        config: Fields that the config must have after the conversion, which finds them from the tensors.
        remark: What is not certain about it.
        parts: Further arguments of the conversion, to files of the repository, or folders, which end with "/"; "/" is
            the whole repository. `checkpoint` among them takes the place of the file.
        borrowed: Further arguments of the conversion, to parts of models in other repositories.
        options: Further arguments of the conversion, to their values.
        model_class: Class that it opens with, if that is not the one of the system.
        commit: Commit or tag at which the file is taken, unless the user gives a revision; of a file on the hub, None
            is its newest version.
        sha256: Checksum of a file that is not on the hub, where it is known.
        reported: What it reaches, and by whom that was measured.
    """

    path: str
    config: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    borrowed: Mapping[str, BorrowedPart] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    model_class: str | None = None
    commit: str | None = None
    sha256: str | None = None
    reported: str = ""


GIT_FILES = "https://raw.githubusercontent.com/{repository}/{commit}/{path}"
"""Address of a file in a git repository."""
RELEASES = "https://github.com/{repository}/releases/download/{commit}/{path}"
"""Address of a file of a release, whose tag takes the place of the commit."""


@dataclass(frozen=True)
class Published:
    """A repository on the hub or on GitHub, or a folder on a server, with checkpoints of a system.

    Attributes:
        system: The system.
        files: Checkpoints by size; the key is None in a repository with a single one.
        texts: Model whose texts share the space of the features; None if the features are not aligned with texts.
        text_tower: Repository of that model in the form of transformers; None if transformers has no class for it.
        address: Of files that are not on the hub: their address, with names of the repository, the commit and the path
            to fill in.
    """

    system: System
    files: Mapping[str | None, PublishedFile]
    texts: str | None = None
    text_tower: str | None = None
    address: str | None = None


def copy_of(
    system: System,
    commit: str,
    reported: str,
    config: Mapping[str, Any],
    *,
    model_class: str | None = None,
    **options: Any,
) -> Published:
    """Return what a repository of torch-pointcloud holds: a copy of one file of the authors, as safetensors.

    Args:
        system: That of the authors.
        commit: Of the repository.
        reported: What the file reaches, as torch-pointcloud measured it.
        config: As in `PublishedFile`.
        model_class: As in `PublishedFile`.
        **options: As in `PublishedFile`.
    """
    file = PublishedFile(
        "model.safetensors",
        config,
        options=options,
        model_class=model_class,
        commit=commit,
        reported=f"{reported}, measured by torch-pointcloud" if reported else "",
    )
    return Published(system, {None: file})


@dataclass(frozen=True)
class Record:
    """All that the rest of the package knows of the models in a folder.

    Attributes:
        model_types: By the `model_type` in config.json.
        encoders: Configuration -> model, of encoders of other modalities that transformers lacks.
        language_models: Language models that transformers lacks.
        converters: Public function of `hf_any3d.conversions` -> where it is and what it takes.
        programs: Kinds of files by which `hf-any3d convert` recognizes them; the first that accepts a file counts.
        directories: Model type in the config of a released directory -> what converts it.
        refused: Beginning of a tensor's name -> what a file with it is, which no class here is for.
        published: Name of a repository, on the hub or on GitHub -> what is published there.
    """

    model_types: Mapping[str, ModelType] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    language_models: tuple[LanguageModel, ...] = ()
    converters: Mapping[str, Converter] = field(default_factory=dict)
    programs: tuple[Program, ...] = ()
    directories: Mapping[str, Program] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Published] = field(default_factory=dict)
