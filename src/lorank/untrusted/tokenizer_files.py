"""A stranger's tokenizer, tried before it is loaded: its rules run in the tokenizers package, where nothing stops them.

A rule may make two million characters of each letter, or try every way to match a text. What is tried is a text of usual words
and of every printable character, so a rule that waits for a certain word is not found.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lorank.artefact import read_json
from lorank.errors import one_line, shown
from lorank.untrusted.limited_process import MEGABYTES, SECONDS, try_limited

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES = ("tokenizer.json", *_SETTINGS)
_TOKENS, _LIST = 100_000, 20_000  # beside the vocabulary
_CHARACTERS = 2_000_000  # of all texts in the settings, and of keys, but for those that each added token has
_OF_TOKENS = {"content", "lstrip", "normalized", "rstrip", "single_word", "special"}
_TEMPLATE = 1_000_000  # characters
_MADE = 10_000  # tokens that some tokenizers make up by their number
_ADDED = 64  # tokens at the ends of a text
_WORDS = (
    "the of and to a in is it you that he was for on are with as his they be at one have this from or had by hot but some what "
    "there we can out other were all your when up use word how said an each she which do their time if will way about many then"
)
_ALL = "".join(map(chr, range(32, 127)))
_TEXTS = (
    f"{_WORDS}. {_WORDS.title()}! {_WORDS.replace(' ', '')}\n\n{_ALL}\t{_ALL}  \n1234567890 3.14 50 % 2026-01-31 a@example.com\n",
    "Grüße, déjà vu, año; Привет мир; 你好,世界; こんにちは; مرحبا; 😀👍🏽 <unk> <s> </s> [CLS] [SEP] [MASK] <|endoftext|>",
)


def check_tokenizer_folder(folder: Path) -> None:
    """Refuse a tokenizer whose settings no tokenizer has, or that needs more than 5 seconds or 500 MB for a short text.

    The size of the file counts extra: for each megabyte 20 of memory, and 0.2 seconds.

    Args:
        folder: of a model or an adapter; one without a tokenizer is fine.

    Raises:
        ValueError: says which file, and what is wrong.

    """
    for name in _SETTINGS:
        if (folder / name).is_file():
            try:
                content = read_json(folder / name)
            except ValueError as error:
                raise ValueError(f"{name} cannot be read ({one_line(error)})") from None
            if problem := _problem_of_settings(content):
                raise ValueError(f"{name}: {problem}")
    for path in sorted(folder.glob("tokenizer*.json")):
        if path.name not in _SETTINGS and path.is_file():
            state = path.stat()
            if problem := _problem_of_rules(str(path), state.st_size, state.st_mtime_ns):
                raise ValueError(f"{path.name}: {problem}")


def _problem_of_settings(content: Any) -> str | None:
    if not isinstance(content, dict):
        return f"it is {shown(content, 40)}, and not keys and values"
    names = content.get("model_input_names")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(one, str) for one in names) and "input_ids" in names
    ):
        return f"model_input_names is {shown(names, 40)}; allowed: a list of names, input_ids among them"
    for key in ("extra_ids", "offset", "vocab_size"):
        if isinstance(number := content.get(key), int) and number > (most := _MADE if key != "vocab_size" else 10**7):
            return f"{key} is {shown(number)}; allowed: at most {most:,}"
    template = content.get("chat_template")
    if problem := _problem_of_template(template):
        return problem
    values = list(_values({key: value for key, value in content.items() if key != "chat_template"}))
    for kind, most in ((dict, _TOKENS), (list, _LIST)):  # transformers' time grows with the square of a list of tokens
        if (count := max((len(value) for value in values if isinstance(value, kind)), default=0)) > most:
            return f"it has {count:,} values in one place; allowed: {most:,}"
    if (characters := sum(len(value) for value in values if isinstance(value, str))) > _CHARACTERS:
        return f"its texts have {characters:,} characters; at most {_CHARACTERS:,} are read"
    return None


def _problem_of_template(template: Any) -> str | None:
    """Of `chat_template`: a text, or texts with names."""
    texts = [template] if template is not None else []
    if isinstance(template, dict):
        texts = list(template.values())
    elif isinstance(template, list):
        texts = [
            one.get("template") if isinstance(one, dict) and isinstance(one.get("name"), str) else None
            for one in template
        ]
    if not all(isinstance(text, str) for text in texts):
        return f"chat_template is {shown(template, 40)}; allowed: a text, or several, each with name and template"
    if sum(map(len, texts)) > _TEMPLATE:
        return f"chat_template has {sum(map(len, texts)):,} characters; at most {_TEMPLATE:,} are read"
    return None


def _values(content: Mapping[str, Any]) -> Iterator[Any]:
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            yield from (key for key in value if key not in _OF_TOKENS)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


@lru_cache(maxsize=64)
def _problem_of_rules(path: str, size: int, changed: int) -> str | None:
    """Of a tokenizer.json, which `changed` at that time; a run loads the same one several times."""
    del changed
    given = {"texts": _TEXTS, "most_added": _ADDED, "most_tokens": _TOKENS}
    own = size / 2**20
    tried = try_limited(
        "tokenizer", (json.dumps(path),), given, seconds=SECONDS + 0.2 * own, megabytes=MEGABYTES + 20 * own
    )
    if tried.over is not None:
        what = f"it {tried.over} for a text of {len(_TEXTS[0]):,} characters"
        return f"{what}; use another model, or take the rule out that does this"
    if tried.found is None:
        return None
    return f"it {one_line(tried.found, 300)}"
