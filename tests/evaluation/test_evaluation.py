"""`lorank evaluate`: numbers are compared with those of plain torch, transformers and PEFT on the same tiny models."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tests.conftest import BAD, GOOD, tiny_writer
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from lorank.cli import app
from lorank.errors import DataError, LorankError, OutputError, RecipeError
from lorank.evaluation import question as asked
from lorank.evaluation.question import Question, check_question
from lorank.evaluation.run_evaluation import run_evaluation
from lorank.evaluation.samples import sample_lines
from lorank.findings import SeveralFindings
from lorank.models.label_names import write_label_names
from lorank.models.pretrained import Pretrained
from lorank.recipe.recipe import Recipe
from lorank.runs.data_file import DataFile

WORDS = (*GOOD, *BAD)
TEXTS = [(f"the day was {word}", f"looked rather {word}") for word in WORDS]
TASK = """task: mood
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
fewshot_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: [fine, dull]
doc_to_target: label
metric_list: [{{metric: acc}}]
"""


def with_loud_adapter(base: Any, kind: TaskType, folder: Path, *names: str) -> Path:
    model = get_peft_model(base, LoraConfig(r=2, lora_alpha=8, target_modules=list(names), task_type=kind))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def decoder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer adds no token of its own, as those of most decoders."""
    folder = tiny_writer("decoder", tiny_folder, tmp_path_factory.mktemp("base") / "decoder")
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    return folder


@pytest.fixture(scope="module")
def adapter(decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = AutoModelForCausalLM.from_pretrained(decoder)
    return with_loud_adapter(base, TaskType.CAUSAL_LM, tmp_path_factory.mktemp("a") / "adapter", "q_proj", "down_proj")


@pytest.fixture(scope="module")
def classifier(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=2)
    folder = with_loud_adapter(base, TaskType.SEQ_CLS, tmp_path_factory.mktemp("c") / "adapter", "query")
    write_label_names(folder, ("bad", "good"))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "label": target}) for text, target in TEXTS))
    return path


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task file; data sets are cached in the folder of the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [json.dumps({"text": text, "label": k % 2}) for k, (text, _) in enumerate(TEXTS)]
    (folder / "mood.jsonl").write_text("\n".join(lines))
    (folder / "mood.yaml").write_text(TASK.format(file=folder / "mood.jsonl"))
    return folder


def plain(decoder: Path, adapter: Path | None) -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(decoder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), AutoTokenizer.from_pretrained(decoder)


