# make demo, make test: everything from a fresh clone. make help lists the rest.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
# Workers of pytest; each computes on one thread, so that they do not fight for the cores.
JOBS ?= 2

.DEFAULT_GOAL := help
BASE ?= HEAD
.PHONY: help demo test check pytest parity same scale-test size format clean
.DELETE_ON_ERROR:

help: ## list what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "options: PYTHON=python3.12  VENV=folder  ARGS='options of the script'"

demo: $(VENV)/.running ## prepare, train, test and picture the demo, at most 12 minutes
	$(BIN)/python tools/train_demo.py $(ARGS)

test: check pytest ## ruff, mypy and pytest

check: $(VENV)/.testing ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/.testing ## pytest; ARGS='-k name' chooses
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

GOLDEN := tests/golden

parity: $(VENV)/.running ## compare masks, scoring and four training steps with the released code's; half an hour
	$(BIN)/python tools/parity.py $(GOLDEN)/released_protocol.npz
	for file in etris_vitb16 etris_rn50 etris_rn101 train_etris_vitb16 train_etris_rn50; do \
	  name=$${file#train_}; echo "$$file"; \
	  $(BIN)/python tools/parity.py $(GOLDEN)/$$file.npz --config config/$${name}_released.yaml \
	    --keys $(GOLDEN)/keys/$$name.tsv || failed=1; \
	done; test -z "$$failed"
	$(BIN)/python tools/parity.py $(GOLDEN)/cris_rn50.npz --config config/cris_rn50.yaml \
	  --keys $(GOLDEN)/keys/cris_rn50.tsv

same: $(VENV)/.running ## train and score BASE=commit and this tree, and compare bit for bit; some minutes
	$(BIN)/python tools/same.py --base $(BASE)

scale-test: $(VENV)/.running ## pack and open data of RefCOCO's size, against limits; 2 GB of disk
	$(BIN)/python tools/scale_test.py $(ARGS)

size: $(VENV)/.running ## count lines and files by folder, and what the scripts import
	$(BIN)/python tools/size.py

format: $(VENV)/.testing ## write the files as ruff formats them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and the caches, never data, weights or runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo "error: no working $(PYTHON) here; install Python 3.11 or later, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), 3.11 or later is needed; try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps: what is installed stays installed until its list changes.
$(VENV)/.running: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.testing: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $(VENV)/.running $@
