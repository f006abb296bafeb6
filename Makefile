# `make help` lists the targets. Everything is installed into .venv, nothing elsewhere.
# The stamp files .venv/.NAME say what has been installed there, so reruns are quick.

PYTHON ?= python3
PYTEST_ARGS ?= -n 2 --dist loadfile

# Figures go to files, not windows. On a machine with a GPU, `JAX_PLATFORMS=cuda make ..`
# uses it once a JAX built for it is in .venv; left alone, JAX does not look for one.
export MPLBACKEND = Agg
JAX_PLATFORMS ?= cpu
export JAX_PLATFORMS

BIN = .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

# Only where PYTHON was not chosen by the user are others tried.
CANDIDATES = $(PYTHON) \
  $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)

.DEFAULT_GOAL = help
.NOTPARALLEL:
.PHONY: help demo test lint types docs bench venv clean

help:  ## list the targets
	@echo "make TARGET [PYTHON=python3.12] [PYTEST_ARGS='-n 2 -m slow']"
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  \1	\2/p' Makefile

demo: .venv/.demo  ## install gflow and run examples/quickstart.py
	$(BIN)/python examples/quickstart.py

test: lint types  ## lint, check types, run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/.test  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.test  ## check types
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: .venv/.docs  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml

bench: .venv/.bench  ## run the benchmarks, one after the other
	@for script in benchmarks/[a-z]*.py; do \
	  echo "$(BIN)/python $$script"; \
	  $(BIN)/python "$$script" || exit 1; \
	done

venv: .venv/.test  ## install gflow and the tools for working on it

clean:  ## remove .venv, caches and everything built
	rm -rf .venv site dist build .pytest_cache .ruff_cache examples/output benchmarks/output
	find gflow tests examples benchmarks docs -name __pycache__ -prune \
	  -exec rm -rf {} + 2>/dev/null || true

.venv/.demo: .venv/.created pyproject.toml
	@echo "Installing gflow into .venv (a few minutes the first time)"
	@$(INSTALL) -e '.[data]'
	@touch $@

.venv/.test: .venv/.created pyproject.toml
	@echo "Installing gflow and its test tools into .venv (a few minutes the first time)"
	@$(INSTALL) -e '.[test,data]'
	@touch $@

.venv/.docs: .venv/.created pyproject.toml
	@echo "Installing gflow and its documentation tools into .venv"
	@$(INSTALL) -e '.[docs]'
	@touch $@

.venv/.bench: .venv/.created pyproject.toml
	@echo "Installing gflow and the integrators it is compared with into .venv"
	@$(INSTALL) -e '.[bench,data]'
	@touch $@

.venv/.created:
	@python=; found=; \
	for candidate in $(CANDIDATES); do \
	  version=$$("$$candidate" -c \
	    'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	  test -n "$$found" || found="$$candidate, Python $$version"; \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if test -z "$$python"; then \
	  echo "gflow needs Python 3.11 or newer; found $${found:-no Python at all};" \
	    "set PYTHON=..., as in: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python cannot make virtual environments." \
	    "On Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; \
	fi; \
	echo "Making .venv with $$python, Python $$version"; \
	"$$python" -m venv .venv
	@touch $@
