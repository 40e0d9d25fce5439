"""Which way `hf-any3d train` takes, and the arguments that each gets, with stand-ins for the trainings."""

from importlib import import_module
from types import SimpleNamespace

import pytest

from hf_any3d.registry import LABELED_POINTS, LABELED_WITH_BOXES
from hf_any3d.training.little_data.plan import WRAP_WEIGHT
from tests.cli.conftest import run

train = import_module("hf_any3d.cli.train")
pytestmark = pytest.mark.usefixtures("libraries_as_they_were")

DATA = ["--dataset_name", "shapes"]
CLASSES = train.Task.CLASSIFICATION


@pytest.fixture
def done(monkeypatch, tmp_path):
    """What a command does; `few` says whether there are few scans, `labels` what its labels belong to."""
    state = SimpleNamespace(done=[], few=True, labels=None, data=DATA)

    def note(name, answer=None):
        return lambda *given: state.done.append((name, *given)) or answer

    monkeypatch.setattr(train, "skip_hub_if_offline", note("offline?"))
    monkeypatch.setattr(train, "find_model", lambda name: f"found {name}")
    monkeypatch.setattr(
        train, "data_arguments", lambda *given: (note("data")(*given), ([*state.data], state.labels))[1]
    )
    monkeypatch.setattr(train, "_encoder_arguments", lambda name: [] if name is None else ["--encoder_is", name])
    monkeypatch.setattr(train, "_learn_both", note("both", ["a line\x1b"]))
    monkeypatch.setattr(train, "_learn_few_scans", note("few", ["a line\x1b"]))
    monkeypatch.setattr(train, "_run_program", note("program", ["a line\x1b"]))
    monkeypatch.setattr(train, "_check_arguments", note("checked"))
    monkeypatch.setattr(train, "_with_recipe", lambda arguments: ["recipe", *arguments])
    monkeypatch.setattr("hf_any3d.atomic_files.release_claims", note("released"))
    monkeypatch.setattr(
        train,
        "_are_few",
        lambda arguments, words, way: state.few if way is None else way is train.Way.FEATURES,
    )
    monkeypatch.chdir(tmp_path)
    return state


OUT = ["--output_dir", "outputs/shapes"]


@pytest.mark.parametrize(
    ("words", "state", "way", "command"),
    [
        ((), {}, ("few", [*DATA, *OUT], []), "predict"),
        ((), {"few": False}, ("program", ["recipe", *DATA, *OUT], CLASSES), "predict"),
        (("--way", "features"), {"few": False}, ("few", [*DATA, *OUT], []), "predict"),
        (("--way", "trained"), {}, ("program", ["recipe", *DATA, *OUT], CLASSES), "predict"),
        (("--way", "both"), {}, ("both", [*DATA, *OUT], []), "predict"),
        ((), {"labels": LABELED_POINTS}, ("program", [*DATA, *OUT], train.Task.SEGMENTATION), "segment"),
        ((), {"labels": LABELED_WITH_BOXES}, ("program", [*DATA, *OUT], train.Task.DETECTION), "detect"),
        (("--task", "layouts"), {}, ("program", [*DATA, *OUT], train.Task.LAYOUTS), "detect"),
        (("--task", "classification"), {"labels": LABELED_POINTS}, ("few", [*DATA, *OUT], []), "predict"),
        ((), {"data": ["r.yaml"]}, ("program", ["r.yaml"], CLASSES), "predict"),
        (
            ("--from", "m", "--seed", 3),
            {},
            ("few", [*DATA, *OUT, "--seed", "3", "--from_model", "found m"], []),
            "predict",
        ),
        (
            ("--way", "features", "--encoder", "e"),
            {},
            ("few", [*DATA, *OUT, "--encoder", "found e"], []),
            "predict",
        ),
        (
            ("--encoder", "e", "--augment", "scale,jitter rotate", "--peft", "lora"),
            {"few": False},
            (
                "program",
                [
                    "recipe",
                    *DATA,
                    *OUT,
                    "--augment",
                    "scale",
                    "jitter",
                    "rotate",
                    "--encoder_is",
                    "e",
                    "--peft",
                    "lora",
                ],
                CLASSES,
            ),
            "predict",
        ),
        (
            ("--output", "there", "--copies", 2),
            {},
            ("few", [*DATA, "--output_dir", "there", "--copies", "2"], ["--copies", "2"]),
            "predict",
        ),
    ],
)
def test_scans_are_learned_in_the_way_of_their_number_labels_and_options(words, state, way, command, done):
    for name, value in state.items():
        setattr(done, name, value)
    code, out, err = run("train", "shapes", *words)
    assert code == 0, err
    kinds = [entry[0] for entry in done.done]
    assert done.done[:2] == [("offline?",), ("data", "shapes", None)] and done.done[-2:] == [way, ("released",)]
    assert kinds == ["offline?", "data", *(["checked"] if way[0] == "program" else []), way[0], "released"]
    if way[0] == "program":
        _, arguments, own, task = done.done[2]
        assert task is way[2] and own == [str(word) for word in words if words[-2:] == ("--peft", "lora")][-2:]
        assert arguments == [word for word in way[1] if word != "recipe"]
    folder = way[1][way[1].index("--output_dir") + 1] if "--output_dir" in way[1] else "the model"
    last = f"{folder}: model, card and metrics.json; try: hf-any3d {command} FILE --model {folder}"
    assert out.splitlines() == ["a line\\u001b", last]


