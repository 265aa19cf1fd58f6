# make reproduce   set up, run the laptop grid, execute the notebooks, print the table and the figures' paths
# make test        set up, lint, type-check, run the quick tests      (make test-slow: the minutes-long ones)
# make slurm-test  the launcher on a real SLURM of two nodes, started for the tests (Debian, root)
#                  with 10 random faults; with 30: .venv/bin/python -m pytest -m slurm
# make verify      notebooks, ledger and the report's numbers once more: CSV and TeX must come out as committed
# make paper       the report: paper/paper.pdf (Debian's TeX, installed if missing);  make report  notebooks as one page
# make fashion   Fashion-MNIST, from Debian's package or a download;  make weights  the pretrained ViT-S/14
# make cifar10   CIFAR-10 from its authors;  make imagenette  Imagenette from fast.ai (docs/data.md)
# make evidence  the smallest column of grid evidence: one seed, four methods at half of the MACs (two cores: 45 min)
# make integrations  Lightning, transformers and pyarrow, installed into the environment, and their tests
# make openvino    OpenVINO and NNCF, installed into the environment, and the tests of all that networks run in elsewhere
# make oldest      the oldest versions that pyproject.toml allows, in an environment of their own, and the quick tests;
#                  make newest  the newest ones, whatever the locks say
# make setup CUDA=12   PyTorch for older drivers and GPUs, from requirements-cuda12.lock; all targets take it
# make wheel       wheel and sdist in dist/, the wheel tried in an empty environment without the study
# make docs        the documentation as a site: docs/_build/html/index.html
# make release-archive   what a release is made of, in dist/: the repository's tree, wheel, sdist, metadata for a DOI
# make lock        resolve both locks anew from pyproject.toml (needs uv)
# Where nothing may be kept, each of hundreds of processes would compile all that it imports, for half a minute.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CUDA ?= 13
LOCK := requirements$(if $(filter 12,$(CUDA)),-cuda12).lock
STAMP := $(VENV)/.installed$(if $(filter 12,$(CUDA)),-cuda12)
RESULTS ?= results/local

.PHONY: openvino oldest newest integrations fashion cifar10 imagenette weights evidence setup reproduce test test-slow slurm-test verify lint release paper report \
  wheel docs release-archive lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

# Bytecode is left to the first import: compiling every installed module takes longer than the study's first run.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	rm -f $(VENV)/.installed*
	touch $@

reproduce: $(STAMP)
	$(BIN)/python slurm/launch_grid.py --results $(RESULTS)
	$(BIN)/python -m analysis.execute --results $(RESULTS)

# Tests run side by side, a file at a time and one thread each: TEST_WORKERS=0 is one after the other, for a debugger.
TEST_WORKERS ?= 2
LONGEST := --durations=30 --durations-min=5
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile $(LONGEST)

# Tests on SLURM mostly wait: where both are asked for, slow tests run beside them. Others wait for their turn, since a
# test may look at what another target writes.
ifneq ($(and $(filter test-slow,$(MAKECMDGOALS)),$(filter slurm-test,$(MAKECMDGOALS))),)
MAKEFLAGS += -j2 --output-sync=target
SLOW_WORKERS := 0
test-slow slurm-test: | $(filter test,$(MAKECMDGOALS))
verify: | $(filter test test-slow slurm-test,$(MAKECMDGOALS))
endif

test: lint
	$(PYTEST) -n $(TEST_WORKERS) -m "not slow and not slurm"

test-slow: $(STAMP)
	$(PYTEST) -n $(or $(SLOW_WORKERS),$(TEST_WORKERS)) -m "slow and not slurm"

slurm-test: $(STAMP)
	which slurmctld munged slurmdbd mariadbd >/dev/null || (apt-get update -qq && \
	  apt-get install -y -qq --no-install-recommends slurm-wlm munge slurmdbd mariadb-server) || \
	  echo "SLURM cannot be installed here: its tests are skipped"
	$(BIN)/python -m pytest $(LONGEST) -m "slurm and not slow"

