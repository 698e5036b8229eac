"""Rows of chat, completion and text: what is refused, and the tokens and labels that TRL makes of them."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import tiny_writer
from transformers import AutoTokenizer

from lorank.errors import DataError, LorankWarning, RecipeError
from lorank.tasks.data import TaskData, load_task_data
from lorank.tasks.section import DataSection
from lorank.tasks.sft_rows import sft_examples
from lorank.tasks.sft_tokens import assistant_only, encode_sft, packed, set_chat_template, with_tokens

# [CLS] (2) and "very" (20) around what a user says, [SEP] (3) behind what the assistant says.
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} [SEP]{% endgeneration %}"
    "{% else %}[CLS] {{ m.content }} very {% endif %}{% endfor %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")


@pytest.fixture
def tokenizer(tiny_folder: Path, tmp_path: Path) -> Any:
    found = AutoTokenizer.from_pretrained(tiny_writer("decoder", tiny_folder, tmp_path / "decoder"))
    found.chat_template = MARKED
    return found


def load(tmp_path: Path, rows: list[dict[str, Any]], task: str, **more: Any) -> tuple[TaskData, DataSection]:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    section = DataSection(train=str(path), task=task, **more)
    return load_task_data(section), section


def said(user: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]


def test_only_the_assistants_tokens_are_taught(tmp_path: Path, tokenizer: Any) -> None:
    data, section = load(tmp_path, [{"messages": said("fine day", "warm") + said("cold", "dull grim")}], "chat")
    row = encode_sft(data.train, tokenizer, section)[0]
    # fine 5, warm 7, dull 9, cold 10, grim 11, day 14
    assert row["input_ids"] == [2, 5, 14, 20, 7, 3, 2, 10, 20, 9, 11, 3]
    assert row["labels"] == [-100, -100, -100, -100, 7, 3, -100, -100, -100, 9, 11, 3]
    assert row["length"] == 12
    all_tokens = section.model_copy(update={"assistant_only": False})
    row = encode_sft(data.train, tokenizer, all_tokens)[0]
    assert row["labels"] == row["input_ids"]


def test_other_forms_of_chats_are_the_same(tmp_path: Path, tokenizer: Any) -> None:
    sharegpt = [{"from": "human", "value": "fine day"}, {"from": "gpt", "value": "warm"}]
    one, section = load(tmp_path, [{"conversations": sharegpt}], "chat")
    other, _ = load(tmp_path, [{"messages": said("fine day", "warm"), "tools": None}], "chat")
    rows = [encode_sft(data.train, tokenizer, section)[0] for data in (one, other)]
    assert rows[0] == rows[1]


def test_messages_keep_keys_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    """Tables give each message the keys of all others; a template would print None."""
    tokenizer.chat_template = "{% for m in messages %}{% for key in m %}{{ key }} {% endfor %}{% endfor %}"
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "day": "z"}]}]
    data, section = load(tmp_path, rows, "chat", assistant_only=False)
    # content and role are unknown words (1); day, 14, is there once
    assert encode_sft(data.train, tokenizer, section)["input_ids"][0] == [1, 1, 1, 14, 1]


def test_messages_go_before_conversations(tmp_path: Path, tokenizer: Any) -> None:
    other = [{"from": "human", "value": "cold"}, {"from": "gpt", "value": "grim"}]
    both, section = load(tmp_path, [{"messages": said("fine day", "warm"), "conversations": other}], "chat")
    assert encode_sft(both.train, tokenizer, section)["input_ids"][0] == [2, 5, 14, 20, 7, 3]
    named = [{"from": "human", "value": "fine day"}, {"from": "gpt", "value": "warm"}]
    one, _ = load(tmp_path, [{"messages": named}], "chat")  # ShareGPT's words in a column of the other name
    assert encode_sft(one.train, tokenizer, section)["input_ids"][0] == [2, 5, 14, 20, 7, 3]


def test_null_in_a_call_is_part_of_it(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"query": "a", "limit": None}}}
    told = [
        {"role": "user", "content": "x", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    data, _ = load(tmp_path, [{"messages": told}], "chat")
    first, second = json.loads(data.train["example"][0])["messages"]
    assert first == {"role": "user", "content": "x"}
    assert second == {"role": "assistant", "tool_calls": [call]}


def test_completions_of_two_forms_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": said("x", "y")[:1], "completion": said("x", "y")[1:]}, {"prompt": "x", "completion": "y"}]
    with pytest.raises(DataError, match=r"example 1 .* has a text as prompt, the first row a list of messages"):
        load(tmp_path, rows, "completion")


def test_completions_are_taught_to_their_end(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": "fine day ", "completion": "warm"},
        {"prompt": said("cold", "x")[:1], "completion": said("", "dull")[1:]},
    ]
    for example, ids, labels in (
        (rows[0], [2, 5, 14, 7, 3], [-100, -100, -100, 7, 3]),
        (rows[1], [2, 10, 20, 9, 3], [-100, -100, -100, 9, 3]),
    ):
        data, section = load(tmp_path, [example], "completion")
        row = encode_sft(data.train, tokenizer, section)[0]
        kept = [token for token in row["input_ids"] if token != 3] + [3]  # the tokenizer's own marks are its matter
        assert kept == ids
        assert [label for label in row["labels"] if label != -100][:1] == labels[3:4]
        assert row["labels"][-1] == 3


def test_texts_are_taught_whole(tmp_path: Path, tokenizer: Any) -> None:
    data, section = load(tmp_path, [{"text": "fine day"}], "text")
    row = encode_sft(data.train, tokenizer, section)[0]
    assert row["labels"] == row["input_ids"]
    assert row["input_ids"][:3] == [2, 5, 14]
    assert row["input_ids"][-1] == 3


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("chat", {"messages": "hello"}, "a list of messages is allowed"),
        ("chat", {"messages": []}, "a list of messages is allowed"),
        ("chat", {"messages": [{"content": "x"}]}, "message 0 of messages"),
        ("chat", {"messages": None}, "a list of messages is allowed"),
        ("completion", {"prompt": "x", "completion": None}, "as completion; a text is allowed, or two lists"),
        ("completion", {"prompt": "x", "completion": ""}, "an empty completion"),
        ("completion", {"prompt": [{"role": "user"}], "completion": "x"}, "as completion; a list of messages"),
        ("text", {"text": 3}, "has 3 as text"),
        ("text", {"text": ""}, "an empty text"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, task: str, row: dict[str, Any], words: str) -> None:
    good = {
        "chat": {"messages": said("a", "b")},
        "completion": {"prompt": "a", "completion": "b"},
        "text": {"text": "a"},
    }
    with pytest.raises(DataError, match=rf"train example 1 \(rows.jsonl, line 2\).*{words}"):
        load(tmp_path, [good[task], row], task)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'messages'"):
        load(tmp_path, [{"message": []}], "chat")
    with pytest.raises(DataError, match="no column 'completion'"):
        load(tmp_path, [{"prompt": ""}], "completion")


def test_the_row_that_the_template_refuses_is_named(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + MARKED
    )
    rows = [{"messages": said("fine", "warm")} for _ in range(5)]
    rows[3]["messages"] = rows[3]["messages"][1:]
    data, section = load(tmp_path, rows, "chat")
    with pytest.raises(DataError, match=r"data.train: .* example 3 cannot be made into tokens .*user first"):
        with_tokens(data, tokenizer, section)


def test_a_chat_without_an_answer_is_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"messages": said("fine", "warm")}, {"messages": said("fine", "")[:1]}]
    data, section = load(tmp_path, rows, "chat")
    with pytest.raises(DataError, match="example 1 cannot be made into tokens"):
        encode_sft(data.train, tokenizer, section)


def test_templates_without_marks(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    section = DataSection(train="x", task="chat")
    assert not assistant_only(tokenizer, section)
    with pytest.raises(RecipeError, match="does not mark the assistant's tokens"):
        assistant_only(tokenizer, section.model_copy(update={"assistant_only": True}))
    from trl.chat_template_utils import qwen2_5_chat_template  # one that TRL has a training template for

    tokenizer.chat_template = qwen2_5_chat_template
    assert assistant_only(tokenizer, section)
    assert not assistant_only(tokenizer, section.model_copy(update={"assistant_only": False}))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"chat_template": "{{ 'x' }}"}, "example 1.* has chat_template in chat_template_kwargs, which is no variable"),
        (
            {"enable_thinking": False, "max_length": 10**9, "padding": "max_length"},
            "has max_length in chat_template_kwargs",
        ),
        ({"messages": 5}, "has messages in chat_template_kwargs"),
        ([1], r"has \[1\] as chat_template_kwargs; a mapping"),
    ],
)
def test_a_row_gives_variables_of_the_template_and_no_arguments(options: Any, problem: str, tmp_path: Path) -> None:
    rows = [
        {"messages": said("fine", "warm"), "chat_template_kwargs": one} for one in ({"enable_thinking": True}, options)
    ]
    with pytest.raises(DataError, match=problem):
        load(tmp_path, rows, "chat")


def test_no_template_is_rendered_without_limits(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL asks templates for calls of tools, in this process: what is heavy only then must not be rendered here."""
    tokenizer.chat_template = "{% if messages[1].tool_calls %}{{ raise_exception('rendered') }}{% endif %}" + PLAIN
    seen = list[Any]()
    render = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer),
        "apply_chat_template",
        lambda self, chat, **more: seen.append(chat) or render(self, chat, **more),
    )
    data, section = load(tmp_path, [{"messages": said("fine", "warm")}], "chat")
    encode_sft(data.train, tokenizer, section)
    assert seen
    assert all("tool_calls" not in turn for chat in seen for turn in chat)
    tokenizer.chat_template = "{{ 'x' * 2000000000 }}"
    seen.clear()
    with pytest.raises(RecipeError, match="more than 500 MB of memory for example 0; look into the template"):
        encode_sft(data.train, tokenizer, section)
    assert not seen


