# Two commands: `make demo` shows the station at work, `make test` proves it. Both set up what they need.
VENV ?= .venv
PY := $(VENV)/bin/python
DATA ?= ../shared/data
WORK ?= $(HOME)/.cache/talus

.PHONY: demo test check model clean

demo:
	@.ci/setup $(VENV) demo
	@$(PY) -m agent.demo

test:
	@.ci/setup $(VENV) dev mosquitto
	$(PY) -m pytest $(TESTS)

check:
	@.ci/setup $(VENV) dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

model:
	@.ci/setup $(VENV) train
	$(PY) -m quantize model --data $(DATA) --work $(WORK) --out agent/models/default

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
