"""Every law on the flows of every example.

    cd benchmarks; python laws_by_example.py [--only NAME ...] > laws_by_example.txt

Rows are laws, columns flows. Each cell has the violation and, in brackets, what it is
of the tolerance: at most 1 where the law holds. Below the tables: the violations in
units of rtol, which the tolerances are multiples of, and why laws do not apply. The
same tables go to docs/pages/laws_measured.md. Exits with an error where a law fails
that should hold, or holds where it must fail. Float64.

What was found is kept in benchmarks/output: `--only` computes these columns anew and
takes the others from there.
"""

import argparse
import json
import math
import pathlib
import sys
import time
from typing import Any

from _example_flows import COLUMNS, Column
from _machine import print_machine

import gflow


HERE = pathlib.Path(__file__).parent
KEPT = HERE / "output" / "laws_by_example.json"
PAGE = HERE.parent / "docs" / "pages" / "laws_measured.md"
# Columns of one table.
WIDE = 6
# Their tolerances are multiples of rtol.
IN_RTOL = (
    "loss falls",
    "energy identity",
    "energy identity, late",
    "smoothed margin rises",
    "norm rises",
    "layers stay balanced",
    "neurons stay balanced",
    "matrices stay balanced",
)


# --- Measuring ------------------------------------------------------------------------


def measured(column: Column) -> dict[str, Any]:
    """The worst of the lanes for each law."""
    start = time.perf_counter()
    flow = column.make()
    tables = flow.tables()
    rtol = flow.options.get("rtol", float(flow.solution.rtol.ravel()[0]))
    rows = {}
    for law in (row.law for row in tables[0]):
        rows[law] = worst([table[law] for table in tables])
    return {
        "rows": rows,
        "rtol": rtol if math.isfinite(rtol) else 1e-3,
        "lanes": len(tables),
        "broken": list(flow.broken),
        "why": flow.why,
        "seconds": time.perf_counter() - start,
    }


def worst(checks: list[gflow.laws.Check]) -> dict[str, Any]:
    """That with the largest violation over its tolerance, where the law applies."""

    def ratio(one: gflow.laws.Check) -> float:
        return math.inf if math.isnan(one.violation) else one.violation / one.tolerance

    applying = [one for one in checks if one.applies]
    one = max(applying, key=ratio) if applying else checks[0]
    return {
        "verdict": one.verdict,
        "violation": one.violation,
        "tolerance": one.tolerance,
        "predicted": one.predicted,
        "measured": one.measured,
        "reason": one.reason,
        "failing": sum(one.verdict == "fail" for one in applying),
    }


# --- Showing --------------------------------------------------------------------------


def number(value: float) -> str:
    """In few characters."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    if 0.01 <= value < 1000:
        return f"{value:.2g}" if value < 100 else f"{value:.0f}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def cell(row: dict[str, Any], bold: bool) -> str:
    if row["verdict"] == "not applicable":
        return "–"
    ratio = row["violation"] / row["tolerance"]
    text = f"{number(row['violation'])} ({number(ratio)})"
    if row["verdict"] == "fail":
        count = f", {row['failing']} lanes" if row.get("failing", 1) > 1 else ""
        return f"**{text}**{count}" if bold else f"{text} FAILS{count}"
    return text


def tables(found: dict[str, Any], columns: list[Column], bold: bool) -> list[str]:
    """The tables of some columns, a few at a time, as lines."""
    lines = []
    laws = list(next(iter(found.values()))["rows"])
    for i in range(0, len(columns), WIDE):
        few = columns[i : i + WIDE]
        head = ["law", *(one.name for one in few)]
        rows = [
            [law, *(cell(found[one.name]["rows"][law], bold) for one in few)]
            for law in laws
        ]
        if bold:
            lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head))]
            lines += [f"| {' | '.join(row)} |" for row in rows]
        else:
            widths = [max(map(len, one)) for one in zip(head, *rows, strict=True)]
            for row in (head, *rows):
                parts = [c.ljust(w) for c, w in zip(row, widths, strict=True)]
                lines.append("  ".join(parts).rstrip())
        lines.append("")
    return lines


def legend(found: dict[str, Any], columns: list[Column]) -> list[list[str]]:
    """What the columns are."""
    return [
        [one.name, one.example, one.what, number(found[one.name]["rtol"])]
        for one in columns
    ]


def reasons(found: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(law, why it does not apply, in which columns)."""
    why: dict[tuple[str, str], list[str]] = {}
    for name, one in found.items():
        for law, row in one["rows"].items():
            if row["verdict"] == "not applicable":
                why.setdefault((law, row["reason"]), []).append(name)
    return [(law, reason, names) for (law, reason), names in sorted(why.items())]


