"""The prose of docs/recipe.md, in order, with its example recipes; docs/write_recipe_page.py puts the tables between."""

from collections.abc import Mapping

I_LORA = """model: microsoft/deberta-v3-base     # hub name or folder
method: i-lora
preset: loss-per-parameter           # values for the choices that this recipe leaves out; the default
budget: keep=50%                     # half of the triplets that the search starts with
data: {name: nyu-mll/glue, config: cola, text: sentence}
baselines: [lora]                    # uniform LoRA at the same number of parameters
triplets: {initial_rank: 4}          # in every module
measure: {fraction: 0.1}             # of the training data, held out to score on
cut:
  stop_when_stable: {share: 0.05}    # the search may end early
search:                              # decides the ranks; its adapter is thrown away
  share: 0.3                         # of what train costs; or epochs, or max_steps
  learning_rate: 2.0e-3
train:                               # trains the adapter that is served, and the baseline's
  epochs: 10
  learning_rate: 5.0e-4
"""

IGU_LORA = """model: HuggingFaceTB/SmolLM2-135M-Instruct
method: igu-lora
budget: 0.5%                         # of the base model's parameters
data: {name: openai/gsm8k, config: main, test_split: test, task: gsm8k}
triplets: {initial_rank: 8}
cut: {begin: 0.1, end: 0.6}          # shares of the training; whole numbers are steps
train:                               # decides the ranks and trains the adapter that is served
  epochs: 3
  learning_rate: 2.0e-3
"""

SENSITIVITY_LORA = """model: microsoft/deberta-v3-base
method: sensitivity-lora
budget: 0.33M
data: {train: train.tsv, test: dev.tsv, text: sentence, label: label}
measure: {examples: 256}
ranks: {max_rank: 16}
baselines:                           # names alone, [lora, eva], or each with sections of its own
  lora: {}
  eva:
    measure: {examples: 64}
train:
  epochs: 10
  learning_rate: 5.0e-4
"""

HEAD = f"""# Recipes

A recipe is a YAML file that describes a whole run: `lorank run recipe.yaml --output runs/mine`. Three complete ones:

**I-LoRA**: a first stage, `search`, decides the ranks. A second stage, `train`, trains the adapter.

```yaml
{I_LORA}```

**IGU-LoRA** (and AdaLoRA): ranks are decided in `train`, and the adapter of that stage is kept.

```yaml
{IGU_LORA}```

**Sensitivity-LoRA** (and `gradient`, `magnitude`, `eva`): ranks are decided before training, from the frozen model.

```yaml
{SENSITIVITY_LORA}```

**`lorank init MODEL DATA`** writes a first recipe, with a comment behind each value. `MODEL` is a hub name or a folder, of
which the config and the tokenizer are read; `DATA` is a file or the name of a hub data set. The task comes from the columns
(`messages`; `prompt` and `completion`; `text` alone; those of [tasks.md](tasks.md); texts with a label), lengths from the first
200 rows, the dtype from the checkpoint, learning rates from the examples of this page and of [tasks.md](tasks.md). It says
what it chose and why. Where columns fit several tasks or none, it says what there is and what to give (`--task`, `--text`,
`--label`). An encoder gets labels only. `--method`, `--budget` and `--test FILE` are as in the recipe:

```sh
lorank init microsoft/deberta-v3-base train.tsv --test dev.tsv --text sentence --budget 0.33M
lorank init HuggingFaceTB/SmolLM2-135M-Instruct chat.jsonl --method igu-lora --output chat.yaml
```

Recipes that run on a CPU, with data that `make quickstart` downloads, are in [examples](../examples/quickstart.yaml). The
[papers' experiments](../src/lorank/recipes/README.md) are installed with lorank:

```sh
lorank recipes
lorank recipes copy i-lora/deberta-v3-base-cola
```

## The keys that most runs set

Everything else has a default that you can leave alone.

| key | |
|---|---|
"""

SECTIONS = """
## Sections

**A method is a set of six choices, and a recipe has a section for each of them.** The preset of the method fills in what
the recipe leaves out. Not every method has all six. A key that the recipe's method does not have is refused.

| section | what is chosen | methods that have it |
|---|---|---|
"""

