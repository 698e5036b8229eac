"""Tokenizers and chat templates, mutated: loaded, and used for a text and for a chat."""

import json
import shutil

from hypothesis import strategies as st

from lorank.errors import DataError
from lorank.models.loading import load_tokenizer
from lorank.models.pretrained import Pretrained, loadable
from lorank.untrusted.chat_templates import check_chat_template
from tests.mutations import World, damaged, either

CHAT = [{"role": "user", "content": "the day"}, {"role": "assistant", "content": "was fine"}]
TEMPLATES = (
    "{% for m in messages %}{% if m.role != 'user' %}{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for i in range(20) %}{% set ns.n = ns.n * 9 + i %}{{ 'x' * ns.n }}{% break %}{% endfor %}",
    "{{ tools | tojson(indent=2) }}{% macro f(x) %}{{ x | trim | upper }}{% endmacro %}{{ f(messages[0]['content']) }}",
)


def tokenizer(world: World, data: st.DataObject) -> None:
    folder = world.folder / "model"
    shutil.copytree(world.model, folder)
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    either(folder / name, json.loads((folder / name).read_text()), data)
    loaded = load_tokenizer(Pretrained(str(folder)))
    with loadable(DataError):
        loaded(["the day was fine", "good"], padding=True, truncation=True, max_length=16)


def chat_template(world: World, data: st.DataObject) -> None:
    template = damaged(data.draw(st.sampled_from(TEMPLATES)).encode(), data).decode(errors="replace")
    loaded = load_tokenizer(Pretrained(str(world.model)))
    try:
        check_chat_template(template, loaded.special_tokens_map, [{"messages": CHAT}])
    except ValueError as error:
        raise DataError(str(error)) from None
    with loadable(DataError):
        loaded.apply_chat_template(CHAT, chat_template=template)
