"""What is wrong with a tracking store, in a sentence, before MLflow tries it or after it failed.

MLflow itself waits a minute and a half for a file that cannot be opened, adds its tables to any
database, and takes the letters ``?``, ``#`` and ``%`` of a path for something else.
"""

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from qbench.errors import UserError, one_line, without_password

_PREFIX = "sqlite:///"
_PATIENCE = 5.0
"""Seconds to wait for another program that writes to the file."""


def check_store(uri: str) -> None:
    """Look at an SQLite store; what else a tracking URI may name is not looked at.

    Raises ``UserError`` for a file that is locked, damaged, another program's or cannot be written,
    and for a path that MLflow would take for another.
    """
    if not uri.startswith(_PREFIX):
        return
    name = uri.removeprefix(_PREFIX)
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise UserError(
            f"{one_line(uri)}: MLflow takes no path that is not UTF-8: set PYTHONUTF8=1 where the "
            "terminal is why, or record elsewhere, with qbench sync --to sqlite:///FILE"
        )
    if odd := re.search("[?#%]", name):
        raise UserError(
            f"{one_line(uri)}: MLflow finds no file by a path with {odd[0]} in it: record "
            "elsewhere, with qbench sync --to sqlite:///FILE"
        )
    path = Path(name)
    if not path.exists():
        if not os.access(path.absolute().parent, os.W_OK):
            raise UserError(
                f"{one_line(uri)}: {path.absolute().parent} is no folder that can be written to"
            )
        return
    try:
        with closing(_opened(path)) as store:
            known = {row[0] for row in store.execute("SELECT name FROM sqlite_master")}
            store.execute("BEGIN IMMEDIATE")  # as every change of the store begins
            store.rollback()
    except sqlite3.Error as error:
        raise UserError(f"{one_line(uri)}: {_said(str(error))}") from error
    if known and "alembic_version" not in known:
        raise UserError(
            f"{one_line(uri)}: it is the database of another program: name another file"
        )


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(bytes(path))}?mode=rw", uri=True, timeout=_PATIENCE)


def reason(uri: str, error: BaseException) -> str:
    """Why a store could not be brought up to date, in a line that begins with its URI."""
    if isinstance(error, UserError) and str(error).startswith(one_line(uri)):
        return str(error)  # of a file
    text = re.sub(r"\s*\[SQL: .*|\s*\(Background on this error at: .*", "", one_line(error))
    said = _said(without_password(text.removeprefix("(sqlite3.OperationalError) "))[:300])
    return f"{without_password(one_line(uri))}: {said}"


def _said(text: str) -> str:
    """A sentence for what is known to happen; else the text as it is."""
    if schema := re.search(r"found version (\w+), but expected (\w+)", text):
        return (
            f"its tables are those of another version of MLflow ({schema[1]}, not {schema[2]}): "
            "install the version that made them, bring older ones up to date with mlflow db "
            "upgrade, or record in another store"
        )
    if "database is locked" in text:
        return "another program has locked it: end that, or wait until it is done"
    if "is not a database" in text or "is malformed" in text:
        return (
            f"it is damaged ({text}): move it away, and the results are recorded in a new one by "
            "qbench sync"
        )
    if "readonly database" in text or "unable to open" in text or "disk I/O error" in text:
        return f"it cannot be written ({text})"
    if "database or disk is full" in text:
        return f"there is no room for it ({text}): make some"
    return text
