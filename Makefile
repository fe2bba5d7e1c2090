# Every target creates .venv and installs what it needs by itself, and into nothing else of the system.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
# Where the CPU-only PyTorch comes from. For CUDA: `make TORCH_INDEX=https://download.pytorch.org/whl/cu130 ...`;
# empty: from the ordinary index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin

.PHONY: help demo serve test test-gpu check bench docs audit protos format clean

help:
	@grep -E '^# `make' Makefile | sed 's/^# //'

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
# Only torch itself is looked up there; where that index is out of reach, the ordinary one serves.
	$(BIN)/python -m pip install -q --retries 0 --no-deps -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
# The reference the weight import is tested against; it asks for torchvision, which its networks never import.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps pytorchcv
# The client that the Open Inference Protocol is tested with; it asks for older ml_dtypes and protobuf, and works with these.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps tritonclient
	touch $@

# `make demo`    classify and explain the sample photos, into demo-output/
demo: $(BIN)/.installed
	$(BIN)/python -m zfserve_cli.demo

# `make serve`   start the service on localhost:8500
serve: $(BIN)/.installed models/zfnet
	$(BIN)/zfserve serve

models/zfnet: | $(BIN)/.installed
	$(BIN)/zfserve export --name zfnet

# `make test`    the whole suite
test: $(BIN)/.installed
# Two processes with a thread of torch's each: with two each they would wait for one another on two cores.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q

# `make test-gpu`  what only an NVIDIA GPU can show; fails where there is none. For its PyTorch, see TORCH_INDEX above
test-gpu: $(BIN)/.installed
	$(BIN)/python -c 'import sys; from zfserve_engines.cuda.gpu import detect_gpu; sys.exit(0 if detect_gpu() else "there is no NVIDIA GPU that CUDA can use here")'
	$(BIN)/pytest -q -m gpu tests/gpu

# `make check`   format, lint, types, stubs, tables of the settings, import boundaries, and the links of all pages
check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/python tools/generate_settings_page.py --check
	$(BIN)/pytest -q tests/test_boundaries.py tests/test_pages.py
	$(BUILD_SITE)

# `make docs`    the documentation site, into site/; fails where a link leads nowhere
docs: $(BIN)/.installed
	$(BUILD_SITE)
	@echo 'to read it, with search: python3 -m http.server --directory site'

# The variable turns off a notice that Material for MkDocs ends in 2027. Its successor, Zensical, reads the same mkdocs.yml.
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# `make bench`   the benchmarks, each with its limit
bench: $(BIN)/.installed models/zfnet
	$(BIN)/zfserve bench

# `make audit`   known vulnerabilities in the pinned versions; needs pypi.org or api.osv.dev
audit: .audit/bin/pip-audit
	$(PYTHON) tools/audit.py .audit/bin/pip-audit constraints.txt

# Apart from .venv: what it needs is no part of this project.
.audit/bin/pip-audit:
	$(PYTHON) -m venv .audit
	.audit/bin/pip install -q pip-audit==2.10.1

# `make protos`  regenerate the stubs
protos: $(BIN)/.installed
	$(BIN)/python tools/generate_stubs.py

# `make format`  format the code
format: $(BIN)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .audit demo-output models runs site
