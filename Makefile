# make demo   boots a small guest under a private libvirt daemon, looks into it, takes it down
# make test   all tests, those that boot real guests too; make fast leaves these out. Tests that run on one kernel after the
#             other do so on two; PYTEST_ARGS=--all-kernels has them run on all, PYTEST_ARGS=--no-xen leaves out the Xen host
# make coverage   the same, and which parts of the code no test ran, the commands that tests start among it
# make lint   ruff and mypy
# make benchmark   vmi-inside beside its peers on guests of several sizes: an hour, and 280 MB to fetch
# Each sets up what it needs on a Debian-like machine, as root or with sudo: see tests/lab/setup.sh.

VENV := .venv
PYTEST_ARGS ?=
# Reading a QEMU process, and a libvirt daemon of one's own, are root's.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo -E)

.PHONY: demo test coverage fast lint benchmark system setup clean

demo: setup
	$(AS_ROOT) $(VENV)/bin/python -m tests.lab demo

test: setup
	$(AS_ROOT) $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

coverage: setup
	$(AS_ROOT) $(VENV)/bin/python -m coverage erase
	$(AS_ROOT) $(VENV)/bin/python -m coverage run -m pytest $(PYTEST_ARGS)
	$(AS_ROOT) $(VENV)/bin/python -m coverage combine --quiet
	$(VENV)/bin/python -m coverage report --skip-covered --sort cover

fast: setup
	$(VENV)/bin/python -m pytest --no-lab $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy --strict vmi_inside

benchmark: setup
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -e '.[benchmark]'
	$(AS_ROOT) benchmarks/run

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.cfg tests/lab/python.sh | system
	"$$(tests/lab/python.sh)" -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

system:
	tests/lab/setup.sh

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
