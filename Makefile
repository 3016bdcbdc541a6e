# Everything that is done to this project has a name here. `make` alone lists them.
# Each target works in a fresh clone with only Python 3.11 (or newer) and make; the first use sets up
# the virtual environment .venv, or uses the active one where VIRTUAL_ENV is set.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules
.SUFFIXES:

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := $(or $(VIRTUAL_ENV),.venv)
PY := "$(VENV)/bin/python"
RUN := PATH="$(VENV)/bin:$$PATH"
# One stamp for this folder and this pyproject.toml: setup costs nothing until one of them changes.
KEY := $(shell { cat pyproject.toml; pwd; } | cksum | tr -d ' ')
STAMP := $(VENV)/.gaia-setup-$(KEY)

BREAKING_IMAGE := protos/image.binpb
CACHE := .cache/test
SEEDS ?= 300
MINUTES ?= 5
# Tests of one file stay together: they share clusters. WORKERS=1 runs one after the other.
WORKERS ?= 2
PARALLEL = $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist loadfile)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The C core of grpc reports every connection that breaks; here they break on purpose.
export GRPC_VERBOSITY ?= NONE

.PHONY: help setup proto proto-check proto-image demo up test check format suite gates race \
        coverage bench sim chaos mutants fit evaluate evaluation-tools report screenshots clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: ## virtual environment with everything, `gaia` in it (.venv, or the active one)
	@[ -e "$(STAMP)" ] || { \
	  if [ ! -x "$(VENV)/bin/python" ]; then \
	    "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      || { echo "error: Python 3.11 or newer is needed (make PYTHON=/path/to/python3.11)" >&2; exit 2; }; \
	    echo "creating $(VENV) ..."; "$(PYTHON)" -m venv "$(VENV)"; \
	  fi; \
	  echo "installing GAIA and its tools into $(VENV) (once; a minute or more, as the network goes) ..."; \
	  $(PY) -m pip install --quiet --no-compile -e '.[dev,fast]'; \
	  rm -f "$(VENV)"/.gaia-setup-*; touch "$(STAMP)"; }

# --- contracts -------------------------------------------------------------------------------------

proto: ## generated/ from protos/, with the pinned generator
	@"$(PYTHON)" protos/generate.py

proto-check: ## fails when generated/ is stale (same pinned generator)
	@"$(PYTHON)" protos/generate.py --check

proto-image: setup ## release step: renew the image that `buf breaking` compares with
	@$(RUN) buf build --exclude-source-info -o $(BREAKING_IMAGE)
	@echo "$(BREAKING_IMAGE) renewed"

# --- use -------------------------------------------------------------------------------------------

demo: setup ## the main job: a live classroom on three real peers, every number reconciled (ARGS=...)
	@$(PY) -m gaia_grpc demo $(ARGS)

up: setup ## a local three-peer cluster in this terminal; Ctrl-C ends it (ARGS=...)
	@$(PY) -m gaia_grpc up $(ARGS)

# --- checks ----------------------------------------------------------------------------------------

test: ## everything that CI runs: check, the suite with branch coverage, the coverage gates
	@rm -f $(CACHE)/pytest.log
	@$(MAKE) check
	@$(MAKE) suite
	@$(MAKE) gates
	@tail -n 1 $(CACHE)/pytest.log

check: setup ## format, lint, types, layers, buf (lint, format, breaking), stale stubs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(RUN) lint-imports
	$(RUN) buf lint
	$(RUN) buf format -d --exit-code
	$(RUN) buf breaking --against $(BREAKING_IMAGE)
	@$(MAKE) proto-check

format: setup ## rewrite code and protos in the one format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix-only .
	$(RUN) buf format -w

suite: setup # the tests alone, with branch coverage of the peers' processes too
	@mkdir -p $(CACHE) .cache/coverage && rm -f .cache/coverage/*
	@set -o pipefail; $(PY) -m coverage run -m pytest $(PARALLEL) $(ARGS) | tee $(CACHE)/pytest.log

gates: # what coverage must reach: 90 % of everything, 95 % of the two pure cores
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report --fail-under=90
	@set -o pipefail; $(PY) -m coverage report --include='gaia_grpc/raft/*' --fail-under=95 --format=total | sed 's/^/raft %: /'
	@set -o pipefail; $(PY) -m coverage report --include='gaia_grpc/state/*' --fail-under=95 --format=total | sed 's/^/state %: /'

coverage: ## branch coverage of the suite as HTML in htmlcov/
	@$(MAKE) suite
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage html --quiet
	@set -o pipefail; $(PY) -m coverage report --format=total | sed 's/^/total %: /'
	@echo "open htmlcov/index.html"

race: setup ## the suite under -X dev, warnings as errors, asyncio debug, tiny switch interval (RACE_SEED=n)
	@$(PY) -m compileall -q "$(VENV)/lib" >/dev/null || true  # or compiling others' code warns
	@PYTHONDEVMODE=1 PYTHONWARNINGS=error PYTHONASYNCIODEBUG=1 GAIA_RACE_SEED=$(or $(RACE_SEED),1) \
	  $(PY) -X dev -W error -m pytest $(ARGS)

sim: setup ## seeded simulations of a cluster in memory (SEEDS=how many, SEED=one of them)
	@$(PY) -m tests.sim $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

chaos: setup ## long runs with faults against real peers (MINUTES=n, SEED=k repeats one schedule)
	@$(PY) -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)
	@$(if $(SEED)$(ARGS),,GAIA_LONG=1 $(PY) -m pytest -q -rP tests/e2e/test_workers.py -k killed)

mutants: setup ## deliberate bugs, each of which its named tests must notice (ONLY=B4)
	@$(PY) -m tests.mutants $(if $(ONLY),--only "$(ONLY)") $(ARGS)

# --- figures ---------------------------------------------------------------------------------------

bench: setup ## the figures of this machine beside the targets (ONLY=name)
	@$(PY) -m gaia_grpc bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

fit: setup evaluation-tools ## fits the detector's model of math to recorded students (GAIA_DATA, REPLACE=1)
	@$(PY) -m gaia_grpc.evaluation fit $(if $(REPLACE),--replace) $(ARGS)

evaluate: setup evaluation-tools ## the detector beside its targets: build/evaluation/report.md (GAIA_DATA)
	@$(PY) -m gaia_grpc.evaluation evaluate $(ARGS)

evaluation-tools: # scikit-learn and matplotlib, which nothing else needs
	@$(PY) -c 'import matplotlib, sklearn' 2>/dev/null \
	  || { echo "installing scikit-learn and matplotlib (once) ..."; \
	       $(PY) -m pip install --quiet --no-compile -e '.[evaluate]'; }

report screenshots:
	@echo "make $@: not there yet; it comes with a later version" >&2; exit 1

report: ## not there yet: one report of all checks and figures
screenshots: ## not there yet: pictures of the web pages

clean: ## removes what the targets made, but neither .venv nor a cluster's data
	rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
	  .coverage* htmlcov build dist
	find . -name __pycache__ -type d -not -path "./.venv/*" -prune -exec rm -rf {} +
