# Targets create .venv and install what they need into it. They change nothing else on the system.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
# TORCH_INDEX is the package index of PyTorch. The default has PyTorch for the CPU only. For CUDA, add
# TORCH_INDEX=https://download.pytorch.org/whl/cu130 to the command. If it is empty, pip uses its ordinary index.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin

.PHONY: help demo serve test test-zoo test-gpu check bench docs audit protos format clean

help:
	@grep -E '^# `make' Makefile | sed 's/^# //'

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
# Only torch itself is looked up in TORCH_INDEX. If that index cannot be reached, pip uses its ordinary index.
	$(BIN)/python -m pip install -q --retries 0 --no-deps -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
# pytorchcv is the reference in the tests of the weight import. Its networks never import torchvision, which it requires.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps pytorchcv
# tritonclient tests the Open Inference Protocol. It requires older ml_dtypes and protobuf, but works with the pinned ones.
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
# Two test processes with one PyTorch thread each fill two cores. With two threads each they would block one another.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -q

# `make test-zoo`  59 files of networks of the field against ONNX Runtime, and 12 projected; needs 5 GB in ZFSERVE_ZOO (~/.cache/zfserve-zoo)
test-zoo: $(BIN)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/zoo
	PYTHONPATH=tests:. $(BIN)/python -m zoo.measurement

# `make test-gpu`  the tests that need an NVIDIA GPU; fails without one. For its PyTorch, see TORCH_INDEX above
test-gpu: $(BIN)/.installed
	$(BIN)/python -c 'import sys; from zfserve_engines.cuda.gpu import detect_gpu; sys.exit(0 if detect_gpu() else "there is no NVIDIA GPU that CUDA can use here")'
	$(BIN)/pytest -q -m gpu tests/gpu

# `make check`   format, lint, types, stubs, tables of the settings, import boundaries, docstrings, and the links of all pages
check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/python tools/generate_settings_page.py --check
	$(BIN)/pytest -q tests/test_boundaries.py tests/test_docstrings.py tests/test_pages.py
	$(BUILD_SITE)

# `make docs`    the documentation site, into site/; fails if a link is broken
docs: $(BIN)/.installed
	$(BUILD_SITE)
	@echo 'to read it, with search: python3 -m http.server --directory site'

# The variable turns off the notice that Material for MkDocs ends in 2027. Its successor, Zensical, reads mkdocs.yml too.
BUILD_SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# `make bench`   the benchmarks, each with its limit
bench: $(BIN)/.installed models/zfnet
	$(BIN)/zfserve bench

# `make audit`   known vulnerabilities in the pinned versions; needs pypi.org or api.osv.dev
audit: .audit/bin/pip-audit
	$(PYTHON) tools/audit.py .audit/bin/pip-audit constraints.txt

# pip-audit has an environment of its own, because its dependencies are not part of this project.
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
