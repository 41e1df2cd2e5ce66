"""What a user can get wrong: one sentence, a way out, exit status 2."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

_MOST_NAMES = 60
_MOST_BESIDE = 30  # names that are listed beside a near one
_MOST_CHARACTERS = 80


class UserError(Exception):
    """A mistake in what was asked for; its text is all that the user sees.

    >>> raise UserError("no such table")
    Traceback (most recent call last):
    qbench.errors.UserError: no such table
    """


def unknown(kind: str, name: object, allowed: Iterable[object]) -> UserError:
    """The error for a name that does not exist: near matches first, then all that is allowed.

    >>> print(unknown("table", "ucci", ["uci", "xor"]))
    unknown table 'ucci': did you mean 'uci'? Allowed: uci, xor
    """
    names = [str(item) for item in allowed]
    near = get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if near and len(names) > _MOST_BESIDE:
        closest = one_line(", ".join(near))
        return UserError(
            f"unknown {kind} {shown(str(name))}: {hint}Nearest of {len(names)}: {closest}"
        )
    more = f", … ({len(names)} in all)" if len(names) > _MOST_NAMES else ""
    listed = one_line(", ".join(names[:_MOST_NAMES]))
    return UserError(f"unknown {kind} {shown(str(name))}: {hint}Allowed: {listed}{more}")


def shown(value: object) -> str:
    """What somebody wrote as an error repeats it: on one line, and no longer than one.

    >>> shown("a" * 1000) == repr("a" * 80)[:-1] + "…'"
    True
    """
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        return repr(value[:_MOST_CHARACTERS] + "…")
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS + 2 else text[:_MOST_CHARACTERS] + "…"


def one_line(text: object) -> str:
    """A text on one line, without what would move a terminal's cursor or change its colours.

    >>> one_line("a\\n  b\\x1b[31m")
    'a b\\\\x1b[31m'
    """
    words = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def without_password(text: str) -> str:
    """A text with stars for the passwords of the addresses in it.

    >>> without_password("http://me:secret@host:5000/: no answer")
    'http://me:***@host:5000/: no answer'
    """
    text = re.sub(r"(?<=://)([^\s/:@]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(r"(?<=[?&]password=)[^&\s]*", "***", text)


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, on one line: where it stands, and what it is."""
    first = error.errors(include_url=False, include_context=False)[0]
    parts = [str(part) if isinstance(part, int) else shown(part)[1:-1] for part in first["loc"]]
    said = one_line(first["msg"].removeprefix("Value error, "))
    own = first["type"] not in ("value_error", "missing", "extra_forbidden")
    if own and isinstance(first["input"], str | int | float):  # pydantic does not repeat it
        said += f", and is {shown(first['input'])}"
    return f"{'.'.join(parts)}: {said}" if parts else said