def loss_by_hand(model: Any, tokenizer: Any) -> tuple[list[float], list[int]]:
    sums, counts = [], []
    for text, target in TEXTS:
        prompt = tokenizer(text)["input_ids"]
        taught = [*tokenizer(f" {target}")["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *taught]])).logits[0, len(prompt) - 1 : -1]
        sums.append(float(cross_entropy(logits, torch.tensor(taught), reduction="sum")))
        counts.append(len(taught))
    return sums, counts


def accuracy_by_hand(model: Any, tokenizer: Any) -> float:
    right = 0
    for k, (text, _) in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            scores = log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
        words = tokenizer.convert_tokens_to_ids(["fine", "dull"])
        right += int(scores[words].argmax()) == k % 2
    return right / len(TEXTS)


def test_losses_are_those_of_plain_peft(adapter: Path, decoder: Path, rows: Path, tmp_path: Path) -> None:
    question = Question(str(adapter), data=DataFile(rows), with_base=True, batch_size=3)
    found = run_evaluation(question, tmp_path / "out")
    assert found["base"] == str(decoder)
    assert list(found["results"]) == ["adapter", "base"]
    for name, own in (("adapter", adapter), ("base", None)):
        sums, counts = loss_by_hand(*plain(decoder, own))
        result = found["results"][name]["data"]["test"]
        assert result["loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
        assert result["perplexity"] == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-5)
        assert (result["tokens"], result["rows"], result["metrics"]) == (sum(counts), len(TEXTS), {})
        np.testing.assert_allclose(np.load(tmp_path / "out" / name / "losses.npy"), [sums, counts], rtol=1e-4)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found


def test_a_merged_model_has_the_numbers_of_its_adapter(
    adapter: Path, decoder: Path, rows: Path, tmp_path: Path
) -> None:
    model, tokenizer = plain(decoder, adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    whole = run_evaluation(Question(str(tmp_path / "merged"), data=DataFile(rows)))["results"]["model"]["data"]["test"]
    put_on = run_evaluation(Question(str(adapter), data=DataFile(rows)))["results"]["adapter"]["data"]["test"]
    assert whole["loss"] == pytest.approx(put_on["loss"], rel=1e-4)


def test_tasks_of_lm_eval_from_a_file_of_ones_own(adapter: Path, decoder: Path, tasks: Path) -> None:
    found = run_evaluation(Question(str(adapter), tasks=("mood",), task_files=tasks, with_base=True))
    assert "lm_eval" in found["versions"]
    values = []
    for name, own in (("adapter", adapter), ("base", None)):
        result = found["results"][name]["tasks"]["mood"]
        share = accuracy_by_hand(*plain(decoder, own))
        assert result["metrics"]["acc"]["value"] == share
        assert result["metrics"]["acc"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (len(TEXTS) - 1)))
        assert (result["fewshot"], result["examples"]) == (0, len(TEXTS))
        values.append(share)
    assert values[0] != values[1], "an adapter that changes nothing would pass any test"


@pytest.mark.long
def test_numbers_are_those_of_lm_evals_own_command(adapter: Path, decoder: Path, tasks: Path) -> None:
    """Its own loading of an adapter, its seeds and its few-shot examples; in a task of choices and one of generated texts."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    generated = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": [{"metric": "exact_match"}]}
    words = {"task": "words", "doc_to_target": "{{text[:3]}}", "generation_kwargs": {"max_gen_toks": 3, "until": ["."]}}
    content = {**yaml.safe_load((tasks / "mood.yaml").read_text()), **generated, **words}
    (tasks / "words.yaml").write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None})
    )
    own = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(decoder), "peft": str(adapter), "dtype": "float32"},
        tasks=["mood", "words"],
        num_fewshot=2,
        limit=5,
        batch_size=8,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )["results"]
    question = Question(str(adapter), tasks=("mood", "words"), task_files=tasks, fewshot=2, limit=5)
    found = run_evaluation(question)["results"]["adapter"]["tasks"]
    for task, metric in (("mood", "acc"), ("words", "exact_match")):
        result = found[task]["metrics"][metric]
        assert result["value"] == own[task][f"{metric},none"]
        assert result["stderr"] == own[task][f"{metric}_stderr,none"]


def test_shots_limit_and_a_file_as_a_task(decoder: Path, tasks: Path) -> None:
    question = Question(str(decoder), tasks=(str(tasks / "mood.yaml"), "moo*"), task_files=tasks, fewshot=2, limit=0.5)
    result = run_evaluation(question)["results"]["model"]["tasks"]["mood"]
    assert (result["fewshot"], result["examples"]) == (2, len(TEXTS) // 2)


def test_samples_are_what_the_model_generates(adapter: Path, decoder: Path, rows: Path) -> None:
    question = Question(str(adapter), data=DataFile(rows), samples=2, sample_tokens=5, with_base=True, seed=3)
    samples = run_evaluation(question)["samples"]
    assert len(samples) == 2
    assert dict(TEXTS)[samples[0]["prompt"]] == samples[0]["target"]
    for name, own in (("adapter", adapter), ("base", None)):
        model, tokenizer = plain(decoder, own)
        for sample in samples:
            ids = torch.tensor([tokenizer(sample["prompt"])["input_ids"]])
            written = model.generate(input_ids=ids, do_sample=False, max_new_tokens=5, pad_token_id=0)[
                0, ids.shape[1] :
            ]
            assert sample["written"][name] == tokenizer.decode(written, skip_special_tokens=True)


def test_nothing_in_a_sample_is_a_command_of_the_terminal() -> None:
    sample = {"prompt": "a" * 700, "target": "[bold]two\nlines[/bold]", "written": {"adapter": "\x1b[2Jgone\r"}}
    assert list(sample_lines([sample])) == [
        "sample 1",
        f"  prompt   ...{'a' * 600}",
        "  target   [bold]two",
        "           lines[/bold]",
        r"  adapter  \x1b[2Jgone\r",
    ]


def test_a_classifier_on_a_file(classifier: Path, tmp_path: Path) -> None:
    lines = [f"the day was {word}\t{'good' if word in GOOD else 'bad'}" for word in WORDS]
    (tmp_path / "rows.tsv").write_text("\n".join(["said\tmood", *lines]))
    found = run_evaluation(Question(str(classifier), data=DataFile(tmp_path / "rows.tsv", ("said",), "mood"), limit=6))
    result = found["results"]["adapter"]["data"]["test"]
    base = AutoModelForSequenceClassification.from_pretrained(found["base"], num_labels=2)
    model = PeftModel.from_pretrained(base, str(classifier)).eval()
    batch = AutoTokenizer.from_pretrained(found["base"])(
        [line.partition("\t")[0] for line in lines[:6]], return_tensors="pt"
    )
    labels = torch.tensor([1, 1, 1, 1, 0, 0])
    with torch.no_grad():
        logits = model(**batch).logits
    assert result["metrics"]["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
    assert result["loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert "perplexity" not in result
    assert found["labels"] == ["bad", "good"]


def test_a_recipe_says_what_its_test_parts_are(adapter: Path, decoder: Path, rows: Path, tmp_path: Path) -> None:
    data = {"train": str(rows), "test": {"one": str(rows), "two": str(rows)}, "task": "summarization", "text": "text"}
    data["max_target_length"] = 6
    recipe = Recipe(
        model=str(decoder), budget="r=1", method="lora", data={**data, "label": "label", "prompt": "{text}"}
    )
    found = run_evaluation(Question(str(adapter), data=recipe, generate=True), tmp_path / "out")
    parts = found["results"]["adapter"]["data"]
    assert list(parts) == ["test", "two"]
    assert parts["test"] == parts["two"]
    assert set(parts["two"]["metrics"]) == {"rouge1", "rouge2", "rougeL"}
    assert parts["two"]["loss"] == pytest.approx(
        run_evaluation(Question(str(adapter), data=DataFile(rows)))["results"]["adapter"]["data"]["test"]["loss"]
    )
    written = tmp_path / "out" / "adapter"
    files = {path.relative_to(written).as_posix() for path in written.rglob("*.*")}
    assert {"losses.npy", "predictions.jsonl", "two/losses.npy", "two/predictions.jsonl"} <= files
    of_tokens = recipe.model_copy(update={"metrics": ("log_likelihood",)})
    result = run_evaluation(Question(str(adapter), data=of_tokens))["results"]["adapter"]["data"]["test"]
    assert result["metrics"]["log_likelihood"] == pytest.approx(-result["loss"], rel=1e-6)
    both = recipe.model_copy(update={"metrics": ("rouge1", "log_likelihood")})  # without --generate, what needs no text
    assert run_evaluation(Question(str(adapter), data=both))["results"]["adapter"]["data"]["test"] == result
    with pytest.raises(RecipeError, match=r"--generate: no metric here \(log_likelihood\) is of what is written"):
        run_evaluation(Question(str(adapter), data=of_tokens, generate=True))


REFUSED: dict[str, tuple[Callable[..., Question], tuple[str, ...]]] = {
    "nothing": (lambda a, **_: Question(a), ("nothing is asked: give --tasks",)),
    "numbers": (
        lambda a, **_: Question(a, samples=1, limit=0, batch_size=0, fewshot=1, base=Pretrained("", dtype="int8")),
        ("nothing is asked", "--limit", "--batch-size is 0", "--num-fewshot is", "--samples is of --data", "int8"),
    ),
    "whole model": (
        lambda decoder, rows, **_: Question(decoder, data=DataFile(rows), with_base=True),
        ("has no adapter_config",),
    ),
    "classifier": (
        lambda classifier, rows, tasks, **_: Question(
            classifier, data=DataFile(rows, task="summarization"), tasks=("mood",), task_files=tasks
        ),
        ("--tasks: .* classifies texts", "--task summarization: .* classifies texts"),
    ),
    "data": (
        lambda a, rows, **_: Question(a, data=DataFile(rows, label="mood", task="summarization", text=("text",))),
        (r"^--label: rows\.jsonl has no column 'mood'; it has text, label",),
    ),
    "limits": (lambda a, rows, **_: Question(a, data=DataFile(rows), limit=math.nan), ("--limit is nan; allowed: a number",)),
    "infinite": (lambda a, rows, **_: Question(a, data=DataFile(rows), limit=math.inf), ("--limit is inf; allowed: a number",)),
    "lost folder": (lambda rows, **_: Question("no/such/folder", data=DataFile(rows)), ("^no/such/folder: no such folder",)),
    "lost beside": (lambda rows, **_: Question("./no-such-run", data=DataFile(rows)), (r"^\./no-such-run: no such folder",)),
    "end of text": (
        lambda marked, tasks, **_: Question(marked, tasks=("mood",), task_files=tasks),
        (r"ends every text with '\[SEP\]', which lm-eval would score",),
    ),
    "no head": (lambda tiny, rows, **_: Question(tiny, data=DataFile(rows)), ("has no head that classifies or writes texts",)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said_at_once(
    case: str,
    adapter: Path,
    decoder: Path,
    classifier: Path,
    tiny_folder: Path,
    rows: Path,
    tasks: Path,
    tmp_path: Path,
) -> None:
    make, messages = REFUSED[case]
    folders = {"a": adapter, "decoder": decoder, "classifier": classifier, "tiny": tiny_folder}
    if case == "end of text":
        folders["marked"] = tiny_writer("decoder", tiny_folder, tmp_path / "marked")
    wanted = make.__code__.co_varnames
    given = {**{key: str(value) for key, value in folders.items()}, "rows": rows, "tasks": tasks}
    question = make(**{key: value for key, value in given.items() if key in wanted})
    with pytest.raises(LorankError) as caught:
        run_evaluation(question)
    assert len(getattr(caught.value, "errors", [caught.value])) == len(messages)
    for message in messages:
        caught.match(message)


def test_a_task_that_cannot_be_loaded_is_said_before_the_weights_are(
    decoder: Path, tasks: Path, tmp_path: Path
) -> None:
    (tasks / "mood.jsonl").unlink()
    (decoder_without_weights := tmp_path / "decoder").mkdir()
    for path in decoder.glob("*.json"):
        (decoder_without_weights / path.name).write_bytes(path.read_bytes())
    question = Question(str(decoder_without_weights), tasks=("mood",), task_files=tasks, chat_template=True)
    with pytest.raises(SeveralFindings) as caught:
        run_evaluation(question)
    first, second = caught.value.errors
    assert isinstance(first, DataError)
    assert "--tasks mood: a task or its data set cannot be loaded (FileNotFoundError" in str(first)
    assert "has no chat template" in str(second)
    (decoder_without_weights / "chat_template.jinja").write_text("{{ 'x' * 2000000000 }}")
    with pytest.raises(SeveralFindings) as caught:
        run_evaluation(question)
    assert "--apply-chat-template: the chat template takes more than 500 MB" in str(caught.value.errors[1])


def test_without_lm_eval_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "find_spec", lambda name: None)
    with pytest.raises(LorankError, match=r"needs the package lm-eval: pip install 'lorank\[evaluate\]'"):
        check_question(Question("adapter", tasks=("mood",)))


def test_a_name_of_the_hub_is_no_lost_folder(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    check_question(Question("org/name", data=DataFile(rows)))


def test_the_command(adapter: Path, rows: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(adapter), "--data", str(rows), "--with-base", "--samples", "1", "--sample-tokens", "2"]
    said = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out"), "--json", str(tmp_path / "n.json")])
    assert said.exit_code == 0, said.output
    found = json.loads((tmp_path / "n.json").read_text())
    assert f"{found['results']['base']['data']['test']['perplexity']:.4f}" in said.output
    assert "sample 1" in said.output
    again = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")])
    assert again.exit_code == 1
    assert "is there already" in again.output
    with pytest.raises(OutputError):
        run_evaluation(Question(str(adapter), data=DataFile(rows)), tmp_path / "out")


def test_what_cannot_be_written_is_said_before_anything_is_loaded(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    words = ["evaluate", "no/such/folder", "--data", str(rows), "--output", str(tmp_path / "full")]
    for name, message in (
        ("full", "is a folder; give the name of a file"),
        ("full/file/n.json", "cannot be written: "),
    ):
        said = CliRunner().invoke(app, [*words, "--json", str(tmp_path / name)])
        assert said.exit_code == 1
        shown = " ".join(said.output.split())
        for part in (message, "is there already", "no such folder"):
            assert part in shown


@pytest.mark.parametrize("row", [{"text": "the day was fine"}, {"prompt": "the day", "completion": "was fine"}])
def test_the_task_of_a_file_is_guessed_by_its_columns(row: dict[str, str], decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for _ in range(3)))
    task = "text" if "text" in row else "completion"
    found, named = (
        run_evaluation(Question(str(decoder), data=DataFile(tmp_path / "rows.jsonl", task=given)))["results"]
        for given in (None, task)
    )
    assert found == named


def test_a_row_that_is_wrong_is_said_of_the_file(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": "the day"}))
    with pytest.raises(DataError, match=r"^--task chat: rows\.jsonl example 0 .* has 'the day' as messages"):
        run_evaluation(Question(str(decoder), data=DataFile(tmp_path / "rows.jsonl")))


def test_columns_of_no_task_are_said_of_the_file(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "was it", "answer": "fine"}))
    with pytest.raises(DataError, match="the columns question, answer fit no task by themselves"):
        run_evaluation(Question(str(decoder), data=DataFile(tmp_path / "rows.jsonl")))


UNMARKED = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} . {% endfor %}"
    "{% if add_generation_prompt %}looked rather {% endif %}"
)


def test_samples_of_chats_go_by_the_messages(decoder: Path, tmp_path: Path) -> None:
    """Of a template without marks: all tokens are taught, and the answer is the assistant's last message all the same."""
    shutil.copytree(decoder, tmp_path / "chatting")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chatting")
    tokenizer.chat_template = UNMARKED
    tokenizer.save_pretrained(tmp_path / "chatting")
    told = [
        ("user", "the day was"),
        ("assistant", "kind"),
        ("user", "the house was"),
        ("assistant", "cold"),
        ("user", "fine"),
    ]
    messages = [{"role": role, "content": content} for role, content in told]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
    question = Question(str(tmp_path / "chatting"), data=DataFile(tmp_path / "chat.jsonl"), samples=1, sample_tokens=4)
    (sample,) = run_evaluation(question)["samples"]
    ids = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, return_dict=False)
    assert (sample["prompt"], sample["target"]) == (tokenizer.decode(ids, skip_special_tokens=True), "cold")
    assert sample["prompt"].endswith("the house was looked rather")
    model = AutoModelForCausalLM.from_pretrained(decoder).eval()
    written = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=4, pad_token_id=0)
    assert sample["written"]["model"] == tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)


def test_options_of_the_command_for_a_recipe(adapter: Path, tmp_path: Path) -> None:
    for words, message in (
        (
            ["--data", "recipe.yaml", "--task", "gsm8k"],
            "--task is of a data file; the recipe says it itself (data.task=...)",
        ),
        (["data.test=x.csv"], "changes a recipe, and --data gives none"),
    ):
        said = CliRunner().invoke(app, ["evaluate", str(adapter), *words])
        assert said.exit_code == 1
        assert message in " ".join(said.output.split())
