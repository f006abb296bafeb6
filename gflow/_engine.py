"""Diffrax, set up for a flow: one solve from a position to an end."""

from typing import Any, cast

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from ._controller import ControllerState, RelativeToArrays
from ._derivatives import Derivatives, adjoint_for
from ._flow import FlowField, FlowState
from ._packed import packing_for
from ._types import IntScalar, Scalar
from .solvers import BDF, Automatic, PrimalDual
from .solvers._filippov import Filippov
from .solvers._inner import inner_solver
from .solvers._rkc import AbstractRKC
from .solvers._switching import Switching
from .solvers._tsit5 import Tsit5


# Of an implicit solver in LogLogTime, in units of rtol^(1/order).
_FIRST_STEP = 0.3


class Position(eqx.Module):
    """Where a solve stands; enough to continue it bit for bit."""

    reading: Scalar
    state: FlowState
    solver_state: Any
    controller_state: ControllerState


class Counts(eqx.Module):
    num_steps: IntScalar
    num_accepted_steps: IntScalar


class Solved(eqx.Module):
    """States kept by a solve. Entries from `num_kept` on are padding."""

    readings: Float[Array, " times"]
    states: FlowState  # with a leading axis of times
    num_kept: IntScalar
    end: Position
    counts: Counts
    result: dfx.RESULTS


class Engine(eqx.Module):
    """Everything that a Diffrax solve needs but the start and the end."""

    field: FlowField
    solver: dfx.AbstractSolver
    controller: RelativeToArrays
    event: dfx.Event | None
    progress: dfx.AbstractProgressMeter
    derivatives: Derivatives = eqx.field(static=True)

    @property
    def term(self) -> dfx.ODETerm:
        return dfx.ODETerm(cast(Any, self.field))

    @property
    def args(self) -> FlowField | None:
        """What a solver is told beyond the term."""
        looks = isinstance(inner_solver(self.solver), (PrimalDual, BDF, Automatic))
        looks = looks or isinstance(self.solver, Switching)
        # What they look at is the gradient flow's own.
        return self.field if looks and self.field.flow is None else None

    def start(self, reading: Scalar, end: Scalar, state: FlowState) -> Position:
        """The position at t0, with the first step chosen."""
        solver, term = self.solver, self.term
        first = None
        inner = inner_solver(solver)
        if isinstance(inner, PrimalDual):
            # The usual guess, by an explicit Euler step, would be that of stability.
            first = _FIRST_STEP * self.controller.rtol ** (1 / inner.order(term))
            first = jnp.minimum(first, end - reading)
        _, controller_state = self.controller.init(
            term,
            reading,
            end,
            state,
            first,
            self.args,
            solver.func,
            solver.error_order(term),
        )
        solver_state = solver.init(
            term, reading, controller_state.next_end, state, self.args
        )
        if isinstance(solver, (Filippov, Switching)):
            pins = solver.pins(solver_state, state.dissipated)
            state = eqx.tree_at(lambda s: s.pins, state, pins)
        return Position(reading, state, solver_state, controller_state)

    def run(
        self, position: Position, end: Scalar, saveat: dfx.SaveAt, **options
    ) -> dfx.Solution:
        """One Diffrax solve from a position on."""
        packing = packing_for(self.solver, position.state)
        controller = eqx.tree_at(
            lambda c: (c.resume, c.form),
            self.controller,
            (position.controller_state, None if packing is None else packing.form),
            is_leaf=lambda x: x is None,
        )
        if saveat.subs is not None and any(
            s.ts is not None for s in saveat.subs.values()
        ):
            if not interpolates_well(self.solver):
                controller = dfx.ClipStepSizeController(
                    controller, step_ts=saveat.subs["kept"].ts
                )
        term, event = self.term, self.event
        state, solver_state = position.state, position.solver_state
        solver = self.solver
        if packing is not None:
            if isinstance(solver, Tsit5) and state.crowding is not None:
                leaves = jtu.tree_leaves(state.params)
                solver = Tsit5(num_params=sum(leaf.size for leaf in leaves))
            term, event = packing.term(self.field), packing.event(event)
            state, solver_state = packing.packed((state, solver_state))
        solution = dfx.diffeqsolve(
            term,
            solver,
            position.reading,
            end,
            None,
            state,
            self.args,
            saveat=saveat,
            stepsize_controller=controller,
            event=event,
            throw=False,
            solver_state=solver_state,
            **options,
        )
        if packing is None:
            return solution
        return packing.unpacked(solution, position.solver_state)


def interpolates_well(solver: dfx.AbstractSolver) -> bool:
    """Whether the solver's dense output is as accurate as its error control.

    True of Diffrax's explicit Runge-Kutta methods, whose interpolants have a local
    order at least that of their error estimate, and of stabilised ones, whose estimate
    bounds the stiff part of the derivatives too, and of BDF, whose polynomials they
    are. Other implicit ones interpolate by
    cubic Hermite polynomials, below their order and through stiff derivatives: there
    the solver steps to the save times instead.
    """
    explicit = (dfx.AbstractERK, AbstractRKC)
    return isinstance(inner_solver(solver), (*explicit, BDF, Automatic))


def keeps_account(solver: dfx.AbstractSolver) -> bool:
    """Whether the solver writes what each step costs into `FlowState.work`."""
    follows = (Filippov, Switching)
    return isinstance(solver, (PrimalDual, AbstractRKC, BDF, Automatic, *follows))


def gradients_per_step(solver: dfx.AbstractSolver) -> int | None:
    """Gradients that one step costs, or None if the solver does not tell."""
    if isinstance(solver, dfx.AbstractERK):
        tableau: Any = solver.tableau
        return tableau.num_stages - (1 if tableau.fsal else 0)
    return None


def position_at(solution: dfx.Solution, end: str) -> Position:
    """Where a Diffrax solve stands that saved its end under this name."""
    ts: Any = solution.ts
    ys: Any = solution.ys
    controller_state: Any = solution.controller_state
    if not isinstance(controller_state, ControllerState):
        controller_state = controller_state.inner_state  # of a clipping controller
    return Position(
        reading=ts[end][0],
        state=jtu.tree_map(lambda x: x[0], ys[end]),
        solver_state=solution.solver_state,
        controller_state=controller_state,
    )


def counts_of(solution: dfx.Solution) -> Counts:
    """The steps that a Diffrax solve took."""
    stats = solution.stats
    return Counts(
        jnp.asarray(stats["num_steps"]), jnp.asarray(stats["num_accepted_steps"])
    )


def at_times(
    engine: Engine,
    start: Position,
    end: Scalar,
    readings: Float[Array, " times"],
    *,
    max_steps: int,
) -> Solved:
    """Keeps the states at the given readings of a clock that tells the time."""
    saveat = dfx.SaveAt(
        subs={"kept": dfx.SubSaveAt(ts=readings), "end": dfx.SubSaveAt(t1=True)},
        solver_state=True,
        controller_state=True,
    )
    solution = engine.run(
        start,
        end,
        saveat,
        max_steps=max_steps,
        progress_meter=engine.progress,
        adjoint=adjoint_for(engine.derivatives),
    )
    ts: Any = solution.ts
    ys: Any = solution.ys
    return Solved(
        readings=readings,
        states=ys["kept"],
        num_kept=jnp.sum(jnp.isfinite(ts["kept"])),
        end=position_at(solution, "end"),
        counts=counts_of(solution),
        result=solution.result,
    )
