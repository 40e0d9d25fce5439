"""Tables of tasks, model types, datasets and file formats by name. Each list stands here and nowhere else.

Everything reads it: registration with transformers, the command line, training programs, cards, pages, tests. It
imports nothing that takes time, so that a command answers before torch is loaded; classes and modules are given by
their names. What concerns a model is in the record of its folder, which is read here.
"""

import importlib
import importlib.util
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hf_any3d.extensions import EXTENSIONS, missing_package
from hf_any3d.modeling.records import FEATURES, ModelType, Record
from hf_any3d.tasks.records import Task

TASK_FOLDERS = (
    "classification",
    "features",
    "detection",
    "reconstruction",
    "segmentation",
    "chat",
    "zero_shot_classification",
    "parts_by_name",
)
"""Folders in `hf_any3d/tasks/`, each with a record, `about.py`."""
TASKS: dict[str, Task] = {}
_task_packages = [f"hf_any3d.tasks.{_folder}" for _folder in TASK_FOLDERS]
for _package in (*_task_packages, *(name for _extension in EXTENSIONS.values() for name in _extension.tasks)):
    # A record and the settings that it names take no time to import.
    _task: Task = importlib.import_module(f"{_package}.about").TASK
    TASKS[_task.name] = replace(_task, package=_package)
"""By the name of the pipeline; see `hf_any3d.tasks.records`."""
# Without a folder, since it is there to be trained further.
TASKS["pre-training"] = Task("AutoModelForPreTraining", "a pretrained point encoder without a head", "features")


def full_name(module: str, package: str) -> str:
    """Return the full name of a module of a table: those of extensions have it there, ours are within a package."""
    return module if "." in module else f"{package}.{module}"


def is_own(package: str) -> bool:
    """Return whether a package is a part of this one, and not of an extension."""
    return package.startswith("hf_any3d.")


def _refuse_taken(extension: str, what: str, names: Iterable[str], table: Collection[str]) -> None:
    """Refuse what another package brings under a name that is there, as one of the two would be lost."""
    for name in names:
        if name in table:
            raise ValueError(
                f"the package {extension} brings the {what} {name!r}, which is there already; update or uninstall "
                f"{extension}"
            )


def _read_record(package: str) -> Record:
    """Run `about.py` of a package with models alone, since an import would run the package, and load torch.

    A later import finds the module that it becomes here, so that each object is there once.
    """
    # The name that an import would give it.
    name = f"{package}.about"
    top, *inside = package.split(".")
    found = importlib.util.find_spec(top)
    # In a checkout, this package is in several folders.
    places = () if found is None else found.submodule_search_locations or ()
    files = (Path(place, *inside, "about.py") for place in places)
    file = next((file for file in files if file.is_file()), None)
    spec = None if file is None else importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as dataclasses look for their module there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.RECORD


MODEL_FOLDERS = (
    # A checkpoint belongs to the first that accepts it. Any2Point's classifiers have the head of ACT's, ACT's the
    # layers of PatchAlign3D, and MiniGPT-3D's point encoder has these layers alone.
    "any2point",
    "act",
    "recon",
    "pointgpt",
    "patchalign3d",
    "minigpt3d",
    "pointnet",
    "dgcnn",
    "point_features",
    "detr3d",
    "openshape",
    "point_transformer_v3",
    "spatiallm",
    "uni3d",
    "imagebind_audio",
)
"""Folders in `modeling/`, each with a record, `about.py`."""
_model_packages = [f"hf_any3d.modeling.{_folder}" for _folder in MODEL_FOLDERS]
RECORDS = {
    package: _read_record(package)
    for package in (*_model_packages, *(name for extension in EXTENSIONS.values() for name in extension.models))
}
"""Package with models -> what it declares; see `hf_any3d.modeling.records`."""
MODEL_TYPES = {
    # A record does not repeat the name of its package.
    name: replace(model_type, package=package)
    for package, record in RECORDS.items()
    for name, model_type in record.model_types.items()
}
"""By the `model_type` in config.json."""

