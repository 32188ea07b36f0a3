# make demo [OUT=folder]   a small cohort of synthetic patients, adapted to and segmented; writes a report
# make test                the test suite: the library, and the Slicer extension on Slicer's own core without a screen
# make lint                style, types and spelling
# make docs                the documentation site, in build/site; its notebooks are executed and its links checked
# make mutants          whether the tests notice when essentials of the methods are cut out; before a release, minutes
# make kernels          the Triton kernels without a GPU, in Triton's interpreter (fetches 290 MB); no part of make test
# make campaign [SHARE=0.1] [ONLY=files]   kills, full disks and damaged files, for hours; no part of make test
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
.PHONY: help demo test lint mutants kernels docs bench campaign graphics

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SLICER_STAMP := $(VENV)/.installed-slicer
DOCS_STAMP := $(VENV)/.installed-docs
OUT ?= demo-output
JOBS ?= logical
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	"$$p" -c "$(NEW_ENOUGH)" 2>/dev/null && echo "$$p" && break; done)

# What the tests of the extension draw with, as Debian and Ubuntu call it, and a check whether it is there.
GRAPHICS := libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libx11-6 libxkbcommon0 libfontconfig1 libfreetype6 libglib2.0-0 \
	libdbus-1-3 fonts-dejavu-core
HAS_GRAPHICS := import ctypes; [ctypes.CDLL(f"lib{name}") for name in ("EGL.so.1", "EGL_mesa.so.0", "GL.so.1", \
	"X11.so.6", "xkbcommon.so.0", "fontconfig.so.1", "freetype.so.6", "glib-2.0.so.0", "dbus-1.so.3")]

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(STAMP)
	@$(PY) -m FewShotSegLib demo --out "$(OUT)"

# One thread per process: the test networks are so small that more threads only wait for each other.
test: $(SLICER_STAMP) graphics
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(JOBS) --maxprocesses 8 $(ARGS)

lint: $(STAMP)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m codespell_lib

docs: $(DOCS_STAMP)
	@OMP_NUM_THREADS=1 $(PY) -m mkdocs build --strict

mutants: $(STAMP)
	@$(PY) Testing/mutants.py

# The version that the pinned PyTorch brings along with CUDA; beside .venv, whose tests stay as they are.
kernels: $(STAMP)
	@test -d build/triton || $(PY) -m pip install -q --no-deps --target build/triton triton==3.7.1
	@PYTHONPATH=build/triton OMP_NUM_THREADS=1 $(PY) -m pytest -q Testing/Library/networks/test_scan_triton.py Testing/Library/sam/test_attention_triton.py

bench: $(STAMP)
	@$(PY) -m FewShotSegLib benchmark speed $(if $(QUICK),--quick)
	@$(if $(DATA),$(PY) -m FewShotSegLib benchmark accuracy --data "$(DATA)" $(if $(QUICK),--quick),\
		echo "For accuracy on your own data: make bench DATA=folder")

campaign: $(STAMP)
	@$(PY) -m Testing.Campaign $(if $(SHARE),--share $(SHARE)) $(if $(ONLY),--only $(ONLY))

$(DOCS_STAMP): $(STAMP)
	@$(PY) -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

# The demo and the library do without these.
$(SLICER_STAMP): $(STAMP)
	@echo "Installing Slicer's core for the tests of the extension."
	@$(PY) -m pip install --quiet -c constraints.txt -e ".[slicer]"
	@touch $@

# As root, or where sudo asks for no password; otherwise a sentence, and the tests say what they miss.
graphics: $(STAMP)
	@[ "$$(uname -s)" != Linux ] || $(PY) -c '$(HAS_GRAPHICS)' 2>/dev/null || { \
		root=; [ "$$(id -u)" = 0 ] || root="sudo -n"; \
		$$root apt-get -qq update && \
		$$root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(GRAPHICS); \
	} >$(VENV)/graphics.log 2>&1 || \
		echo "The tests of the extension need Mesa to draw: sudo apt-get install $(GRAPHICS)"

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
	@$(PY) -m pip install --quiet -c constraints.txt $(if $(TORCH_INDEX_URL),--extra-index-url "$(TORCH_INDEX_URL)") torch
	@$(PY) -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@