def test_a_template_is_needed_and_can_be_given(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = None
    section = DataSection(train="x", task="chat")
    with pytest.raises(RecipeError, match="has no chat template; give"):
        set_chat_template(tokenizer, section)
    with pytest.raises(RecipeError, match=r"data.chat_template: .*none.jinja cannot be read"):
        set_chat_template(tokenizer, section.model_copy(update={"chat_template": str(tmp_path / "none.jinja")}))
    tokenizer.chat_template = {"tool_use": MARKED}
    with pytest.raises(RecipeError, match=r"have the names \['tool_use'\], and none is named default"):
        set_chat_template(tokenizer, section)
    (tmp_path / "own.jinja").write_text(MARKED)
    set_chat_template(tokenizer, section.model_copy(update={"chat_template": str(tmp_path / "own.jinja")}))
    assert tokenizer.chat_template == MARKED


def test_long_examples_are_cut_and_those_without_a_target_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"messages": said(" ".join(["day"] * length), "warm")} for length in (2, 5, 9)]  # 4 tokens more
    data, section = load(tmp_path, rows, "chat", max_length=8)
    with pytest.warns(LorankWarning) as warned:
        found = with_tokens(data, tokenizer, section)
    messages = [str(one.message) for one in warned]
    assert any("2 of 3 examples are longer than data.max_length (8 tokens)" in one for one in messages)
    assert any("1 of 3 train examples have no token to learn" in one for one in messages)
    assert [len(ids) for ids in found.train["input_ids"]] == [6, 8]
    assert list(found.train["content"]) == list(data.train["content"][:2])
    long, _ = load(tmp_path, rows[2:], "chat", max_length=8)
    with pytest.warns(LorankWarning), pytest.raises(DataError, match="no example has a token to learn"):
        with_tokens(long, tokenizer, section)


