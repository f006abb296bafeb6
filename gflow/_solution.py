"""What a solve returns."""

import os
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._serialise import write
from ._types import BoolScalar, IntScalar, Scalar


class RESULTS(dfx.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Why a solve ended: Diffrax's results, and our own."""

    unresolved = (
        "The step size fell below the resolution of the clock. Either the flow moves "
        "on a scale of time that the clock cannot resolve (clock=gflow.clocks.EFolds() "
        "can), or the gradient is not finite from here on."
    )
    underflow = (
        "The gradient is below the smallest float where the flow starts, so it was "
        "computed as standing still, which it does not. Start from larger weights, use "
        "fewer layers, or float64."
    )
    precision = (
        "The solve stopped before t1: later, rounding blurs the weights of the "
        "examples, which are known to about log t times the spacing of floats. Stop "
        "earlier, or use float64 parameters."
    )
    crowded = (
        "More kinks met at one point than there is room for, so the flow's way on was "
        "not found. Fewer examples or neurons, or a start in general position, help."
    )
    discontinuous = (
        "The model jumps where it passes from one branch to another (a comparison or "
        "sign that is no kink), so it has no gradient flow there."
    )
    stalled = (
        "The flow met kinks over and over without getting any further: its way on was "
        "not found."
    )
    separated = "Every example is classified: the late phase begins."
    not_needed = "This part of the solve was not needed."
    diverged = (
        "Gradient descent diverged: the parameters or the loss are no longer finite. "
        "Use a smaller step size."
    )


class Resume(eqx.Module):
    """Where a solve stopped: pass it as `integrate(..., resume=)` to go on."""

    position: Any
    log_unit: Scalar
    loss_start: Scalar
    log_elapsed: Scalar
    clock: str = eqx.field(static=True, default="")
    solver: str = eqx.field(static=True, default="")
    flow: str = eqx.field(static=True, default="gradient")


class Part(eqx.Module):
    """One part of a solve: which clock and solver ran to which time, and why it ended.

    `result` is a `gflow.RESULTS`: `separated` where the late phase began, `not_needed`
    for a part that did not run.
    """

    clock: str = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    log_t_final: Scalar
    stats: dict[str, Any]
    result: RESULTS


class Inclusion(eqx.Module):
    r"""How a flow went along the kinks of its model.

    Number k of example i, of $M$ = `kinks_per_example`, is kink $i M + k$; a model of
    the whole batch counts as one example. `kinks` names them in order.

    **Attributes:**

    - `pins`: (T, K) the kinks along which the flow slides at the saved times; -1 for
        none.
    - `log_t`, `kink`, `num_crossed`, `num_pins`, `jump`: (E,) of the steps across kinks
        with the largest jumps of the velocity, in order of time: when the first kink
        was met, its number, how many were crossed in that step, how many are pinned
        after it, and the size of the jump relative to the velocity. Unused slots have
        kink -1.
    - `num_events`: of all steps across kinks.
    - `num_crossings`, `num_pinned`, `num_released`: how often a kink was crossed, began
        to hold the flow, and was left.
    - `num_ambiguous`: of starts with several continuations, of which `branch` says
        which was taken.
    - `num_unsure`: of points where no velocity was found that goes where it is one.
    - `num_in_series`: of steps after which two kinks of one example are pinned, one of
        which depends on the other: their slopes are approximate.
    - `branch`: "steepest" or "stay".
    """

    pins: Int[Array, "times K"]
    log_t: Float[Array, " events"]
    kink: Int[Array, " events"]
    num_crossed: Int[Array, " events"]
    num_pins: Int[Array, " events"]
    jump: Float[Array, " events"]
    num_events: IntScalar
    num_crossings: IntScalar
    num_pinned: IntScalar
    num_released: IntScalar
    num_ambiguous: IntScalar
    num_unsure: IntScalar
    num_in_series: IntScalar
    branch: str = eqx.field(static=True)
    kinks_per_example: int = eqx.field(static=True)
    kinks: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    def where(self, kink: int) -> tuple[int, str, int, tuple[int, ...]]:
        """The place of a kink: its example, its primitive, which of the model's
        groups of kinks it is in (such as the layer), and the place in that group.

        Raises `ValueError` for a number that is no kink's.
        """
        number = int(kink)
        example, rest = divmod(number, self.kinks_per_example)
        if number < 0:
            raise ValueError(f"kink={number} is not the number of a kink.")
        for group, (name, shape) in enumerate(self.kinks):
            size = int(np.prod(shape))
            if rest < size:
                place = tuple(int(i) for i in np.unravel_index(rest, shape))
                return example, name, group, place
            rest -= size
        raise AssertionError("unreachable: the kinks of an example are all named")


class Switches(eqx.Module):
    """When a solve by `gflow.solvers.Automatic` changed its method, and why.

    `print` it for a line each.

    **Attributes:**

    - `log_t`: (S,) the times of the first changes (at most 16); unused slots are NaN.
    - `to_implicit`: (S,) whether the implicit method took over, because explicit steps
        had become longer than a quarter of the time of the fastest decay; else the
        explicit one did, because the implicit steps cost far more than explicit steps
        of stability.
    - `num_changes`: of all changes.
    - `is_implicit`: which method ran last.
    - `num_steps`, `num_gradients`: (2,) accepted steps and their gradients: explicit,
        implicit.
    """

    log_t: Float[Array, " changes"]
    to_implicit: Bool[Array, " changes"]
    num_changes: IntScalar
    is_implicit: BoolScalar
    num_steps: Int[Array, " methods"]
    num_gradients: Int[Array, " methods"]

    def __str__(self) -> str:
        if self.log_t.ndim != 1:
            return repr(self)  # lanes
        number = int(self.num_changes)
        begun = bool(self.is_implicit) ^ (number % 2 == 1)
        methods = ("Tsit5", "BDF")
        lines = [f"{methods[begun]} from the start"]
        for log_t, to in zip(self.log_t[:number], self.to_implicit, strict=False):
            why = "implicit steps cost more than explicit ones of stability would"
            if to:
                why = "explicit steps had come near the time of the fastest decay"
            lines.append(f"{methods[int(to)]} from log t = {float(log_t):.4g}: {why}")
        if number > len(self.log_t):
            lines.append(f"and {number - len(self.log_t)} changes more")
        for name, steps, gradients in zip(
            methods, self.num_steps, self.num_gradients, strict=True
        ):
            lines.append(f"{name}: {int(steps)} steps, {int(gradients)} gradients")
        return "\n".join(lines)


class Solution(eqx.Module):
    r"""A solution of the flow, at T saved times.

    A PyTree: it comes out of `jit` and `vmap` (then with leading axes), and
    `gflow.save` writes it to one file.

    **Attributes:**

    - `log_t`: (T,) natural logarithm of the time; -inf at t = 0. Gradient descent
        with a transformation whose step size is not known has NaN here.
    - `models`: the model, with a leading axis T on every parameter.
    - `final`: the model at the end of the solve.
    - `log_loss`: (T,) natural logarithm of ℒ; NaN where a custom loss is negative.
    - `log_norm`: (T,) log ‖W‖.
    - `predictions`: (T, n, ...) outputs on the data.
    - `observed`: dict from the observers' names to arrays with leading axis T.
    - `energy_defect`: (T,) $(\mathcal L(0) - \mathcal L(t) - \int_0^t\|\dot W\|^2)
        / |\mathcal L(0)|$: zero along the true flow, up to the tolerance; with
        $-\int_0^t\langle\nabla\mathcal L, \dot W\rangle$ for the integral if `flow`
        is another. NaN for gradient descent, which is no flow.
    - `log_loss_defect`: (T,) the same for log ℒ, which shows the late phase, when all
        of ℒ(0) is gone: $\log\mathcal L(0) - \log\mathcal L(t) -
        \int_0^t\|\dot W\|^2/\mathcal L$ over 1 + |log ℒ(0) - log ℒ(t)|. None unless the
        loss has an exponential tail, and for gradient descent.
    - `log_t_final`: the time that was reached, as its logarithm.
    - `stats`: `num_steps`, `num_accepted_steps`, `num_rejected_steps`, and
        `num_gradients`, full-data gradient evaluations by the solve (a Hessian- or
        Jacobian-vector product counts two; -1 if the solver does not tell). What the
        observers evaluate at the saved times is not counted.
    - `result`: a `gflow.RESULTS`; an empty message means success.
    - `resume`: state to continue from.
    - `kinks`: how points where the model is not differentiable were treated: "none"
        (there are none), "inclusion" (the flow follows them: see `inclusion`), or
        "autodiff" (whatever automatic differentiation returns: near kinks this need not
        be the flow, see `energy_defect`).
    - `inclusion`: a [`gflow.Inclusion`][], or None.
    - `switches`: a [`gflow.Switches`][] if the solver is `Automatic`, which changes
        between two methods; else None.
    - `flow`: "gradient", or the class of `gflow.flows` that it is a solution of.
    - `clock`, `solver`: what the solve ran with, or began with.
    - `parts`: what ran where, a [`gflow.Part`][] each.
    - `rtol`: the tolerance it ran with.
    - `limit`: the limit at t = ∞, if asked for.

    Slots of a failed solve that were never reached are NaN when the times were given
    (`save_at=` an array), and repeat the final state when they were not and the solve
    ran under `jit` or `vmap`, where arrays cannot be cut to length.
    """

    log_t: Float[Array, " times"]
    models: Any
    final: Any
    log_loss: Float[Array, " times"]
    log_norm: Float[Array, " times"]
    predictions: Float[Array, "times examples ..."]
    observed: dict[str, Any]
    energy_defect: Float[Array, " times"]
    log_t_final: Scalar
    stats: dict[str, Any]
    result: RESULTS
    resume: Resume | None
    rtol: Scalar
    log_loss_defect: Float[Array, " times"] | None = None
    parts: tuple[Part, ...] = ()
    limit: Any = None
    inclusion: Inclusion | None = None
    switches: Switches | None = None
    kinks: str = eqx.field(static=True, default="none")
    clock: str = eqx.field(static=True, default="")
    solver: str = eqx.field(static=True, default="")
    flow: str = eqx.field(static=True, default="gradient")

    @property
    def t(self) -> Float[Array, "*lanes times"]:
        """(T,) the times; inf where e^log_t overflows."""
        return jnp.exp(self.log_t)

    @property
    def loss(self) -> Float[Array, "*lanes times"]:
        """(T,) ℒ; zero where e^log_loss underflows."""
        return jnp.exp(self.log_loss)

    def __len__(self) -> int:
        return self.log_t.shape[-1]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the solution to one file; see [`gflow.save`][]."""
        write(self, path, RESULTS)
