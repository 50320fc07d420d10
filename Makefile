SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow lint docs bench clean

PYTHON ?= python3#    interpreter to create .venv with
PROMPT ?= Dewy grass meadow at sunrise with strong golden sun and long shadows
PHOTO ?= data/photo.jpg#    photo for `make demo` to outpaint
TRAIN_STEPS ?= 60#    training steps of `make demo`
STEPS ?= 50#    denoising steps of `make demo`
PYTEST ?= -n logical --dist loadfile --no-loadscope-reorder --max-worker-restart 0#    one worker per core; the tests of a file share a worker and its fixtures
DEMO := experiments/runs/demo

PY := .venv/bin/python
INSTALLED := .venv/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## create .venv and install cubediff with all extras for development, with the checksums of requirements.lock

demo: $(DEMO)/text/viewer.html $(DEMO)/photo/viewer.html ## train the tiny model on data/samples, then generate a panorama from a text and one from a photo
	@echo
	@for from in text photo; do \
		echo "panorama from a $$from: $(DEMO)/$$from/panorama.jpg, faces in $(DEMO)/$$from/faces/"; \
		echo "  interactive viewer: open $(CURDIR)/$(DEMO)/$$from/viewer.html in a browser"; \
	done
	@echo "trained model: $(DEMO)/train/export; use it with: cubediff generate --model $(DEMO)/train/export …"

test: $(INSTALLED) ## run the fast tests: warnings are errors, tensor shapes are checked at run time
	OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST)

test-slow: $(INSTALLED) ## run the tests that take minutes: a wheel in a clean environment, killed builds, corrupted shards
	OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST) -m slow

lint: $(INSTALLED) ## check style with ruff, spelling with codespell and types with mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib *.md Makefile benchmarks conf data/README.md data/samples/captions.jsonl docs examples experiments src tests
	$(PY) -m mypy

docs: $(INSTALLED) ## build the documentation site in build/docs; warnings are errors
	rm -rf build/docs
	$(PY) -m sphinx -W --keep-going -n -q -c docs -d build/doctrees . build/docs
	@echo "open $(CURDIR)/build/docs/index.html in a browser"

bench: $(INSTALLED) ## benchmark the projections against py360convert and cv2.remap; benchmarks/README.md lists more
	$(PY) benchmarks/projections.py

clean: ## remove caches, wheels and the demo; keep .venv and other runs
	rm -rf dist build .pytest_cache .ruff_cache .mypy_cache .hypothesis $(DEMO)
	find src tests examples conf -name __pycache__ -prune -exec rm -rf {} +

# torch comes after the lock, so that its own dependencies are verified too. It and its CUDA libraries are not, because they
# differ by index.
$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: expected Python 3.11 or newer, got $$($(PYTHON) --version); run make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -m venv .venv || { echo "error: $(PYTHON) cannot create a virtual environment; on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "installing cubediff and its dependencies into .venv (a few minutes)"
	@{ $(PY) -m pip install --no-compile --no-deps --require-hashes -r requirements.lock && \
		$(PY) -m pip install --no-compile -c constraints.txt torch && \
		$(PY) -m pip install --no-compile --no-deps --no-build-isolation -e .; } | awk \
		'/^Collecting/ && ++n % 20 == 0 {print "  " n " packages collected"; fflush()} \
		 /^Installing collected/ {print "  installing packages"; fflush()} \
		 /^Successfully installed/ {print "  installed"}'
	@touch $@

$(DEMO)/shards/manifest.json: $(wildcard data/samples/*) | $(INSTALLED)
	@echo "== 1/4 building shards from data/samples"
	@rm -rf $(@D)
	$(PY) -m cubediff.prepare data/samples $(@D) --captions data/samples/captions.jsonl

$(DEMO)/train/export/model_index.json: $(DEMO)/shards/manifest.json
	@echo "== 2/4 training"
	@rm -rf $(DEMO)/train
	$(PY) -m cubediff.train experiment=tiny_cpu model=cubediff_tiny data.path=$(DEMO)/shards run_dir=$(DEMO)/train \
		trainer.max_steps=$(TRAIN_STEPS)

$(DEMO)/text/viewer.html: $(DEMO)/train/export/model_index.json
	@echo "== 3/4 generating a panorama from a text"
	$(PY) -m cubediff.generate --model $(<D) --prompt "$(PROMPT)" --output $(@D) --steps $(STEPS) --seed 1 --save-faces

$(DEMO)/photo/viewer.html: $(DEMO)/train/export/model_index.json $(PHOTO)
	@echo "== 4/4 generating a panorama from a photo"
	$(PY) -m cubediff.generate --model $(<D) --image $(PHOTO) --output $(@D) --steps $(STEPS) --seed 1 --save-faces
