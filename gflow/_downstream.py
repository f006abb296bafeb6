r"""Kinks at zero that are so only because of one before them in the network.

Where all that a layer sees of an example is zero, its pre-activations are zero, too. If
that is because of one kink j of the layer before, at zero itself, then beyond it they
are $z_k = c_k z_j$: on one side of j kink k is where the sign of c_k says, on the other
side its branch does not matter. So there is nothing to be chosen at k, and k is not a
kink beside j: its normal is that of j, or none.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._frozen import Frozen
from ._inclusion import unit_rows
from ._types import Params


_PARALLEL = 1e-9  # 1 - |cos| of normals that are the same but for rounding
_NONE = 1e-12  # of a normal's length beyond j: what is none before
_ROUNDINGS = 64  # at least, of both


def decided(
    frozen: Frozen,
    params: Params,
    branches: Bool[Array, "groups kinks"],
    at_zero: Bool[Array, "groups kinks"],
    index: Int[Array, " K"],
) -> tuple[Array, Array, Array]:
    """The branches with those that another kink at zero decides, which these are, and
    which are beyond others at zero at all.

    `index`: the numbers of the kinks at zero, then `total`.
    """
    _, before = frozen.normals(params, branches & ~at_zero, index)
    _, beyond = frozen.normals(params, branches | at_zero, index)
    few = _ROUNDINGS * float(jnp.finfo(beyond.dtype).eps)
    least, most = jnp.linalg.norm(before, axis=1), jnp.linalg.norm(beyond, axis=1)
    follows = (most > 0) & (least <= max(_NONE, few) * most)
    units = unit_rows(beyond)
    cosines = units @ units.T
    group = index // frozen.num_kinks
    leads = (least > 0) & (index < frozen.total)
    leader = leads[None, :] & (group[:, None] == group[None, :])
    leader = leader & (jnp.abs(cosines) > 1 - max(_PARALLEL, few))
    found = follows & jnp.any(leader, axis=1)
    up = jnp.take_along_axis(cosines, jnp.argmax(leader, axis=1)[:, None], 1)[:, 0] > 0

    def put(old: Array, which: Array, new: Any) -> Array:
        place = jnp.where(which, index, frozen.total)
        return old.reshape(-1).at[place].set(new, mode="drop").reshape(old.shape)

    none = jnp.zeros_like(at_zero)
    return put(branches, found, up), put(none, found, True), put(none, follows, True)
