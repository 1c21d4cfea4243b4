# make run    set-up, then the experiment of params.yaml
# make test   set-up, then the tests
# make experiment NAME=cifar10   switch to another experiment
# make experiment NAME=my_images DATA=folder   to one on images of your own
# make help   all targets
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
UV := 0.13.9
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test slow watch mutants kills slurm-test seeds emm settings dependencies experiment audit release report-for-others setup lint lock audit-pins clean help

run: setup ## runs the experiment of params.yaml
	@snakemake

test: setup ## runs the tests
	@python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not slurm"

slow: setup ## runs the tests that take minutes
	@python -m pytest -m slow

mutants: setup ## puts plausible mistakes into copies of the code, one at a time, and tells which of them no test notices; ONLY=score: only those of score
	@python tests/mutate.py $(ONLY)

kills: setup ## kills a small experiment 20 times, and compares the result with an undisturbed run
	@python tests/kill_harness.py

slurm-test: setup ## runs a small experiment on a Slurm cluster of two nodes, started on this machine; on Debian, as root, it first installs slurm-wlm and munge if they are missing
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; }
	@python -m pytest -m slurm

watch: setup ## shows curves of the stages that train, in a browser, of what was started with REDISTRIBUTE_LIVE=1
	@mkdir -p logs/live && tensorboard --logdir logs/live

settings: setup ## lists every key of params.yaml with its meaning, type, range and default; ONLY=train: only keys that begin with train
	@python workflow/scripts/settings.py $(ONLY)

dependencies: setup ## updates the lists of code files in dvc.yaml to what the phases import
	@python workflow/scripts/dependencies.py

seeds: setup ## runs the experiment of params.yaml with seeds 0, 1 and 2, in a copy under scratch/seeds
	@python workflow/scripts/seeds.py 0 1 2

emm: setup ## with SIZES="8 16 32": the largest number of training images that each arm memorises to 90 % (Gu et al. 2023), in copies under scratch/emm
	@python workflow/scripts/emm.py $(SIZES)

audit: setup ## with GENERATED=dir TRAIN=dir: which training images a generator gives out; HELDOUT=dir adds what is chance; folders, .zip, .npz, or a saved pipeline; SIZE=, NUM_IMAGES=, SHOW_IMAGES=, OUT=
	@python -m stages.audit $(if $(GENERATED),--generated "$(GENERATED)") $(if $(TRAIN),--train "$(TRAIN)") $(if $(HELDOUT),--heldout "$(HELDOUT)") $(if $(OUT),--out "$(OUT)") $(if $(SIZE),--size "$(SIZE)") $(if $(NUM_IMAGES),--num-images "$(NUM_IMAGES)") $(if $(SHOW_IMAGES),--show-images "$(SHOW_IMAGES)")

release: setup ## with ARM=ddpm: exports a model for diffusers, with a model card; ROUND=, SEED=, WEIGHTS= choose another than the last that shows no copies
	@python workflow/scripts/release.py $(ARM) $(if $(ROUND),--round $(ROUND)) $(if $(SEED),--seed $(SEED)) $(if $(WEIGHTS),--weights $(WEIGHTS))

report-for-others: setup ## writes report-for-others.html, a page that neither shows nor names an image
	@python -m stages.report --for-others

experiment: setup ## with NAME=cifar10: copies experiments/cifar10.yaml to params.yaml; with NAME=my_images DATA=folder: writes a params.yaml that fits the images of a folder
	@python workflow/scripts/experiment.py $(NAME) $(if $(DATA),"$(DATA)")

setup: $(READY) ## installs the project's environment into .venv, from the lock file with hashes; without git, tells DVC so
	@python workflow/scripts/checkout.py

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"error: Python {sys.version.split()[0]} found, 3.11 or newer expected: make PYTHON=/path/to/python3.11 run")'
	@echo "Setting up $(VENV): about 7 GB of packages, a minute or more (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.txt
	@touch $@

lint: setup ## checks the style: ruff, snakefmt, snakemake --lint
	@ruff check . && ruff format --check . && snakefmt --check workflow && snakemake --lint

lock: setup ## renews requirements.txt from requirements.in
	@$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet requirements.in -o requirements.txt

audit-pins: setup ## checks the pins of requirements.txt against a database of known vulnerabilities
	@python workflow/scripts/audit_pins.py

clean: ## removes artifacts, logs and scratch; DVC's cache keeps its copies
	@rm -rf artifacts scratch logs report.html report-for-others.html

help: ## lists these targets
	@grep -hE '^[a-z-]+:.*' Makefile | sed -E 's/:[^#]*(## )?/\t/' | sort