NONE_OF_THESE = "none of these"
"""What is said of a cloud without a label."""
NOISE = "noise"
"""What is said of points far below the ground, and of lone ones far above it."""
# What the labels of a dataset's rows belong to.
LABELED_CLOUDS, LABELED_POINTS, LABELED_WITH_TEXTS = "clouds", "points", "texts"
LABELED_WITH_BOXES = "boxes"
GENERATED = {
    "parts": LABELED_POINTS,  # objects assembled in code, each point with its part
    "rooms": LABELED_POINTS,  # rooms composed of the embedded shapes, each point with its object's class
    "rooms_with_boxes": LABELED_WITH_BOXES,  # rooms composed of the embedded shapes, a box around each object
    "rooms_with_layouts": LABELED_WITH_BOXES,  # such rooms with walls, doors and windows, and their layouts as text
}
"""Module of `hf_any3d.data.generated` -> kind of its labels; for the rest like `DATASETS`, which has them too."""
DATASETS: dict[str, str | None] = {
    "folder": LABELED_CLOUDS,  # a folder of point files and meshes, label = folder name
    "hdf5": None,  # local HDF5 files of many clouds; their arrays tell
    "modelnet40": LABELED_CLOUDS,  # CAD models of 40 classes
    "modelnet40_fewshot": LABELED_CLOUDS,  # its few-shot episodes
    "modelnet40_generative": LABELED_WITH_TEXTS,  # its test set with questions for language models
    "nuscenes": LABELED_POINTS,  # sweeps of laser scanners on cars, each point with one of 16 classes
    "objaverse_captions": LABELED_WITH_TEXTS,  # colored objects with captions and conversations
    "parquet": None,  # local Parquet files with a column of points; their columns tell
    **GENERATED,
    "s3dis": LABELED_POINTS,  # scanned rooms of six areas, each point with one of 13 classes
    "scannet_detection": LABELED_WITH_BOXES,  # scanned rooms, boxes of 18 classes
    "scans_with_boxes": LABELED_WITH_BOXES,  # a folder of your own scans with files of boxes
    "scanobjectnn": LABELED_CLOUDS,  # objects cut out of scans of real rooms, 15 classes
    "semantickitti": LABELED_POINTS,  # sweeps of a laser scanner on a car, each point with one of 19 classes
    "sunrgbd": LABELED_WITH_BOXES,  # rooms seen by depth cameras, boxes of 10 classes
    "shapenet55": LABELED_CLOUDS,  # models of 55 categories, to pretrain on
    "shapenetpart": LABELED_POINTS,  # objects of 16 categories, each point with one of 50 parts
    "shapes": LABELED_CLOUDS,  # the small set of household objects in examples/data
}
"""Module of `hf_any3d.data.catalog`, whose `load(data_dir, **options)` returns a DatasetDict -> kind of its labels.

Names of extensions are among them; `DATASETS_OF_EXTENSIONS` has their modules.
"""
DATASETS_OF_EXTENSIONS: dict[str, str] = {}
for _name, _extension in EXTENSIONS.items():
    _refuse_taken(_name, "data set", _extension.datasets, DATASETS)
    for _dataset, (_module, _labels) in _extension.datasets.items():
        DATASETS[_dataset] = _labels
        DATASETS_OF_EXTENSIONS[_dataset] = _module

OF_YOUR_FILES = ("folder", "hdf5", "parquet", "scans_with_boxes")
"""Names in `DATASETS` of loaders of a user's own files, which say nothing about the data."""

FORMATS: dict[str, str] = {
    "3mf": "threemf",
    "asc": "text",
    "bin": "bin",
    "colmap": "colmap",
    "csv": "text",
    "e57": "e57",
    "glb": "gltf",
    "gltf": "gltf",
    # As nuscenes below a type and no ending: such files end with .bin, which does not tell their columns.
    "kitti": "bin",
    "las": "las",
    "laz": "las",
    "npy": "npy",
    "npz": "npy",
    "nuscenes": "bin",
    "obj": "obj",
    "off": "off",
    "pcd": "pcd",
    "ply": "ply",
    "pnts": "pnts",
    "pts": "text",
    "ptx": "ptx",
    "splat": "splats",
    "spz": "splats",
    "stl": "stl",
    "txt": "text",
    "xyz": "text",
}
"""Ending -> module of `hf_any3d.data.files` with `read(source) -> PointCloudData`, a mesh if the file has faces.

Modules of extensions are named in full.
"""
for _name, _extension in EXTENSIONS.items():
    _refuse_taken(_name, "file format", _extension.formats, FORMATS)
    FORMATS |= _extension.formats

TYPES_BY_OPTION = ("colmap", "kitti", "nuscenes")
"""Formats that programs write under other extensions, .bin or .txt."""

HDF5 = (".h5", ".hdf5", ".hdf")
"""Endings of HDF5 files, which hold many clouds each, a dataset."""

PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tgz", ".tar", ".7z", ".rar")
"""Endings of compressed files and archives, which are not opened."""


def task_of_class(name: str) -> str | None:
    """Return the task of a model class of this package, or None for other classes."""
    kind = type_of_class(name)
    return None if kind is None else kind.models()[name]


def type_of_class(name: str) -> ModelType | None:
    """Return the model type that a model class of this package belongs to, or None for other classes."""
    # Classes have one type each, so that the first one is the only one.
    return next((kind for kind in MODEL_TYPES.values() if name in kind.models()), None)


def type_of_model(model_class: type) -> ModelType | None:
    """Return the model type of a class of this package or of the first one that it derives from, or None."""
    # From the class itself up to its bases, so that a subclass has the type of the nearest one.
    kinds = (type_of_class(base.__name__) for base in model_class.__mro__)
    return next((kind for kind in kinds if kind is not None), None)


def pipeline_task(architectures: Sequence[str] | None) -> str:
    """Return the task of the pipeline for a saved model; feature extraction for models without a head."""
    # A saved model names one class; others in the list are not looked at.
    task = task_of_class((architectures or [""])[0])
    return task if task is not None and TASKS[task].pipeline else FEATURES


def check_model_type(where: object, model_type: object) -> None:
    """Check that a model's type is one of this package."""
    if model_type not in MODEL_TYPES:
        package = missing_package(str(model_type))
        if package is not None:
            raise ValueError(f"{where}: model_type {model_type!r} is of {package}")
        known = ", ".join(sorted(MODEL_TYPES))
        raise ValueError(f"{where}: model_type {model_type!r} is not of this package; expected {known}")