def test_packed_rows_hold_all_tokens(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"messages": said(" ".join(["day"] * length), "warm")} for length in (2, 3, 4, 6, 2, 2)]
    data, section = load(tmp_path, rows, "chat", max_length=16, packing=True)
    found = with_tokens(data, tokenizer, section)
    together = packed(found.train, section)
    assert sorted(length for row in together["seq_lengths"] for length in row) == sorted(
        map(len, found.train["input_ids"])
    )
    assert max(together["length"]) <= 16
    assert found.packing_ratio == len(together) / 6 < 1
    assert found.training_rows(6) == len(together)


def test_looking_at_data_draws_nothing(tmp_path: Path, tokenizer: Any) -> None:
    data, section = load(tmp_path, [{"text": "fine day"}], "text")

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = draws()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    encode_sft(data.train, tokenizer, section)
    assert draws() == expected


def test_the_evaluation_set_is_apart(tmp_path: Path) -> None:
    rows = [{"text": f"day {number % 15}"} for number in range(30)]
    data, _ = load(tmp_path, rows, "text", eval=0.2)
    assert data.eval is not None
    assert len(data.train) + len(data.eval) == 30
    assert not set(data.train["content"]) & set(data.eval["content"])
    assert data.test is None
    with pytest.raises(DataError, match="a test part is needed"):
        data.needs_test("to compare")


def test_values_that_are_no_json_are_named() -> None:
    from lorank.tasks.files import Rows

    rows = Rows(("messages",), {"messages": [[{"role": "user", "content": b"x"}]]}, 1)
    with pytest.raises(DataError, match="train example 0 holds what is no JSON"):
        sft_examples("train", rows, DataSection(train="x", task="chat"))


@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        ("chat", {"prompt": "{x}"}, "chat has none"),
        ("chat", {"beams": 2}, "chat has none"),
        ("text", {"assistant_only": True}, "is for task chat"),
        ("text", {"label": "x"}, "columns of text are its own"),
        ("gsm8k", {"packing": True, "test": "x"}, "packing is for tasks chat, completion, text"),
        ("gsm8k", {}, "a test file"),
        ("chat", {"test": {"eval": "x"}}, "a part is called 'eval'"),
        ("chat", {"eval": 1.5}, "eval"),
    ],
)
def test_keys_of_other_tasks_are_refused(task: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DataSection(**{"train": "x", "task": task, **more})