MOST_SET: Mapping[str, str] = {
    "`model`": "hub name or folder; `model: {name: ..., dtype: bf16, quantization: 4bit}` for a large one",
    "`method`": "`igu-lora` and `adalora` decide ranks while they train, `i-lora` in a first stage, `sensitivity-lora` before",
    "`budget`": "`r=8` is what LoRA has with rank 8 in every module. AdaLoRA's default counts units of rank: it keeps 8 a module "
    "on average, and as units do not cost the same, its adapter has a few more or fewer parameters than LoRA's",
    "`data`": "`train` (a file) or `name` (of a hub data set), `task`, and the columns",
    "`data.eval`": "examples to watch the loss on while training: a file, or a share such as 0.1",
    "`data.max_length`": "tokens of an example; longer ones are cut",
    "`train.epochs` or `train.max_steps`": "how long",
    "`train.learning_rate`": "triplets (`igu-lora`, `adalora`, and `search` of `i-lora`) want a larger one than LoRA's factors: "
    "the examples here have 2.0e-3 and 5.0e-4, `lorank compare --search` tries others",
    "`train.batch_size`, `train.gradient_accumulation`": "examples in a pass, and passes in an optimizer step",
    "`baselines`": "`[lora]` trains uniform LoRA with the same parameters beside it: the only way to see whether ranks helped",
}

MEANINGS: Mapping[str, str] = {
    "triplets": "how many units of rank every module starts with, where they start, and how they are regularised",
    "measure": "which number is the score of a unit or of a module, on which examples, and how often",
    "smooth": "how the scores of many batches become one score",
    "cut": "when units are cut, and how fast the budget falls",
    "ranks": "how scores become ranks, and the limits of a module's rank",
    "start": "whether the served adapter keeps the trained triplets or starts fresh, and its scale",
}

STAGES = """
Two sections are stages of training, with the same keys:

- **`train` is always the stage whose adapter is served.** Every method has it.
- **`search` is a first stage that decides the ranks and whose adapter is thrown away.** A method has it if it decides ranks
  while triplets train and then starts fresh (`start: {factors: fresh}`): I-LoRA, and the preset `official` of IGU-LoRA.
  These are the two stages of I-LoRA's paper. What `search` leaves out is as in `train`, but for its length.

**How long is `search`?** As its `epochs` or `max_steps` say. Without them it has a share of what `train` costs: `share: 0.3`,
the default of I-LoRA's preset `loss-per-parameter`, lets steps and scoring passes together cost at most 30 % of the passes of
`train`, which is about a fifth of its steps (and at least 10). So the whole run costs at most 1.3 times that of LoRA.
`lorank run` says how many steps these are, and writes them into the recipe of the run. With preset `paper`, or
`share: null`, it is as long as `train`.

With `start: {factors: kept}` (the default of IGU-LoRA and AdaLoRA) there is no `search`: triplets train in `train` and are
kept.

**`baselines`** are methods that are trained and evaluated beside the recipe's, at the parameters of its plan: a list of
names, or names with sections of their own, as in the third recipe. A baseline may have a `budget` of its own, as in the
tables of papers. It has its default preset, unless its own sections have `preset`. It takes over `model`, `data`, `budget`,
`train`, `search`, `triplets.initial_rank`, `start.scale_by` and the limits in `ranks` (IGU-LoRA and AdaLoRA do not take
these limits). Methods that score the frozen model share `measure.examples` and `measure.batch_size`. A baseline that keeps
its triplets trains at the learning rate of `search`, if there is one: triplets need another learning rate than the factors
of a LoRA.

**`full`** among the baselines is full fine-tuning: every weight is trained, without adapters, on the same data and as `train`
says, but at a learning rate of its own, 5e-5 unless you give another: `baselines: {full: {train: {learning_rate: 2.0e-5}}}`.
Budget and ranks do not concern it, so its section can have `train` only. Its metrics, and how many parameters it trains
(the head is not counted), are in the result table, in `metrics.json` and in the model card. The model itself is not kept: the
checkpoints, with two moments for each weight, are deleted when the result is written. `lorank compare --methods full,...` trains
it in the same way.

## Steps that are not finite

With `on_nonfinite: stop` (the default) a loss that is not finite ends the run, with an error that names the step; the losses are
looked at when something is logged or saved, so no step waits for the GPU.
With `skip` an optimizer step whose loss or gradients are not finite is left out, in all methods and both stages:

- Weights, the optimizer's state, scores and cuts are as if there had been no such step. One bad micro-batch of an
  accumulated step makes the whole step bad, and of several processes one of them. A cut that was due at the step falls
  away; the last cut is then made at the next step.
- The step count, the learning-rate schedule and the order of the data go on. In the log the last finite loss stands for a
  bad one. In `fp16` the loss scaler leaves steps out anyway, and these count as skipped. The schedule waits for them, but not
  with a fused optimizer (the Trainer's default since torch 2.8): accelerate does not notice there.
- It costs time: each step waits once for the GPU.
- **Limits**: ten skipped steps in a row end the run, and so do more than ten that are more than a tenth of the stage's
  steps: the weights or the data are bad. A weight that is not finite already ends it at once.
- The log says how many there were so far; a warning at the end says how many, and which was the first.
  `skipped_steps` in `metrics.json` has their
  numbers, the table of results and the report their count. A checkpoint keeps them.

A run that stopped may go on: `lorank run recipe.yaml train.on_nonfinite=skip`, into the same folder, continues from the
last checkpoint, or begins again where there is none (this is the one key that may change between two calls).
`search` takes the key from `train`, unless it has
its own; `full` and other baselines take that of `train`. In `lorank compare` the key has to be the same for all methods.
Adapters that `lorank headroom` and `lorank suggest` train side by side leave no step out, and a note says so.

## Budgets

`budget` is a number of adapter parameters, in one of these forms ([budgets.md](budgets.md) says what is counted):

| budget | parameters, with `c_m = d_in + d_out` the cost of one unit of rank of module m, and n modules |
|---|---|
"""

