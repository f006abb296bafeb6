"""What the numbers were measured on."""

import platform

import diffrax
import equinox as eqx
import jax

import gflow


def print_machine():
    """The machine and the versions, at the head of every benchmark."""
    device = jax.devices()[0]
    print(f"machine   {platform.machine()}, {device.platform} ({device.device_kind})")
    print(
        f"versions  jax {jax.__version__}, diffrax {diffrax.__version__}, "
        f"equinox {eqx.__version__}, gflow {gflow.__version__}"
    )
