"""The code blocks of docs/data.md run in order and print the documented output."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_blocks_run_in_order_and_print_the_documented_output(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
    expected = re.findall(r"^print\(.*\)  # (.+)$", program, flags=re.MULTILINE)
    exec(compile(program, "docs/data.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == expected and len(expected) == 7
    assert (tmp_path / "scans.parquet").is_file()


def test_the_page_names_every_readable_type():
    from hf_any3d.data.files import supported_file_types

    assert [kind for kind in supported_file_types() if f".{kind}" not in PAGE] == []