AFTER_BUDGETS = """
`keep` says what stays, `beta` says what goes. `beta` is the word of I-LoRA's paper, its pruning ratio β: `keep=75%` and
`beta=0.25` are the same budget. With 36 modules of initial rank 8 there are 288 units, and `keep=75%` keeps the best 216 of them,
whatever they cost. Baselines get the parameters that these cost.

Groups of modules can have budgets of their own, `budget: {vision_model: r=2, language_model: 20M}`:
[budgets.md](budgets.md#a-budget-for-each-group-of-modules).

## What is checked

Any key can be overridden on the command line: `lorank run recipe.yaml train.epochs=1 measure.every=2`. Values are YAML.
With `method=NAME` the choices that the file makes for its own method do not apply, as for a baseline.
Unknown keys are refused with the nearest valid one. Paths are relative to the folder in which `lorank` runs. The resolved
recipe, with versions, seed and hashes of data and base model, is written into the output directory, and can be run again.

Everything that can be checked is checked before weights are loaded, and all findings are reported at once. Where a recipe
leaves them out, `data.max_length` and `data.max_target_length` shrink to the positions of a short model, and
`measure.scoring_batch_size`, `measure.examples` and the `batch_size` of a stage to small data, with a line that says so. A
value that the recipe gives is never changed: what does not fit is refused.

A run is not continued with other data or another base model. For a model from the hub its commit is compared; for a folder
the SHA-256 of its weights, config and tokenizer. Weights in files above 512 MiB are sampled: names, shapes, types, and the
first and last 4 KiB of each tensor. Training, merging or converting a model changes these; an edit of single entries in the
middle of a large tensor can go unnoticed.

## Keys of every recipe

These tables are written from the code by `python docs/write_recipe_page.py`.
"""

