"""The model card of an adapter: README.md in its folder, with the picture of its ranks where there is one."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lorank.artefact import versions, write_atomically
from lorank.plan import RankPlan
from lorank.report.markdown import code, in_shell, inline, prose, table
from lorank.report.tables import named_values, parameters_of, rank_markdown, summary_words

CARD = "README.md"
# Only a card that has it is replaced when the adapter is saved again.
MARK = "<!-- This card was written by lorank, which replaces it unless this line is gone. -->"
_PIPELINES = {"CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text2text-generation", "SEQ_CLS": "text-classification"}
_FAMILIES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
_CLASSIFIERS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")  # PEFT trains their head whole
_TEMPLATE = """\
---
{{ card_data }}
---

{{ mark }}

# {{ title }}

A LoRA adapter{{ " for " ~ base if base }} with a rank of its own for every module: \
{{ plan.spending.replace(" parameters", " adapter parameters") }} (budget {{ budget }}), \
total rank {{ plan.total_rank }}, \
{{ adapted }} of {{ plan.ranks | length }} modules. Ranks by {{ method }}{{ ", preset " ~ preset if preset else "" }}, \
with lorank.
{% if picture %}
![rank by layer and projection](ranks.png)
{% endif %}
{{ mean_ranks }}
{% if whole %}
Trained whole beside it, in its file and not in the budget: \
{% for name, size in whole.items() %}{{ name }} ({{ "{:,}".format(size) }} parameters){{ ", " if not loop.last }}{% endfor %}.
{% endif %}
{% if made %}
## How it was made

{% for line in made %}- {{ line }}
{% endfor %}
{% endif %}
{% if ranks %}
<details><summary>Ranks by layer and projection</summary>

{{ ranks }}

</details>
{% endif %}
{{ tables }}
{% if data %}
## Data

{{ data }}

{% endif %}
{% if results %}
## Test results

{{ results }}
One run, seed {{ seed }}.

{% endif %}
## Load it

In PEFT:

```python
from peft import PeftModel
from transformers import {{ family }}{{ ", AutoTokenizer" if resized }}\
{{ ", BitsAndBytesConfig" if "BitsAndBytesConfig" in options }}

base = {{ family }}.from_pretrained({{ base_in_python }}{{ options }})
{% if resized -%}
tokenizer = AutoTokenizer.from_pretrained({{ title_in_python }})  # this folder has new tokens
base.resize_token_embeddings(max(len(tokenizer), base.get_input_embeddings().num_embeddings))
{% endif -%}
model = PeftModel.from_pretrained(base, {{ title_in_python }})  # this folder
```

{% if merges -%}
Serving engines take no adapter with modules that were trained whole or tokens that were added. Make a model of it:

```sh
lorank merge {{ title_in_shell }} merged
```
{% elif classifies -%}
Most engines refuse an adapter with the head of a classifier, or lose the head. PEFT and transformers serve it as above; \
`lorank verify` says which engines do, and `lorank merge` makes a model of it:

```sh
lorank verify {{ title_in_shell }}
lorank merge {{ title_in_shell }} merged
```
{% else -%}
Engines differ in how they scale adapters of mixed rank, so for vLLM, SGLang, TGI, TensorRT-LLM, llama.cpp or Ollama make a form \
that they scale right, and look at what it says:

