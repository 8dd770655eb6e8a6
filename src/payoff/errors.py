"""Everything Payoff raises on purpose. Each error knows its exit code; a traceback is for bugs alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a definition file, at a place an editor can jump to."""

    file: str
    line: int
    column: int
    code: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.severity}[{self.code}]: {self.message}"


class PayoffError(Exception):
    """The base. ``exit_code`` is what the command line leaves with: 2 usage or definition, 3 data or connection."""

    exit_code = 4

    def to_dict(self) -> dict[str, object]:
        return {"error": type(self).__name__, "message": str(self)}


class UsageError(PayoffError):
    """What was asked for does not exist or does not make sense."""

    exit_code = 2


class DefinitionError(PayoffError):
    """One or more problems in a project's files, all of them reported together."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def to_dict(self) -> dict[str, object]:
        return {
            "error": "DefinitionError",
            "message": str(self),
            "problems": [
                {"file": p.file, "line": p.line, "column": p.column, "code": p.code, "message": p.message}
                for p in self.problems
            ],
        }


class MissingExtra(UsageError):
    """A package of an optional extra is not installed; the message names the pip command."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs an optional package: pip install 'payoff[{extra}]'")


class DataError(PayoffError):
    """The data is not what its definition says. Names the source and, where they are known, the column and the count."""

    exit_code = 3

    def __init__(
        self, message: str, *, source: str | None = None, column: str | None = None, count: int | None = None
    ) -> None:
        self.source, self.column, self.count = source, column, count
        where = f"source '{source}'" if source else ""
        if column:
            where += f", column '{column}'" if where else f"column '{column}'"
        super().__init__(f"{where}: {message}" if where else message)

    def to_dict(self) -> dict[str, object]:
        return {
            "error": "DataError",
            "message": str(self),
            "source": self.source,
            "column": self.column,
            "count": self.count,
        }


class ConnectionFailed(PayoffError):
    """A store (warehouse or ledger) could not be opened, read or written."""

    exit_code = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of ``known``, or an empty string."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
