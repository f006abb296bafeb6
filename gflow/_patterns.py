r"""Which combinations of slopes occur near a point, and whether a box describes them.

Near a point where the pre-activations $z_k$, k = 1..K, of one neuron are zero, kink k
takes its upper slope on the side $\langle n_k, v\rangle > 0$ of a hyperplane. The
combinations that occur are the cells of the central arrangement
$\{n_k^\perp\}_{k\le K}$: all $2^K$ for independent normals, at most
$2\sum_{i<d}\binom{K-1}{i}$ in dimension d (Cover 1965, "Geometrical and statistical
properties of systems of linear inequalities", IEEE Trans. Electronic Computers EC-14,
326-334, doi:10.1109/PGEC.1965.264137).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._hull import hull_min_norm
from ._norms import array_norm
from ._types import BoolScalar


# Roundings per normal: what unit vectors that ought to be dependent may be off by. A
# cell narrower than this is not told from none, nor such an angle from zero.
_ROUNDINGS = 64


def _units(
    normals: Float[Array, "kinks parameters"],
) -> Float[Array, "kinks parameters"]:
    size = jax.vmap(array_norm)(normals)
    return normals / jnp.where(size > 0, size, 1)[:, None]


def _tolerance(normals: Float[Array, "kinks parameters"]) -> float:
    return _ROUNDINGS * normals.shape[0] * float(jnp.finfo(normals.dtype).eps)


def feasible_patterns(
    normals: Float[Array, "kinks parameters"], alive: Bool[Array, " kinks"]
) -> tuple[Bool[np.ndarray, "patterns kinks"], Bool[Array, " patterns"]]:
    r"""The sign patterns of the cells of the arrangement of hyperplanes $n_k^\perp$.

    Pattern s is that of a cell if some v has $\sigma_k\langle n_k, v\rangle > 0$,
    $\sigma_k = 2s_k - 1$, for all k. By Gordan's theorem this is so if and only if
    $0 \notin \operatorname{conv}\{\sigma_k n_k\}$.

    **Arguments:**

    - `normals`: $n_k$, of any length. A zero normal has no sides: nothing is feasible.
    - `alive`: which of them count. The others are False in every feasible pattern.

    **Returns:**

    All $2^K$ patterns, a constant, and which of them are feasible.
    """
    number = normals.shape[0]
    patterns = np.array(list(itertools.product([False, True], repeat=number)), bool)
    patterns = patterns.reshape(2**number, number)
    unused = jnp.any(jnp.asarray(patterns) & ~alive[None, :], axis=1)
    if number == 0:
        return patterns, ~unused
    unit = _units(normals)

    def is_cell(pattern: Bool[Array, " kinks"]) -> BoolScalar:
        signed = jnp.where(pattern[:, None], unit, -unit)
        hull = hull_min_norm(signed, alive)
        return array_norm(hull.point) > _tolerance(normals)

    # The mirror image of a cell is a cell: half of the patterns, then the other half,
    # which are their complements in the opposite order.
    half = jax.vmap(is_cell)(jnp.asarray(patterns[: 2 ** (number - 1)]))
    cells = jnp.concatenate([half, half[::-1]])
    return patterns, (cells | ~jnp.any(alive)) & ~unused


def box_is_exact(
    normals: Float[Array, "kinks parameters"],
    signs: Float[Array, " kinks"],
    alive: Bool[Array, " kinks"],
) -> BoolScalar:
    r"""Whether the box of slopes and the feasible patterns have the same hull.

    $$\operatorname{rank}\,[N_+\ N_-]
        = \operatorname{rank} N_+ + \operatorname{rank} N_-$$

    with the normals split by the sign of the upstream derivative: no direction is
    spanned by both. Sufficient are independent normals, or signs that are all equal.

    **Arguments:**

    - `normals`: $n_k$, of any length.
    - `signs`: the sign of the upstream derivative of each; where zero, the kink does
        not count.
    - `alive`: which of them count.
    """
    if normals.shape[0] == 0:
        return jnp.array(True)
    # The triangular factor has the singular values of the columns it comes from.
    columns = jnp.linalg.qr(_units(normals).T, mode="r")
    chosen = jnp.stack([signs != 0, signs > 0, signs < 0]) & alive[None]
    values = jnp.linalg.svd(
        jnp.where(chosen[:, None, :], columns[None], 0), compute_uv=False
    )
    both, upper, lower = jnp.sum(values > _tolerance(normals), axis=1)
    return both == upper + lower