```sh
lorank export {{ title_in_shell }} served          # one form for all engines, and R; --for vllm, llama.cpp: smaller ones; --gguf
lorank verify served --against {{ title_in_shell }}
vllm serve {{ base_in_shell }} --enable-lora --max-lora-rank R --lora-modules {{ title_in_shell }}=served
```
{% endif %}
Versions: {{ made_with }}.
"""


def write_model_card(
    folder: Path,
    plan: RankPlan,
    *,
    title: str,
    base_model: str,
    method: str,
    preset: str | None,
    task_type: str,
    num_labels: int,
    data: str = "",
    hub_data: str | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int | None = None,
    base_options: str = "",
    whole: Mapping[str, int] | None = None,
    resized: bool = False,
    picture: Path | None = None,
    made: Sequence[str] = (),
    tables: str = "",
    metadata: Mapping[str, Any] | None = None,
    model_class: str | None = None,
) -> None:
    """Write README.md into an adapter's folder, over the empty form that PEFT leaves there; and copy the picture beside it.

    What is there already in the same words is left alone: a finished run that is called again changes no file.

    Args:
        folder: of the adapter.
        plan: its ranks.
        title: what the adapter is called.
        base_model: hub name or folder; empty where it is not known.
        method: which rank-allocation method made the plan; its row in `results` is marked.
        preset: of the method.
        data: what it was trained and tested on, in Markdown; empty where that is not known.
        hub_data: name of the data set on the hub, for the card's metadata.
        results: method -> adapter parameters and metrics, as in metrics.json; None where nothing was tested.
        task_type: PEFT's.
        num_labels: width of the head of a classifier.
        seed: of the run.
        base_options: arguments that load the base model as it was trained on, as Python writes them; empty where there are none.
        whole: modules that were trained whole -> their parameters.
        resized: whether tokens were added, and their tokenizer is in the folder.
        picture: ranks.png. Without it the card has the ranks as a table.
        made: how it was made, a Markdown line each.
        tables: more Markdown.
        metadata: front matter that stays, as the hub reads it.
        model_class: of transformers, that loads the base model; None: by the task type.

    """
    if picture is not None and picture.is_file():
        _write(folder / "ranks.png", picture.read_bytes())
    known = dict(metadata or {})
    # PEFT's tag of the base model may be a folder of this machine; the hub makes its own from `base_model`.
    given = [tag for tag in known.pop("tags", None) or () if not tag.startswith("base_model:")]
    known |= {"library_name": "peft", "tags": list(dict.fromkeys(["lora", "lorank", method.replace(" ", "-"), *given]))}
    known |= {"pipeline_tag": known.get("pipeline_tag") or _PIPELINES.get(task_type)}
    known |= {"datasets": [hub_data]} if hub_data else {}
    # The hub refuses a folder as a base model.
    known["base_model"] = None if not base_model or os.path.exists(base_model) else base_model
    card_data = ModelCardData(**known)
    card = ModelCard.from_template(
        card_data,
        template_str=_TEMPLATE,
        title=prose(title),
        title_in_python=json.dumps(title),  # what JSON says of a string, Python reads as the same
        title_in_shell=in_shell(title),
        base=code(base_model) if base_model else "",
        base_in_python=json.dumps(base_model or "BASE"),
        base_in_shell=in_shell(base_model or "BASE"),
        plan=plan,
        budget=code(plan.budget),
        mark=MARK,
        made=made,
        tables=tables,
        ranks="" if picture is not None else rank_markdown(plan),
        mean_ranks=prose(summary_words(plan)),
        adapted=sum(rank > 0 for rank in plan.ranks.values()),
        method=inline(method),
        preset=code(str(preset)) if preset else "",
        whole={code(name): size for name, size in (whole or {}).items()},
        resized=resized,
        merges=resized or (whole and task_type not in _CLASSIFIERS),
        classifies=task_type in _CLASSIFIERS,
        picture=picture is not None,
        data=data,
        results=_results_table(results or {}, method),
        seed=seed,
        family=model_class if (model_class or "").isidentifier() else _FAMILIES.get(task_type, "AutoModel"),
        options="".join(
            f", {each}" for each in (f"num_labels={num_labels}" if task_type == "SEQ_CLS" else "", base_options) if each
        ),
        made_with=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    _write(folder / CARD, re.sub(r"\n{3,}", "\n\n", f"{card}").encode())


def _results_table(results: Mapping[str, Mapping[str, Any]], method: str) -> str:
    """A row for each method; the one that made the adapter is marked."""
    if not results:
        return ""
    metrics = list(named_values(next(iter(results.values()))))
    rows = []
    for name, result in results.items():
        values, spent = named_values(result), f"{parameters_of(result):,}"
        spent += "" if "adapter_parameters" in result else " (every weight of the base model)"
        spent += f" (its own budget, {inline(str(result['budget']))})" if result.get("budget") else ""
        cells = ("-" if (value := values.get(metric)) is None else f"{value:.4f}" for metric in metrics)
        rows.append((inline(name) + (" (this adapter)" if name == method else ""), spent, *cells))
    return table(("method", "adapter parameters", *map(inline, metrics)), rows)


def _write(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
