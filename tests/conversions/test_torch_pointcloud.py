"""Published names open files of the layout that each has; torch-pointcloud's are those of its own model classes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_any3d.conversions.checkpoints import read_checkpoint
from hf_any3d.conversions.programs import recognize
from hf_any3d.conversions.torch_pointcloud import authors_names
from hf_any3d.hub.published_table import PUBLISHED
from hf_any3d.published import _OPENED, open_published
from tests.errors import raises
from tests.published.test_published import forget
from tests.turns import some

# Written by `python -m studies.torch_pointcloud --layouts`.
LAYOUTS = json.loads(Path(__file__).with_name("torch_pointcloud_layouts.json").read_text())
OWNER = "torch-pointcloud/"
# Of each class, layout of tensors and option the smallest copy; files of RELEASES have the layouts of the others.
TRIED = (
    *("point-bert-base.dvae.xumin-yu", "pointgpt-s.pretrain.guangyan-chen", "dgcnn.modelnet40-2048.an-tao"),
    *("point-bert-base.modelnet40-4k.xumin-yu", "point-mae-base.modelnet40-8k.yatian-pang"),
    *("pointgpt-s.scanobjectnn-hardest.guangyan-chen", "ptv3-base.scannet20.pointcept"),
    *("dgcnn.s3dis-area1.an-tao", "3detr-m.scannet.fair"),
)
# Blocks of a transformer that files of the tests have; their config then states as many.
BLOCKS = 1
DEPTHS = ("num_hidden_layers", "decoder_num_hidden_layers")


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    """Tensors of the names and shapes of torch-pointcloud's class; of the blocks of a point transformer, the first."""
    layout = LAYOUTS[name] if isinstance(LAYOUTS[name], dict) else LAYOUTS[LAYOUTS[name]]
    # Part segmentation reads the features of three blocks.
    is_cut = name.startswith("point") and "label_conv.lins.0.weight" not in layout
    state = {}
    for pattern, (shape, count) in layout.items():
        for number in range(min(count, BLOCKS) if is_cut and count else count or 1):
            tensor = torch.zeros(shape) if shape else torch.tensor(1)
            state[pattern.replace("#", str(number))] = tensor
    return state


@pytest.fixture
def by_name(hub, monkeypatch):
    """Open a published name from a file on the local hub."""
    opened = []

    def open_file(name: str, state: dict[str, torch.Tensor], folder: Path):
        entry = PUBLISHED[name]
        file = entry.files[None]
        save_file(state, folder / "model.safetensors")
        commit = hub.commit(name, {file.path: (folder / "model.safetensors").read_bytes()}, in_lfs=True)
        config = {field: value for field, value in file.config.items() if field not in DEPTHS}
        small = dataclasses.replace(file, config=config, commit=commit)
        monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(entry, files={None: small}))
        opened.append(name)
        return open_published(name)

    yield open_file
    for name in opened:
        forget(name)
        hub.remove(name)


def test_every_name_has_a_layout():
    copies = {name.removeprefix(OWNER) for name in PUBLISHED if name.startswith(OWNER)}
    assert copies == LAYOUTS.keys()
    for name in copies:
        file = PUBLISHED[OWNER + name].files[None]
        assert re.fullmatch(r"[0-9a-f]{40}", file.commit), name


@pytest.mark.slow
@pytest.mark.parametrize("name", some(LAYOUTS, left_out=LAYOUTS.keys() - TRIED))
def test_a_copy_opens_by_its_name_with_all_its_tensors(name, by_name, tmp_path):
    state = tensors_of(name)
    model = by_name(OWNER + name, state, tmp_path)
    file = PUBLISHED[OWNER + name].files[None]
    assert type(model).__name__ == (file.model_class or PUBLISHED[OWNER + name].system.model_class)
    config = model.config
    assert config.published["name"] == OWNER + name and config.published["weights_license"]
    if "num_groups" in file.options:
        assert config.num_groups == file.options["num_groups"]
    if "num_neighbors" in file.options:
        assert config.num_neighbors == file.options["num_neighbors"]
    if file.options.get("dataset"):
        assert "LABEL_0" not in config.id2label.values()