MODEL_NOTES = """
**Which dtype.** `model.dtype` is that of the base model's weights, `precision` that of autocast in the forward pass. With
`precision: fp32` there is no autocast: a bf16 base computes in bf16. Adapters, heads that train with them, scores and the
optimizer's state are fp32 whatever the base is in. Left out, the dtype is the checkpoint's, and a line of output says so
where that is not fp32. The recipe of a run names it, so a run is never continued in another one: runs that an earlier version
began, and recipes of format 1, stay in fp32. `baselines: [full]` trains in fp32. Estimator `hutchinson` needs `model.dtype:
fp32`.

**Quantised bases** need bitsandbytes (`pip install bitsandbytes`). The layers of the blocks are packed; output layer, heads
and poolers are not. Nothing of the base model is turned into fp32 for training (PEFT's `prepare_model_for_kbit_training` does
that to embeddings, norms and the output layer), so it stays as small as it was loaded. Give `model.dtype: bf16` on a GPU
where the checkpoint is in fp32: it is what 4-bit matrix products are computed in. A checkpoint that is saved in 4 or 8 bit is
loaded as it is, without `model.quantization`. The model card of the adapter says how its base was loaded.

**Modules that train whole.** `model.modules_to_save: [embed_tokens, lm_head]` trains these modules beside the adapters, in every
stage, as PEFT's option of that name. They are in the adapter's file and not in the budget; a line of output and the model card
say how many parameters they are. PEFT trains a copy and keeps the base's own module: on a bf16 base the copy is fp32, so such a
module costs its size again, twice as wide, with gradients and the optimizer's state. An output layer that shares the
embedding's weight trains with it as one (`ensure_weight_tying`). A target of the adapters is refused, and a linear layer that is
named is not quantised. Plain PEFT loads the adapter; on a bf16 base it holds these modules in bf16, which rounds them, and runs
are evaluated so. Most serving engines refuse or lose them: `lorank verify` says which, and `lorank merge` adds them to the model.

**New tokens.** `model.new_tokens: ["<|im_start|>", "<|im_end|>"]` adds special tokens to the tokenizer, and gives the embeddings
rows for them where they have none to spare (drawn around the mean of the others, as transformers does). Only these rows train, in
fp32 (PEFT's `trainable_token_indices`), in the embedding and in an output layer that does not share its weight. The adapter's
folder has the tokenizer. PEFT needs a base with as many rows; the model card has the lines that load it:

```python
tokenizer = AutoTokenizer.from_pretrained("adapter")
base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().num_embeddings))
model = PeftModel.from_pretrained(base, "adapter")
```

No serving form can carry new tokens: `lorank export` refuses them, `lorank merge` makes a whole model with its tokenizer.
Encoder-decoders are refused. `lorank headroom` and the short runs of `lorank suggest` train adapters and heads alone, on both.
"""

STAGE_KEYS = """
## Keys of `search` and `train`

As in transformers' `TrainingArguments`; `share` is of `search` alone.
"""

CHOICE_KEYS = """
## Keys of the six choices

The first table has the values of the default preset, and a second table shows where the presets of a method differ. A1 to
A15 are places where I-LoRA's paper can be read in several ways ([i-lora.md](i-lora.md) lists them). In Python the same
options are keywords of `RankAllocation` and `AllocationLoop` ([in-training.md](in-training.md#options)).

`start.scale_by: rslora` is the scale of rsLoRA (arXiv 2312.03732) for each module's own rank: alpha / sqrt(r), with an alpha of
`scale` times `triplets.initial_rank`. The adapter says it in `alpha_pattern`, as alpha · sqrt(r), and leaves `use_rslora` off.
Engines that do not know rsLoRA scale it so as any other adapter of mixed ranks. Methods that keep the triplets that they trained
(adalora, igu-lora) keep their scale, and take `initial` alone; `lorank compare` needs one scale for all, and does so too.
"""

EXPERT_KEYS = """
## For experts

No preset sets these, and few runs need them. In a recipe they are under `expert`, by the section that they belong to
(`expert: {measure: {baseline: initial}}`).
"""

FORMAT_1 = """
## Format 1

Recipes of earlier versions run as they are, with one line that names the new keys. `lorank recipe upgrade FILE` converts a
file where it is. The old file is kept beside it (`recipe.yaml` as `recipe.format-1.yaml`). The comment at the top of the
file is kept; other comments are lost. Finished runs of format 1 are read as well.

| format 1 | format 2 |
|---|---|
"""

AFTER_FORMAT_1 = """
In the output directory the stages are `search/` and `train/` where they were `stage1/` and `stage2/`, and `search` in
`metrics.json` is what was `stage1`. In Python, the keyword `ending="continue"` is now `factors="kept"`, and
`ending="retrain"` is `factors="fresh"`.
"""
