"""The flows of the examples, and some that are not gradient flows.

Each entry makes one column of the table of laws_by_example.py: one flow, or several
lanes of one, with what the laws need to know of it.
"""

import dataclasses
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

import gflow


sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

import all_laws
import growth_rates
import initialisations
import limit_margin
import mexican_hat
import normalised_flows
import quickstart
import random_network_margins
import relu_alignment
import small_initialisation
import step_sizes


@dataclasses.dataclass(frozen=True)
class Flow:
    """Solutions and what they were computed with.

    - `solution`: of one flow, or with a leading axis of lanes; the worst counts.
    - `options`: of `gflow.laws.check`.
    - `broken`: the laws that must fail, at least.
    - `why`: they do.
    """

    solution: Any
    data: Any
    loss: Any
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    broken: Sequence[str] = ()
    why: str = ""

    def lanes(self) -> Iterator[Any]:
        """The solutions, one by one."""
        if self.solution.log_t.ndim == 1:
            yield self.solution
            return
        for i in range(self.solution.log_t.shape[0]):
            yield lane(self.solution, i)

    def tables(self) -> list[gflow.laws.Laws]:
        """The laws of each."""
        return [
            gflow.laws.check(one, data=self.data, loss=self.loss, **self.options)
            for one in self.lanes()
        ]


@dataclasses.dataclass(frozen=True)
class Column:
    """A named flow, made when it is asked for."""

    name: str
    example: str
    what: str
    make: Callable[[], Flow]
    good: bool = True


COLUMNS: list[Column] = []


def column(name: str, example: str, what: str, *, good: bool = True):
    """Adds a column to the table."""

    def add(make: Callable[[], Flow]) -> Callable[[], Flow]:
        COLUMNS.append(Column(name, example, what, make, good))
        return make

    return add


def lane(solution: Any, i: int) -> Any:
    """One of several solutions."""
    return jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, solution)


