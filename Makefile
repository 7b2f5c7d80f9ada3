# Two commands: make quickstart, make test. Each sets up its own .venv, once; make setup does only that.
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
MODEL := $(VENV)/.model

.PHONY: setup quickstart test check
.DELETE_ON_ERROR:

setup: $(INSTALLED) $(MODEL)

quickstart: setup
	$(VENV)/bin/reticent run recipes/quickstart.yaml

test: $(INSTALLED)
	VIRTUAL_ENV=$(abspath $(VENV)) scripts/test

check: $(INSTALLED)
	VIRTUAL_ENV=$(abspath $(VENV)) scripts/check

$(INSTALLED): pyproject.toml constraints.txt scripts/setup
	scripts/setup "$(PYTHON)" "$(VENV)"
	@touch $@

$(MODEL): $(INSTALLED)
	$(VENV)/bin/python -m reticent.models.bundled
	@touch $@
