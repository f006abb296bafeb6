"""The structure of the package: what a linter does not check."""

import ast
import graphlib
import importlib
import inspect
import pkgutil
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import equinox as eqx
import pytest

import gflow


ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "gflow").rglob("*.py"))
MAX_LINES = 500


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text()) for path in FILES}
PACKAGES = {module_name(path) for path in FILES if path.name == "__init__.py"}
MODULES = {name: importlib.import_module(name) for name in TREES}

each_module = pytest.mark.parametrize("name", TREES)


def imports(name: str, nodes=None):
    """The (node, module, names) imported in a module; no names for `import x`."""
    package = name if name in PACKAGES else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            target = "." * node.level + (node.module or "")
            target = resolve_name(target, package) if node.level else target
            yield node, target, [alias.name for alias in node.names]


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "gflow"


def is_private(component: str) -> bool:
    dunder = component.startswith("__") and component.endswith("__")
    return component == "internal" or (component.startswith("_") and not dunder)


def test_all_modules_are_found():
    found = {one.name for one in pkgutil.walk_packages(gflow.__path__, "gflow.")}
    assert found | {"gflow"} == set(TREES)


# Classes


def our_module_classes() -> list[type]:
    def below(cls):
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    ours = {cls for cls in below(eqx.Module) if is_ours(cls.__module__)}
    return sorted(ours, key=lambda cls: (cls.__module__, cls.__qualname__))


def has_abstract_members(cls: type) -> bool:
    # Methods are Python's; attributes annotated AbstractVar are Equinox's.
    return inspect.isabstract(cls) or any(
        getattr(cls, name, None)
        for name in ("__abstractvars__", "__abstractclassvars__")
    )


def test_classes_are_abstract_or_final():
    faults = []
    for cls in our_module_classes():
        name = f"{cls.__module__}.{cls.__qualname__}"
        named_abstract = cls.__name__.lstrip("_").startswith("Abstract")
        if named_abstract and not has_abstract_members(cls):
            faults.append(f"{name}: named Abstract, but nothing in it is")
        if not named_abstract and has_abstract_members(cls):
            faults.append(f"{name}: has abstract members, but is not named Abstract")
        for child in cls.__subclasses__():
            if not named_abstract and is_ours(child.__module__):
                faults.append(f"{name}: final, but {child.__qualname__} inherits it")
    assert not faults, "\n".join(faults)


# Imports


@each_module
def test_only_public_interfaces_of_dependencies(name):
    faults, dependencies = [], set()
    for node, module, names in imports(name):
        if is_ours(module):
            continue
        parts = module.split(".")
        faults += [
            f"line {node.lineno}: {module} {' '.join(names)}"
            for one in parts[1:] + names
            if is_private(one)
        ]
        for alias in node.names:
            dependencies.add(alias.asname or alias.name.split(".")[0])
    for node in ast.walk(TREES[name]):
        # eqx.internal.x, jax._src.y
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in dependencies:
                faults.append(f"line {node.lineno}: {ast.unparse(node)}")
    assert not faults, "\n".join(faults)


@each_module
def test_imports_are_at_the_top(name):
    top = set(TREES[name].body)
    late = [
        f"line {node.lineno}: {module}"
        for node, module, _ in imports(name)
        if is_ours(module) and node not in top
    ]
    assert not late, "\n".join(late)


def edges(name: str) -> set[str]:
    """The modules of gflow that have to be there before this one."""
    needed = set()
    for _, module, names in imports(name, TREES[name].body):
        if not is_ours(module):
            continue
        submodules = {f"{module}.{one}" for one in names} & TREES.keys()
        needed |= submodules
        if len(submodules) < len(names) or not names:
            needed.add(module)
    # Importing a.b.c runs a and a.b first. Those around this module are running already
    # and are no dependency, unless it asks them for a name by an import.
    around = {name[:i] for i, char in enumerate(name) if char == "."} | {name}
    for one in list(needed):
        parents = {one[:i] for i, char in enumerate(one) if char == "."}
        needed |= parents - around
    return needed - {name}


def test_imports_go_one_way():
    graph = {name: edges(name) for name in TREES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


# Size and documentation


@each_module
def test_files_are_short(name):
    path = Path(MODULES[name].__file__)
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines: split it"


@each_module
def test_modules_have_a_docstring(name):
    assert ast.get_docstring(TREES[name])


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_public_names_have_docstrings(name):
    missing = []
    names = sum((names for _, module, names in imports(name) if is_ours(module)), [])
    for public in (one for one in names if not is_private(one)):
        value = getattr(MODULES[name], public)
        if inspect.isclass(value):
            # Its own, neither inherited nor the signature that dataclasses write.
            doc = vars(value).get("__doc__") or ""
            doc = "" if doc.startswith(f"{value.__name__}(") else doc
        else:
            # For a constant this is the docstring of its class.
            doc = getattr(value, "__doc__", None) or ""
        if not doc.strip():
            missing.append(public)
    assert not missing, f"no docstring: {', '.join(missing)}"


# Release


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert gflow.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
