"""What a law is: a name, a source, and a confrontation with a run."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ._run import Run
from ._table import Check


class NotApplicable(Exception):
    """Raised by a law that says nothing about a run, with the reason."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a law finds: see `Check`, whose fields these are."""

    predicted: str
    measured: str
    violation: Any
    tolerance: float


@dataclasses.dataclass(frozen=True)
class Law:
    """A theorem as a check.

    **Attributes:**

    - `name`, `source`: of the table.
    - `confront`: from a run to what is found; raises `NotApplicable`.
    """

    name: str
    source: str
    confront: Callable[[Run], Found]

    def __call__(self, run: Run) -> Check:
        try:
            found = self.confront(run)
        except NotApplicable as why:
            return Check(self.name, self.source, reason=str(why))
        return Check(
            self.name,
            self.source,
            found.predicted,
            found.measured,
            float(found.violation),
            float(found.tolerance),
        )


def law(name: str, source: str) -> Callable[[Callable[[Run], Found]], Law]:
    """Makes a law of a function."""
    return lambda confront: Law(name, source, confront)


def need(condition: Any, reason: str) -> None:
    """Not applicable, because of the reason, unless the condition holds."""
    if not condition:
        raise NotApplicable(reason)


def need_degree(run: Run) -> float:
    """L, of a positively homogeneous model with L > 0."""
    need(run.degree is not None, run.why_no_degree)
    assert run.degree is not None
    need(run.degree > 0, "the outputs do not depend on the size of the weights")
    return run.degree


def need_tail(run: Run) -> None:
    """The loss must have an exponential tail."""
    need(
        run.problem.is_tailed,
        f"the loss ({type(run.problem.loss).__name__}) has no exponential tail",
    )


def need_separation(run: Run) -> int:
    """The first saved point with ℒ < ℓ(0), with another after it."""
    need_tail(run)
    first = run.separated_from
    need(
        first is not None and first < len(run) - 1,
        "the data are not separated, ℒ < ℓ(0), before the last saved time",
    )
    assert first is not None
    return first


def shown(value: Any) -> str:
    """A number as the table shows it."""
    value = float(value)
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.1e}"
