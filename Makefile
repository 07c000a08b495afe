# make course   install into .venv, run the lessons, write runs/latest/index.html
# make test     install into .venv, run all tests and the linter
# make soak     install into .venv, run the tests that take long
# make real     install into .venv, run lessons 00 to 05 on a true pretrained model of 135M weights, and measure it: two hours
# make lab      install into .venv, open the lessons in JupyterLab
# make browser  run lesson 00 in JupyterLab, and open the latest run's report, in Chromium; CHROMIUM=path names another
# make colab-check   hold what Colab's set-up installs against what Colab has; asks the package index, installs nothing
#
# PYTHON=python3.12 chooses the interpreter, ARGS="--only 02" is handed on to the command.

PYTHON ?= python3
ARGS ?=
CHROMIUM ?= chromium
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: course test soak real lint lab browser colab-check

course: $(INSTALLED)
	$(VENV)/bin/anita course $(ARGS)

# Two files of tests at a time, a core each: a sixth faster than one by one on both. The lessons, which take longest, first.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/notebooks tests/unit --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

soak: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m soak $(ARGS)

# Killed, it goes on where it was when it is called again.
real: $(INSTALLED)
	$(VENV)/bin/python benchmarks/real_model.py $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .

lab: $(INSTALLED)
	GOMP_SPINCOUNT=1000 $(VENV)/bin/jupyter lab notebooks

browser: $(INSTALLED)
	$(VENV)/bin/python scripts/browser_lab.py --chromium "$(CHROMIUM)"
	$(VENV)/bin/python scripts/browser.py --chromium "$(CHROMIUM)" $(ARGS)

colab-check: $(INSTALLED)
	$(VENV)/bin/python scripts/check_colab.py --pip

# The stamp is newer than what it was installed from, so a second call installs nothing and needs no network.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "The course needs Python 3.11 or later; name one, for instance: make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module does not work; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable '.[corpus,dev,lab,web]'
	@touch $@
