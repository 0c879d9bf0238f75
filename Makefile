# make demo | test | lint | docs | bench | gpu-check. Each sets up .venv first; once it exists no network is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs bench gpu-check clean

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,train,coco,docs]"
	@$(BIN)/python -c "import cv2" 2>/dev/null || { \
		echo "the system has no libGL: replacing opencv-python by opencv-python-headless in $(VENV)"; \
		$(BIN)/python -m pip uninstall --quiet --yes opencv-python && \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt opencv-python-headless && \
		$(BIN)/python -c "import cv2"; }
	@touch $@

# One thread: the tests' small tensors gain little from two, and lose tenfold when a core is busy.
test: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

demo: $(STAMP)
	$(BIN)/python tools/demo.py --out demo

bench: $(STAMP)
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only

# On a machine with a GPU; uses the python at hand, because such machines bring their own torch.
gpu-check:
	mkdir -p tests/benchmarks/results
	$(PYTHON) -m pytest tests/kernels -m gpu
	$(PYTHON) -m pytest tests/benchmarks -k cuda --benchmark-only --benchmark-json tests/benchmarks/results/gpu.json

clean:
	rm -rf demo runs build/site .pytest_cache .mypy_cache .ruff_cache
