"""A stranger's chat template, tried on the conversations that it is to render.

Jinja's sandbox keeps a template from files and from Python, but not from loops without end and texts without end. A template
renders the same conversation to the same text, so what passes here passes there; what draws by chance is refused. Only the clock
and addresses in memory, which it can print, differ from one time to the next.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lorank.errors import one_line
from lorank.untrusted.limited_process import SECONDS, try_limited

_SECONDS_OF_EXAMPLE, _SECONDS_OF_MEGABYTE = 0.01, 2.0
MOST = 10  # templates by name
# What a template may look at, for where it renders chats that are not ours: those of lm-eval's tasks.
_CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"place": "here"}}}
_TURNS = (
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": "", "reasoning_content": "I have to look.", "tool_calls": [_CALL]},
    {"role": "tool", "name": "look_up", "content": "Rain."},
    {"role": "assistant", "content": "It rains."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks the weather up.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
USUAL: tuple[Mapping[str, Any], ...] = tuple(
    {"prompt": [dict(turn) for turn in turns[:-1]], "completion": [dict(turns[-1])], "tools": tools}
    for turns in (_TURNS, _TURNS[:1] + _TURNS[5:], _TURNS[5:])
    for tools in ([_TOOL], None)
)


def check_chat_template(
    template: str | Mapping[str, str],
    tokens: Mapping[str, Any],
    examples: Sequence[Mapping[str, Any]] = USUAL,
    *,
    marks: bool = False,
) -> None:
    """Refuse a chat template that takes far too long, or far too much memory, or makes far too long texts of these examples.

    Five seconds, 0.01 for each example, and 2 for each megabyte of them; 500 MB; 100,000 characters, and 20 for each of an
    example. What a template says is wrong with an example is left to whoever renders it. One that draws by chance is refused.

    Args:
        template: Jinja, or several by name.
        tokens: `special_tokens_map` of the tokenizer.
        examples: rows as TRL reads them, with `messages`, or with `prompt` and `completion`; those of plain text do not count.
        marks: render with the marks around what the assistant says (`{% generation %}`).

    Raises:
        ValueError: names the example that was too much; or there are more than `MOST` templates; or they cannot be tried.

    """
    if not isinstance(template, str) and len(template) > MOST:
        raise ValueError(
            f"the model has {len(template):,} chat templates; allowed: {MOST}; give data.chat_template, a Jinja file"
        )
    chats = list(_inputs(examples))
    if not any(chat["conversations"] for chat in chats):
        return
    lines = [json.dumps(chat) for chat in chats]
    megabytes = sum(map(len, lines)) / 2**20
    seconds = SECONDS + _SECONDS_OF_EXAMPLE * len(lines) + _SECONDS_OF_MEGABYTE * megabytes
    for one in (template,) if isinstance(template, str) else template.values():
        given = {"template": one, "tokens": dict(tokens), "marks": marks}
        try:
            tried = try_limited("chat_template", lines, given, seconds=seconds)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"the chat template could not be tried ({one_line(error)})") from None
        where = "a short chat" if examples is USUAL else f"example {max(tried.number, 0)}"
        advice = "look into the template, and put another one into the model's folder or, in a recipe, into data.chat_template"
        if tried.over is not None:
            raise ValueError(f"the chat template {tried.over} for {where}; {advice}")
        if tried.found is not None:
            raise ValueError(f"the chat template makes {tried.found} for {where}; {advice}")


def _inputs(examples: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """For each example its conversations, each with whether an answer is to follow."""
    for example in examples:
        tools, options = example.get("tools"), example.get("chat_template_kwargs")
        turns = example.get("messages", [])
        conversations = [(turns, False), (turns[:-1], True)] if turns else []  # to train on, and to ask for the answer
        if isinstance(example.get("prompt"), list):
            conversations = [(example["prompt"], True), ([*example["prompt"], *example["completion"]], False)]
        yield {
            "conversations": conversations,
            "tools": _read(tools) if isinstance(tools, str) else tools,
            "options": options if isinstance(options, dict) else {},
        }


def _read(tools: str) -> Any:
    try:
        return json.loads(tools)
    except ValueError:  # said with the example, when it is made into tokens
        return None
