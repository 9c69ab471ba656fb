# Everything runs in .venv, made on the first call. PYTHON names another Python: make PYTHON=python3.12 course
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
AUDIT := $(BIN:.venv/%=.venv/audit/%)
# These are nothing without patients, so say so before anything is installed.
$(if $(filter study oracles,$(MAKECMDGOALS)),$(if $(DATA),,$(error Name the folder of the patients: make $(MAKECMDGOALS) DATA=folder)))

.PHONY: course test chapters coverage test-long lab notebooks figures bench study faults oracles audit
course: .venv/installed
	$(BIN)/unetlib course $(if $(DATA),--data "$(DATA)")

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/pytest -n 2 --dist worksteal
	$(MAKE) chapters

chapters: export COURSE_SHORT := 1
chapters: .venv/installed
	$(BIN)/python -c "import shutil; shutil.rmtree('notebooks/work/short/synthetic', ignore_errors=True)"
	$(BIN)/pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 900 notebooks

coverage: .venv/installed # a third slower than the tests alone
	$(BIN)/pytest -n 2 --dist worksteal --cov=unetlib --cov-report=term-missing:skip-covered

test-long: .venv/installed
	$(BIN)/python -m tests.long $(PART) $(if $(LIMIT),--limit $(LIMIT))

lab: .venv/installed # LAB: flags of JupyterLab, such as LAB="--allow-root --no-browser --ip=0.0.0.0" in a container
	$(BIN)/unetlib lab $(LAB)

notebooks: .venv/installed
	$(BIN)/unetlib course --refresh

figures: .venv/installed
	$(BIN)/python -m figures.make

bench: .venv/installed
	$(BIN)/python -m benchmarks.train_step
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.viewer
	$(BIN)/python -m benchmarks.processes
	$(BIN)/python -m benchmarks.busy
	$(BIN)/python -m benchmarks.scale
	$(if $(DATA),$(BIN)/python -m benchmarks.quality "$(DATA)")
	$(if $(DATA),$(BIN)/python -m benchmarks.race "$(DATA)")

study: .venv/installed
	$(BIN)/python -m studies.ablation "$(DATA)"
	$(BIN)/python -m studies.zero_shot "$(DATA)"
	$(BIN)/python -m studies.protocol "$(DATA)"
	$(BIN)/python -m studies.phantoms "$(DATA)" $(if $(BRATS),"$(BRATS)")
	$(BIN)/python -m studies.best "$(DATA)" $(if $(BRATS),--brats "$(BRATS)")
	$(BIN)/python -m studies.gains "$(DATA)"
	$(if $(BRATS),$(BIN)/python -m studies.regions "$(BRATS)")
	$(if $(BRATS),$(BIN)/python -m studies.networks "$(BRATS)" --rates)
	$(if $(BRATS),$(BIN)/python -m studies.networks "$(BRATS)")
	$(if $(NNUNET),$(BIN)/python -m studies.nnunet "$(DATA)" --nnunet "$(NNUNET)")

faults: .venv/installed
	$(BIN)/python -m tests.faults

oracles: .venv/installed
	$(BIN)/python -m studies.oracles "$(DATA)" $(if $(BRATS_EVALUATE),--brats "$(BRATS_EVALUATE)")
	$(if $(BRATS_EVALUATE),$(BIN)/python -m studies.lesions "$(DATA)" --brats "$(BRATS_EVALUATE)")

audit: .venv/installed .venv/audit/installed
	$(BIN)/python -m tests.audit $(AUDIT)

.venv/audit/installed:
	$(PYTHON) -m venv .venv/audit
	$(AUDIT)/python -m pip install --quiet pip-audit==2.10.1 detect-secrets==1.5.0
	$(AUDIT)/python -c "open('$@', 'w').close()"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	$(BIN)/python -c "open('$@', 'w').close()"
