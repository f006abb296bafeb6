"""Every example in the documentation runs, and every public name has its entry.

Docstring examples are doctests. In README.md and docs/pages, each block that opens with
```python runs; the blocks of one file share a namespace. One that must not run is
preceded by a line `<!-- no-run -->`.
"""

import doctest
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gflow


ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "gflow").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
FENCE = re.compile(
    r"(?P<no_run>^[ \t]*<!-- no-run -->[ \t]*\n)?"
    r"^(?P<indent>[ \t]*)```python\b[^\n]*\n"
    r"(?P<body>.*?)"
    r"^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if ">>> " in path.read_text()], ids=label
)
def test_docstrings(path):
    name = label(path.with_suffix("")).replace(os.sep, ".").removesuffix(".__init__")
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)

    # Doctest looks at functions, classes and modules only: an example on anything else
    # must not go unnoticed.
    found = sum(len(test.examples) for test in tests)
    written = len(re.findall(r"^[ \t]*>>> ", path.read_text(), re.MULTILINE))
    assert found == written, f"{written} examples, of which doctest finds {found}"

    report = []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    for test in tests:
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def script(text: str) -> str:
    """The blocks that run, each on the lines it has in the page."""
    lines = [""] * len(text.splitlines())
    for block in FENCE.finditer(text):
        if block["no_run"]:
            continue
        first = text.count("\n", 0, block.start("body"))
        for i, line in enumerate(block["body"].splitlines()):
            lines[first + i] = line.removeprefix(block["indent"])
    return "\n".join(lines)


def test_every_python_block_is_read():
    for page in PAGES:
        text = page.read_text()
        opened = len(re.findall(r"^[ \t]*```[ \t]*\{?[ .]*py", text, re.MULTILINE))
        assert opened == len(FENCE.findall(text)), f"{label(page)}: write ```python"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if script(page.read_text()).strip()], ids=label
)
def test_pages(page, tmp_path):
    # In a Python of its own, with JAX as the reader has it, not as conftest sets it.
    path = tmp_path / f"{page.stem}.py"
    path.write_text(script(page.read_text()))
    run = subprocess.run(
        [sys.executable, path.name],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


# What mkdocstrings documents: an object, or the members of a module that are listed.
ENTRY = re.compile(r"^::: (?P<name>\S+)(?P<options>(?:\n +.*)*)", re.MULTILINE)
MEMBERS = re.compile(r"members: \[(.*?)\]", re.DOTALL)


def documented() -> list[str]:
    names = []
    for page in (ROOT / "docs" / "pages" / "api").glob("*.md"):
        for entry in ENTRY.finditer(page.read_text()):
            members = MEMBERS.search(entry["options"])
            listed = members[1].replace(",", " ").split() if members else []
            names += [f"{entry['name']}.{one}" for one in listed] or [entry["name"]]
    return names


def public(module) -> dict[str, object]:
    """The public names of a module, and of the public modules in it."""
    found = {}
    for name in re.findall(r" as (\w+)$", inspect.getsource(module), re.MULTILINE):
        value, path = getattr(module, name), f"{module.__name__}.{name}"
        if inspect.ismodule(value):
            found |= public(value)
        else:
            found[path] = value
    return found


def test_every_public_name_has_its_entry():
    entries, names = documented(), public(gflow)
    assert len(entries) == len(set(entries)), "entries appear twice"
    assert not set(entries) - names.keys(), "entries without a public name"
    # An object with several names has its entry under one of them.
    shown = {id(names[one]) for one in entries}
    missing = [name for name, value in names.items() if id(value) not in shown]
    assert not missing, f"no entry in docs/pages/api: {', '.join(missing)}"
