"""GMRES that stops as soon as it may."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import IntScalar, Scalar


def gmres(
    product: Callable[[Float[Array, " P"]], Float[Array, " P"]],
    b: Float[Array, " P"],
    *,
    rtol: Scalar | float,
    max_products: int,
) -> tuple[Float[Array, " P"], IntScalar]:
    r"""x with $\|Ax - b\| \le$ rtol ‖b‖, and the number of products with A it took.

    One cycle from x = 0, or what `max_products` give. (Lineax's GMRES, 0.1.1, looks at
    the residual once a cycle of 20 and takes a second cycle to be sure; here four to
    eight products are typical.) Orthogonalised twice (Giraud, Langou & Rozložník 2005);
    the least-squares problem is kept triangular by Givens rotations (Saad & Schultz
    1986).
    """
    most = min(max_products, b.shape[0])
    size = jnp.sqrt(jnp.sum(b**2))
    safe = jnp.where(size == 0, 1, size)
    basis = jnp.zeros((most + 1, b.shape[0]), b.dtype).at[0].set(b / safe)
    # Columns beyond those in use stay those of the identity.
    triangle = jnp.eye(most + 1, most, dtype=b.dtype)
    rotations = jnp.zeros((most, 2), b.dtype)
    rhs = jnp.zeros((most + 1,), b.dtype).at[0].set(size)

    def goes_on(carry):
        j, _, _, _, rhs = carry
        return (j < most) & (jnp.abs(rhs[j]) > rtol * size)

    def body(carry):
        j, basis, triangle, rotations, rhs = carry
        w = product(basis[j])
        column = basis @ w
        w = w - column @ basis
        again = basis @ w
        w = w - again @ basis
        column = column + again
        norm = jnp.sqrt(jnp.sum(w**2))
        basis = basis.at[j + 1].set(w / jnp.where(norm == 0, 1, norm))
        column = column.at[j + 1].set(norm)

        def rotate(i, column):
            c, s = rotations[i]
            a, b = column[i], column[i + 1]
            return column.at[i].set(c * a + s * b).at[i + 1].set(c * b - s * a)

        column = jax.lax.fori_loop(0, j, rotate, column)
        a, b = column[j], column[j + 1]
        hypotenuse = jnp.sqrt(a**2 + b**2)
        safe = jnp.where(hypotenuse == 0, 1, hypotenuse)
        c, s = jnp.where(hypotenuse == 0, 1, a / safe), b / safe
        column = column.at[j].set(safe).at[j + 1].set(0)
        rhs = rhs.at[j + 1].set(-s * rhs[j]).at[j].set(c * rhs[j])
        triangle = triangle.at[:, j].set(column)
        rotations = rotations.at[j].set(jnp.stack([c, s]))
        return j + 1, basis, triangle, rotations, rhs

    start = (jnp.asarray(0), basis, triangle, rotations, rhs)
    j, basis, triangle, _, rhs = jax.lax.while_loop(goes_on, body, start)
    rhs = jnp.where(jnp.arange(most) < j, rhs[:most], 0)
    y = jax.scipy.linalg.solve_triangular(triangle[:most], rhs)
    return y @ basis[:most], j
