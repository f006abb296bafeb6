"""Solutions in files: everything comes back, bit for bit, or the reason why not."""

import functools
import json
import os

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import pytest

import gflow
from gflow._save import load, save
from gflow._serialise import VERSION
from gflow._solution import RESULTS


X = jnp.array([[1.0, 2.0], [2.0, -0.5], [-1.0, -1.5]])
Y = jnp.array([1.0, 1.0, -1.0])
LOSS = gflow.losses.Exponential()


class Net(eqx.Module):
    """Two layers, with what a user's model may hold besides parameters."""

    weight: jax.Array
    outer: jax.Array
    bias: jax.Array | None
    scale: float
    activation: object
    name: str = eqx.field(static=True)

    def __init__(self, width=3, *, key, bias=False, scale=1.0, dtype=None):
        self.weight = jr.normal(key, (width, 2), dtype)
        self.outer = jnp.where(jnp.arange(width) % 2 == 0, 1, -1)
        self.bias = jnp.zeros(width, dtype) if bias else None
        self.scale = scale
        self.activation = jnp.tanh
        self.name = "net"

    def __call__(self, x):
        hidden = self.weight @ x
        hidden = hidden if self.bias is None else hidden + self.bias
        signs = self.outer.astype(hidden.dtype)
        return self.scale * jnp.sum(signs * self.activation(hidden))


def flow(model, t1=5.0, **options):
    options = {"rtol": 1e-5, "throw": False, **options}
    dtype = model.weight.dtype
    data = X.astype(dtype), Y.astype(dtype)
    return gflow.integrate(model, data, LOSS, (0.0, t1), **options)


@functools.cache
def solved(dtype=jnp.float64):
    """One solution that most tests share, in float64 with observers of many kinds."""
    observe = {
        "margin": lambda s: jnp.min(s.outputs * s.y),
        "several": lambda s: {"a": s.outputs, "b": (s.log_t, s.y > 0)},
        "path_length": "path_length",
    }
    model = Net(key=jr.key(0), scale=1.5, dtype=dtype)
    return flow(model, observe=observe if dtype == jnp.float64 else ())


def assert_same(a, b):
    """The same PyTree, structure, dtypes and bits."""
    assert jtu.tree_structure(a) == jtu.tree_structure(b)
    for (path, x), y in zip(
        jtu.tree_flatten_with_path(a)[0], jtu.tree_leaves(b), strict=True
    ):
        where = jtu.keystr(path)
        if not eqx.is_array(x):
            assert x is y or x == y, where
            continue
        assert isinstance(y, jax.Array), where
        assert x.dtype == y.dtype and x.shape == y.shape, where
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), where


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_round_trip(dtype, getkey, tmp_path):
    solution = solved(dtype)
    # No suffix is added, and what was there is replaced.
    path = tmp_path / "flow"
    path.write_text("older")
    solution.save(path)
    assert os.listdir(tmp_path) == ["flow"]
    again = load(str(path), Net(key=getkey(), dtype=jnp.float64))
    assert_same(solution, again)
    assert again.final.scale == 1.5 and again.final.activation is jnp.tanh
    assert (again.clock, again.solver) == (solution.clock, solution.solver)
    assert again.clock == "LogTime" and again.solver
    assert np.isneginf(again.log_t[0])


def test_without_template(tmp_path):
    solution = solved()
    save(solution, tmp_path / "flow.npz")
    again = load(tmp_path / "flow.npz")
    assert set(again.models) == {".weight", ".outer", ".scale"}
    assert again.final[".scale"] == 1.5
    assert_same(solution.models.weight, again.models[".weight"])
    assert_same(solution.log_loss, again.log_loss)
    assert again.resume is None


def test_abstract_template(tmp_path):
    save(solved(), tmp_path / "flow")
    shapes = eqx.filter_eval_shape(lambda: Net(key=jr.key(0)))
    assert_same(solved(), load(tmp_path / "flow", shapes))


def test_vmapped(getkey, tmp_path):
    keys = jr.split(getkey(), 3)
    models = eqx.filter_vmap(lambda key: Net(key=key))(keys)
    # One lane stops early, so the results differ.
    limits = jnp.array([1.0, 1e3, 2.0])
    solution = eqx.filter_vmap(
        lambda model, t1: (
            flow(model, t1, max_steps=25, observe="min_margin")
            if False
            else flow(model, t1, max_steps=25)
        )
    )(models, limits)
    codes = jtu.tree_leaves(solution.result)[0]
    assert len(set(codes.tolist())) == 2
    save(solution, tmp_path / "flow")
    for template in (Net(key=keys[0]), models):
        again = load(tmp_path / "flow", template)
        assert_same(solution, again)
        assert (again.result == RESULTS.successful).tolist() == [True, False, True]


def test_resume(getkey, tmp_path):
    model = Net(key=getkey(), bias=True)
    whole = flow(model, 20.0)
    part = flow(model, 20.0, max_steps=8)
    assert part.result == RESULTS.max_steps_reached
    part.save(tmp_path / "part")
    again = load(tmp_path / "part", model)
    assert_same(part, again)
    rest = flow(model, 20.0, resume=again)
    assert rest.result == RESULTS.successful
    assert_same(whole.final, rest.final)
    assert_same(whole.resume, rest.resume)


