"""Gradient flow with inertia."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._problem import dtype_of
from .._times import is_concrete
from .._types import Params
from ..fields import Velocity
from ._abstract import AbstractMotion, Motion
from ._spheres import check_finite_times


class Moving(eqx.Module):
    """The state of a flow of second order.

    **Attributes:**

    - `weights`: W.
    - `velocity`: dW/dt.
    """

    weights: Params
    velocity: Params


class HeavyBall(AbstractMotion):
    r"""The flow with inertia, of second order in time.

    $$m\,\ddot W + \gamma\,\dot W = -\nabla\mathcal L(W),\qquad \dot W(t_0) = 0.$$

    The continuous form of gradient descent with momentum. With γ = 1 and m → 0, or with
    time in units of γ and γ → ∞, it is the gradient flow; γ = 3/t is the limit of
    Nesterov's method (start at t0 > 0). The loss need not fall, but $\mathcal L +
    \tfrac m2\|\dot W\|^2$ does. The state is a [`gflow.flows.Moving`][].

    With a large γ/m the velocity relaxes fast, and an ordinary explicit solver is
    limited to steps of a few m/γ: [`gflow.solvers.BDF`][] and
    [`gflow.solvers.RKC3`][] are not.

    **Arguments:**

    - `friction`: γ ≥ 0, or a function of the time t (a scalar array).
    - `mass`: m > 0. Default 1.

    **Raises:**

    `ValueError` for a negative friction, a mass that is not positive, and (in
    `integrate`) for times beyond the largest float, where velocities are not floats.

    Examples:
        >>> import gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(1, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0]]), jnp.array([2.0])
        >>> sol = gflow.integrate(
        ...     model, data, gflow.losses.Square(), (0.0, 40.0),
        ...     flow=gflow.flows.HeavyBall(1.0),
        ... )
        >>> bool(sol.log_loss[-1] < -30)
        True

    ??? cite "Reference"

        Polyak (1964), "Some methods of speeding up the convergence of iteration
        methods", doi:10.1016/0041-5553(64)90137-5; Su, Boyd & Candès (2016), "A
        differential equation for modeling Nesterov's accelerated gradient method".
    """

    friction: Any
    mass: Any = 1.0

    def __check_init__(self):
        for name, value, least in (
            ("friction", self.friction, 0.0),
            ("mass", self.mass, math.ulp(0.0)),
        ):
            if name == "friction" and callable(value):
                continue
            if not isinstance(value, (int, float, jax.Array)) or jnp.ndim(value) != 0:
                raise ValueError(f"{name}={value!r} is not a number.")
            if is_concrete(value):
                number = float(value)
                if not (math.isfinite(number) and number >= least):
                    sign = "positive" if name == "mass" else "non-negative"
                    raise ValueError(f"{name}={number:g} is not a {sign} number.")

    def check(self, problem, params, t0, t1):
        dtype = dtype_of(params)
        check_finite_times(t0, t1, dtype, "HeavyBall")
        if not callable(self.friction):
            return
        shape = jax.eval_shape(
            lambda t: jnp.asarray(self.friction(t)), jax.ShapeDtypeStruct((), dtype)
        ).shape
        if shape != ():
            raise ValueError(
                f"friction(t) has shape {shape}; return one number for a time t."
            )

    def start(self, params, t):
        return Moving(params, jtu.tree_map(jnp.zeros_like, params))

    def weights(self, state, t):
        return state.weights

    def motion(self, problem, state, t):
        at = problem.gradient(state.weights)
        dtype = dtype_of(state.weights)
        friction = self.friction(t) if callable(self.friction) else self.friction
        friction, mass = jnp.asarray(friction, dtype), jnp.asarray(self.mass, dtype)
        push = jnp.exp(at.log_slope)
        acceleration = jtu.tree_map(
            lambda d, z: (push * d - friction * z) / mass, at.direction, state.velocity
        )
        zero = jnp.zeros_like(at.log_slope)
        return Motion(
            log_speed=zero,
            direction=Moving(state.velocity, acceleration),
            weights=state.weights,
            velocity=Velocity(zero, state.velocity, at.log_loss, at.loss),
            log_slope=at.log_slope,
            descent=at.direction,
        )
