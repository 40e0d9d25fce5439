"""What is published where: every file with its sizes, parts and options, and which licenses forbid commercial use."""

from types import SimpleNamespace

import pytest

from hf_any3d.hub.licenses import ACCEPT, check_license, license_text, show_license
from hf_any3d.hub.published_table import (
    ELSEWHERE,
    PUBLISHED,
    BorrowedPart,
    System,
    download_of,
    find_published,
    is_published,
    non_commercial_record,
    terms_of,
)
from tests.errors import raises

BIGG = ("OpenCLIP ViT-bigG-14 (laion2b_s39b_b160k)", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
SIGLIP = "google/siglip-base-patch16-224"
# Title of a system -> its conversion, class, license of weights and program, and whether commercial use is forbidden.
SYSTEMS = {
    "OpenShape": ("openshape", "OpenShapeForZeroShotPointCloudClassification", "MIT", "Apache-2.0", False),
    "Uni3D": ("uni3d", "Uni3DForZeroShotPointCloudClassification", None, "MIT", False),
    "PatchAlign3D": ("patchalign3d", "PatchAlign3DForZeroShotPointCloudSegmentation", None, "MIT", False),
    "Point Transformer V3 (Sonata, Concerto, Utonia)": (
        "ptv3", "PointTransformerV3Model", "CC-BY-NC-4.0", "Apache-2.0", True,
    ),
    "Point Transformer V3, supervised": ("ptv3", "PointTransformerV3ForPointCloudSegmentation", None, "MIT", False),
    "Find3D": ("find3d", "PointTransformerV3ForZeroShotPointCloudSegmentation", None, "MIT", False),
    "MiniGPT-3D": (
        "minigpt3d", "MiniGPT3DForConditionalGeneration", "CC-BY-NC-SA-4.0", "CC-BY-NC-SA-4.0", True,
    ),
    "SpatialLM 1.1": (
        "spatiallm", "SpatialLMForConditionalGeneration", "CC-BY-NC-4.0", "Llama 3.2 Community License", True,
    ),
}  # fmt: skip
DEPTHS = [3, 3, 3, 12, 3]


def openshape(groups, channels):
    return {None: ("model.pt", {"hidden_size": 512, "num_groups": groups, "projection_dim": channels})}


def uni3d(size, letters, channels, blocks):
    config = {"hidden_size": channels, "num_hidden_layers": blocks, "projection_dim": 1024}
    return {f"{size}{ending}": (f"modelzoo/uni3d-{letters}{ending}/model.pt", config) for ending in ("", "-no-lvis")}


def ptv3(name, sizes=None, **more):
    return (f"{name}.pth", {} if sizes is None else {"hidden_sizes": sizes, "depths": DEPTHS}, more)


def with_head(name, sizes, **more):
    model = "PointTransformerV3ForPointCloudSegmentation"
    return ptv3(name, sizes, parts={"head": f"{name}_linear_prob_head_sc.pth"}, model_class=model, **more)


LACKING = {"options": {"preset": "concerto"}}


def supervised(folder, dataset, *sizes):
    config = {"hidden_sizes": list(sizes), "block_rule": "branch", "depth_rule": "max"}
    options = {"trained_with": "pointcept-1.5.1", "dataset": dataset}
    return (f"{folder}/model/model_best.pth", config, {"options": options})


GIANT = {"hidden_size": 1408, "num_hidden_layers": 40, "projection_dim": 1024}
BASE, LARGE, UTONIA = [48, 96, 192, 384, 512], [64, 128, 256, 512, 768], [54, 108, 216, 432, 576]
SPATIALLM = ("SpatialLM 1.1", {None: ("config.json", {}, {"parts": {"checkpoint": "/"}})})
TABLE = {
    "OpenShape/openshape-pointbert-vitg14-rgb": ("OpenShape", openshape(384, 1280), *BIGG),
    "OpenShape/openshape-pointbert-no-lvis": ("OpenShape", openshape(384, 1280), *BIGG),
    "OpenShape/openshape-pointbert-shapenet": ("OpenShape", openshape(384, 1280), *BIGG),
    "OpenShape/openshape-pointbert-vitl14-rgb": (
        "OpenShape", openshape(64, 768), "CLIP ViT-L/14", "openai/clip-vit-large-patch14",
    ),
    "OpenShape/openshape-pointbert-vitb32-rgb": (
        "OpenShape", openshape(64, None), "CLIP ViT-B/32", "openai/clip-vit-base-patch32",
    ),
    "BAAI/Uni3D": (
        "Uni3D",
        uni3d("tiny", "ti", 192, 12)
        | uni3d("small", "s", 384, 12)
        | uni3d("base", "b", 768, 12)
        | uni3d("large", "l", 1024, 24)
        | uni3d("giant", "g", 1408, 40)
        | {f"giant-{name}": (f"modelzoo/uni3d-g/{name}/model.pt", GIANT) for name in ("lvis", "mnet40", "scanobjnn")},
        "OpenCLIP EVA02-E-14-plus (laion2b_s9b_b144k)",
    ),
    "facebook/sonata": (
        "Point Transformer V3 (Sonata, Concerto, Utonia)",
        {"base": ptv3("sonata", BASE), "small": ptv3("sonata_small"), "scannet": with_head("sonata", BASE)},
    ),
    "Pointcept/Sonata": (
        "Point Transformer V3 (Sonata, Concerto, Utonia)", {None: ptv3("sonata_20251024", **LACKING)},
    ),
    "Pointcept/Concerto": (
        "Point Transformer V3 (Sonata, Concerto, Utonia)",
        {
            "tiny": ptv3("concerto_tiny"),
            "small": ptv3("concerto_small", **LACKING),
            "base": ptv3("concerto_base", BASE, **LACKING),
            "base-origin": ptv3("concerto_base_origin", BASE),
            "base-siglip": ptv3("concerto_base_siglip", BASE),
            "large": ptv3("concerto_large", LARGE, **LACKING),
            "large-outdoor": ptv3("concerto_large_outdoor", options={"preset": "concerto_outdoor"}),
            "scannet": with_head("concerto_large", LARGE, **LACKING),
        },
    ),
    "Pointcept/Utonia": (
        "Point Transformer V3 (Sonata, Concerto, Utonia)",
        {"base": ptv3("utonia", UTONIA), "scannet": with_head("utonia", UTONIA)},
    ),
    "Pointcept/PointTransformerV3": (
        "Point Transformer V3, supervised",
        {
            "scannet": supervised("scannet-semseg-pt-v3m1-0-base", "scannet", 32, 64, 128, 256, 512),
            "scannet-ppt": supervised("scannet-semseg-pt-v3m1-1-ppt-extreme", "scannet", *BASE),
            "scannet200": supervised("scannet200-semseg-pt-v3m1-0-base", "scannet200", 32, 64, 128, 256, 512),
            "s3dis": supervised("s3dis-semseg-pt-v3m1-0-rpe", "s3dis", 32, 64, 128, 256, 512),
            "s3dis-ppt": supervised("s3dis-semseg-pt-v3m1-1-ppt-extreme", "s3dis", 32, 64, 128, 256, 384),
            "nuscenes": supervised("nuscenes-semseg-pt-v3m1-0-base", "nuscenes", 32, 64, 128, 256, 512),
        },
    ),
    "YuanTang96/MiniGPT-3D": (
        "MiniGPT-3D",
        {
            None: (
                "params_weight/MiniGPT_3D_stage_3/MiniGPT_3D_stage_3.pth",
                {},
                {
                    "parts": {
                        "second_checkpoint": "params_weight/MiniGPT_3D_stage_4/MiniGPT_3D_stage_4.pth",
                        "point_encoder": "params_weight/pc_encoder/point_model.pth",
                        "language_model": "params_weight/Phi_2/",
                    },
                    "borrowed": {
                        "qformer": BorrowedPart("Salesforce/blip2-flan-t5-xxl", ("qformer.", "query_tokens"))
                    },
                    "options": {"store_parts": True},
                },
            )
        },
    ),
    "manycore-research/SpatialLM1.1-Qwen-0.5B": SPATIALLM,
    "manycore-research/SpatialLM1.1-Llama-1B": SPATIALLM,
    "ysmao/SpatialLM1.1-Qwen-0.5B-ARKitScenes-SFT": SPATIALLM,
    "ysmao/SpatialLM1.1-Qwen-0.5B-Structured3D-SFT": SPATIALLM,
    "ziqima/find3d-checkpt0": (
        "Find3D",
        {None: ("model.safetensors", {"text_embedding_size": 768, "block_rule": "full", "depth_rule": "max"})},
        SIGLIP,
        SIGLIP,
    ),
    "patchalign3d/patchalign3d-encoder": (
        "PatchAlign3D", {None: ("patchalign3d.pt", {"hidden_size": 384, "projection_dim": 1280})}, *BIGG,
    ),
}  # fmt: skip


def test_all_repositories_are_in_the_test():
    assert set(PUBLISHED) == set(TABLE) and {one.system.title for one in PUBLISHED.values()} == set(SYSTEMS)


@pytest.mark.parametrize("name", TABLE)
def test_files_have_the_sizes_parts_and_options_of_their_authors(name):
    title, files, *texts = TABLE[name]
    found = PUBLISHED[name]
    assert found.system.title == title and [found.texts, found.text_tower] == [*texts, None, None][:2]
    assert list(found.files) == list(files)
    for size, (path, config, *more) in files.items():
        file = found.files[size]
        usual = {"parts": {}, "borrowed": {}, "options": {}, "model_class": None} | (more[0] if more else {})
        assert (file.path, file.config) == (path, config)
        assert {key: getattr(file, key) for key in usual} == usual


@pytest.mark.parametrize("title", SYSTEMS)
def test_programs_have_the_terms_of_their_authors(title):
    convert, model_class, weights, program, forbids = SYSTEMS[title]
    (system,) = {one.system.title: one.system for one in PUBLISHED.values() if one.system.title == title}.values()
    assert (system.convert, system.model_class) == (f"convert_{convert}", model_class)
    weights = weights or "as on the card of the repository"
    assert terms_of(system) == {"weights_license": weights, "code_license": program, "non_commercial": forbids}
    text = f"Weights: {weights} (stated by {system.license_source}); program: {program}."
    assert license_text(system) == text + " The license of the weights forbids commercial use." * forbids


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("BAAI/Uni3D:base", None, ("BAAI/Uni3D", "base")),
        ("BAAI/Uni3D", "base", ("BAAI/Uni3D", "base")),
        ("BAAI/Uni3D:base", "base", ("BAAI/Uni3D", "base")),
        ("ziqima/find3d-checkpt0", None, ("ziqima/find3d-checkpt0", None)),
        ("BAAI/Uni3D:base", "tiny", "^BAAI/Uni3D:base: size='tiny' is given too; expected one size$"),
        (
            "Pointcept/Utonia",
            None,
            "^Pointcept/Utonia: no size is given; expected one of base, scannet, as size=… or ",
        ),
        ("Pointcept/Utonia:x", None, "Utonia: size='x'; expected one of base, scannet, .*: Pointcept/Utonia:base$"),
        ("ziqima/find3d-checkpt0:x", None, "find3d-checkpt0: size='x'; the repository has a single checkpoint, leave"),
    ],
)
def test_a_size_is_in_the_name_or_beside_it(name, size, found):
    if isinstance(found, tuple):
        assert find_published(name, size) == (*found, PUBLISHED[found[0]])
        return
    with pytest.raises(ValueError, match=found):
        find_published(name, size)