def test_a_dataset_of_the_catalog_names_the_folder_of_the_model(done):
    assert run("train", "--dataset", "rooms", "--seed", 1).code == 0
    assert done.done[1] == ("data", None, "rooms") and "outputs/rooms" in done.done[2][1]
    assert run("train", "a/b.parquet", "--dataset", "rooms").code == 0 and "outputs/b" in done.done[6][1]
    assert "DATA is missing; expected a folder" in run("train", "--seed", 1).err


@pytest.mark.parametrize("error", [None, ValueError("none"), OSError("none")])
def test_facts_about_a_new_model_are_kept_for_info(error, done, tmp_path, monkeypatch):
    def facts(folder):
        if error is not None:
            raise error
        return f"facts of {folder}"

    monkeypatch.setattr("hf_any3d.model_facts.model_facts", facts)
    monkeypatch.setattr("hf_any3d.cli.model.store_facts", lambda *given: done.done.append(given))
    assert run("train", "shapes").code == 0 and done.done[-1] == ("released",), "there is no folder"
    (tmp_path / "outputs" / "shapes").mkdir(parents=True)
    assert run("train", "shapes").code == 0
    stored = ("outputs/shapes", None, "facts of outputs/shapes")
    assert done.done[-1] == (stored if error is None else ("released",))


def test_locks_are_released_after_an_error(done, monkeypatch):
    monkeypatch.setattr(train, "_learn_few_scans", lambda *_: (_ for _ in ()).throw(ValueError("bad")))
    found = run("train", "shapes")
    assert found.code == 1 and found.err == "error: bad\n" and done.done[-1] == ("released",)


@pytest.mark.parametrize(
    ("arguments", "way", "planned", "few"),
    [
        (DATA, train.Way.FEATURES, None, True),
        (DATA, train.Way.TRAINED, None, False),
        (DATA, train.Way.BOTH, None, False),
        ([*DATA, "--from_model", "m"], None, None, True),
        ([*DATA, "--num_train_epochs", "3"], None, None, False),
        ([*DATA, "--seed", "3"], None, "features", True),
        ([*DATA, "--seed", "3"], None, "trained", False),
    ],
)
def test_the_number_of_scans_decides_where_nothing_else_does(arguments, way, planned, few, monkeypatch):
    asked, training = [], "hf_any3d.training.little_data.training"
    monkeypatch.setattr(train, "_check_arguments", lambda *given: asked.append(given))
    monkeypatch.setattr(f"{training}.plan_for_data", lambda given: asked.append(given) or SimpleNamespace(way=planned))
    assert train._are_few(arguments, ["--own"], way) is few
    assert asked == ([] if planned is None else [(arguments, ["--own"], None), arguments])


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("num_train_epochs", "epochs"),
        ("per_device_train_batch_size", "batch-size"),
        ("learning_rate", "learning-rate"),
        ("warmup_ratio", "warmup_ratio"),
    ],
)
def test_options_of_training_are_refused_for_frozen_features_by_the_name_that_was_given(foreign, shown, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "_check_arguments", lambda *given: asked.append(given))
    with pytest.raises(ValueError, match=f"^--{shown} has no effect on frozen features with a linear head; expected"):
        train._learn_few_scans([*DATA, f"--{foreign}", "1"], [])
    learned = SimpleNamespace(lines=["a"])
    monkeypatch.setattr(
        "hf_any3d.training.little_data.training.learn_few_scans", lambda given: asked.append(given) or learned
    )
    assert train._learn_few_scans([*DATA, "--seed", "1"], ["--own"]) == ["a"]
    assert asked == [([*DATA, "--seed", "1"], ["--own"], None), [*DATA, "--seed", "1"]]


