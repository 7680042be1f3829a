# Two commands for a machine with Python (>= 3.10) and make: `make demo` and `make test`.
# Both install nnU-Net, PyTorch and this package into .venv first; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test say-time lint

demo: $(VENV)/installed
	$(BIN)/nnunet_calib demo -o nnunet_calib_demo

# All tests, in a process a core (PYTEST_ARGS=-n1 for one); plain `pytest` leaves out the slow ones, which run nnU-Net itself.
test: say-time $(VENV)/installed-test lint
	$(BIN)/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)

say-time:
	@echo "All tests: about 11 minutes on two idle cores, after the installation"

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -e '.[test]'
	touch $@ $(VENV)/installed
