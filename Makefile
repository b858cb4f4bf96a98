# The two commands of the README are `make demo` and `make test`; each makes .venv where there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint tiny benchmark figures notebooks

demo: $(VENV)/.installed
	$(BIN)/llava-probe demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy llava_probe

# The tiny model's weights again, from a seed: about an hour on two cores.
tiny: $(VENV)/.dev
	$(BIN)/python -m llava_probe.tiny.train --out llava_probe/tiny/weights

# Time and memory of capture beside plain generate, eager attention and transformers' own recorders.
benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/capture.py

figures: $(VENV)/.dev
	$(BIN)/python figures/make.py

# Run the notebooks again and keep their outputs.
notebooks: $(VENV)/.dev
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

$(VENV)/.installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed
