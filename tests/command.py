"""The command line, run in this process: how it ended and what it printed."""

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

import pytest

from pinnsketch.cli import main


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


def pinnsketch(*words):
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as leaving:
        main([str(word) for word in words])
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return Ended(leaving.value.code, out.getvalue(), " ".join(err.getvalue().split()))
