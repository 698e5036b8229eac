"""Chat templates of strangers end in bounded time and memory, and usual ones pass."""

import time
from pathlib import Path
from typing import Any

import pytest

from lorank.untrusted.chat_templates import USUAL, check_chat_template
from lorank.untrusted.limited_process import try_limited

USUAL_TEMPLATES = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}",
    "{{ tools | tojson(indent=4) }}{% for m in messages %}{% if m.tool_calls %}{% continue %}{% endif %}{{ m }}{% endfor %}",
    "{{ raise_exception('system messages are not known') }}",
    "{% for",
)
OVER = {
    "a text": ("{{ 'x' * 2000000000 }}", "takes more than 500 MB of memory for a short chat"),
    "many texts": ("{% for i in range(90000) %}{{ 'x' * 10000 }}{% endfor %}", "takes more than 500 MB"),
    "a list": (
        "{% set n = namespace(l=[1]) %}{% for i in range(40) %}{% set n.l = n.l + n.l %}{% endfor %}",
        "more than 500 MB",
    ),
    "only with tools": ("{% if tools %}{{ 'x' * 2000000000 }}{% endif %}", "takes more than 500 MB"),
    "only when it asks for an answer": (
        "{% if add_generation_prompt %}{{ '%2000000000d' % 5 }}{% endif %}",
        "more than 500 MB",
    ),
    "a long text": ("{{ 'x' * 1000000 }}", r"makes 1,000,000 characters of an example of [\d,]+ for a short chat"),
    "chance": (
        "{% if range(9) | random == 8 %}{{ 'x' * 2000000000 }}{% endif %}",
        "makes another text each time for a short chat",
    ),
    "chance in words": ("{{ lipsum(1) }}", "makes another text each time"),
    "no end": (
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        r"takes longer than 0.\d+ s for a short chat; look into the template, and put another one into",
    ),
}


@pytest.mark.parametrize("template", USUAL_TEMPLATES)
def test_usual_ones_pass(template: str) -> None:
    check_chat_template(template, {"bos_token": "<s>"}, marks="generation" in template)


@pytest.mark.parametrize("kind", OVER)
def test_what_takes_too_much_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template, said = OVER[kind]
    if kind == "no end":
        monkeypatch.setattr("lorank.untrusted.chat_templates.SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(ValueError, match=said):
        check_chat_template(template, {})
    assert time.monotonic() - began < 20


def test_the_example_is_named() -> None:
    turns = [{"role": "user", "content": "fine"}, {"role": "assistant", "content": "yes"}]
    examples: list[dict[str, Any]] = [{"messages": turns} for _ in range(9)]
    examples[6] = {"messages": [{"role": "user", "content": "now"}, *turns]}
    examples[7] = {"text": "is no chat"}
    template = "{% if messages[0].content == 'now' %}{{ 'x' * 2000000000 }}{% endif %}"
    check_chat_template(template, {}, examples[:6] + examples[7:])
    with pytest.raises(ValueError, match="more than 500 MB of memory for example 6"):
        check_chat_template(template, {}, examples)
    examples[6] = {"prompt": turns[:1], "completion": turns[1:], "chat_template_kwargs": {"much": True}, "tools": "[]"}
    with pytest.raises(ValueError, match="for example 6"):
        check_chat_template("{% if much %}{{ 'x' * 2000000000 }}{% endif %}", {}, examples)


def test_of_several_by_name_each_is_tried() -> None:
    check_chat_template({"default": "a", "tool_use": "b"}, {})
    with pytest.raises(ValueError, match="the model has 301 chat templates; allowed: 10"):
        check_chat_template({str(number): "a" for number in range(301)}, {})
    with pytest.raises(ValueError, match="500 MB"):
        check_chat_template({"default": "a", "tool_use": OVER["a text"][0]}, {})


def test_the_process_finds_nothing_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit('was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    check_chat_template(USUAL_TEMPLATES[0], {}, USUAL[:1])


def test_its_own_error_is_none_of_the_template() -> None:
    with pytest.raises(RuntimeError, match=r"ended with status 1: .*KeyError: 'unknown'"):
        try_limited("unknown", (), {})
