"""What the computation of a limit returns."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from .._types import BoolScalar, IntScalar, Scalar


class CERTIFICATE(eqx.Enumeration):
    """Whether a limit is certified, and if not, the condition that failed."""

    certified = "Certified."
    not_kkt = (
        "The direction is not a KKT point of the margin to the tolerance: see "
        "kkt_residual. Start from a later time: a flow that is far from its limit may "
        "still cross kinks and lose support vectors in ways that the search does not."
    )
    kink = (
        "The margins are not differentiable at the direction found, so a residual of "
        "zero there is no KKT condition in the sense of Clarke."
    )
    below_flow = (
        "The margin is below the smoothed margin at the start, which never decreases "
        "along the flow: the flow cannot converge to this point."
    )
    saddle = (
        "The direction is a KKT point but not a local maximum: the margin grows along "
        "some tangent direction."
    )
    undecided = (
        "The second-order condition is undecided: there are flat directions that are "
        "no manifold of equal margin, active constraints without a multiplier, or a "
        "Krylov iteration that did not converge."
    )
    not_smooth = (
        "The second-order condition is undecided: the second derivative of the margins "
        "jumps at the direction (squared ReLU with a neuron at zero, or a data point "
        "on a neuron's boundary). No direction of growth was found."
    )
    no_evidence = (
        "A KKT point, but too few late saved times to see the flow approach it. "
        "Integrate for longer; log t should grow fourfold at least while the flow is "
        "late."
    )
    not_approached = (
        "A KKT point, but the flow's directions do not approach it at the rate that "
        "the curvature there predicts: it need not be this flow's limit."
    )
    too_slow = (
        "A KKT point, but by the curvature there the flow approaches it only like "
        "(log t)^-r with r < 0.05 (see predicted_rate), which no saved time can show: "
        "in a wide network, neurons that die this slowly may die or stay."
    )
    inexact = (
        "The direction satisfies the KKT conditions with multipliers of kinks in "
        "[0, 1], but these may be more than Clarke's subdifferential allows: pinned "
        "kinks are in series, or the rank condition on their normals fails."
    )
    vanishing = (
        "A KKT point, and no direction of growth on the branches by which the flow "
        "comes to it; but some neurons are zero there (dead ones, which get no "
        "gradient while the others grow, or ones that die), with all of their kinks at "
        "zero. On other branches of these the second-order condition is undecided."
    )


class SECOND_ORDER(eqx.Enumeration):
    """The second-order condition at a KKT point of the margin."""

    strict = "A strict local maximum."
    flat = "A local maximum, along a manifold of equal margin."
    saddle = "Not a local maximum: the margin grows along a tangent direction."
    undecided = "Undecided."
    not_smooth = "Undecided: the second derivative jumps; no growth was found."


def code_of(item: Any) -> Int[Array, ""]:
    """The number of an item of an enumeration."""
    (code,) = jtu.tree_leaves(item)
    return jnp.asarray(code, jnp.int32)


class Evidence(eqx.Module):
    r"""Whether a flow approaches the limit; NaN where there was only a model.

    **Attributes:**

    - `log_t`: (T,) the saved times with a finite positive log t.
    - `distance`: (T,) $\|\theta(t)-\bar\theta\|$ of the flow's directions.
    - `angle`: between the start of the search (the flow's end, or the model) and θ̄, in
        radians.
    - `rate`: r of the fit distance ∝ (log t)^-r over the late saved times.
    - `predicted_rate`: what the curvature at θ̄ says r tends to,
        $\min(1, (1-h)/L)$, h the largest eigenvalue below 1 of the projected H_λ: a
        tangent perturbation of a flow with $\|W\|\sim(\log t)^{1/L}$ decays like
        $\|W\|^{h-1}$, the difference of the multipliers from their limit like 1/log t.
    - `smoothed_margin`: α(W)/‖W‖^L at the start, which the margin of the flow's limit
        cannot be below.
    """

    log_t: Float[Array, " times"]
    distance: Float[Array, " times"]
    angle: Scalar
    rate: Scalar
    predicted_rate: Scalar
    smoothed_margin: Scalar


class Limit(eqx.Module):
    r"""The direction θ̄ that a flow converges to as t → ∞, with its certificate.

    A KKT point of $\max_{\|\theta\|=1}\min_m p_m(\theta)$:

    $$\bar\theta = \frac{1}{L\gamma}\sum_m q_m\nabla p_m(\bar\theta), \qquad
    q\ge0,\ \sum_m q_m=1,\qquad q_m\,(p_m(\bar\theta)-\gamma)=0.$$

    Pairs m are numbered example after example: m = i for two classes, and
    m = i (k - 1) + (the wrong class, y left out) for k.

    **Attributes:**

    - `direction`: the model with parameters θ̄ on the unit sphere.
    - `degree`: L.
    - `margin`: γ = min_m p_m(θ̄).
    - `support`: (M,) the pairs with p_m(θ̄) = γ, up to `support_tolerance` γ.
    - `multipliers`: (M,) q, which sum to one: the limit of
        $q_m=\partial\alpha/\partial p_m$. Not unique if the gradients on the support
        depend on each other (`rank` < the size of the support).
    - `rank`: of the gradients on the support.
    - `kkt_residual`: $\max(\|\bar\theta-\sum q\nabla p/(L\gamma)\|,
        \sum q_m(p_m-\gamma)/\gamma)$; q ≥ 0 holds exactly.
        With kinks, ∇p at shares cut to [0, 1], and the largest too of the pinned |z|
        over their size and of how far any other kink is on the wrong side.
    - `slack`: $\min(p_m-\gamma)/\gamma$ off the support; inf if all are on it.
    - `curvature`: the largest eigenvalue of H_λ - I on the directions tangent to the
        support with positive multipliers, H_λ = Σλ∇²p where θ̄ = Σλ∇p: negative at a
        strict local maximum, positive at a saddle. -inf if there is no tangent
        direction.
    - `zero_modes`: the number of zero eigenvalues; -1 if not counted (Krylov).
    - `growing_modes`: the number of positive ones.
    - `second_order_code`, `reason_code`: `second_order` and `reason` as numbers.
    - `kinks`: (K,) the pinned kinks, on which θ̄ lies, numbered as in
        [`gflow.Inclusion`][]; empty for a smooth network.
    - `kink_multipliers`: (K,) their shares s of the upper branches, with which
        $\nabla p_m$ is $\nabla p_m(\bar\theta; s)$; NaN where none is felt, at neurons
        that are zero. In [0, 1] at a KKT point; as least squares gives them elsewhere.
    - `kink_slack`: $\min_k(s_k, 1-s_k)$; inf without pinned kinks.
    - `kink_room`: the least |z| of the other kinks, each over its size (the root mean
        square of z under changes of sign of the weights); inf if there are none.
    - `vanishing_kinks`: the number of kinks whose size is zero, without a force that
        pins them: those of neurons that are zero at the limit.
    - `kinks_exact`: whether multipliers in [0, 1] are those of Clarke's
        subdifferential: no pinned kinks in series, and rank [N₊ N₋] = rank N₊ + rank N₋
        of their normals, by the sign of the jump.
    - `evidence`: an `Evidence`.
    - `tolerance`, `support_tolerance`: what was asked of `kkt_residual`, and what
        counts as on the support.
    """

    direction: Any
    degree: Scalar
    margin: Scalar
    support: Bool[Array, " pairs"]
    multipliers: Float[Array, " pairs"]
    rank: IntScalar
    kkt_residual: Scalar
    slack: Scalar
    curvature: Scalar
    zero_modes: IntScalar
    growing_modes: IntScalar
    second_order_code: IntScalar
    reason_code: IntScalar
    kinks: Int[Array, " pinned"]
    kink_multipliers: Float[Array, " pinned"]
    kink_slack: Scalar
    kink_room: Scalar
    vanishing_kinks: IntScalar
    kinks_exact: BoolScalar
    evidence: Evidence
    tolerance: Scalar
    support_tolerance: Scalar

    @property
    def second_order(self) -> Any:
        """The second-order condition, a `SECOND_ORDER`."""
        return _item(SECOND_ORDER, self.second_order_code)

    @property
    def reason(self) -> Any:
        """Why it is certified or not, a `CERTIFICATE`."""
        return _item(CERTIFICATE, self.reason_code)

    @property
    def certified(self) -> BoolScalar:
        """Whether every condition was met."""
        return self.reason_code == code_of(CERTIFICATE.certified)

    @property
    def is_local_max(self) -> BoolScalar:
        """Whether the second-order condition shows a local maximum of the margin.

        False also where it is undecided: see `second_order`.
        """
        return (self.second_order_code == code_of(SECOND_ORDER.strict)) | (
            self.second_order_code == code_of(SECOND_ORDER.flat)
        )


def _item(kind: Any, code: Any) -> Any:
    # Every item has the same structure; it differs by its number only.
    one = SECOND_ORDER.strict if kind is SECOND_ORDER else CERTIFICATE.certified
    return jtu.tree_unflatten(jtu.tree_structure(one), [code])
