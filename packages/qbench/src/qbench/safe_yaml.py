"""YAML as plain data: text, numbers, lists and mappings, and no more of them than there seem."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

from qbench.errors import UserError, one_line, shown

MOST_VALUES = 100_000
"""Values in a file, those behind aliases counted wherever they are used."""

MOST_LEVELS = 50
"""Lists and mappings inside one another."""

_BOOLEAN, _TIMESTAMP = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"


class _Loader(SafeLoader):
    """Loads safely; ``on``, ``off``, ``yes``, ``no`` and dates are text to it, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_BOOLEAN, _TIMESTAMP)]
    for first, known in SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _BOOLEAN, re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def read_yaml(content: bytes, name: str) -> Any:
    """What a YAML file holds; ``name`` stands in errors.

    Raises ``UserError`` for what is no YAML, or not UTF-8, for a key that stands twice, and for
    more than a file has any use for: tags, many levels, aliases that stand for very many values.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    try:
        _check(text, name)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        reason = (
            f"{problem.removeprefix('but ')} in line {mark.line + 1}"
            if mark and problem
            else str(error)
        )
        raise UserError(f"{name} is not YAML: {one_line(reason)}") from error
    except ValueError as error:  # such as an integer of five thousand digits
        raise UserError(f"{name} has a number that none can be: {one_line(error)}") from error


@dataclass
class _Open:
    """A list or mapping that has not ended; ``keys`` are None for a list."""

    anchor: str | None
    values_before: int
    keys: set[tuple[str, bool]] | None
    key_is_next: bool = field(default=True)


def _check(text: str, name: str) -> None:
    """Look through a text's events, which take no memory, before anything is made of them."""
    sizes: dict[str, int] = {}
    inside: list[_Open] = []
    values = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = _line(event)
        if isinstance(event, yaml.CollectionEndEvent):
            ended = inside.pop()
            if ended.anchor is not None:
                sizes[ended.anchor] = values - ended.values_before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        _check_key(event, inside[-1] if inside else None, name)
        if (tag := getattr(event, "tag", None)) is not None:
            raise UserError(
                f"{name}, line {line}: the tag {shown(tag)} is not allowed: write plain "
                "text, numbers, lists and mappings"
            )
        if isinstance(event, yaml.AliasEvent):
            if any(each.anchor == event.anchor for each in inside):
                raise UserError(
                    f"{name}, line {line}: *{event.anchor} stands inside of what it names: write "
                    "out what is meant"
                )
            values += sizes.get(event.anchor or "", 1)
        else:
            if isinstance(event, yaml.CollectionStartEvent):
                keys = (
                    set[tuple[str, bool]]() if isinstance(event, yaml.MappingStartEvent) else None
                )
                inside.append(_Open(event.anchor, values, keys))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            values += 1
        if len(inside) > MOST_LEVELS:
            raise UserError(
                f"{name}, line {line}: lists and mappings stand more than {MOST_LEVELS} deep in "
                "one another: no table needs that"
            )
        if values > MOST_VALUES:
            raise UserError(
                f"{name}, line {line}: up to here there are more than {MOST_VALUES:,} values, "
                "with all that aliases stand for: no table needs that"
            )


def _check_key(event: yaml.NodeEvent, around: _Open | None, name: str) -> None:
    """PyYAML would take the second of two equal keys, and say nothing."""
    if around is None or around.keys is None:
        return
    if around.key_is_next and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        key = (event.value, bool(event.implicit[0]))  # "1" and 1 are two
        if key in around.keys:
            raise UserError(
                f"{name}, line {_line(event)}: the key {shown(event.value)} stands "
                "there a second time: leave one out"
            )
        around.keys.add(key)
    around.key_is_next = not around.key_is_next


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0