# Figures are left out: their bytes depend on the machine's fonts.
WRITTEN := 'results/*.csv' 'results/*.tex' 'paper/*.tex' README.md 'docs/*.md'
verify: $(STAMP)
	$(BIN)/python -m analysis.execute --results results --out "$$(mktemp -d)"
	$(BIN)/python -m analysis.claims --results results
	$(BIN)/python -m analysis.paper --results results
	git --no-pager diff --exit-code -- $(WRITTEN)
	! git ls-files --others --exclude-standard -- $(WRITTEN) | grep .

# Extras of their own, so that the main set-up does not grow.
integrations: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[integrations,parquet]'
	$(BIN)/python -m pytest tests/test_integrations.py tests/test_layouts.py tests/test_huggingface.py

openvino: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[runtimes]'
	$(BIN)/python -m pytest tests/test_export.py tests/test_deploy.py

# The bounds of pyproject.toml, tried: what is named there as old (or as new) as it may be, what that needs at its newest.
oldest newest:
	$(PYTHON) -m venv $(VENV)-$@
	$(VENV)-$@/bin/pip install --quiet --disable-pip-version-check uv
	$(VENV)-$@/bin/uv pip install --quiet --python $(VENV)-$@/bin/python --upgrade \
	  --resolution $(if $(filter oldest,$@),lowest-direct,highest) -e '.[study,dev,integrations,runtimes]'
	$(VENV)-$@/bin/python -m pytest -m "not slow and not slurm" \
	  --deselect tests/test_ground.py::test_what_is_installed_is_what_the_lock_says

# The library alone, as a user installs it: in an environment of its own, away from this folder. TORCH: another index
# where pip finds torch, one of builds without CUDA, say.
wheel:
	rm -rf dist build $(VENV)-wheel
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet --disable-pip-version-check build
	$(VENV)-wheel/bin/python -m build --outdir dist . >/dev/null
	rm -rf build *.egg-info
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/pip install --quiet --disable-pip-version-check $(if $(TORCH),--extra-index-url $(TORCH)) dist/*.whl
	cd $$(mktemp -d) && $(abspath $(VENV))-wheel/bin/python -I $(CURDIR)/tests/try_wheel.py

docs: $(STAMP)
	$(BIN)/python -c "import sphinx, furo, myst_nb, sphinx_copybutton" 2>/dev/null || \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
release-archive: wheel
	git archive --format=tar.gz --prefix=hiap-$(VERSION)/ -o dist/hiap-$(VERSION).tar.gz HEAD
	cp CITATION.cff CHANGELOG.md .zenodo.json dist/
	cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini tests

# What is committed under results/: our own records, and the notebooks executed on them.
release: $(STAMP)
	$(BIN)/python slurm/launch_grid.py --results results
	$(BIN)/python -m analysis.execute --results results --in-place

paper: $(STAMP)
	command -v pdflatex >/dev/null || \
	  (apt-get update -qq && apt-get install -y -qq --no-install-recommends texlive-latex-recommended texlive-fonts-recommended lmodern)
	$(BIN)/python -m analysis.claims --results results >/dev/null
	$(BIN)/python -m analysis.paper --results results
	cd paper && for i in 1 2; do pdflatex -interaction=nonstopmode -halt-on-error paper.tex >/dev/null || (tail -n 30 paper.log; exit 1); done

report: $(STAMP)
	$(BIN)/python -m analysis.report

fashion: $(STAMP)
	$(BIN)/python -m hiap.data.fashion_mnist

cifar10 imagenette: $(STAMP)
	$(BIN)/python -m hiap.data.originals $@

weights: $(STAMP)
	$(BIN)/python -m hiap.formats.pretrained

EVIDENCE := hiap-50 vit_slim-50 taylor-50 uniform-noise-50
evidence: fashion weights
	$(BIN)/python slurm/launch_grid.py --grid evidence --seeds 0 --only $(EVIDENCE) --results $(RESULTS)
	$(BIN)/python -m analysis.execute --results $(RESULTS) --only 17_evidence

COMPILE := uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-emit-index-url \
  --extra study --extra dev pyproject.toml
lock:
	$(COMPILE) -o requirements.lock
	cp requirements.lock requirements-cuda12.lock  # so that all else keeps its version
	$(COMPILE) --constraint requirements-cuda12.in -o requirements-cuda12.lock

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-wheel dist docs/_build results/local
