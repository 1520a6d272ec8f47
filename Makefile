PYTHON ?= python3
BIN := .venv/bin
OUTPUT ?= outputs/quickstart
IMAGES := dataset_scripts/sample_posts/images
# The marker is newer than pyproject.toml once everything is installed: a second run installs nothing.
INSTALLED := .venv/.installed

LOCKS := .ci/build.lock .ci/requirements.lock
PIP := $(BIN)/python -m pip --disable-pip-version-check
RESOLVE := $(PIP) install --quiet --dry-run --ignore-installed --report -

.PHONY: help install install-locked lock quickstart demo-hub test checks docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## everything into .venv: the package, its extras, the test tools

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --editable '.[all,dev]'
	touch $@

install-locked: $(LOCKS)  ## the same for CI: exact versions, every file checked by its sha256
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet --require-hashes --requirement .ci/build.lock
	$(PIP) install --quiet --require-hashes --no-build-isolation --requirement .ci/requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $(INSTALLED)

lock:  ## remake the lock files of CI, on Linux on x86-64 with Python 3.11
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(RESOLVE) 'setuptools>=77' setuptools-scm wheel | $(BIN)/python .ci/lock.py > .ci/build.lock
	$(RESOLVE) '.[all,dev]' | $(BIN)/python .ci/lock.py > .ci/requirements.lock

quickstart: $(INSTALLED)  ## read the sample images, train, evaluate, label a post with two pictures
	$(BIN)/python -m dataset_scripts.build_visual_context sample_posts --ocr rapidocr --store $(OUTPUT)/store \
		--output $(OUTPUT)/contexts.jsonl --preview $(OUTPUT)/contexts.html
	$(BIN)/python train.py --context_files $(OUTPUT)/contexts.jsonl --output_dir $(OUTPUT) \
		--learning_rate 2e-4 --num_epochs 16 --resume_from_checkpoint last
	$(BIN)/python -m hub_card.predict $(OUTPUT)/model "my whole feed is Alexandria rn" \
		--image $(IMAGES)/valid-007.jpg --image $(IMAGES)/valid-014.jpg

$(OUTPUT)/model/config.json:
	$(MAKE) quickstart

demo-hub: $(INSTALLED) $(OUTPUT)/model/config.json  ## push the model to a Hub on this machine, load it as a stranger
	HF_HUB_OFFLINE=1 $(BIN)/python tests/support/demo_hub.py $(OUTPUT)/model

test: $(INSTALLED)  ## the whole suite, offline, on two cores
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

checks: $(INSTALLED)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## the documentation as HTML in docs/_build, offline; a warning is an error
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going --builder html docs docs/_build

clean:  ## remove what was installed and made
	rm -rf .venv outputs build docs/_build *.egg-info
