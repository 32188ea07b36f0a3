# make demo [OUT=folder]   a small cohort of synthetic patients, adapted to and segmented; writes a report
# make test                the test suite
# make lint                style, types and spelling
# make bench [DATA=folder] [QUICK=1]   speed, and accuracy on your own data
#
# Each makes its own environment in .venv when it is missing. Settings:
#   PYTHON=python3.12      the interpreter to make it with (3.10 or newer)
#   TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu   where to take PyTorch from, here a smaller one without CUDA
#   JOBS=4                 how many processes run the tests
#   ARGS="-k volume -x"    more arguments for pytest

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OUT ?= demo-output
JOBS ?= logical
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$p" -c "$(NEW_ENOUGH)" 2>/dev/null && echo "$$p" && break; done)

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(STAMP)
	@$(PY) -m FewShotSegLib demo --out "$(OUT)"

# One thread per process: the test networks are so small that more threads only wait for each other.
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --maxprocesses 8 $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m codespell_lib

bench: $(STAMP)
	@$(PY) -m FewShotSegLib benchmark speed $(if $(QUICK),--quick)
	@$(if $(DATA),$(PY) -m FewShotSegLib benchmark accuracy --data "$(DATA)" $(if $(QUICK),--quick),\
		echo "For accuracy on your own data: make bench DATA=folder")

# PyTorch first, so that nothing else pulls in another build of it.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c "$(NEW_ENOUGH)" 2>/dev/null || { \
		echo "FewShotSeg needs Python 3.10 or newer, found '$(PYTHON)'. Install it, or name one: make PYTHON=/path/to/it"; \
		exit 1; } >&2
	@"$(PYTHON)" -c "import venv, ensurepip" 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; \
		exit 1; } >&2
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@$(PY) -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX_URL),--index-url "$(TORCH_INDEX_URL)") torch
	@$(PY) -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