def test_a_wrap_and_a_linear_head_get_the_options_of_each(monkeypatch):
    done, wraps = [], []
    monkeypatch.setattr(train, "_check_arguments", lambda *given: done.append(("checked", *given)))
    monkeypatch.setattr(train, "_with_recipe", lambda given: ["recipe", *given])

    def learn(arguments, own):
        done.append(("few", arguments, own))
        return ["lines", len(done)]

    def program(arguments, task):
        done.append(("program", arguments, task))
        wraps.append(arguments[-1])

    monkeypatch.setattr(train, "_learn_few_scans", learn)
    monkeypatch.setattr(train, "_run_program", program)
    shared, of_scans = [*DATA, "--seed", "3", "--num_points", "64"], ["--copies", "2"]
    of_wrap = ["--num_train_epochs", "4", "--encoder_name_or_path", "e"]
    own = ["--copies", "2", "--warmup_ratio", "0"]
    assert train._learn_both([*shared, *of_wrap, *own], own) == ["lines", 4]
    trained = [*shared, *of_wrap, "--warmup_ratio", "0"]
    few, (wrap,) = [*shared, *of_scans], wraps
    adapted = ["--validation_fraction", "0", "--peft", "guided_adapter", "--output_dir", wrap]
    assert done == [
        ("checked", trained, ["--warmup_ratio", "0"], CLASSES),
        ("few", few, of_scans),
        ("program", ["recipe", *trained, *adapted], CLASSES),
        ("few", [*few, "--wrap", wrap, "--wrap_weight", str(WRAP_WEIGHT)], of_scans),
    ]
    done.clear()
    monkeypatch.setattr(train, "_with_recipe", lambda given: [*given, "--model_name_or_path", "m"])
    with pytest.raises(
        ValueError, match="--way both: no frozen encoder for a wrap here; expected --encoder, or --way"
    ):
        train._learn_both(shared, [])
    assert [entry[0] for entry in done] == ["checked", "few"]
    for name in ("wrap", "wrap_weight", "model_type", "model_name_or_path", "peft"):
        with pytest.raises(
            ValueError, match=f"^--{name} with --way both, which trains a wrap of its own; expected one"
        ):
            train._learn_both([*shared, f"--{name}", "x"], [])


def test_names_of_options_are_checked_before_their_values(monkeypatch):
    check = train._check_arguments
    check([*DATA, "--no_dataloader_pin_memory"], ["--augment_whole", "--seed=3", "value", "--no_use_cpu"], CLASSES)
    check([*DATA, "--one_sided", "false"], ["--one-sided", "false"], None)
    for own, task, message in (
        (["--one-sided", "no"], CLASSES, "^--one-sided has no effect on training; it is for --way features$"),
        (["--one_sided", "no"], train.Task.SEGMENTATION, "^no option --one_sided"),
        (["--wram", "no"], CLASSES, r"^no option --wram; did you mean --wrap\? \(hf-any3d train --help-all\)$"),
        (["--zzzzzz=1"], None, r"^no option --zzzzzz \(hf-any3d train --help-all\)$"),
    ):
        with pytest.raises(ValueError, match=message):
            check(DATA, own, task)
    with pytest.raises(ValueError, match="^argument --seed: invalid int value: 'x'$"):
        check([*DATA, "--seed", "x"], ["--seed", "x"], CLASSES)