@pytest.mark.parametrize("case", ["implicit", "alpha, one layer"])
def test_states_of_other_kinds(case, getkey, tmp_path):
    model = Net(key=getkey(), bias=True)
    if case == "implicit":
        options = {"solver": dfx.Kvaerno3()}
    else:
        spec = jtu.tree_map(lambda _: False, model)
        spec = eqx.tree_at(lambda m: m.weight, spec, True)
        clock = gflow.clocks.Alpha()
        options = {"filter_spec": spec, "clock": clock, "observe": "path_length"}
    part = flow(model, max_steps=2, **options)
    save(part, tmp_path / "part")
    # The resumed solve is a function of this state.
    assert_same(part, load(tmp_path / "part", model))


def test_rare_dtypes(tmp_path):
    solution = solved()
    extra = {
        "bfloat16": jnp.arange(4).astype(jnp.bfloat16),
        "float8": jnp.ones((), jnp.float8_e4m3fn),
        "bool": jnp.array([True, False]),
        "complex": jnp.array([1 + 2j]),
        "empty": jnp.zeros((0, 3)),
        "key": jr.split(jr.key(1), 2),
        "numbers": [1, 2.5, float("inf"), None, "text"],
    }
    solution = eqx.tree_at(lambda s: s.observed, solution, extra)
    save(solution, tmp_path / "flow")
    again = load(tmp_path / "flow").observed
    for name in ("bfloat16", "float8", "bool", "complex", "empty"):
        assert_same(extra[name], again[name])
    assert_same(jr.key_data(extra["key"]), jr.key_data(again["key"]))
    assert again["numbers"] == extra["numbers"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda key: Net(4, key=key), r"model\.weight has shape \(4, 2\)"),
        (lambda key: Net(key=key, bias=True), r"model\.bias is not in the file"),
        (lambda key: {"weight": jnp.ones(2)}, r"model\['weight'\] is not in the file"),
    ],
)
def test_other_architecture(template, message, getkey, tmp_path):
    save(solved(), tmp_path / "flow")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "flow", template(getkey()))


def test_leaf_that_the_template_has_not(getkey, tmp_path):
    save(solved(), tmp_path / "flow")
    template = eqx.tree_at(lambda m: m.outer, Net(key=getkey()), None)
    with pytest.raises(ValueError, match=r"the file holds \.outer"):
        load(tmp_path / "flow", template)


def test_damaged_files(tmp_path):
    path = tmp_path / "flow"
    save(solved(), path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    np.save(tmp_path / "other.npy", np.ones(3))
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, a=np.array([{}], dtype=object))
    damaged = {
        "empty": b"",
        "text": b"not a solution",
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "array": (tmp_path / "other.npy").read_bytes(),
        "archive": (tmp_path / "other.npz").read_bytes(),
        "pickled": pickled.read_bytes(),
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a saved solution, or is damaged"):
            load(path)
            pytest.fail(name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere")


def rewritten(path, change):
    """The file, with its header changed."""
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header.json"].tobytes())
    change(header)
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with open(path, "wb") as file:
        np.savez(file, **{**arrays, "header.json": text})


def test_newer_format(tmp_path):
    path = tmp_path / "flow"
    save(solved(), path)
    rewritten(path, lambda header: header.update(version=VERSION + 1, gflow="9.9"))
    with pytest.raises(ValueError, match=r"gflow 9\.9.*Upgrade"):
        load(path)


def test_header_that_does_not_fit(getkey, tmp_path):
    path = tmp_path / "flow"
    model = Net(key=getkey())
    save(solved(), path)
    rewritten(path, lambda header: header["fields"].pop("final"))
    with pytest.raises(ValueError, match="damaged"):
        load(path, model)


def test_no_class_from_elsewhere(getkey, tmp_path):
    # A file names classes of this package only: anything else is not looked up.
    path = tmp_path / "flow"
    model = Net(key=getkey())
    save(solved(), path)

    def change(header):
        header["fields"]["resume"]["module"] = "equinox.nn.Linear"

    rewritten(path, change)
    with pytest.warns(UserWarning, match="loaded without `resume`"):
        assert load(path, model).resume is None


def test_what_is_not_data(tmp_path):
    solution = solved()
    odd = eqx.tree_at(lambda s: s.resume.position.solver_state, solution, print)
    with pytest.warns(UserWarning, match="saved without `resume`"):
        save(odd, tmp_path / "flow")
    assert_same(solution.final, load(tmp_path / "flow", solution.final).final)
    odd = eqx.tree_at(lambda s: s.observed, solution, {"f": print})
    with pytest.raises(ValueError, match=r"observed\['f'\] is a builtin"):
        save(odd, tmp_path / "other")
    assert os.listdir(tmp_path) == ["flow"]
    with pytest.raises(ValueError, match=r"not a gflow\.Solution"):
        save(solution.final, tmp_path / "other")  # pyright: ignore


def test_not_while_tracing(tmp_path):
    solution = solved()

    @eqx.filter_jit
    def traced(solution):
        solution.save(tmp_path / "flow")

    with pytest.raises(ValueError, match="outside of jit"):
        traced(solution)


def test_without_x64(tmp_path):
    save(solved(jnp.float64), tmp_path / "double")
    save(solved(jnp.float32), tmp_path / "single")
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match="jax_enable_x64"):
            load(tmp_path / "double")
        # The counts in `stats` are int64 in the file, and fit.
        assert load(tmp_path / "single").log_loss.dtype == jnp.float32