def test_a_directory_of_the_same_name_is_no_published_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_published("BAAI/Uni3D") and is_published("BAAI/Uni3D:base") and is_published("BAAI/Uni3D:none")
    assert not is_published("BAAI/Uni3D2") and not is_published(None) and not is_published(tmp_path)
    (tmp_path / "BAAI" / "Uni3D").mkdir(parents=True)
    assert not is_published("BAAI/Uni3D") and is_published("BAAI/Uni3D:base")


def test_files_that_are_on_no_hub_have_an_address():
    names = ["scannet_ep1080.pth", "scannet_masked_ep1080.pth", "sunrgbd_ep1080.pth", "sunrgbd_masked_ep1080.pth"]
    assert sorted(ELSEWHERE) == names
    for name in names:
        address = f"https://dl.fbaipublicfiles.com/3detr/checkpoints/{name}"
        assert download_of(f"in/{name}") == f"; the authors have it at {address}"
    assert download_of("scannet.pth") == ""


def test_weights_that_may_not_be_sold_are_found_in_a_model_and_in_its_parts():
    free, bound = {"non_commercial": False, "a": 1}, {"non_commercial": True, "a": 2}
    part = SimpleNamespace(published=bound)
    assert non_commercial_record(SimpleNamespace(published=bound)) is bound
    assert non_commercial_record(SimpleNamespace(published=free)) is None
    assert non_commercial_record(SimpleNamespace()) is None
    whole = SimpleNamespace(published=free, sub_configs=("gone", "part"), part=part)
    assert non_commercial_record(whole) is bound
    whole.part = SimpleNamespace(published=None)
    assert non_commercial_record(whole) is None


