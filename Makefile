# Each target works on a machine that has just a Python (3.11 to 3.13, with venv and headers), g++, make and git. `make`
# alone lists them.
#
#   make venv PYTHON=/path/to/python             this Python in place of the newest that is there
#   make clean venv LOCK=requirements/gpu.lock   the CUDA environment in place of the CPU one
#   make test PYTEST_ARGS="-k packing"           some of the tests
#   make demo OUT=/tmp/demo                      the demo's run folders elsewhere

# The Pythons that the locks are resolved for, newest first, and what is true of one that is fit: it is a release (Ubuntu
# 22.04's python3.11 is 3.11.0rc1, which lacks a function that torch asks for when it is imported), and has the pip that
# `venv` lays (Debian and Ubuntu pack that apart).
PYTHONS := 3.13 3.12 3.11
FIT := import ensurepip, sys; v = sys.version_info; sys.exit(f"{v[0]}.{v[1]}" not in "$(PYTHONS)".split() or v[3] != "final")
PYTHON ?= $(shell for python in $(PYTHONS:%=python%) python3; do \
  $$python -c '$(FIT)' 2>/dev/null && { echo $$python; break; }; done)
LOCK ?= requirements/cpu.lock
OUT ?= runs/demo
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# The stamp's name holds the content of what was installed: another lock or pyproject asks for another stamp.
STAMP := $(VENV)/.installed-$(shell cat $(LOCK) pyproject.toml | git hash-object --stdin)
PEERS_DIR := $(VENV)/bench
PEERS := $(PEERS_DIR)/.installed
TORCH := $(shell grep '^torch==' $(LOCK))
# PyTorch's own wheel index, asked only where the configured one does not have the CPU build.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

PYTEST := $(BIN)/python -m pytest
ON_ALL_CPUS := --numprocesses logical --maxprocesses 8 --dist loadfile
TWO_AT_ONCE := --numprocesses 2 --dist loadfile
WITH_LONG := -m 'long or not long'
# PYTEST_ARGS may select tests of one line alone; pytest then ends the others with a 5.
OR_NONE := $(if $(PYTEST_ARGS),|| test $$? = 5)

export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
# Heaps of huge pages, where the kernel gives them to whoever asks: a third less time on a virtual machine.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
# Without a GPU DeepSpeed must be told so, or it probes for one at every import.
ifeq ($(shell command -v nvidia-smi),)
export DS_ACCELERATOR := cpu
endif

# Of pip only errors: it has a line or more to say of each of some 300 packages.
$(STAMP) $(PEERS): export PIP_QUIET := 2
$(STAMP) $(PEERS): export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all faults fuzz bench bare-gpu lint types lock reference clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## create .venv and install the pinned packages (a second call installs nothing)

demo: $(STAMP)  ## train and compare SFT, DPO and ORPO in the embedded world, on two CPU cores
	$(BIN)/orpo-ray demo --out $(OUT)

# Each line is a pytest process of its own: the unit tests, which are independent, on all CPUs; the integration tests as two
# processes with a Ray cluster each, for a command spends much of its time on one core; and a cluster that wants a token,
# since Ray reads its authentication mode when it is imported.
test: $(STAMP)  ## run the unit tests, the integration tests, the quickest faults, and jobs on a cluster
	$(PYTEST) $(ON_ALL_CPUS) tests/unit $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) $(TWO_AT_ONCE) tests/integration $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) tests/faults/test_quick.py $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) tests/cluster $(PYTEST_ARGS) $(OR_NONE)

test-all: $(STAMP)  ## the same with every case of the fuzz tests, whole documented commands, and every fault
	FUZZ=1 $(PYTEST) $(ON_ALL_CPUS) tests/unit $(WITH_LONG) $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) $(TWO_AT_ONCE) tests/integration $(WITH_LONG) $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) tests/faults $(WITH_LONG) $(PYTEST_ARGS) $(OR_NONE)
	$(PYTEST) tests/cluster $(WITH_LONG) $(PYTEST_ARGS) $(OR_NONE)

faults: $(STAMP)  ## disturb runs in every way of docs/reliability.md, and rewrite its table
	$(PYTEST) tests/faults/test_matrix.py $(WITH_LONG) --results benchmarks/results/faults.json $(PYTEST_ARGS)
	PYTHONPATH=tests $(BIN)/python tests/faults/fault_page.py benchmarks/results/faults.json docs/reliability.md

