"""Arguments that cannot be right: ValueError before anything is compiled.

Each message names the culprit and says what to do.
"""

import re

import diffrax as dfx
import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO

import gflow
from gflow import losses
from gflow._failure import failed_flow
from gflow.clocks import Alpha, LogTime, Physical
from gflow.solvers import PrimalDual

from .helpers import is_through_jax


class Dot(eqx.Module):
    """x ↦ ⟨w, x⟩."""

    w: jax.Array

    def __call__(self, x):
        return jnp.sum(self.w * x)


class Matrix(eqx.Module):
    """x ↦ W x."""

    w: jax.Array

    def __call__(self, x):
        return self.w @ x


class Affine(eqx.Module):
    """x ↦ ⟨w, x⟩² + ⟨w, x⟩: no degree of homogeneity."""

    w: jax.Array

    def __call__(self, x):
        z = jnp.sum(self.w * x)
        return z**2 + z


class Choosy(eqx.Module):
    """Only takes inputs of three entries."""

    w: jax.Array

    def __call__(self, x):
        if x.shape != (3,):
            raise RuntimeError("three inputs, please")
        return jnp.sum(self.w * x)


class Untrained(eqx.Module):
    """Its weights are NumPy's, so nothing is trained."""

    w: np.ndarray

    def __call__(self, x):
        return jnp.sum(jnp.asarray(self.w) * x)


class Pair(eqx.Module):
    """Returns two arrays."""

    w: jax.Array

    def __call__(self, x):
        return self.w * x, x


class Mixed(eqx.Module):
    """Two parameters that may have two dtypes."""

    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jnp.sum(self.w * x) + self.b


class Layered(eqx.Module):
    """A linear map, and a layer that may need a key or a state."""

    linear: eqx.nn.Linear
    layer: eqx.Module
    state: eqx.nn.State | None = None

    def __call__(self, x):
        z = self.linear(x)
        return self.layer(z)[0] if self.state is None else self.stateful(z)

    def stateful(self, z):
        out, _ = self.layer(z, self.state)
        return out[0]


class Leaky(Layered):
    """Returns the state beside the output."""

    def stateful(self, z):
        return self.layer(z, self.state)


X = np.array([[1.0, 2.0], [2.0, -1.0], [0.5, 0.5]])
SIGNS = np.array([1.0, -1.0, 1.0])
CLASSES = np.array([0, 2, 1])
DOT = Dot(jnp.array([0.5, 1.0]))
THREE = Matrix(jnp.ones((3, 2)))
LINEAR = eqx.nn.Linear(2, 1, key=jax.random.key(0))
NORM, STATE = eqx.nn.make_with_state(eqx.nn.BatchNorm)(1, axis_name="i", mode="batch")
STILL = eqx.nn.inference_mode(NORM)

GOOD = {
    "model": DOT,
    "data": (X, SIGNS),
    "loss": losses.Logistic(),
    "t_span": (0.0, 10.0),
}


def vector_loss(prediction, y):
    return jnp.array([prediction, y])


def picky_loss(prediction, y):
    raise KeyError("no such label")


def log_loss(state):
    """Bears the name of an observer that is something else."""
    return state.outputs


def with_row(row):
    x = X.copy()
    x[1] = row
    return x


# Some word that tells what to do.
REMEDY = r"\b(use|pass|give|remove|return)\b"

