"""The table of laws: one row for each, with its verdict."""

import dataclasses
import difflib
import html
import textwrap
from collections.abc import Iterator
from typing import Any

from .. import plot


PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"

_COLUMNS = ("law", "source", "predicted", "measured", "violation", "tolerance")
_WIDTH = 120  # of a printed table


@dataclasses.dataclass(frozen=True)
class Check:
    """One law, confronted with one solution.

    **Attributes:**

    - `law`, `source`: its name, and who states it.
    - `predicted`, `measured`: what must be, and what is, in words and numbers.
    - `violation`: by how much the two differ, in the units of `tolerance`; zero if the
        law holds exactly. NaN where the law does not apply.
    - `tolerance`: what a good solve may violate it by.
    - `verdict`: "pass" (violation ≤ tolerance), "fail", or "not applicable".
    - `reason`: why the law does not apply; else empty.
    """

    law: str
    source: str
    predicted: str = ""
    measured: str = ""
    violation: float = float("nan")
    tolerance: float = float("nan")
    reason: str = ""

    @property
    def applies(self) -> bool:
        """Whether the law says something about this solution."""
        return not self.reason

    @property
    def verdict(self) -> str:
        """ "pass", "fail" or "not applicable"."""
        if not self.applies:
            return NOT_APPLICABLE
        # A NaN is a failure.
        return PASS if self.violation <= self.tolerance else FAIL

    def __str__(self) -> str:
        if not self.applies:
            return f"{self.law}: not applicable, because {self.reason}"
        return (
            f"{self.law}: {self.verdict} (predicted {self.predicted}, measured "
            f"{self.measured}; violation {self.violation:.1e}, tolerance "
            f"{self.tolerance:.1e}; {self.source})"
        )


@dataclasses.dataclass(frozen=True)
class Laws:
    """What [`gflow.laws.check`][] returns: a table with a [`gflow.laws.Check`][] a law.

    It prints as text and shows as HTML in a notebook. Iterate over its rows, or take
    one by the name of its law, `table["energy identity"]`.

    **Attributes:**

    - `checks`: all rows.
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no law fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The rows that fail."""
        return tuple(one for one in self.checks if one.verdict == FAIL)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, law: str) -> Check:
        for one in self.checks:
            if one.law == law:
                return one
        names = [one.law for one in self.checks]
        close = difflib.get_close_matches(str(law), names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise KeyError(f"no law is called {law!r}; {hint}The laws: {', '.join(names)}.")

    def plot(self, ax: Any = None) -> Any:
        """Violations over tolerances: [`gflow.plot.laws`][]."""
        return plot.laws(self, ax=ax)

    def __str__(self) -> str:
        rows = [(*_cells(one), one.verdict) for one in self.checks if one.applies]
        head = (*_COLUMNS, "verdict")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) for cell, w in zip(row, widths, strict=True)
            ).rstrip()
            for row in (head, tuple("-" * w for w in widths), *rows)
        ]
        absent = [one for one in self.checks if not one.applies]
        if absent:
            lines += ["", "not applicable"]
        for one in absent:
            lines += textwrap.wrap(
                f"{one.law}: because {one.reason}.",
                _WIDTH,
                initial_indent="  ",
                subsequent_indent="    ",
            )
        return "\n".join([*lines, "", self._summary()])

    def _summary(self) -> str:
        counts = [
            f"{sum(one.verdict == kind for one in self.checks)} {word}"
            for kind, word in (
                (PASS, "pass"),
                (FAIL, "fail"),
                (NOT_APPLICABLE, "not applicable"),
            )
        ]
        return ", ".join(counts)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in (*_COLUMNS, "verdict"))
        body = []
        for one in self.checks:
            verdict = (
                one.verdict if one.applies else f"{one.verdict}, because {one.reason}"
            )
            style = {PASS: "", FAIL: "color:#D55E00;font-weight:bold"}.get(
                one.verdict, "color:#888888"
            )
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(one))
            body.append(
                f"<tr>{cells}<td style='{style}'>{html.escape(verdict)}</td></tr>"
            )
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
            f"<caption>{self._summary()}</caption></table>"
        )


def _cells(one: Check) -> tuple[str, ...]:
    def number(value: float) -> str:
        return f"{value:.1e}" if one.applies else ""

    return (
        one.law,
        one.source,
        one.predicted,
        one.measured,
        number(one.violation),
        number(one.tolerance),
    )