def unexpected(found: dict[str, Any], columns: list[Column]) -> list[str]:
    """Failures of what should hold, and what held where it must fail."""
    wrong = []
    for column in columns:
        one = found[column.name]
        for law, row in one["rows"].items():
            known = law in one["broken"]
            if row["verdict"] == "fail" and column.good and not known:
                wrong.append(f"{column.name}: {law} fails ({row['measured']})")
            if known and row["verdict"] != "fail":
                wrong.append(f"{column.name}: {law} does not fail ({row['measured']})")
    return wrong


def slack(found: dict[str, Any], columns: list[Column]) -> list[list[str]]:
    """For each law: its range over good flows, and the least of those that fail."""
    good = [found[one.name] for one in columns if one.good]
    bad = [found[one.name] for one in columns if not one.good]
    rows = []
    for law in next(iter(found.values()))["rows"]:
        unit = law in IN_RTOL

        def values(some: list[Any], verdict: str, law=law, unit=unit) -> list[float]:
            return [
                one["rows"][law]["violation"] / (one["rtol"] if unit else 1.0)
                for one in some
                if one["rows"][law]["verdict"] == verdict
            ]

        holds, fails = values(good, "pass"), values(bad, "fail")
        ratio = [
            one["rows"][law]["violation"] / one["rows"][law]["tolerance"]
            for one in good
            if one["rows"][law]["verdict"] == "pass"
        ]
        rows.append(
            [
                law,
                "rtol" if unit else "1",
                str(len(holds)),
                number(max(holds, default=math.nan)) if holds else "",
                number(max(ratio)) if ratio else "",
                str(len(fails)),
                number(min(fails)) if fails else "",
            ]
        )
    return rows


def explained(found: dict[str, Any], columns: list[Column]) -> list[str]:
    """Why a law fails along what is a gradient flow with a limit."""
    return [
        f"{one.name}, {', '.join(found[one.name]['broken'])}: {found[one.name]['why']}"
        for one in columns
        if one.good and found[one.name].get("why")
    ]


SLACK_HEAD = ["law", "unit", "good", "largest", "of tolerance", "fail", "least failing"]


def aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, one)) for one in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown(rows: list[list[str]]) -> list[str]:
    head, *rest = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rest)]


def page(found: dict[str, Any]) -> str:
    """docs/pages/laws_measured.md."""
    good = [one for one in COLUMNS if one.good]
    bad = [one for one in COLUMNS if not one.good]
    count = len(next(iter(found.values()))["rows"])
    head = ["", "example", "flow", "rtol"]
    lines = [
        "# Laws, measured",
        "",
        f"All {count} [laws](laws.md) on the flows of all examples, as "
        "`python benchmarks/laws_by_example.py` finds them. Each cell has the "
        "violation and, in brackets, what it is of the tolerance; a law holds where "
        "that is at "
        "most 1, and fails where it is in **bold**. A dash: the law does not apply, "
        "for a reason that the table of the solution gives "
        "(benchmarks/laws_by_example.txt has all of them). Of several flows in one "
        "column the worst is shown.",
        "",
        "## Gradient flows",
        "",
        *markdown([head, *legend(found, good)]),
        "",
        *tables(found, good, True),
        *(line for one in explained(found, good) for line in (f"*{one}*", "")),
        "## What is not the gradient flow, or has no limit",
        "",
        *markdown([head, *legend(found, bad)]),
        "",
        *tables(found, bad, True),
        "## How much room tolerances leave",
        "",
        "The largest violation over the gradient flows, and the least of those that "
        "fail, in units of rtol where tolerances are multiples of it.",
        "",
        *markdown([SLACK_HEAD, *slack(found, COLUMNS)]),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="columns to compute anew")
    only = parser.parse_args().only
    kept = json.loads(KEPT.read_text()) if only is not None else {}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    for column in COLUMNS:
        if only is None or column.name in only or column.name not in kept:
            print(f"{column.name}: {column.what}", file=sys.stderr, flush=True)
            kept[column.name] = measured(column)
            KEPT.write_text(json.dumps(kept))
        found[column.name] = kept[column.name]
    print_machine()
    for good in (True, False):
        some = [one for one in COLUMNS if one.good == good]
        print("\nGradient flows" if good else "\nWhat is not, or has no limit")
        print(
            "\n".join(aligned([["", "example", "flow", "rtol"], *legend(found, some)]))
        )
        print()
        print("\n".join(tables(found, some, False)))
        print("\n".join(explained(found, some)))
    print("Room that tolerances leave")
    print("\n".join(aligned([SLACK_HEAD, *slack(found, COLUMNS)])))
    print("\nNot applicable")
    for law, reason, names in reasons(found):
        print(f"  {law} ({', '.join(names)}): because {reason}")
    wrong = unexpected(found, COLUMNS)
    failing = {
        law
        for one in found.values()
        for law, row in one["rows"].items()
        if row["verdict"] == "fail"
    }
    never = [law for law in next(iter(found.values()))["rows"] if law not in failing]
    print(f"\n{'; '.join(wrong) if wrong else 'Nothing unexpected.'}")
    print(f"Laws that never fail: {', '.join(never) if never else 'none'}")
    PAGE.write_text(page(found), encoding="utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