RELEASES = {
    "Pang-Yatian/Point-MAE": {
        "pretrain": "point-mae-base.pretrain.yatian-pang",
        "scanobjectnn": "point-mae-base.scanobjectnn-hardest.yatian-pang",
        "scanobjectnn-objbg": "point-mae-base.scanobjectnn-objbg.yatian-pang",
        "scanobjectnn-objonly": "point-mae-base.scanobjectnn-objonly.yatian-pang",
        "modelnet40": "point-mae-base.modelnet40.yatian-pang",
        "modelnet40-8k": "point-mae-base.modelnet40-8k.yatian-pang",
        "shapenetpart": "point-mae-base.shapenetpart.yatian-pang",
    },
    "facebookresearch/3detr": {
        "scannet": "3detr.scannet.fair",
        "scannet-masked": "3detr-m.scannet.fair",
        "sunrgbd": "3detr.sunrgbd.fair",
    },
}
"""Repository -> size -> copy of its file, whose tensors get their authors' names again."""


# Of those that differ in a number or in the names of classes alone, one.
OF_RELEASES = some(
    [(name, size) for name, sizes in RELEASES.items() for size in sizes],
    left_out=[
        *(("Pang-Yatian/Point-MAE", size) for size in ("scanobjectnn-objbg", "scanobjectnn-objonly", "modelnet40")),
        *(("Pang-Yatian/Point-MAE", "modelnet40-8k"), ("facebookresearch/3detr", "scannet")),
        ("facebookresearch/3detr", "scannet-masked"),
    ],
)


@pytest.mark.slow
@pytest.mark.parametrize(("repository", "size"), OF_RELEASES)
def test_a_file_of_a_release_opens_by_its_name_and_is_fetched_once(repository, size, monkeypatch, tmp_path):
    entry = PUBLISHED[repository]
    file = entry.files[size]
    state = authors_names(tensors_of(RELEASES[repository][size]))
    path = tmp_path / repository / str(file.commit) / file.path
    path.parent.mkdir(parents=True)
    key = "model_state_dict" if size == "shapenetpart" else "model" if "3detr" in repository else "base_model"
    torch.save({key: state, "epoch": 300}, path)
    config = {field: value for field, value in file.config.items() if field not in DEPTHS}
    small = {**entry.files, size: dataclasses.replace(file, config=config)}
    address = tmp_path.as_uri() + "/{repository}/{commit}/{path}"
    monkeypatch.setitem(PUBLISHED, repository, dataclasses.replace(entry, files=small, address=address))
    try:
        model = open_published(f"{repository}:{size}")
        assert type(model).__name__ == (file.model_class or entry.system.model_class)
        path.unlink()  # as without a network
        _OPENED.clear()
        again = open_published(repository, size=size)
        assert again.config.published == model.config.published
    finally:
        forget(repository)


def test_a_tensor_too_many_or_too_few_is_named(tmp_path):
    name = "dgcnn.modelnet40-1024.an-tao"
    state = tensors_of(name)
    save_file(state | {"further.weight": torch.ones(1)}, tmp_path / "more.safetensors")
    with raises(ValueError, naming="more.safetensors"):
        read_checkpoint(tmp_path / "more.safetensors")
    del state["head.norms.0.module.bias"]
    save_file(state, tmp_path / "fewer.safetensors")
    assert recognize(tmp_path / "fewer.safetensors").program.title == "DGCNN"
    with raises(ValueError, naming="fewer.safetensors"):
        open_published(tmp_path / "fewer.safetensors", cache_dir=tmp_path / "cache")


def test_names_of_other_programs_stay_as_they_are():
    other = {"encoder.module.weight": torch.ones(1), "head.bias": torch.ones(1)}
    assert authors_names(other).keys() == other.keys()
