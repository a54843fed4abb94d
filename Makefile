# `make demo` and `make test` are all that a fresh machine needs; the rest is for those who work on the code.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/tools
DEMO_ARGS ?=
GPU_ARGS ?=
SOAK ?=
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# Two processes of tests, each with one thread of computation (tests/conftest.py); those that start servers and
# clusters run one after another, beside the others (tests/scheduling.py).
PYTEST := $(BIN)/python -m pytest
APART := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo demo-detection up down lint check format test test-cluster soak gpu secrets sbom audit tree docs image clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

install: $(READY)  ## Make .venv and install the package with its tested versions (some 8 GB, most of it CUDA)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) scripts/install.py $(VENV)
	@touch $@

demo: $(READY)  ## Images to registered ensemble on the built-in dataset, nothing else running
	@$(BIN)/resnet-pipeline demo $(DEMO_ARGS)

demo-detection: $(READY)  ## Digits on backgrounds to a registered Mask R-CNN and a picture of what it finds
	@$(BIN)/python scripts/demo_detection.py

up: $(READY)  ## Start Prefect, a worker and MLflow on this machine; Ctrl-C or `make down` stops them
	@$(BIN)/resnet-pipeline up

down: $(READY)  ## Stop what `make up` started
	@$(BIN)/resnet-pipeline down

lint: $(READY)  ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks
	$(BIN)/lint-imports --no-cache

secrets: $(READY)  ## Passwords and keys in what git keeps; .secrets.baseline has what only looks like one
	$(BIN)/detect-secrets-hook --baseline .secrets.baseline $$(git ls-files)

check: lint secrets  ## All of lint and secrets, and the fast tests
	$(PYTEST) $(APART) -q -m "not slow and not soak" --ignore=tests/integration --ignore=tests/gpu

format: $(READY)  ## Format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: $(READY)  ## All tests but the minutes of `make soak`
	$(PYTEST) $(APART) -m "not soak"

test-cluster: $(READY)  ## A training on hosts with PostgreSQL, S3 and logins, through a lost host and a roll-out (as root)
	$(PYTEST) tests/integration/test_cluster.py

soak: $(READY)  ## Training through lost drivers, workers, nodes and clusters; torchrun's every end; CIFAR-10; ResNet-50's trace
	$(PYTEST) $(APART) -m soak $(SOAK)

gpu: $(READY)  ## A GPU's tests and benchmarks, in one table: build/gpu.md (GPU_ARGS=--small: on the CPU, that they run)
	$(BIN)/python benchmarks/gpu.py $(GPU_ARGS)

tree:  ## One line on each module, its own first one
	@find resnet_pipeline flows benchmarks -name '*.py' -size +0 | sort | while read -r file; do \
	  printf '%-46s %s\n' "$$file" "$$(head -n 1 "$$file" | tr -d '"')"; done

docs: $(READY)  ## The API's pages from the docstrings, in build/docs
	@# each module by its name: pdoc leaves out those that a package's __all__ does not list
	@MPLBACKEND=agg $(BIN)/pdoc --output-directory build/docs resnet_pipeline \
	  $$(find resnet_pipeline -name '*.py' ! -name '__*' | sort | sed 's|\.py$$||; s|/|.|g')
	@echo "build/docs/index.html"

image:  ## The two images of infra/, with the commit that they are of
	@for target in servers pipeline; do \
	  name=resnet-pipeline; [ $$target = pipeline ] || name=$$name-$$target; \
	  docker build --target $$target --tag $$name:$(VERSION) \
	    --build-arg REVISION=$$(git describe --always --dirty --abbrev=40 --exclude='*') . || exit; done

# of a venv of their own: they are not needed to run or test anything
$(TOOLS):
	@$(PYTHON) -m venv $@ && $@/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1

sbom: $(READY) $(TOOLS)  ## What the package and its tests are made of, as CycloneDX in build/sbom.json
	@mkdir -p build
	@$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.json $(BIN)/python
	@echo build/sbom.json

audit: $(TOOLS)  ## Known weaknesses of the tested versions; asks PyPI for its advisories
	@$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt || \
	  { echo "not clean: a version has a known weakness, or (“could not be audited”) PyPI's advisories can't be had here"; exit 1; }

clean:  ## Remove .venv, caches and ./work
	rm -rf $(VENV) work build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
