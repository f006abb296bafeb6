"""The flow as a Diffrax term, for people who drive Diffrax themselves."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu

from ._check import checked_problem
from ._choose import check_clock
from ._problem import dtype_of
from ._types import Params
from .clocks import AbstractClock, AbstractTimeClock, Physical
from .fields import GradientField


class _Field(eqx.Module):
    # d(W)/dc, or d(W, u)/dc if the clock does not tell the time.
    field: GradientField
    clock: AbstractClock

    def __call__(self, reading: Any, state: Any, args: Any) -> Any:
        del args
        tells_time = isinstance(self.clock, AbstractTimeClock)
        params, log_time = (state, None) if tells_time else state
        velocity = self.field(params)
        reading = jnp.asarray(reading, dtype_of(params))
        log_rate = self.clock.log_rate(reading, params, log_time, velocity)
        speed = jnp.exp(velocity.log_speed + log_rate)
        moved = jtu.tree_map(lambda d: speed * d, velocity.direction)
        if log_time is None:
            return moved
        return moved, jnp.exp(log_rate - log_time)


def vector_field(
    model: Any,
    data: Any,
    loss: Any,
    clock: Any = None,
    *,
    filter_spec: Any = None,
) -> tuple[dfx.ODETerm, Params | tuple[Params, Any]]:
    r"""The gradient flow as a Diffrax term and an initial state.

    $$\frac{dW}{dc} = \frac{dt}{dc}\,(-\nabla\mathcal L(W))$$

    in the reading c of a clock, formed in the log domain as in `gflow.integrate`. The
    rest is yours: solver, step sizes, saving. (`integrate` also controls the error
    relative to each parameter array; Diffrax's own controllers do not, so give them a
    small `atol` if parameters are small.)

    **Arguments:**

    - `model`, `data`, `loss`, `filter_spec`: as for `gflow.integrate`.
    - `clock`: `Physical()` (default; c = t - t0), `LogTime()` (c = log(1 + t - t0)) or
        `Alpha()` or `EFolds()`.

    **Returns:**

    `(term, y0)`: a `diffrax.ODETerm`, and the parameters W, a PyTree like the model
    with None for what is not trained; `equinox.combine(W, model)` is that model.
    In a clock that does not tell the time (`Alpha`, `EFolds`), y0 is `(W, u)` with
    u = log(1 + t - t0) = 0.

    **Raises:**

    `ValueError` for data that do not fit the model and the loss.

    Examples:
        >>> import diffrax, equinox as eqx, gflow, jax, jax.numpy as jnp
        >>> model = gflow.nn.Linear(2, "scalar", key=jax.random.key(0))
        >>> data = jnp.array([[1.0, 2.0], [2.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> term, y0 = gflow.vector_field(model, data, gflow.losses.Logistic())
        >>> solution = diffrax.diffeqsolve(
        ...     term, diffrax.Tsit5(), 0.0, 10.0, None, y0,
        ...     stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        ... )
        >>> final = jax.tree.map(lambda w: w[-1], solution.ys)
        >>> trained = eqx.combine(final, model)
    """
    problem, params = checked_problem(model, data, loss, filter_spec)
    clock = Physical() if clock is None else clock
    check_clock(clock, problem)
    term = dfx.ODETerm(_Field(GradientField(problem), clock))
    if isinstance(clock, AbstractTimeClock):
        return term, params
    return term, (params, jnp.zeros((), dtype_of(params)))
