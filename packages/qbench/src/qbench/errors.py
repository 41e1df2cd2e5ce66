"""What a user can get wrong: one sentence, a way out, exit status 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what was asked for; its text is all that the user sees.

    >>> raise UserError("no such table")
    Traceback (most recent call last):
    qbench.errors.UserError: no such table
    """


def unknown(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist: near matches first, then all that is allowed.

    >>> print(unknown("table", "ucci", ["uci", "xor"]))
    unknown table 'ucci': did you mean 'uci'? Allowed: uci, xor
    """
    names = [str(item) for item in allowed]
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {name!r}: {hint}Allowed: {', '.join(names)}")
