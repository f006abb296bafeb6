"""Stabilised explicit Runge-Kutta methods, as Diffrax solvers."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._flow import FlowState
from .._lanes import anywhere
from .._problem import dtype_of
from .._types import IntScalar, Scalar
from ._advance import advance, combined
from ._bill import billed
from ._chebyshev import Table, table_of_order_three, table_of_order_two
from ._hermite import Hermite
from ._pack import packing
from ._spectrum import Spectrum, refreshed, unknown


# A Hessian- or Jacobian-vector product, in gradients.
_PRODUCT = 2


class RKCState(eqx.Module):
    """What is carried from step to step."""

    # f(t0, y0), from the end of the last step.
    slope: Any
    spectrum: Spectrum
    # Of the last step.
    num_stages: IntScalar
    # Vector fields evaluated so far, on steps that were kept; a product counts as two.
    num_gradients: IntScalar

    @property
    def spectral_radius(self) -> Scalar:
        """The modulus of the Jacobian's most negative eigenvalue, as last estimated."""
        return self.spectrum.radius


class AbstractRKC(dfx.AbstractAdaptiveSolver):
    """A family of methods with more stages the stiffer the problem and the longer the
    step, of one order.
    """

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = Hermite

    @property
    @abc.abstractmethod
    def table(self) -> Table:
        """The members of the family."""

    def error_order(self, terms: Any) -> int:
        return 3

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> RKCState:
        pack, _ = packing(y0)
        slope = terms.vf(t0, y0, args)
        part = _coupled(slope)
        pack_part, _ = packing(part)
        whole = jnp.asarray(0)
        return RKCState(
            slope=pack(slope),
            spectrum=unknown(pack_part(part), jnp.asarray(t0, dtype_of(part))),
            num_stages=whole,
            num_gradients=whole + 1,
        )

    @eqx.filter_jit
    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        pack, unpack = packing(y0)
        dtype = solver_state.spectrum.radius.dtype
        begin, end = jnp.asarray(t0, dtype), jnp.asarray(t1, dtype)
        spectrum, products = refreshed(
            solver_state.spectrum, begin, end - begin, _jacobian(terms, t0, y0, args)
        )

        def field(t: Any, y: Any) -> Any:
            return pack(terms.vf(t, unpack(y), args))

        y, f0 = pack(y0), solver_state.slope
        made_jump = jnp.asarray(made_jump)
        f0 = jax.lax.cond(anywhere(made_jump), lambda: field(t0, y), lambda: f0)
        moved, f1, degree = advance(
            self.table, field, t0, t1, y, f0, spectrum.bound(end)
        )
        h = t1 - t0
        # Sommeijer, Shampine & Verwer (1998), eq. (2.8), at the two ends of the step.
        error = unpack(combined((-0.8, moved), (0.4 * h, f0), (0.4 * h, f1)))
        # Steps that are too long for every degree fail before they cost anything.
        error = jtu.tree_map(lambda e: jnp.where(degree == 0, jnp.inf, e), error)
        suspect = packing(_coupled(y0))[0](_coupled(error))
        y1 = unpack(combined((1, y), (1, moved)))
        gradients = degree + _PRODUCT * products + made_jump.astype(degree.dtype)
        y1, error = billed(y0, y1, error, gradients)
        dense = {
            "y0": y0,
            "y1": y1,
            "f0": unpack(f0),
            "f1": unpack(f1),
        }
        state = RKCState(
            slope=f1,
            spectrum=spectrum.after(degree, end - begin, suspect),
            num_stages=degree,
            num_gradients=solver_state.num_gradients + gradients,
        )
        return y1, error, dense, state, dfx.RESULTS.successful


def _coupled(state: Any) -> Any:
    """Without the quadratures of a flow: nothing depends on them."""
    return (state.params, state.log_time) if isinstance(state, FlowState) else state


def _jacobian(terms: Any, t: Any, y: Any, args: Any) -> Callable[[Any], Any]:
    """v ↦ (∂f/∂y) v on what is coupled."""
    part = _coupled(y)
    pack, unpack = packing(part)

    def field(part: Any) -> Any:
        whole = part
        if isinstance(y, FlowState):
            whole = eqx.tree_at(
                lambda s: (s.params, s.log_time),
                y,
                part,
                is_leaf=lambda leaf: leaf is None,
            )
        return _coupled(terms.vf(t, whole, args))

    def product(v: Any) -> Any:
        return pack(jax.jvp(field, (part,), (unpack(v),))[1])

    return product


class RKC2(AbstractRKC):
    r"""Stabilised explicit Runge-Kutta-Chebyshev method of order two.

    For stiff problems whose Jacobian's spectrum is near the negative real axis, as that
    of a gradient flow is: s stages are stable for $h\rho \le 0.65\,s^2$, ρ the spectral
    radius, so that a stiff flow costs gradients in proportion to √(hρ), not hρ, and no
    linear solves. s is chosen at each step, up to 1,000 (longer steps are rejected at
    no cost). ρ is estimated by Jacobian-vector products of the vector field, two or
    more for every 20 to 80 evaluations.

    [`gflow.solvers.RKC3`][] is better at all but the loosest tolerances.

    Usable in `gflow.integrate(..., solver=)` with any clock but `LogLogTime`'s own
    solver, and in `diffrax.diffeqsolve` with any `ODETerm` and step-size controller.
    The solver's state tells `spectral_radius`, `num_stages` and `num_gradients`.
    Differentiable in forward mode only.

    ??? cite "Reference"

        Sommeijer, Shampine & Verwer (1998), "RKC: an explicit solver for parabolic
        PDEs", J. Comput. Appl. Math. 88, doi:10.1016/S0377-0427(97)00219-7.
    """

    @property
    def table(self) -> Table:
        return table_of_order_two()

    def order(self, terms: Any) -> int:
        return 2


class RKC3(AbstractRKC):
    r"""Stabilised explicit Runge-Kutta-Chebyshev method of order three.

    $$y_1 = y_0 + h\sum_{j<s} \beta_j f(t_0 + c_j h, g_j)$$

    with the stages g_j of Runge-Kutta-Chebyshev methods and output weights β that meet
    the conditions of order three and, as nearly as a linear programme can, those of
    order four: stable for $h\rho \le 0.455\,s^2$ (0.35 at s = 4), s = 4..946, with two
    thirds of the steps of [`gflow.solvers.RKC2`][] or fewer. (With fewer than ten
    stages, where h is not limited by stability, Σβc² = 1/3 holds to three digits only:
    the local error keeps a term in h³ with a coefficient of 1e-3.) All else is as
    there.

    Examples:
        >>> import diffrax, gflow, jax.numpy as jnp
        >>> solver = gflow.solvers.RKC3()
        >>> decay = diffrax.ODETerm(lambda t, y, args: -jnp.array([1.0, 1e3]) * y)
        >>> sol = diffrax.diffeqsolve(
        ...     decay, solver, 0.0, 10.0, None, jnp.ones(2),
        ...     stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-6),
        ...     saveat=diffrax.SaveAt(t1=True, solver_state=True),
        ... )
        >>> bool(sol.solver_state.num_gradients < 1500)  # Euler: 5,000
        True

    ??? cite "Reference"

        Sommeijer, Shampine & Verwer (1998) for the stages; the weights are gflow's own
        (`benchmarks/rkc3_weights.py`).
    """

    @property
    def table(self) -> Table:
        return table_of_order_three()

    def order(self, terms: Any) -> int:
        return 3
