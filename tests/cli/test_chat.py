import pytest
from typer.testing import CliRunner

from hf_any3d.cli import app
from hf_any3d.data.files import PointCloudData, write_point_cloud
from tests.chat.tiny_chat_model import cloud


@pytest.fixture
def model(models):
    return models("chat")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("clouds"), []
    for seed in range(2):
        paths.append(str(folder / f"{seed}.npz"))
        write_point_cloud(paths[-1], PointCloudData(cloud(seed)[:, :3], cloud(seed)[:, 3:]))
    return paths


def talk(model, file, *lines, options=("--temperature", "0", "--max-new-tokens", "8", "--device", "cpu")):
    result = CliRunner().invoke(app, ["chat", model, file, *options], input="\n".join(lines) + "\n")
    return result, result.stdout.splitlines()


@pytest.mark.slow
def test_questions_get_answers_and_restart_forgets(model, files):
    lines = (
        "What is this?",
        "",
        "Why?",
        "/restart",
        "What is this?",
        f"/open {files[1]}",
        "What is this?",
        "/quit",
        "?",
    )
    result, printed = talk(model, files[0], *lines)
    assert result.exit_code == 0 and result.stderr == ""
    assert len(printed) == 4 and printed[0] == printed[2] and printed[0] not in (printed[1], printed[3])


@pytest.mark.slow
def test_top_p_and_the_repetition_penalty_change_the_answers(model, files):
    def answer(*options):
        options = ("--max-new-tokens", "12", "--device", "cpu", *map(str, options))
        return talk(model, files[0], "Hm?", options=options)[1]

    # Of the likeliest tokens with almost no probability in all there is one, however high the temperature.
    sampled = ("--temperature", 5, "--repetition-penalty", 1, "--top-p")
    greedy = answer("--temperature", 0, "--repetition-penalty", 1)
    assert answer(*sampled, 1e-6, "--seed", 1) == answer(*sampled, 1e-6, "--seed", 2) == greedy
    assert answer(*sampled, 1, "--seed", 1) != greedy
    assert answer("--temperature", 0, "--repetition-penalty", 100) != greedy


@pytest.mark.slow
def test_errors_are_shown_and_the_conversation_continues(model, files, tmp_path):
    broken = tmp_path / "broken.ply"
    broken.write_text("nothing")
    lines = ("/open gone.ply", f"/open {broken}", "/sing", "What? " * 100, "What is this?")
    result, printed = talk(model, files[0], *lines)
    assert result.exit_code == 0 and printed[-1]
    errors = result.stderr.splitlines()
    assert errors[0] == "error: gone.ply: no such file" and "broken.ply" in errors[1]
    assert errors[2].startswith("error: no command /sing; /open FILE") and "takes 512" in errors[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "printed"),
    [
        ("gone.ply", (), "gone.ply: no such file"),
        (None, ("--template", "mine"), "chat_template='mine'; expected one of"),
    ],
)
def test_invalid_arguments_are_refused_before_the_first_question(model, files, name, options, printed):
    result, lines = talk(model, name or files[0], "What?", options=options)
    assert result.exit_code == 1 and lines == [] and printed in result.stderr and result.stderr.count("\n") == 1
