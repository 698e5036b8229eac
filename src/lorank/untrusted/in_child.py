"""The script that `limited_process` starts: it limits itself, and then tries what strangers wrote.

It uses nothing of lorank. It reads a line with what to try and its limits, then one line for each input. It writes the number of
each input before it tries it, and at the end what it found. Errors within the limits are left to whoever uses the same thing.
"""

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

OUT_OF_MEMORY = 3  # exit status
# A text that is made of an example may have so many characters, and so many for each of the example's.
_CHARACTERS, _TIMES = 100_000, 20


def _limit(seconds: float, megabytes: float) -> None:
    """From here on: so much time of the processor, and so much more memory, as far as the system can limit them."""
    if hasattr(signal, "setitimer"):
        # Its signal ends the process, also inside of a regular expression.
        signal.setitimer(signal.ITIMER_PROF, seconds)
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard, size = resource.getrlimit(resource.RLIMIT_AS)[1], now + int(megabytes * 2**20)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def _inputs() -> Iterator[tuple[str, Any]]:
    """Each line as it was written, and what it holds."""
    for number, line in enumerate(sys.stdin):
        print(number, flush=True)
        yield line, json.loads(line)


def _expressions(given: Any) -> Callable[[], Any]:
    """As PEFT matches: the whole name, or its end from a dot on. What does not compile is refused by whoever compiles it."""

    def run() -> None:
        for _, text in _inputs():
            forms = ((text, re.fullmatch), (rf"(.*\.)?({text})$", re.match), (rf"(^|.*\.){text}($|\..*)", re.match))
            for form, match in forms:
                with suppress(re.error, RecursionError, OverflowError):
                    pattern = re.compile(form)
                    for name in given["names"]:
                        match(pattern, name)

    return run


def _tokenizer(given: Any) -> Callable[[], Any]:
    """Loads a tokenizer.json and makes tokens of texts: what it does far too much of, or what it panics at."""
    from tokenizers import Tokenizer

    def problem_of(tokenizer: Any) -> str | None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if (count := len(tokenizer.get_added_tokens_decoder())) > given["most_tokens"]:
            return f"adds {count:,} tokens to its vocabulary; allowed: {given['most_tokens']:,}"
        if (count := max(map(tokenizer.num_special_tokens_to_add, (False, True)))) > given["most_added"]:
            return f"adds {count:,} tokens to each text; allowed: {given['most_added']}"
        for text in given["texts"]:
            for texts in ((text,), (text, "b")):
                try:
                    count = len(tokenizer.encode(*texts).ids)
                except MemoryError:
                    raise
                except Exception:  # a letter that is no token: whoever uses it says so
                    continue
                if count > _TIMES * len(text):
                    return f"makes {count:,} tokens of a text of {len(text):,} characters"
        return None

    def run() -> str | None:
        for _, path in _inputs():
            try:
                if (problem := problem_of(Tokenizer.from_file(path))) is not None:
                    return problem
            except MemoryError:
                raise
            except Exception:  # whoever loads it to use it says so
                continue
            except BaseException as error:  # a panic of the tokenizers package
                return f"cannot make tokens of a text ({str(error)[:500]})"
        return None

    return run


def _chat_template(given: Any) -> Callable[[], Any]:
    """Renders conversations, as transformers does. What draws by chance could render another text the next time."""
    from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_NAMESPACE
    from transformers.utils.chat_template_utils import render_jinja_template

    drawn = list[str]()

    def draw(*_: Any, **__: Any) -> str:
        drawn.append("another text each time")
        return ""

    DEFAULT_FILTERS["random"] = DEFAULT_NAMESPACE["lipsum"] = draw

    def run() -> Any:
        for line, example in _inputs():
            for conversation, prompt in example["conversations"]:
                try:
                    text = render_jinja_template(
                        conversations=[conversation],
                        tools=example["tools"],
                        chat_template=given["template"],
                        add_generation_prompt=prompt,
                        return_assistant_tokens_mask=given["marks"],
                        **{**given["tokens"], **example["options"]},
                    )[0][0]
                except MemoryError:
                    raise
                except Exception:  # said by whoever renders it to train on it
                    text = ""
                if drawn:
                    return drawn[0]
                if len(text) > _CHARACTERS + _TIMES * len(line):
                    return f"{len(text):,} characters of an example of {len(line):,}"
        return None

    return run


def main() -> None:
    """Prepare, limit, run."""
    given = json.loads(sys.stdin.readline())
    sys.path[:] = given["path"]
    run = {"expressions": _expressions, "tokenizer": _tokenizer, "chat_template": _chat_template}[given["kind"]](given)
    _limit(given["seconds"], given["megabytes"])
    try:
        found = run()
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    print(json.dumps({"found": found}))


if __name__ == "__main__":
    main()
