"""No evaluation, no pickle, no shell: ruff's security rules hold for all that is shipped."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def broken_rules(code: str) -> set[str]:
    """The rules that ruff, set up as for this repository, sees broken in a module of qbench."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json"]
    done = subprocess.run(
        [*command, "--stdin-filename", "packages/qbench/src/qbench/module.py", "-"],
        cwd=ROOT,
        input=code,
        capture_output=True,
        text=True,
        check=False,
    )
    return {problem["code"] for problem in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("eval(text)", "S307"),
        ("exec(text)", "S102"),
        ("pickle.loads(text)", "S301"),
        ("torch.load(text)", "TID251"),
        ("yaml.load(text, Loader=yaml.Loader)", "S506"),
        ("subprocess.run(text, shell=True)", "S602"),
        ("subprocess.run(text)", "S603"),
        ("os.system(text)", "S605"),
        ("tempfile.mktemp(text)", "S306"),
        ("jinja2.Environment(autoescape=False)", "S701"),
        ("tarfile.open(text).extractall()", "S202"),
        ("urllib.request.urlopen(text)", "S310"),
    ],
)
def test_a_module_that_breaks_a_rule_is_found(line: str, rule: str) -> None:
    names = ["jinja2", "os", "pickle", "subprocess", "tarfile", "tempfile", "torch", "yaml"]
    imports = "\n".join(f"import {name}" for name in [*names, "urllib.request"])
    assert rule in broken_rules(f'"""A module."""\n\n{imports}\n\ntext = input()\n{line}\n')


def test_every_exception_from_a_security_rule_says_why() -> None:
    found = [
        (path, rules, reason)
        for path in ROOT.glob("packages/*/src/**/*.py")
        for rules, reason in re.findall(
            r"# noqa: ((?:S\d+|TID251)(?:, \S+)*)(.*)", path.read_text(encoding="utf-8")
        )
    ]
    assert found
    assert [
        (str(path), rules) for path, rules, reason in found if not reason.startswith(" - ")
    ] == []
    for path, rules, _ in found:  # what runs code or opens a shell has no exception at all
        assert not {"S102", "S301", "S307", "S602", "S605", "TID251"} & set(rules.split(", ")), path
