"""The clock in which the flow ascends α."""

from ._abstract import AbstractClock


class Alpha(AbstractClock):
    r"""The clock $ds = -\ell'(\alpha)\,dt$: $dW/ds = \nabla\alpha(W)$.

    The flow runs at unit speed up the smoothed margin α = ℓ⁻¹(ℒ). This is the
    continuous form of the step size 1/ℒ (Ji & Telgarsky 2020, Appendix A) and of
    AdaBoost's. Time is recovered from $du/ds = e^{-u}/(-\ell'(\alpha))$,
    $u = \log(1 + t - t_0)$, as one more unknown. Needs a loss with an exponential
    tail.
    """

    def log_rate(self, reading, params, log_time, velocity):
        return -velocity.log_speed
