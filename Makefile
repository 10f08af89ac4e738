# make train [ARGS="model=lstm task=imdb"]    install what is needed and train
# make test  [ARGS="-k sine"]                 install what is needed and run linters and tests
# make gpu   [ARGS="--out gpu --minutes 8"]   prove and measure all on a GPU, with the Python there is: PYTHON=...
# make docs                                   install what is needed and build guides, API reference and gallery in site/
# pip installs; where torch's CPU build lies (a tenth of the size) is for pip to know, as by PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test gpu docs clean

train: $(VENV)/train
	$(RUN) train.py $(ARGS)

test: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -n 2 $(ARGS)

# not in $(VENV): images for GPUs come with their own torch
gpu:
	@$(PYTHON) tests/gpu.py $(ARGS)

docs: $(VENV)/docs docs/gallery/index.html
	$(RUN) -m mkdocs build --strict
	@echo "written: site/index.html"

EXPLAIN = $(wildcard $(addprefix rnnzoo/explain/,*.py essays/*.py claims.csv league.csv templates/*.* templates/*/*))
PLAY = $(wildcard rnnzoo/play/*.py rnnzoo/play/page/*)

docs/gallery/index.html: RESULTS.md $(wildcard rnnzoo/cells/*.py) $(EXPLAIN) $(PLAY) | $(VENV)/docs
	$(RUN) -m rnnzoo gallery docs/gallery
	$(RUN) -m rnnzoo gallery docs/gallery/ja --language ja

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))" || \
	  { echo "rnnzoo needs Python 3.10 to 3.13; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[train,gallery,play]"
	@touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/train

$(VENV)/docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[docs,gallery]"
	@touch $@

clean:
	rm -rf $(VENV) site docs/gallery .pytest_cache .mypy_cache .ruff_cache .hypothesis
