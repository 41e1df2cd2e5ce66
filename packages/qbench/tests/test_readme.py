"""The README's Python runs as it stands, and its commands parse."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from qbench.cli import app
from qbench.table import load_table, table_names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the README's own code
    assert "xor rank1 0.1 ['finished']" in capsys.readouterr().out


def test_every_table_is_in_the_readme_and_no_other() -> None:
    assert sorted(re.findall(r"^\| `([a-z0-9-]+)` \|", README, re.MULTILINE)) == table_names()


def test_every_command_names_a_table_and_options_that_exist() -> None:
    lines = re.findall(r"^(qbench [^#\n]*)", README, re.MULTILINE)
    assert len(lines) == 17
    command = typer.main.get_command(app)
    for line in lines:
        _, name, *rest = shlex.split(line)
        subcommand = command.get_command(None, name)  # type: ignore[attr-defined, arg-type]
        assert subcommand is not None
        while isinstance(subcommand, typer.core.TyperGroup):
            name, *rest = rest
            subcommand = subcommand.commands[name]
        context = subcommand.make_context(name, rest)
        if context.params.get("table"):
            load_table(context.params["table"])
