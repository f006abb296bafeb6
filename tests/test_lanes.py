"""What only some lanes of `vmap` ask for is computed in these alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gflow._lanes import either, where_due


X = jnp.arange(1.0, 7.0).reshape(6, 1)
DUE = jnp.array([True, False, False, True, True, False])
SHARED = jnp.array([2.0])


def halved_until_small(x, calls):
    """Takes another number of rounds in each lane."""
    jax.debug.callback(lambda: calls.append(None))
    return jax.lax.while_loop(lambda z: jnp.any(z > 0.1), lambda z: z / SHARED, x)


def only_where(due, x, calls):
    # The functions depend on what is batched and on what is not.
    return where_due(
        due, lambda: halved_until_small(x, calls), lambda blank: blank + x - SHARED
    )


def expected(due, x):
    calls = []
    rows = [
        halved_until_small(x[i], calls) if due[i] else x[i] - SHARED
        for i in range(len(x))
    ]
    return jnp.stack(rows)


@pytest.mark.parametrize("due", [DUE, ~DUE, DUE | True, DUE & False])
def test_only_the_lanes_that_are_due_are_computed(due):
    calls = []
    got = jax.jit(jax.vmap(lambda d, x: only_where(d, x, calls)))(due, X)
    jax.effects_barrier()
    np.testing.assert_array_equal(got, expected(due, X))
    assert len(calls) == np.sum(due)


@pytest.mark.parametrize("due", [True, False])
def test_due_in_all_lanes_or_in_none(due):
    calls = []
    got = jax.vmap(lambda x: only_where(jnp.asarray(due), x, calls))(X)
    jax.effects_barrier()
    np.testing.assert_array_equal(got, expected(jnp.full(6, due), X))
    assert len(calls) == 6 * due
    np.testing.assert_array_equal(
        only_where(jnp.asarray(due), X[0], calls), expected([due], X[:1])[0]
    )


def test_under_a_second_vmap():
    due, x = DUE.reshape(2, 3), X.reshape(2, 3, 1)
    calls = []
    got = jax.jit(jax.vmap(jax.vmap(lambda d, x: only_where(d, x, calls))))(due, x)
    jax.effects_barrier()
    np.testing.assert_array_equal(got.reshape(6, 1), expected(DUE, X))
    assert len(calls) == 3
    # Due along one axis, the values along the other.
    along = jax.vmap(
        lambda d: jax.vmap(lambda z: only_where(d, z, calls))(x[0]), in_axes=0
    )(jnp.array([True, False]))
    np.testing.assert_array_equal(along[0], expected([True] * 3, x[0]))
    np.testing.assert_array_equal(along[1], expected([False] * 3, x[0]))


def test_derivative():
    def f(x):
        where = jax.vmap(
            lambda d, z: where_due(d, lambda: jnp.sin(z * SHARED), lambda _: z**2)
        )
        return where(DUE, x)

    _, slope = jax.jvp(f, (X,), (jnp.ones_like(X),))
    exact = jnp.where(DUE[:, None], 2 * jnp.cos(2 * X), 2 * X)
    np.testing.assert_allclose(slope, exact, rtol=1e-14)


def one_or_other(condition, x, calls):
    def counted(name, y):
        jax.debug.callback(lambda: calls.append(name))
        return y

    # Of weak type on one side.
    return either(
        condition,
        lambda: (counted("yes", x * SHARED), 1.0),
        lambda: (counted("no", x - SHARED), SHARED[0]),
    )


@pytest.mark.parametrize("due", [True, False])
def test_either_alone(due):
    calls = []
    x, y = jax.jit(lambda d: one_or_other(d, X[0], calls))(jnp.asarray(due))
    jax.effects_barrier()
    assert x == (2.0 if due else -1.0) and y == (1.0 if due else 2.0)
    assert calls == ["yes" if due else "no"]


@pytest.mark.parametrize("due", [DUE, DUE | True, DUE & False])
def test_either_in_lanes(due):
    exact = jnp.where(due[:, None], 2 * X, X - 2)
    calls = []
    x, y = jax.jit(jax.vmap(lambda d, x: one_or_other(d, x, calls)))(due, X)
    jax.effects_barrier()
    np.testing.assert_array_equal(x, exact)
    np.testing.assert_array_equal(y, jnp.where(due, 1.0, 2.0))
    # Each side if any lane needs it.
    assert calls.count("yes") == bool(np.any(due))
    assert calls.count("no") == bool(np.any(~due))
    # And under a second `vmap`, over both or over one of them.
    twice = jax.vmap(jax.vmap(lambda d, x: one_or_other(d, x, calls)[0]))
    x = twice(due.reshape(2, 3), X.reshape(2, 3, 1))
    np.testing.assert_array_equal(x.reshape(6, 1), exact)
    outer = jax.vmap(lambda d: jax.vmap(lambda z: one_or_other(d, z, calls)[0])(X))
    x = outer(due)
    np.testing.assert_array_equal(x, jnp.where(due[:, None, None], 2 * X, X - 2))


def test_derivative_of_either():
    def f(x):
        where = jax.vmap(lambda d, z: either(d, lambda: jnp.sin(z), lambda: z**2))
        return where(DUE, x)

    _, slope = jax.jvp(f, (X,), (jnp.ones_like(X),))
    exact = jnp.where(DUE[:, None], jnp.cos(X), 2 * X)
    np.testing.assert_allclose(slope, exact, rtol=1e-14)