TERMS = System("T", "convert", "Class", "MIT", "NC-1", "its page", "https://x", non_commercial=True)


def test_a_license_that_forbids_commercial_use_is_accepted_once(tmp_path, monkeypatch):
    wording = (
        r"^me/x: the weights are under NC-1 \(stated by its page\), which forbids commercial use; if yours is "
        rf"permitted, accept it once with open_published\(…, accept_license=True\), or set {ACCEPT}=me/x$"
    )
    monkeypatch.delenv(ACCEPT, raising=False)
    free = System("T", "convert", "Class", "MIT", "MIT", "its page", "https://x")
    check_license("me/x", free, tmp_path / "free", accept=False)
    for accepted in (None, "", "me/y, other"):
        if accepted is not None:
            monkeypatch.setenv(ACCEPT, accepted)
        with pytest.raises(ValueError, match=wording):
            check_license("me/x", TERMS, tmp_path, accept=False)
    for accepted in ("all", "me/x", "me/y, me/x"):
        monkeypatch.setenv(ACCEPT, accepted)
        check_license("me/x", TERMS, tmp_path, accept=False)
    assert not list(tmp_path.iterdir()), "what a variable accepts is not kept"
    monkeypatch.delenv(ACCEPT)
    check_license("me/x", TERMS, tmp_path, accept=True)
    check_license("me/x", TERMS, tmp_path, accept=False)
    changed = System("T", "convert", "Class", "MIT", "NC-2", "its page", "https://x", non_commercial=True)
    with raises(ValueError, naming="under NC-2"):
        check_license("me/x", changed, tmp_path, accept=False)


def test_licenses_are_shown_once_and_again_if_they_change(tmp_path, capsys):
    check_license("me/x", TERMS, tmp_path, accept=True)
    for _ in range(2):
        show_license("me/x", TERMS, tmp_path)
    text = "Weights: NC-1 (stated by its page); program: MIT. The license of the weights forbids commercial use."
    assert capsys.readouterr() == ("", f"me/x: {text}\n")
    free = System("T", "convert", "Class", "BSD", "MIT", "its page", "https://x")
    show_license("me/x", free, tmp_path)
    assert capsys.readouterr().err == "me/x: Weights: MIT (stated by its page); program: BSD.\n"
    check_license("me/x", TERMS, tmp_path, accept=False)
