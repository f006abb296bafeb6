"""Gradients and wall time against the error of the path, solver by solver.

    python benchmarks/work_precision.py > benchmarks/work_precision.txt
    python benchmarks/work_precision.py --problems deeplin --solvers RKC3 CVODE-dq

Path error: the largest relative error of the weights over 17 times, against a reference
by another method at a much tighter tolerance; a second method says how good that is.
Gradients of the full data, rejected steps included; a Hessian- or Jacobian-vector
product counts two, a gradient in a difference quotient one. Float64. Measured runs are
kept in benchmarks/output and not repeated, unless --fresh; --kept shows what there is.
The plot goes to benchmarks/work_precision.png (of a selection, to benchmarks/output).

CVODE runs twice, its Jacobian-vector products by `jax.jvp` and by its own difference
quotients; ratios are to whichever is cheaper at that error. It, SciPy and nothing else
call the gradient through NumPy: the table says what a call costs.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import matplotlib
import numpy as np
import scipy
from _inside import explicit, implicit, integrated
from _machine import print_machine
from _outside import call_overhead, cvode, scipy_method, sksundae
from _problems import FLOWS, Flow
from _references import OUTPUT, path_error, reference

import gflow


matplotlib.use("Agg")

ERRORS = (1e-4, 1e-6, 1e-8)
MOST = 200_000  # gradients of one run
FINE = tuple(10.0**-k for k in range(3, 11))
COARSE = (1e-3, 1e-5, 1e-7)
KEPT = OUTPUT / "work_precision.json"
BASELINES = ("CVODE-dq", "CVODE-jvp")


@dataclasses.dataclass(frozen=True)
class Solver:
    """`run(flow, rtol, most)` and the tolerances to run it at, loosest first."""

    run: Callable[[Flow, float, int], Any]
    tolerances: tuple[float, ...] = FINE
    color: str = "0.5"
    style: str = "-"


# To add a solver, add a line.
SOLVERS = {
    # What `gflow.integrate` chooses.
    "default": Solver(integrated(None), color="#AA3377"),
    "BDF": Solver(integrated(gflow.solvers.BDF()), color="#000000"),
    "RKC2": Solver(integrated(gflow.solvers.RKC2()), color="#56B4E9"),
    "RKC3": Solver(integrated(gflow.solvers.RKC3()), color="#0072B2"),
    "CVODE-dq": Solver(functools.partial(cvode, exact=False), color="#D55E00"),
    "CVODE-jvp": Solver(cvode, color="#E69F00", style="--"),
    "Tsit5": Solver(explicit(diffrax.Tsit5()), color="#009E73"),
    "Dopri8": Solver(explicit(diffrax.Dopri8()), color="#117733", style="--"),
    "Kvaerno5": Solver(implicit(diffrax.Kvaerno5()), COARSE, color="#CC79A7"),
    "LSODA": Solver(scipy_method("LSODA"), FINE[::2], color="0.2", style=":"),
    "SciPy BDF": Solver(scipy_method("BDF"), COARSE, color="0.45", style=":"),
    "Radau": Solver(scipy_method("Radau"), COARSE, color="0.65", style=":"),
}


def measured(
    flow: Flow, name: str, path: np.ndarray, kept: dict, only_kept: bool
) -> list[dict]:
    """The runs of a solver, from the loosest tolerance until one costs too much.

    Or the next would, if its cost grows as it did last.
    """
    rows = []
    for rtol in SOLVERS[name].tolerances:
        costs = [row["gradients"] for row in rows]
        if len(costs) > 1 and costs[-1] ** 2 / costs[-2] > MOST:
            break
        key = f"{flow.name} {name} {rtol:.0e}"
        if key not in kept and only_kept:
            break
        if key not in kept:
            run = SOLVERS[name].run(flow, rtol, MOST)
            error = None if run.path is None else path_error(run.path, path)
            kept[key] = {
                "rtol": rtol,
                "gradients": run.gradients,
                "seconds": run.seconds,
                "error": error,
                "note": run.note,
            }
            KEPT.write_text(json.dumps(kept, indent=1))
        rows.append(kept[key])
        if rows[-1]["error"] is None:
            break
    return rows


def table(rows_of: dict[str, list[dict]]):
    head = f"{'solver':10} {'rtol':>7} {'gradients':>10} {'path error':>11}"
    print(f"{head} {'seconds':>9}\n" + "-" * 51)
    for name, rows in rows_of.items():
        for row in rows:
            bad = row["error"] is None
            error = "" if bad else f"{row['error']:.1e}"
            print(
                f"{name:10} {row['rtol']:7.0e} {row['gradients']:10} {error:>11} "
                f"{row['seconds']:9.3f}" + (f"  {row['note']}" if bad else "")
            )


def needed(rows: list[dict], error: float) -> tuple[float, str]:
    """Gradients for a path error, by interpolation in logarithms, and "≤" or "".

    Between successive runs on the lower envelope. "≤": the cheapest run is better than
    that already. NaN: no run is as good.
    """
    runs = sorted(
        (row["gradients"], row["error"]) for row in rows if row["error"] is not None
    )
    envelope: list[tuple[float, float]] = []
    for gradients, e in runs:
        if not envelope or e < envelope[-1][1]:
            envelope.append((gradients, e))
    if not envelope or envelope[-1][1] > error:
        return np.nan, ""
    if envelope[0][1] <= error:
        return envelope[0][0], "≤"
    log_error = [-np.log(e) for _, e in envelope]
    log_gradients = [np.log(g) for g, _ in envelope]
    return float(np.exp(np.interp(-np.log(error), log_error, log_gradients))), ""


def summary(results: dict[str, dict[str, list[dict]]]):
    print("\nGradients for a path error, and the ratio to CVODE's (the cheaper of its")
    print("two). ≤: the cheapest run is better already; -: no run is that good.")
    for error in ERRORS:
        print(f"\nerror {error:.0e}")
        names = dict.fromkeys(n for of in results.values() for n, r in of.items() if r)
        print(f"{'':14}" + "".join(f"{name:>18}" for name in names))
        for title, rows_of in results.items():
            found = {name: needed(rows, error) for name, rows in rows_of.items()}
            base = [found[n][0] for n in BASELINES if n in found]
            base = np.nanmin(base) if np.isfinite(base).any() else np.nan
            line = f"{title:14}"
            for name in names:
                gradients, mark = found.get(name, (np.nan, ""))
                cell = "-"
                if np.isfinite(gradients):
                    ratio = f"({gradients / base:.2f})" if np.isfinite(base) else ""
                    cell = f"{mark}{gradients:.0f} {ratio}"
                line += f"{cell:>18}"
            print(line)


def chosen(results: dict[str, dict[str, list[dict]]]):
    """The default next to the best of gflow's and Diffrax's solvers by themselves."""
    fixed = ("BDF", "RKC2", "RKC3", "Tsit5", "Dopri8")
    print("\nThe default's gradients over those of the best of " + ", ".join(fixed))
    print(f"{'':14}" + "".join(f"{f'error {error:.0e}':>26}" for error in ERRORS))
    for title, rows_of in results.items():
        line = f"{title:14}"
        for error in ERRORS:
            found = {s: needed(rows_of[s], error)[0] for s in fixed if s in rows_of}
            found = {s: g for s, g in found.items() if np.isfinite(g)}
            mine = needed(rows_of.get("default", []), error)[0]
            cell = "-"
            if found and np.isfinite(mine):
                best = min(found, key=found.__getitem__)
                cell = f"{mine / found[best]:.2f} ({best} {found[best]:.0f})"
            line += f"{cell:>26}"
        print(line)


def plot(results, flows, file: pathlib.Path):
    import matplotlib.pyplot as plt

    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4.0 * columns, 3.2 * lines), squeeze=False
    )
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    handles = {}
    for axis, (name, rows_of) in zip(axes.flat, results.items(), strict=False):
        for solver, rows in rows_of.items():
            runs = [(r["error"], r["gradients"]) for r in rows if r["error"]]
            if not runs:
                continue
            entry = SOLVERS[solver]
            (handles[solver],) = axis.loglog(
                *zip(*runs, strict=True),
                entry.style,
                color=entry.color,
                marker="o",
                markersize=3,
                linewidth=1.4,
                label=solver,
            )
        axis.set_title(flows[name].title, fontsize=8.5)
        axis.set_xlim(1, 1e-10)
        axis.grid(True, which="major", linewidth=0.4, color="0.88")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("full-data gradients", fontsize=9)
    for axis in axes.flat[max(len(results) - columns, 0) : len(results)]:
        axis.set_xlabel("path error", fontsize=9)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=len(handles),
        fontsize=8.5,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0.25 / lines / 3.2 + 0.02, 1, 1))
    figure.savefig(file, dpi=160)
    plt.close(figure)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--quick", action="store_true", help="a few cheap problems")
    parser.add_argument("--kept", action="store_true", help="measure nothing anew")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    return parser.parse_args()


def main():
    asked = arguments()
    jax.config.update("jax_enable_x64", True)
    # Small programs run sooner where they are called.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    names = ["sqrelu-1", "deeplin"] if asked.quick else asked.problems
    solvers = list(asked.solvers)
    print_machine()
    outside = "scikit-sundae absent"
    if sksundae is not None:
        outside = f"scikit-sundae {sksundae.__version__}"
    print(f"          scipy {scipy.__version__}, {outside}")
    if sksundae is None:
        print("CVODE is left out: python -m pip install scikit-sundae")
        solvers = [name for name in solvers if name not in BASELINES]
    OUTPUT.mkdir(exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if asked.fresh:
        again = {(f, s) for f in names for s in solvers}
        kept = {k: v for k, v in kept.items() if tuple(k.split()[:2]) not in again}
    if asked.kept:
        names = [f for f in names if any(k.split()[0] == f for k in kept)]
    results, flows = {}, {}
    for name in names:
        flow = flows[name] = FLOWS[name]()
        path, agreement = reference(flow)
        called, looped = call_overhead(flow, 200 if flow.size < 10_000 else 20)
        print(
            f"\n{name}: {flow.title}\n"
            f"references agree to {agreement:.0e}; a gradient takes {1e6 * called:.0f} "
            f"µs called from NumPy, {1e6 * looped:.0f} µs in a compiled loop\n"
        )
        results[name] = {}
        for solver in solvers:
            results[name][solver] = measured(flow, solver, path, kept, asked.kept)
        table(results[name])
        jax.clear_caches()
    summary(results)
    chosen(results)
    asked_all = asked.problems == list(FLOWS) and asked.solvers == list(SOLVERS)
    whole = asked_all and not asked.quick
    folder = pathlib.Path(__file__).parent if whole else OUTPUT
    plot(results, flows, folder / "work_precision.png")


if __name__ == "__main__":
    main()