fuzz: $(STAMP)  ## damage data, configurations and reports in 20 times as many ways, drawn anew (about 20 minutes)
	FUZZ=20 $(PYTEST) tests/unit -k fuzz --timeout 3600 $(PYTEST_ARGS)

# Other trainers stand beside the pinned packages, not among them. What needs a GPU is left out where there is none, and
# the stages of an evaluation where there is one: they are measured on a CPU each, which vLLM for GPUs does not run on.
bench: $(STAMP) $(PEERS)  ## measure trainers and the evaluation side by side, rewrite docs/benchmarks.md (about an hour)
	@for config in configs/bench/*.yaml; do \
	  if grep -q '^needs: cuda' $$config && ! command -v nvidia-smi >/dev/null; then \
	    echo "==> $$config: no GPU here"; continue; fi; \
	  if grep -q '^measures:' $$config && command -v nvidia-smi >/dev/null; then \
	    echo "==> $$config: measured without a GPU"; continue; fi; \
	  echo "==> $$config"; PYTHONPATH=$(abspath $(PEERS_DIR)) $(BIN)/orpo-ray bench $$config || exit 1; \
	done
	$(BIN)/python -m orpo_ray.bench.table docs/benchmarks.md

$(PEERS): requirements/bench.txt $(STAMP)
	@echo "==> $(PEERS_DIR): the other trainers (seconds)"
	@rm -rf $(PEERS_DIR)
	@$(BIN)/pip install --no-deps --target $(PEERS_DIR) -r requirements/bench.txt
	@touch $@

bare-gpu:  ## rehearse `doctor --gpu` at toy size with the versions of a bare GPU image (3 GB to download)
	tests/bare_gpu_image.sh

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy
	$(BIN)/mypy jobs/train.py jobs/evaluate.py jobs/score.py jobs/sweep.py jobs/pipeline.py requirements/lock.py benchmarks

lock: $(STAMP)  ## resolve pyproject.toml anew for each Python and rewrite both locks (minutes)
	@$(BIN)/pip install --quiet --target $(VENV)/lock -r requirements/lock.txt
	PATH="$(abspath $(VENV)/lock/bin):$$PATH" $(BIN)/python requirements/lock.py cpu
	PATH="$(abspath $(VENV)/lock/bin):$$PATH" $(BIN)/python requirements/lock.py gpu

reference: $(STAMP)  ## write docs/keys.md, the reference of every key, anew
	$(BIN)/python -m orpo_ray.config.reference docs/keys.md

clean:  ## remove .venv, caches and build leftovers; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The lock is complete, so pip need not resolve anything (--no-deps). Torch comes first because its CPU build
# may live on another index; DeepSpeed, published as source only, is built into a wheel on the way. The stamp
# comes last: an install that failed leaves none, and the next call takes up where it stopped. An environment
# that is there keeps its Python. orpo_ray is on the path itself (compat), or Python, started in the folder that the
# clone is in, takes the clone for a package.
$(STAMP):
	@test -x $(BIN)/pip || { \
	  python="$(PYTHON)"; \
	  test -n "$$python" || { echo "make: no Python of $(PYTHONS) with venv is here (Debian, Ubuntu: apt-get install" \
	    "python3-venv); or name one: make PYTHON=/path/to/python" >&2; exit 1; }; \
	  "$$python" -c '$(FIT)' 2>/dev/null || { echo "make: $$python is no release of Python $(PYTHONS) with venv, which" \
	    "$(LOCK) is pinned for" >&2; exit 1; }; \
	  "$$python" -m venv $(VENV); }
	@echo "==> $(VENV): installing $(LOCK) for $$($(BIN)/python --version), about 4 GB"
	@rm -f $(VENV)/.installed-*
	@echo "==> $(VENV): $(TORCH) (a minute or two)"
	@$(BIN)/pip install --no-deps '$(TORCH)' || { \
	  echo "==> $(TORCH) is not on the configured index; asking PyTorch's own"; \
	  $(BIN)/pip install --no-deps --extra-index-url $(TORCH_INDEX) '$(TORCH)'; }
	@echo "==> $(VENV): the other $(shell sed -n 's/==.*//p' $(LOCK) | sort -u | wc -l) packages; DeepSpeed is built (two to five minutes)"
	@$(BIN)/pip install --no-deps -r $(LOCK)
	@echo "==> $(VENV): orpo_ray itself (seconds)"
	@$(BIN)/pip install --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@
	@echo "==> $(VENV) is ready"
