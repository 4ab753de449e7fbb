PYTHON ?= python3
JOBS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
DEMO := runs/demo
# With CPU=1; PyPI's wheels for Linux on x86_64 hold CUDA.
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.PHONY: help demo test test-nnunet test-reliability browser install docs lint clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:
	@echo "make demo               install, make phantom data, train, evaluate, report"
	@echo "make test               install, all tests"
	@echo "make test-reliability   the tests that kill runs and damage files in their long form, and all that take long"
	@echo "make test-nnunet        those of the plug-in of nnU-Net, which needs another timm, in an environment of its own"
	@echo "make browser            Debian's Chromium, in which a test opens report.html; without one that test is skipped"
	@echo "make docs               the documentation as a site, in site/"
	@echo "make install, lint, clean   what demo needs (test installs more; CPU=1 for CPU wheels), the linters, remove all that was made"

demo: $(INSTALLED)
	@echo "== training on phantoms (made on first use in data/Phantom); a few minutes on 2 cores"
	@rm -rf $(DEMO)
	$(RUN) train.py --dataset Phantom --cfg configs/phantom_demo.yaml --output_dir $(DEMO)
	@echo "== evaluating on unseen phantoms"
	$(RUN) test.py --output_dir $(DEMO)
	@echo "== a network of the zoo on its sample"
	$(RUN) test.py --checkpoint zoo/hippocampus_unet --input zoo/samples/hippocampus_037.nii.gz --output $(DEMO)/zoo
	@echo "== done: open $(DEMO)/report.html and $(DEMO)/zoo/overlays"

# One thread a process: the processes share the cores.
test: $(DEVELOPMENT)
	@echo "== running all tests"
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadgroup

test-reliability: $(DEVELOPMENT)
	@echo "== running all kills, the whole fuzz and what else takes long"
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadgroup -m "reliability or long" --long

NNUNET := .venv-nnunet

test-nnunet: $(NNUNET)/.installed
	OMP_NUM_THREADS=1 $(NNUNET)/bin/python -m pytest tests/selfreg/test_nnunet.py

$(NNUNET)/.installed: requirements.txt
	@$(PYTHON) -m venv $(NNUNET)
	@grep -v '^timm' requirements.txt > $(NNUNET)/requirements.txt
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check -r $(NNUNET)/requirements.txt nnunetv2==2.8.1 pytest
	@touch $@

browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		[ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; \
	} || echo "== no Chromium, and it cannot be installed here: as root, apt-get install chromium"

install: $(INSTALLED)
	@echo "== the environment is in $(VENV): source $(VENV)/bin/activate"

docs: $(DEVELOPMENT)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	@echo "== open site/index.html: $(RUN) -m http.server --directory site"

lint: $(DEVELOPMENT)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy . && $(VENV)/bin/mypy --strict selfreg

clean:
	rm -rf $(VENV) $(NNUNET) $(DEMO) data/Phantom site

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12"; exit 1; }
	@echo "== making the environment in $(VENV) and installing into it; a few minutes"
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(if $(CPU),$(RUN) -m pip install --quiet --disable-pip-version-check --index-url $(CPU_WHEELS) $$(grep ^torch requirements.txt))
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEVELOPMENT): requirements-dev.txt $(INSTALLED)
	@echo "== installing what the tests need"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
