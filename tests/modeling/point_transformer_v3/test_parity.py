"""Our encoders against stored runs of the released programs, tensor by tensor."""

import re

import pytest
import torch

from hf_any3d.conversions.point_transformer_v3.names import convert_ptv3_state_dict, ptv3_fields
from hf_any3d.modeling.point_transformer_v3 import PRESETS, PointTransformerV3Config, PointTransformerV3Model
from tests.errors import raises
from tests.modeling.ptv3_case import Ptv3Case

RUNS = [(name, run) for name in ("sonata", "concerto", "utonia", "options") for run in Ptv3Case(f"ptv3_{name}").runs]


@pytest.fixture(scope="module")
def build():
    """Function from the name of a case and settings to the case and its model."""

    def make(name: str, **settings):
        case = Ptv3Case(f"ptv3_{name}")
        fields = ptv3_fields(case.arguments)
        config = PointTransformerV3Config(**fields | {"depth_of_batch": True} | settings)
        model = PointTransformerV3Model(config)
        model.load_state_dict(convert_ptv3_state_dict(case.original, fields), strict=True)
        return case, model.eval()

    return make


def recorded(model: PointTransformerV3Model) -> dict[str, torch.Tensor]:
    """Fill a dict with the outputs of modules under the released program's names, at each forward pass."""
    config, found = model.config, {}

    def keep(module: torch.nn.Module, name: str) -> None:
        def record(module, args, output):
            found[name] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(record)

    keep(model.embeddings, "embedding")
    for stage, pooling in enumerate(model.poolings):
        keep(pooling, f"enc.enc{stage + 1}.down")
    places = [f"enc.enc{stage}.block{block}" for stage, depth in enumerate(config.depths) for block in range(depth)]
    decoder = list(enumerate(config.decoder_depths))[::-1] if config.use_decoder else []
    for (stage, _), unpooling in zip(decoder, model.unpoolings, strict=True):
        keep(unpooling, f"dec.dec{stage}.up")
    places += [f"dec.dec{stage}.block{block}" for stage, depth in decoder for block in range(depth)]
    for place, block in zip(places, [*model.blocks, *model.decoder_blocks], strict=True):
        keep(block, place)
        keep(block.positions, f"{place}.cpe")
        keep(block.attention, f"{place}.attn")
    return found


def run_of(case, model, run: str, monkeypatch) -> dict[str, torch.Tensor]:
    """Tensors of a run under the stored names."""
    found, given = recorded(model), dict(case.voxels)
    if run == "shuffled":
        turns = iter(case.manifest["perms"])
        monkeypatch.setattr(torch, "randperm", lambda count, **_: torch.tensor(next(turns)))
    if run == "masked":
        given["bool_masked_pos"] = list(case.mask.split([len(cloud) for cloud in given["points"]]))
    with torch.no_grad():
        encoded = model.encode(**given)
    if model.config.use_decoder:
        return found | {"output": encoded.decoded}
    deepest = encoded.point_features(torch.arange(len(encoded.inverse)), 3)  # each point is a voxel
    return found | {"upcast_all": encoded.voxel_features(), "upcast_2": deepest}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "run"), RUNS)
def test_every_stored_tensor_agrees(name, run, build, monkeypatch):
    settings = {"equal_patches": run == "plain" or name == "options"}
    case, model = build(name, shuffle_curves="always" if run == "shuffled" else "training", **settings)
    found = run_of(case, model, run, monkeypatch)
    stored = {key.partition(".")[2]: key for key in case.manifest["outputs"] if key.startswith(f"{run}.")}
    errors = {key: case.error(stored[key], found[key]) for key in stored}
    assert len(errors) >= 6
    assert max(errors.values()) <= case.manifest["tolerance"]["features"], errors


@pytest.mark.parametrize("implementation", ["eager", "varlen"])
def test_attention_of_every_kind_agrees(implementation, build, varlen):
    case, model = build("utonia")
    if implementation == "varlen":  # transformers would look for a package of flash attention
        model.config._attn_implementation = varlen
    else:
        model.set_attn_implementation(implementation)
    with torch.no_grad():
        error = case.error("flash.upcast_all", model.encode(**case.voxels).voxel_features())
    assert error <= case.manifest["tolerance"]["features"]


@pytest.mark.parametrize("name", ["sonata", "concerto", "utonia"])
def test_features_go_back_to_the_raw_points(name, build):
    case, model = build(name)
    inverse = torch.nn.utils.rnn.pad_sequence(
        [case.expected[f"inverse.{cloud}"].long() for cloud in "ab"], batch_first=True, padding_value=-1
    )
    with torch.no_grad():
        output = model(**case.voxels, inverse=inverse, output_point_features=True)
    for number, cloud in enumerate("ab"):
        own = output.point_features[number][inverse[number] >= 0]
        assert case.error(f"points_upcast_all.{cloud}", own) <= case.manifest["tolerance"]["features"]
    counts = case.manifest["stages"]["s4"]["points"]
    assert output.offsets.tolist() == [counts[0], sum(counts)]
    assert (output.coord - case.expected["s4.coord"]).abs().max() <= 1e-6
    assert torch.equal(output.grid_coord, case.expected["s4.grid_coord"].long())
    means = [cloud.mean(dim=0) for cloud in output.last_hidden_state.split(counts)]
    torch.testing.assert_close(output.pooler_output, torch.stack(means))


MANIFESTS = {
    "sonata": "sonata",
    "concerto_base": "concerto_base",
    "concerto_large": "concerto_large",
    "concerto_small": "concerto_small",
    "concerto_tiny": None,
    "utonia": "utonia",
    "utonia_small": None,
    "utonia_tiny": None,
}


@pytest.mark.parametrize("size", MANIFESTS)
def test_published_sizes_have_exactly_our_tensors(size):
    case = Ptv3Case(f"ptv3_manifest_{size}")
    fields = ptv3_fields(case.manifest["config"])
    if (preset := MANIFESTS[size]) is not None:
        made = PointTransformerV3Config(**PRESETS[preset], use_mask_token=fields["use_mask_token"])
        assert {name: getattr(made, name) for name in fields} | {"curves": list(made.curves)} == {
            name: tuple(value) if isinstance(value, list) and name != "curves" else value
            for name, value in fields.items()
        }
    original = {name: tensor for name, tensor in case.on_meta.items() if "inv_freq" not in name}
    with torch.device("meta"):
        model = PointTransformerV3Model(PointTransformerV3Config(**fields))
    state = convert_ptv3_state_dict(original, fields)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    assert model.num_parameters() == case.manifest["parameters"]
    assert model.config.point_feature_size == case.manifest["probe_width"]


def test_original_names_are_all_accounted_for(build):
    case = Ptv3Case("ptv3_utonia")
    fields = ptv3_fields(case.arguments)
    for name, message in (
        ("student.enc0", "belong to no known part: student.enc0"),
        ("enc.enc0.block0.attn.rope.inv_freq", "expected the frequencies of rope_base=10"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            convert_ptv3_state_dict(case.original | {name: torch.ones(3)}, fields)
    with raises(ValueError, naming="'patch_norm'"):
        ptv3_fields({"patch_norm": True})
