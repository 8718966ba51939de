# Two commands do all the set-up on a fresh machine: `make demo` draws, `make test` runs everything that CI runs.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
# Further arguments of `make gpu`, such as GPU='overhead pictures --again'.
GPU ?=
PY := $(VENV)/bin/python
# Test files run beside each other, one process for each core of a small machine; those of a WebUI one after the other.
WORKERS ?= $(if $(HPS_WEBUI),0,2)

.PHONY: demo demo-ui bench test lint types unit perf gpu clean

demo: $(VENV)/.installed
	$(PY) -m demo.draw --out $(OUT)/demo

# The accordion on a page of its own, drawing with the tiny model: http://127.0.0.1:7870
demo-ui: $(VENV)/.installed
	$(PY) -m demo.ui

test: lint types unit

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed
	$(VENV)/bin/mypy

# With HPS_WEBUI set to an A1111 v1.10.1 folder (its venv inside), the tests in tests/webui/ run too.
unit: $(VENV)/.installed
	$(PY) -m pytest -n $(WORKERS) --dist loadfile

# Tables and plots in docs/; under an hour on two cores.
bench: $(VENV)/.installed
	$(PY) -m bench

perf: $(VENV)/.installed
	$(PY) -m bench.perf

# Proves the package on a GPU, measures there, and writes docs/gpu.md, in under ten minutes; the same again goes on where it
# stopped. It installs nothing: without $(VENV) it takes the machine's own Python with its torch.
gpu:
	$(if $(wildcard $(VENV)/.installed),$(PY),$(PYTHON)) -m bench.gpu $(GPU)

# pip says what it is doing, as this takes minutes.
$(VENV)/.installed: tests/requirements.txt tests/requirements-no-deps.txt tests/check_python.py
	@$(PYTHON) tests/check_python.py
	@echo "Setting up $(VENV) once, with what tests/requirements.txt names: PyTorch, gradio, diffusers and others."
	@echo "That is about 2 GB (more where PyTorch brings CUDA along) and takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r tests/requirements.txt
	$(PY) -m pip install --disable-pip-version-check --no-deps -r tests/requirements-no-deps.txt
	touch $@

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
