"""Hostile names in Markdown: parsed by markdown-it, they are the text that they were, and nothing else comes out of them."""

import html
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lorank.errors import as_seen
from lorank.plan import RankPlan
from lorank.report.adapter_card import _metadata
from lorank.report.markdown import code, plain_table, prose, table
from lorank.report.model_card import write_model_card

HOSTILE = (
    "# Evil\n# Evil", "---\nlicense: evil\n---", "<script>alert(1)</script>", "](http://evil) ![x](y)", "a|b|c",
    "`x` ``` \n```\n# Evil", "\x1b[31m\u202e\x9b2J", "x: 'y\"\n  z: [", "1. a", "- a", "*a* _b_ ~c~ **d**", "\\", "|", "`",
    "{{ plan }} {% for x in y %}", "&lt;b&gt; &#35;", "<!-- a", "http://evil.example", "\u2028# Evil", "a" * 100_000,
    "  a", "=====", "$x$", "@someone", "'; rm -rf ~; '",
)  # fmt: skip
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


def kinds(text: str) -> list[str]:
    tokens = MARKDOWN.parse(text)
    return [token.type for token in tokens] + [child.type for token in tokens for child in token.children or ()]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_its_own_text(name: str) -> None:
    (inline,) = [token for token in MARKDOWN.parse(f"{prose(name)}\n") if token.type == "inline"]
    text = "".join(child.content for child in inline.children or ())
    seen = as_seen(name[:300])
    assert text.strip() == (seen if len(name) <= 300 and len(seen) <= 300 else f"{seen[:300]}...").strip()
    assert set(kinds(prose(name))) <= {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}


@given(st.text(min_size=1, max_size=40))
def test_any_text_is_no_more_than_text_or_code(name: str) -> None:
    assert set(kinds(f"a {prose(name)} b")) <= {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}
    assert set(kinds(f"a {code(name)} b")) == {"paragraph_open", "inline", "paragraph_close", "text", "code_inline"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_table_keeps_its_cells(name: str) -> None:
    for text in (
        plain_table(("a", name), [(name, "1"), ("x", name)]),
        table(("a", "b"), [(code(name), "1"), ("x", code(name))]),
    ):
        found = kinds(text)
        assert (found.count("th_open"), found.count("td_open"), found.count("tr_open")) == (2, 4, 3)
        assert not {"heading_open", "html_block", "html_inline", "link_open", "fence"} & set(found)


def card(folder: Path, name: str) -> tuple[str, Any]:
    own = f"layers.0.{name[:900]}"
    plan = RankPlan({own: 2, "layers.1.b": 0}, {own: 10, "layers.1.b": 10}, name, 20)
    write_model_card(
        folder, plan, title=name, base_model=name, method=name, preset=name, data=f"Trained on {code(name)}.", hub_data=name,
        task_type="SEQ_CLS", num_labels=2, seed=0, whole={name: 3}, made=[prose(name)],
        metadata={"license": "mit", "tags": [name]},
        results={name: {"adapter_parameters": 20, "metrics": {name: 0.5}}}, model_class=name,
    )  # fmt: skip
    text = (folder / "README.md").read_text("utf-8")
    return text, ModelCard(text).data


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_of_hostile_names_has_the_parts_of_any_card(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    usual, _ = card(tmp_path / "plain", "name")
    text, data = card(tmp_path, name)
    assert (data.license, data.library_name, data.datasets, data.base_model) == ("mit", "peft", [name], name)
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["tags"] == ["lora", "lorank", name.replace(" ", "-"), *([name] if " " in name else [])]
    shown = [kind for kind in kinds(body) if not kind.startswith(("text", "softbreak"))]
    expected = [kind for kind in kinds(usual.split("\n---\n", 1)[1]) if not kind.startswith(("text", "softbreak"))]
    assert shown == expected
    assert "\x1b" not in body
    assert "\u202e" not in body
    assert html.escape("<script>") not in body


@pytest.mark.parametrize(
    "text", ["---\na: [\n---\n", "---\n- a\n---\n", "---\ntags: 7\n---\n", "---\ntags: [1, a]\n---\n", "no"]
)
def test_front_matter_that_nobody_can_read_is_left(text: str) -> None:
    assert _metadata(text, "---\ntags: [b]\nlicense: mit\n---\n")["license"] == "mit"