# name: (what is changed, words for the culprit, words for the remedy)
CASES = {
    # Model
    "model that is no function": (
        {"model": 3.0},
        "model=3.0 cannot be called",
        "callable PyTree",
    ),
    "no trainable parameter": (
        {"model": Untrained(np.ones(2))},
        "no trainable parameter",
        "filter_spec",
    ),
    "filter that trains nothing": (
        {"filter_spec": Dot(False)},
        "no trainable parameter",
        "filter_spec",
    ),
    "NaN parameter": (
        {"model": Dot(jnp.array([1.0, np.nan]))},
        r"parameter model\.w is not finite",
        "check the initialisation",
    ),
    "infinite parameter": (
        {"model": Dot(jnp.array([-np.inf, 1.0]))},
        r"parameter model\.w is not finite",
        "check the initialisation",
    ),
    "empty parameter": (
        {"model": Dot(jnp.zeros((0,)))},
        r"parameter model\.w is empty",
        "positive size",
    ),
    "integer parameter": (
        {"model": Dot(jnp.ones(2, int)), "filter_spec": True},
        r"parameter model\.w .*int",
        "convert it, or exclude it",
    ),
    "complex parameter": (
        {"model": Dot(jnp.ones(2, complex))},
        r"parameter model\.w .*complex",
        "convert it, or exclude it",
    ),
    "float32 and float64 parameters": (
        {"model": Mixed(jnp.ones(2, jnp.float32), jnp.ones(()))},
        r"several dtypes \(model\.w is float32, model\.b is float64\)",
        r"a\.astype\(jnp\.float64\).*filter_spec",
    ),
    "bfloat16 and float32 parameters": (
        {"model": Mixed(jnp.ones(2, jnp.bfloat16), jnp.ones((), jnp.float32))},
        r"several dtypes \(model\.w is bfloat16, model\.b is float32\)",
        r"a\.astype\(jnp\.float32\)",
    ),
    "bfloat16 and float16 parameters": (
        {"model": Mixed(jnp.ones(2, jnp.bfloat16), jnp.ones((), jnp.float16))},
        r"several dtypes \(model\.w is bfloat16, model\.b is float16\)",
        r"a\.astype\(jnp\.float32\)",
    ),
    "dropout": (
        {"model": Layered(LINEAR, eqx.nn.Dropout())},
        r"model\.layer is an equinox\.nn\.Dropout in training mode.*random layers",
        r"not supported; pass equinox\.nn\.inference_mode\(model\)",
    ),
    "batch norm without a state": (
        {"model": Layered(LINEAR, NORM)},
        r"model\.layer is an equinox\.nn\.BatchNorm.*update a state",
        r"not supported; pass equinox\.nn\.inference_mode\(model\).*Batched",
    ),
    "batch norm in training mode": (
        {"model": Layered(LINEAR, NORM, STATE)},
        r"model\.layer is an equinox\.nn\.BatchNorm.*update a state",
        r"not supported; pass equinox\.nn\.inference_mode\(model\).*Batched",
    ),
    "batch norm that returns its state": (
        {"model": Leaky(LINEAR, STILL, STATE)},
        r"the model returns .*model\.layer is an equinox\.nn\.BatchNorm",
        r"equinox\.nn\.State as a field and returns the output alone",
    ),
    "model that raises": (
        {"model": Choosy(jnp.ones(3))},
        r"cannot be applied to one example of shape \(2,\): three inputs, please",
        "one example without the batch axis.*gflow.nn.Batched",
    ),
    "model of the wrong width": (
        {"model": Matrix(jnp.ones((1, 5)))},
        r"cannot be applied to one example of shape \(2,\)",
        "gflow.nn.Batched",
    ),
    "model that returns a pair": (
        {"model": Pair(jnp.ones(2))},
        "the model returns",
        "must return one real",
    ),
    # Data
    "data that are no pair": ({"data": X}, "must be a pair", r"\(x, y\)"),
    "data in a dict": (
        {"data": {"features": X, "labels": SIGNS}},
        r"data is a dict with keys \['features', 'labels'\]",
        r"pass \(data\['features'\], data\['labels'\]\)",
    ),
    "inputs in a dict": (
        {"data": ({"pixels": X}, SIGNS)},
        r"x is a dict with keys \['pixels'\]",
        r"pass one array, such as x\['pixels'\]",
    ),
    "sparse inputs of JAX": (
        {"data": (BCOO.fromdense(X), SIGNS)},
        r"x is sparse \(a BCOO\)",
        r"pass x\.todense\(\)",
    ),
    "sparse inputs of SciPy": (
        {"data": (scipy.sparse.csr_matrix(X), SIGNS)},
        r"x is sparse \(a csr_matrix\)",
        r"pass x\.toarray\(\)",
    ),
    "sparse labels": (
        {"data": (X, BCOO.fromdense(SIGNS))},
        r"y is sparse \(a BCOO\)",
        r"pass y\.todense\(\)",
    ),
    "no data": (
        {"data": (np.zeros((0, 2)), np.zeros(0))},
        r"data are empty: x has shape \(0, 2\)",
        "at least one example",
    ),
    "inputs without entries": (
        {"data": (np.zeros((3, 0)), SIGNS)},
        r"data are empty: x has shape \(3, 0\)",
        "at least one example",
    ),
    "ragged data": (
        {"data": ([[1.0, 2.0], [3.0]], SIGNS[:2])},
        "x is not a numeric array",
        "every example the same shape",
    ),
    "labels that are words": (
        {"data": (X, ["cat", "dog", "cat"])},
        "y is not a numeric array",
        "numbers",
    ),
    "too few labels": (
        {"data": (X, SIGNS[:2])},
        r"x has 3 examples but y has shape \(2,\)",
        "one label for each row",
    ),
    "one label": (
        {"data": (X, 1.0)},
        r"x has 3 examples but y has shape \(\)",
        "one label for each row",
    ),
    "NaN in the data": (
        {"data": (with_row([np.nan, 1.0]), SIGNS)},
        r"x is not finite: x\[1, 0\] is nan",
        "remove or impute",
    ),
    "infinity in the data": (
        {"data": (with_row([0.0, np.inf]), SIGNS)},
        r"x is not finite: x\[1, 1\] is inf",
        "remove or impute",
    ),
    "NaN in the targets": (
        {"data": (X, np.array([0.0, 1.0, np.nan])), "loss": losses.Square()},
        r"y is not finite: y\[2\] is nan",
        "remove or impute",
    ),
    # Labels and outputs against losses
    "logistic, labels 0 and 1": (
        {"data": (X, np.array([0, 1, 0]))},
        r"Logistic takes labels -1 and \+1, but y contains \[0",
        "map your two classes.*two_classes",
    ),
    "exponential, label 2": (
        {"data": (X, np.array([1.0, -1.0, 2.0])), "loss": losses.Exponential()},
        r"Exponential takes labels -1 and \+1, but y contains \[2",
        "map your two classes.*CrossEntropy",
    ),
    "logistic, labels in a column": (
        {"data": (X, SIGNS[:, None])},
        r"labels of shape \(n,\), got \(3, 1\)",
        "one label -1 or \\+1 per example",
    ),
    "logistic, three outputs": (
        {"model": THREE},
        r"Logistic takes one output per example, .*shape \(3,\)",
        "CrossEntropy",
    ),
    "exponential, three outputs": (
        {"model": THREE, "loss": losses.Exponential()},
        r"Exponential takes one output per example, .*shape \(3,\)",
        "MulticlassExponential",
    ),
    "cross-entropy, label too large": (
        {
            "model": THREE,
            "data": (X, np.array([0, 3, 1])),
            "loss": losses.CrossEntropy(),
        },
        "CrossEntropy: labels run from 0 to 3, but the model has 3 outputs",
        "relabel the classes, or give the model more outputs",
    ),
    "cross-entropy, negative label": (
        {
            "model": THREE,
            "data": (X, np.array([-1, 1, 1])),
            "loss": losses.CrossEntropy(),
        },
        "CrossEntropy: labels run from -1 to 1",
        "relabel the classes",
    ),
    "multi-class exponential, label too large": (
        {
            "model": THREE,
            "data": (X, np.array([7, 0, 1])),
            "loss": losses.MulticlassExponential(),
        },
        "MulticlassExponential: labels run from 0 to 7",
        "relabel the classes",
    ),
    "cross-entropy, float labels": (
        {
            "model": THREE,
            "data": (X, CLASSES.astype(float)),
            "loss": losses.CrossEntropy(),
        },
        "CrossEntropy takes integer class labels.*got float64",
        r"y\.astype\(int\)",
    ),
    "multi-class exponential, float labels": (
        {
            "model": THREE,
            "data": (X, CLASSES.astype(float)),
            "loss": losses.MulticlassExponential(),
        },
        "MulticlassExponential takes integer class labels.*got float64",
        r"y\.astype\(int\)",
    ),
    "cross-entropy, one output": (
        {"data": (X, CLASSES), "loss": losses.CrossEntropy()},
        r"CrossEntropy takes one output per class.*shape \(\)",
        "Exponential or Logistic",
    ),
    "square, targets of another shape": (
        {"model": THREE, "data": (X, np.zeros((3, 2))), "loss": losses.Square()},
        r"the model returns \(3, 3\) and y has shape \(3, 2\)",
        "reshape y, or change",
    ),
    "square, one target for three outputs": (
        {"model": THREE, "loss": losses.Square()},
        r"the model returns \(3, 3\) and y has shape \(3,\)",
        "reshape y, or change",
    ),
    # Losses
    "loss class": (
        {"loss": losses.Logistic},
        "loss=Logistic is a class",
        r"Logistic\(\)",
    ),
    "loss by name": (
        {"loss": "logistic"},
        "loss='logistic' is neither",
        r"losses\.Logistic\(\)",
    ),
    "loss that returns a vector": (
        {"loss": vector_loss},
        r"one scalar per example, but this one returns shape \(2,\)",
        "sum over the outputs",
    ),
    "loss that raises": (
        {"loss": picky_loss},
        r"loss cannot be applied to predictions of shape \(\)",
        "no such label",
    ),
    # Times
    "end before start": (
        {"t_span": (3.0, 1.0)},
        "t0=3 to t1=1",
        "end must come after the start",
    ),
    "end at start": (
        {"t_span": (3.0, 3.0)},
        "t0=3 to t1=3",
        "end must come after the start",
    ),
    "end before start, as logarithms": (
        {"t_span": (gflow.exp(5.0), gflow.exp(2.0))},
        r"t0=e\^5 to t1=e\^2",
        "end must come after the start",
    ),
    "end before start, mixed": (
        {"t_span": (10.0, gflow.exp(2.0))},
        r"t0=10 to t1=e\^2",
        "end must come after the start",
    ),
    "infinite end": (
        {"t_span": (0.0, np.inf)},
        "t1=inf is not one finite time",
        r"gflow\.exp\(v\)",
    ),
    "NaN start": (
        {"t_span": (np.nan, 1.0)},
        "t0=nan is not one finite time",
        r"gflow\.exp\(v\)",
    ),
    "NaN end, as a logarithm": (
        {"t_span": (0.0, gflow.exp(np.nan))},
        "t1=.*nan.* is not one finite time",
        r"gflow\.exp\(v\)",
    ),
    "two ends": (
        {"t_span": (0.0, np.array([1.0, 2.0]))},
        "t1=.* is not one finite time",
        r"gflow\.exp\(v\)",
    ),
    "span that is no pair": ({"t_span": 5.0}, r"t_span=5\.0 is not a pair", "t0, t1"),
    "end that is a word": (
        {"t_span": (0.0, "late")},
        "t1='late' is not a time",
        r"gflow\.exp\(v\)",
    ),
    "saving after the end": (
        {"save_at": [1.0, 11.0]},
        r"t=11, outside of t_span = \(0, 10\)",
        "leave it out or widen the span",
    ),
    "saving before the start": (
        {"save_at": [-1.0, 5.0]},
        r"t=-1, outside of t_span = \(0, 10\)",
        "leave it out or widen the span",
    ),
    "saving after the end, as logarithms": (
        {"save_at": gflow.exp(np.array([1.0, 50.0]))},
        r"t=e\^50, outside of t_span",
        "leave it out or widen the span",
    ),
    "saving out of order": (
        {"save_at": [2.0, 1.0]},
        "save_at is not sorted",
        r"np\.sort\(save_at\)",
    ),
    "saving at no time": ({"save_at": []}, r"shape \(0,\)", "at least one time"),
    "saving at one bare time": ({"save_at": 3.0}, r"shape \(\)", "one-dimensional"),
    "saving at NaN": ({"save_at": [1.0, np.nan]}, "save_at contains NaN", REMEDY),
    "saving at a word": ({"save_at": "all"}, "save_at='all' is not known", "'steps'"),
    # Observers
    "misspelt observer": (
        {"observe": ["min_margni"]},
        "unknown observer 'min_margni'",
        "Did you mean 'min_margin'.*Known observers: ",
    ),
    "observer that is a number": (
        {"observe": [3]},
        "unknown observer 3",
        r"gflow\.observe",
    ),
    "observers that are a number": (
        {"observe": 3},
        "observe=3 is not an observer",
        r"gflow\.observe",
    ),
    "two observers of one name": (
        {"observe": ["log_loss", log_loss]},
        "two observers are called 'log_loss'",
        "dict from names to",
    ),
    "normalised margins of no homogeneous model": (
        {"model": Affine(jnp.ones(2)), "observe": ["normalized_margins"]},
        "'normalized_margins' divides by ‖W‖",
        "homogeneous",
    ),
    # Tolerances and steps
    "rtol = 0": ({"rtol": 0.0}, r"rtol=0\.0 is not a positive number", REMEDY),
    "negative rtol": ({"rtol": -1e-6}, "rtol=-1e-06 is not a positive number", REMEDY),
    "NaN rtol": ({"rtol": np.nan}, "rtol=nan is not a positive number", REMEDY),
    "rtol beyond float64": (
        {"rtol": 1e-16},
        "rtol=1.0e-16 is below what float64",
        "use a larger rtol",
    ),
    "rtol beyond float32": (
        {"model": Dot(jnp.ones(2, np.float32)), "rtol": 1e-8},
        "rtol=1.0e-08 is below what float32",
        "use a larger rtol, or float64 parameters.*jax_enable_x64",
    ),
    "negative atol": ({"atol": -1.0}, r"atol=-1\.0 is negative", "use 0 or a positive"),
    "NaN atol": ({"atol": np.nan}, "atol=nan is negative or NaN", "use 0"),
    "no steps": ({"max_steps": 0}, "max_steps=0 is not positive", REMEDY),
    "half a step": ({"max_steps": 0.5}, r"max_steps=0\.5 is not an integer", REMEDY),
    # Methods
    "solver class": (
        {"solver": dfx.Tsit5},
        "solver=Tsit5 is a class",
        r"instance, Tsit5\(\)",
    ),
    "solver without an error estimate": (
        {"solver": dfx.Euler()},
        "Euler.* is not a Diffrax solver with an error estimate",
        r"Tsit5\(\).*gflow\.descend.*gflow\.vector_field",
    ),
    "solver by name": (
        {"solver": "tsit5"},
        "solver='tsit5' is not a Diffrax solver",
        r"Tsit5\(\)",
    ),
    "clock by name": (
        {"clock": "log"},
        "clock='log' is not a clock",
        r"gflow\.clocks\.LogTime\(\)",
    ),
    "clock class": ({"clock": LogTime}, "clock=.* is", r"LogTime\(\)"),
    "α-clock with square loss": (
        {"clock": Alpha(), "loss": losses.Square()},
        "Alpha clock needs a loss with an exponential tail.*Square has none",
        r"Physical\(\) or gflow\.clocks\.LogTime\(\)",
    ),
    "physical clock beyond floats": (
        {"clock": Physical(), "t_span": (0.0, gflow.exp(1e4))},
        r"t1 - t0 = e\^10000 is beyond the largest float64",
        r"gflow\.clocks\.LogTime\(\)",
    ),
    "α-clock with an implicit solver and given times": (
        {"clock": Alpha(), "solver": dfx.Kvaerno5(), "save_at": [1.0]},
        "Alpha does not tell the time.*Kvaerno5",
        r"diffrax\.Tsit5\(\), another clock, or save_at=None",
    ),
    "unknown kinks": (
        {"kinks": "clarke"},
        "kinks='clarke' is not known",
        "use 'auto' or 'autodiff'",
    ),
    "unknown branch": (
        {"branch": "left"},
        "branch='left' is not known",
        "use 'steepest' or 'stay'",
    ),
    "event that is a number": (
        {"events": 3},
        "events=3",
        "pass a function of the observed state",
    ),
    "events of which one is a name": (
        {"events": ["log_loss"]},
        "events=",
        "pass a function of the observed state",
    ),
    "event that returns a vector": (
        {"events": lambda state: state.outputs},
        r"an event returns one number or boolean.*shape \(3,\)",
        REMEDY,
    ),
    "event with the late phase's solver": (
        {"events": lambda state: state.log_loss, "solver": PrimalDual()},
        "events are located on .* PrimalDual",
        r"leave solver out, or use clock=gflow\.clocks\.LogTime\(\)",
    ),
    "resuming from a number": (
        {"resume": 3.0},
        r"resume=3\.0 is not a gflow\.Solution",
        r"\.resume",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def untyped():
    """As users run: the tests' own type checks would speak before the library does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def compiled(untyped):
    """Names of what JAX has compiled; the list grows."""
    seen = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append((duration, kwargs.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def solution(compiled):
    return gflow.integrate(**GOOD, save_at=[1.0])


@pytest.fixture
def nothing_is_solved(compiled, solution):
    """The program that takes longest to compile, a solve's, is not compiled."""
    (_, longest) = max(compiled)
    before = len(compiled)
    yield
    assert longest not in [name for _, name in compiled[before:]]


def message(**changed):
    with pytest.raises(ValueError) as caught:
        gflow.integrate(**{**GOOD, **changed})
    # One line, whatever JAX appends about its tracebacks.
    return str(caught.value).replace("\n", " ")


@pytest.mark.parametrize("name", CASES)
def test_message(name, nothing_is_solved):
    changed, culprit, remedy = CASES[name]
    text = message(**changed)
    assert re.search(culprit, text), text
    assert re.search(remedy, text), text


def test_unknown_reduction():
    for loss in (
        "Exponential",
        "Logistic",
        "CrossEntropy",
        "MulticlassExponential",
        "Square",
    ):
        with pytest.raises(ValueError, match="reduction='max' is not known.*'mean'"):
            getattr(losses, loss)(reduction="max")


def test_resuming_in_another_clock(solution, nothing_is_solved):
    text = message(resume=solution, clock=Physical(), t_span=(0.0, 20.0))
    assert re.search("ran with .*LogTime .* would with Physical", text), text
    assert re.search(r"clock=.*LogTime\(\)", text), text


def test_resuming_with_another_solver(solution, nothing_is_solved):
    text = message(resume=solution, solver=dfx.Dopri5(), t_span=(0.0, 20.0))
    assert re.search("ran with .*Tsit5 .* would with Dopri5", text), text
    assert re.search(r"solver=Tsit5\(\)", text), text


def test_resuming_another_model(solution, nothing_is_solved):
    text = message(
        resume=solution,
        model=Dot(jnp.ones(3)),
        data=(np.ones((3, 3)), SIGNS),
        t_span=(0.0, 20.0),
    )
    assert re.search("resume", text) and re.search(r"\(2,\)", text), text


def test_resuming_what_is_finished(solution, nothing_is_solved):
    text = message(resume=solution, save_at=[1.0])
    assert re.search("resume: that solve has already reached t1", text), text
    assert re.search("later one in t_span", text), text


def test_vector_field_checks_as_well():
    for changed, words in [
        ({"data": (X, CLASSES)}, "Logistic takes labels"),
        ({"clock": Alpha(), "loss": losses.Square()}, "exponential tail"),
        ({"clock": "log"}, "is not a clock"),
    ]:
        arguments = {k: v for k, v in GOOD.items() if k != "t_span"} | changed
        with pytest.raises(ValueError, match=words):
            gflow.vector_field(**arguments)


def test_too_few_steps_say_where_and_how_to_go_on():
    short = gflow.integrate(**GOOD, max_steps=3, throw=False)
    with pytest.raises(RuntimeError) as caught:
        gflow.integrate(**GOOD, max_steps=3)
    text = str(caught.value)
    step = (
        short.resume.position.controller_state.next_end - short.resume.position.reading
    )
    for words in (
        "the maximum number of solver steps, 3, was reached",
        f"at log t = {float(short.log_t_final):.6g} of {np.log(10.0):.6g}",
        "by Tsit5 in the clock LogTime",
        f"{int(short.stats['num_rejected_steps']) / 3:.0%} of the steps were rejected",
        f"next step would have been {float(step):.2g} in that clock",
        "max_steps=30",
        "throw=False",
        "resume=solution",
    ):
        assert words in text, text
    assert "\n" not in text and "EQX_ON_ERROR" not in text
    assert not is_through_jax(caught)


def test_many_rejected_steps_are_named():
    result = gflow.integrate(**GOOD, max_steps=3, throw=False)
    half = eqx.tree_at(lambda s: s.parts[0].stats["num_rejected_steps"], result, 2)
    text = failed_flow(half, 3, 10.0)
    assert "67% of the steps were rejected. That many rejections come of kinks" in text


def test_errors_of_compiled_code_are_short():
    events = [lambda state: state.log_loss < 100.0]
    with pytest.raises(RuntimeError) as caught:
        gflow.integrate(**GOOD, events=events)
    assert str(caught.value).startswith("a boolean event is true where the solve start")
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__


def test_several_dtypes_under_jit():
    model = Mixed(jnp.ones(2, jnp.float32), jnp.ones(()))
    with pytest.raises(ValueError, match=r"several dtypes \(model\.w is float32"):
        eqx.filter_jit(gflow.integrate)(model, (X, SIGNS), losses.Logistic(), (0.0, 1))


def test_statistics_of_batch_norm_are_not_trained():
    """With its state held as a field, batch norm in inference mode is a layer."""
    model = Layered(LINEAR, STILL, STATE)
    sol = gflow.integrate(model, (X, SIGNS), losses.Logistic(), (0.0, 1.0))
    assert bool(sol.log_loss[-1] < sol.log_loss[0])
    assert bool(eqx.tree_equal(sol.final.state, STATE))
    trained = eqx.filter(model, gflow.nn.trainable(model))
    assert len(jax.tree.leaves(trained)) == 4


def test_traced_arguments_are_not_checked_for_values():
    """Under jit values are not known: the same call must not raise there."""

    @eqx.filter_jit
    def run(t1, y):
        return gflow.integrate(
            DOT, (X, y), losses.Logistic(), (0.0, t1), save_at=[0.0, 1.0]
        ).log_loss

    assert np.all(np.isfinite(run(jnp.asarray(2.0), jnp.asarray(SIGNS))))


@pytest.mark.parametrize(
    "dtype, log_t",
    [pytest.param(np.float32, 1e6, marks=pytest.mark.slow), (np.float64, 1e14)],
)
def test_times_that_rounding_blurs(dtype, log_t):
    """The solve stops where eps log t = 1 %, and says so; what it kept is good."""
    latest = 0.01 / np.finfo(dtype).eps

    def solve(throw):
        return gflow.integrate(
            Dot(jnp.ones(2, dtype)),
            (np.eye(2), np.ones(2)),
            losses.Logistic(),
            (0.0, gflow.exp(log_t)),
            rtol=1e-4,
            save_at=gflow.exp(np.array([1e3, 0.9 * latest, 1.1 * latest])),
            throw=throw,
        )

    sol = solve(throw=False)
    assert sol.result == gflow.RESULTS.precision
    np.testing.assert_allclose(sol.log_t_final, latest, rtol=1e-5)
    np.testing.assert_allclose(-sol.log_loss[:2] / sol.log_t[:2], 1.0, rtol=1e-2)
    assert np.all(np.isnan(sol.log_loss[2:]))
    where = re.escape(f"at log t = {float(sol.log_t_final):.6g} of {log_t:.6g} by")
    with pytest.raises(RuntimeError, match=f"rounding blurs.*{where}"):
        solve(throw=True)


@pytest.mark.parametrize(
    "options, what",
    [
        ({"events": lambda state: state.log_loss}, "events"),
        ({"clock": Alpha()}, "the clock Alpha"),
    ],
)
def test_locating_in_a_dtype_that_is_not_the_default(options, what):
    model = Dot(jnp.ones(2, np.float32))
    data = np.eye(2), np.ones(2)
    loss = losses.Logistic()
    with pytest.raises(ValueError, match=f"{what} cannot be used with float32.*use"):
        gflow.integrate(model, data, loss, (0.0, 1.0), **options)
