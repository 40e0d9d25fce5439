"""What users of transformers, PEFT and datasets expect of every model and of the `PointCloud` feature."""

import io
import tarfile

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from datasets.table import embed_table_storage
from peft import LoraConfig

from hf_any3d import MiniGPT3DForConditionalGeneration, SpatialLMForConditionalGeneration
from hf_any3d.data import PointCloud
from hf_any3d.data.files import read_point_cloud
from tests.common.built import forget_models as forget_models, fresh
from tests.common.models import CASES, case_of, first_of_configs, minigpt3d, prompts, settle
from tests.common.test_tuners import fits
from tests.common.tuners import ADAPTED, adapted, answer_of, assert_apart, assert_same, name_of
from tests.data.clouds import FILES
from tests.errors import raises
from tests.turns import some

FIRST = first_of_configs(CASES)
FITTING = [case for case in ADAPTED if fits(case, "LORA")]
FIRST_FITTING = first_of_configs(FITTING)
CLOUDS = sorted(FILES.glob("chair*.ply"))


def answer(case, model):
    with torch.no_grad():
        return model(**case.batch())[case.answer]


@pytest.mark.parametrize("case", some(FIRST_FITTING, left_out=FIRST_FITTING[::2]), ids=name_of)
def test_weighted_adapters_lie_between_those_that_they_are_made_of(case):
    model = adapted(case, "LORA", modules_to_save=[])
    targets = list(model.peft_config["default"].target_modules)
    model.add_adapter("other", LoraConfig(r=2, target_modules=targets, modules_to_save=[]))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.1)
    pair = ["default", "other"]
    model.add_weighted_adapter(pair, [1.0, 0.0], "first", combination_type="svd", svd_rank=2)
    model.add_weighted_adapter(pair, [0.5, 0.5], "mixed", combination_type="linear")
    answers = {}
    for name in (*pair, "first", "mixed"):
        model.set_adapter(name)
        answers[name] = answer_of(case, model)
    assert_same(answers["first"], answers["default"], 1e-2)
    for name in pair:
        assert_apart(answers["mixed"], answers[name], 1e-4)


@pytest.mark.parametrize("case", some(FIRST, left_out=FIRST[1::2]), ids=name_of)
def test_a_model_in_several_files_opens_bit_for_bit(case, tmp_path):
    model = fresh(case)
    size = sum(weight.nbytes for weight in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=max(size // 3, 100))
    opened = case.model_class.from_pretrained(tmp_path).eval()
    stored = opened.state_dict()
    assert all(torch.equal(stored[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("case", FIRST, ids=name_of)
def test_unknown_keywords_that_are_none_are_ignored_and_others_refused(case):
    model = fresh(case)
    with torch.no_grad():
        torch.testing.assert_close(model(**case.batch(), no_such_input=None)[case.answer], answer(case, model))
        with raises((TypeError, ValueError), naming="no_such_input"):
            model(**case.batch(), no_such_input=1)


@pytest.mark.parametrize("kind", [MiniGPT3DForConditionalGeneration, SpatialLMForConditionalGeneration])
def test_samples_follow_the_seed_and_beams_are_at_least_as_likely_as_greedy_answers(kind):
    case = case_of(kind)
    if kind is MiniGPT3DForConditionalGeneration:
        model, inputs = minigpt3d(), prompts()
        settle(model, case)
    else:
        model, inputs = case.still(), case.batch()
    model.eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(3)  # sharper, so that samples differ in likelihood
    start, length = inputs["input_ids"].shape[1], 6
    settings = {"max_new_tokens": length, "min_new_tokens": length, "return_dict_in_generate": True}
    settings |= {"output_scores": True, "eos_token_id": 10_000, "pad_token_id": 0}

    def generate(seed=0, **more):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model.generate(**inputs, **settings | more)

    first, again, other = (generate(seed, do_sample=True).sequences for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)

    def likelihood(output):
        scores = model.compute_transition_scores(
            output.sequences, output.scores, output.get("beam_indices"), normalize_logits="beam_indices" not in output
        )
        return scores[:, -length:].sum(dim=1)

    greedy, beams = generate(do_sample=False), generate(do_sample=False, num_beams=4)
    assert greedy.sequences.shape[1] in (length, start + length)
    assert (likelihood(beams) >= likelihood(greedy) - 1e-3).all()


def test_clouds_stream_through_filters_batches_and_shuffles():
    def rows():
        for number in range(6):
            yield {"cloud": str(CLOUDS[number % len(CLOUDS)]), "number": number}

    features = Features({"cloud": PointCloud(), "number": Value("int64")})
    stream = IterableDataset.from_generator(rows, features=features)
    sizes = [len(row["cloud"]["points"]) for row in stream]
    kept = [row["number"] for row in stream.filter(lambda row: len(row["cloud"]["points"]) == sizes[0])]
    assert kept == [number for number in range(6) if sizes[number] == sizes[0]]
    assert [len(batch["cloud"]) for batch in stream.batch(4)] == [4, 2]
    shuffled = list(stream.shuffle(seed=0, buffer_size=6))
    assert sorted(row["number"] for row in shuffled) == list(range(6))
    assert all(len(row["cloud"]["points"]) == sizes[row["number"]] for row in shuffled)


def test_clouds_are_read_from_tar_files(tmp_path):
    with tarfile.open(tmp_path / "clouds.tar", "w") as archive:
        for number, file in enumerate(CLOUDS):
            data = file.read_bytes()
            entry = tarfile.TarInfo(f"{number}.ply")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    rows = load_dataset("webdataset", data_files=str(tmp_path / "clouds.tar"), split="train", streaming=True)
    found = [row["ply"]["points"] for row in rows.cast_column("ply", PointCloud())]
    assert [len(points) for points in found] == [len(read_point_cloud(file).points) for file in CLOUDS]


def test_tables_hold_the_files_themselves_and_structs_become_clouds():
    rows = Dataset.from_dict({"cloud": list(map(str, CLOUDS))}, features=Features({"cloud": PointCloud()}))
    table = embed_table_storage(rows.data.table)
    assert [entry["bytes"] for entry in table["cloud"].to_pylist()] == [file.read_bytes() for file in CLOUDS]
    structs = pa.table({"cloud": pa.array([{"bytes": file.read_bytes(), "path": None} for file in CLOUDS])})
    for values in (structs, pa.table({"cloud": list(map(str, CLOUDS))})):
        cast = Dataset(values).cast_column("cloud", PointCloud())
        assert [len(row["cloud"]["points"]) for row in cast] == [len(row["cloud"]["points"]) for row in rows]
