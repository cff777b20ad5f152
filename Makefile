# Two commands: `make demo` shows the station at work, `make test` proves it. Both set up what they need.
VENV ?= .venv
PY := $(VENV)/bin/python
DATA ?= ../shared/data
WORK ?= $(HOME)/.cache/talus

.PHONY: bench demo desk test test-train check model release clean test-tensorrt-api test-aarch64

demo:
	@.ci/setup $(VENV) demo
	@$(PY) -m demo.demo

# The pages of the desk over a simulated site, until Ctrl-C: PORT=8088 make desk
desk:
	@.ci/setup $(VENV) demo mosquitto
	@.ci/setup $(VENV) desk
	@$(PY) -m demo.desk --port $${PORT:-8088}

# Two workers more than there are cores: many tests wait for a broker, a clock or a restart. A worker that has run out of
# tests takes some of another's, so that no file of few long tests is left for the end.
test:
	@.ci/setup $(VENV) dev tools
	$(PY) -m pytest -n $$(($$(nproc) + 2)) --dist worksteal -m "not train" $(TESTS)

# The tests that train networks: torch, several hundred megabytes, is installed for them.
test-train:
	@.ci/setup $(VENV) dev tools
	@.ci/setup $(VENV) train
	$(PY) -m pytest -n $$(nproc) --dist loadfile -m train $(TESTS)

check:
	@.ci/setup $(VENV) dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	@if $(PY) -c 'import torch' 2>/dev/null; then $(VENV)/bin/mypy; else \
		echo "check: without torch mypy leaves quantize out (make test-train installs it)"; \
		$(VENV)/bin/mypy -p agent $$([ ! -d desk ] || echo -p desk); fi

model:
	@.ci/setup $(VENV) train
	$(PY) -m quantize model --data $(DATA) --work $(WORK) --out agent/models/default

# Wheel, source archive, list of components (CycloneDX) and checksums in dist/; the same bytes from the same commit.
release: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
release:
	@.ci/setup $(VENV) release
	rm -rf dist
	$(PY) -m build --outdir dist
	$(VENV)/bin/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml -o dist/sbom.cdx.json systemd/requirements.txt
	cp systemd/requirements.txt dist/
	cd dist && sha256sum * > SHA256SUMS

# Every part beside what one would use instead; writes docs/benchmarks.md. `make bench QUICK=1` is the short form.
bench:
	@.ci/setup $(VENV) dev tools
	@$(PY) -m pip install -q --disable-pip-version-check openvino || echo "bench: openvino is not to be had here; it is left out"
	$(PY) bench/run.py --write $(if $(QUICK),--quick)

# Not part of `make test`: fetches about a gigabyte, and what it compares changes only with a new TensorRT.
test-tensorrt-api:
	@.ci/setup $(VENV) dev
	$(PY) tests/tensorrt_api/run.py $(WORK)/tensorrt-api

# As root, on Debian or Ubuntu with mmdebstrap and qemu-user-static: an arm64 system, the wheel in it, compared with this machine; then
# whether every dependency has a wheel for the Python of each JetPack. Fetches about 600 MB.
test-aarch64:
	@.ci/setup $(VENV) dev
	$(PY) tests/aarch64/run.py $(WORK)/aarch64
	$(PY) tests/aarch64/wheels.py $(WORK)/aarch64

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
