"""Strict JAX, and reproducible random keys."""

import os
import zlib

import jax
import jax.random as jr
import jaxlib
import matplotlib
import pytest


matplotlib.use("Agg")

# Compiling is most of the tests' time, and takes a quarter less so. Other versions may
# not know the flag, which ends the process.
if jaxlib.__version__.startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"

# Before anything runs on a device: their number is fixed from then on.
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def getkey(request):
    """A function that returns a new key at each call.

    The keys depend on nothing but the test's own name and parameters.
    """
    # Not `hash`, which differs from one Python process to the next.
    key = jr.key(zlib.crc32(request.node.nodeid.encode()))

    def getkey():
        nonlocal key
        key, new = jr.split(key)
        return new

    return getkey


@pytest.fixture(scope="module", autouse=True)
def clear_caches():
    """Compiled programs are dropped after each file, which bounds the memory."""
    yield
    jax.clear_caches()