def again(model: Any, solution: Any, data: Any, loss: Any, **options: Any) -> Any:
    """The flow from a model, solved once more with other options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return gflow.integrate(
            model,
            data,
            loss,
            (0.0, gflow.exp(solution.log_t[-1])),
            save_at=gflow.exp(solution.log_t),
            **options,
        )


LOG_TIME, ALPHA = gflow.clocks.LogTime(), gflow.clocks.Alpha()


# --- Late -----------------------------------------------------------------------------


def quick(name: str, second: bool) -> Flow:
    model, data = quickstart.problems()[name]
    solution = quickstart.flow(model, data)
    options = {}
    if second:
        options["other"] = again(model, solution, data, quickstart.LOSS, clock=LOG_TIME)
    return Flow(solution, data, quickstart.LOSS, options)


@column("Q1", "quickstart", "digits, squared ReLU, both layers, log t = 1e3")
def _():
    return quick("digits, squared ReLU", False)


@column("Q2", "quickstart", "iris, linear, log t = 1e3; other: in log time")
def _():
    return quick("iris, linear", True)


@column("Q3", "quickstart", "iris, three linear layers, log t = 1e3; other: log time")
def _():
    return quick("iris, three linear layers", True)


def to_the_limit(model: Any, data: Any) -> Flow:
    solution = limit_margin.flow(model, data)
    limit = gflow.limit(solution, data, limit_margin.LOSS)
    other = again(model, solution, data, limit_margin.LOSS, rtol=1e-8)
    options = {"limit": limit, "other": other}
    return Flow(solution, data, limit_margin.LOSS, options)


@column("L1", "limit_margin", "iris, deep linear, log t = 1e8; other: rtol 1e-8")
def _():
    data = limit_margin.flowers(*limit_margin.FLOWERS["four features"])
    return to_the_limit(limit_margin.deep_network(), data)


@column("L2", "limit_margin", "the same with three features and a constant")
def _():
    data = limit_margin.flowers(*limit_margin.FLOWERS["three and a constant"])
    return to_the_limit(limit_margin.deep_network(), data)


@column("L3", "limit_margin", "the plane, 40 squared ReLU neurons, log t = 1e8")
def _():
    model, data = limit_margin.planar_network(40), limit_margin.planar_points()
    return to_the_limit(model, data)


@column("A", "all_laws", "iris, three linear layers to t = ∞; other: rtol 1e-9")
def _():
    solution, other = all_laws.flow(), all_laws.other()
    return Flow(solution, all_laws.data(), all_laws.LOSS, {"other": other})


@column("R1", "random_network_margins", "100 squared ReLU neurons, log t = 1e3")
def _():
    x, y = random_network_margins.data()
    model = random_network_margins.network(100)
    _, late = random_network_margins.train(model, x, y, 1000.0)
    return Flow(late, (x, y), random_network_margins.LOSS)


# --- To moderate times ----------------------------------------------------------------


@column("I1", "initialisations", "digits, 100 squared ReLU networks, log t = 200")
def _():
    data, loss = initialisations.data(), initialisations.LOSS
    keys = jax.random.split(jax.random.key(0), initialisations.COUNT)
    return Flow(initialisations.flow(keys), data, loss)


@column("G1", "growth_rates", "one iris, three balanced linear layers")
def _():
    data = growth_rates.flowers(*growth_rates.ONE)
    log_t = np.linspace(-2.0, 30.0, 65)
    solution = growth_rates.growth_flow(3, data, log_t)
    model = growth_rates.balanced_network(3, data[0])
    other = again(model, solution, data, growth_rates.LOSS, rtol=1e-8, clock=ALPHA)
    return Flow(solution, data, growth_rates.LOSS, {"other": other})


def two_flowers(which: int) -> Flow:
    data = growth_rates.flowers(*growth_rates.TWO)
    log_t = np.concatenate([np.linspace(-4.0, 2.0, 25), np.geomspace(2.2, 100.0, 60)])
    log_t_normalised = log_t[log_t <= 12.0]
    solution = growth_rates.both_flows(
        growth_rates.START_OF_TWO, data, log_t, log_t_normalised, 1e-8
    )[which]
    return Flow(solution, data, growth_rates.LOSS)


@column("G2", "growth_rates", "two irises, linear, log t = 100")
def _():
    return two_flowers(0)


@column("G3", "growth_rates", "the same with weight normalisation in the model")
def _():
    return two_flowers(1)


@column("N", "normalised_flows", "two parameters, t = 12; other: the clock Alpha")
def _():
    times = np.linspace(0.0, 12.0, 121)
    solution = normalised_flows.flow_of(None, times)
    data, loss = (normalised_flows.X, normalised_flows.Y), normalised_flows.LOSS
    model = normalised_flows.network(normalised_flows.START)
    other = again(model, solution, data, loss, rtol=1e-11, clock=ALPHA)
    return Flow(solution, data, loss, {"other": other})


@column("S1", "step_sizes", "breast cancer, tanh, square loss, t = 64; other: BDF")
def _():
    model, data, loss = step_sizes.problem()
    solution = step_sizes.flow_of(model, data, loss)
    other = again(model, solution, data, loss, rtol=1e-7, solver=gflow.solvers.BDF())
    return Flow(solution, data, loss, {"other": other})


# --- Small weights and kinks ----------------------------------------------------------

SQUARE = gflow.losses.Square()


@column("E1", "small_initialisation", "squared ReLU, square loss, norms 1e-6, 1e-30")
def _():
    x, y, _ = small_initialisation.data()
    solution, _, _ = small_initialisation.early_flows((1e-6, 1e-30), 60)
    return Flow(solution, (x, y), SQUARE)


@column("E2", "small_initialisation", "beside a saddle, at two distances")
def _():
    x, y, _ = small_initialisation.data()
    solution = small_initialisation.saddle_flows(small_initialisation.BESIDE, 60)
    return Flow(solution, (x, y), SQUARE)


@column("K1", "relu_alignment", "ReLU, square loss, norms 1e-6 to 1e-40")
def _():
    solution = relu_alignment.aligning(relu_alignment.NORMS, 60)
    data = (relu_alignment.POINTS, relu_alignment.LABELS)
    return Flow(solution, data, SQUARE)


@column("K2", "relu_alignment", "one ReLU neuron, 28 starts, one of them branching")
def _():
    solution = relu_alignment.branches("steepest", np.linspace(0.0, 2.0, 41))
    return Flow(solution, relu_alignment.ONE_POINT, relu_alignment.output_itself)


SLIDING_TIMES = np.linspace(0.0, 10.0, 201)


@column("K3", "relu_alignment", "five ReLU neurons, sliding; other: rtol 1e-10")
def _():
    solution = relu_alignment.slide(SLIDING_TIMES, 1e-8, "auto")
    _, data = relu_alignment.random_problem()
    other = relu_alignment.slide(SLIDING_TIMES, 1e-10, "auto")
    return Flow(solution, data, gflow.losses.Logistic(), {"other": other})


# --- What is not the flow, or has no limit --------------------------------------------

BALANCE = ("layers stay balanced", "neurons stay balanced", "matrices stay balanced")
ENERGY = ("energy identity", "energy identity, late")


@column("M", "mexican_hat", "the Mexican hat, log t = 1e9: no limit", good=False)
def _():
    solution, _ = mexican_hat.flow(1e9)
    options = {"rtol": mexican_hat.K * mexican_hat.RTOL}
    broken = ["path length is finite"]
    return Flow(solution, mexican_hat.DATA, mexican_hat.LOSS, options, broken)


def descent(step: float, broken: Sequence[str]) -> Flow:
    model, data, loss = step_sizes.problem()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        count = int(step_sizes.END / step)
        times = step * np.arange(count + 1)
        solution = gflow.descend(model, data, loss, step, count, save_at=times)
    return Flow(solution, data, loss, broken=broken)


@column("D1", "step_sizes", "descent with a step of 1/4", good=False)
def _():
    return descent(0.25, ["energy identity"])


@column("D2", "step_sizes", "descent with a step of 2", good=False)
def _():
    return descent(2.0, ["loss falls", "energy identity"])


@column("X1", "relu_alignment", "sliding, by automatic differentiation", good=False)
def _():
    solution = relu_alignment.slide(SLIDING_TIMES, 1e-5, "autodiff")
    _, data = relu_alignment.random_problem()
    return Flow(solution, data, gflow.losses.Logistic(), broken=ENERGY)


# What each must break, at least.
_BROKEN = {
    "descent": ("energy identity", *BALANCE),
    "loose": ("energy identity", *BALANCE, "one curve under every clock"),
    "changed": ("saved values", *ENERGY, *BALANCE, "α ≤ β"),
    "backwards": ("saved values", "loss falls", "norm rises", "smoothed margin rises"),
    "lopsided": (*BALANCE, "layer shares", "gradient aligns"),
    "astray": ("gradient aligns", "direction's rate", "one curve under every clock"),
    "late": ("growth rate",),
    "biased": ("Euler's theorem",),
}


def beside(name: str) -> Flow:
    solution, options = all_laws.other_than_the_flow(name)
    known = {"data": all_laws.data(), "loss": all_laws.LOSS}
    return Flow(solution, **known, options=options, broken=_BROKEN[name])


for _number, _name in enumerate(_BROKEN, start=1):
    column(f"B{_number}", "all_laws", all_laws.BREAKING[_name], good=False)(
        lambda name=_name: beside(name)
    )
