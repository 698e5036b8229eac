"""Regular expressions of users and strangers end in bounded time."""

import time
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from tests.conftest import tiny_config
from transformers import BertForSequenceClassification

from lorank.errors import AdapterError, TargetError
from lorank.serving.adapter_files import AdapterFiles
from lorank.targets import find_targets
from lorank.untrusted.chat_templates import check_chat_template
from lorank.untrusted.expressions import LONGEST, check_time, compiled

NAMES = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(30) for name in "qkvo"]
ENDLESS = (
    ".?" * 60 + "!",
    "(.|.)" * 22 + "!",
    r"(?x)( [\w.]+ ) + !",
    "([a-z0-9._]+)+!",
    "(a|[a-z._0-9]|.)*!",
    r"(?:\w*\.*)*!",
    ".*.*.*.*.*.*.*.*.*.*.*!",
)


@pytest.mark.parametrize("expression", ENDLESS)
def test_an_endless_one_is_refused(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorank.untrusted.expressions.SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"takes longer than 0.3 s to match with the names of 120 modules"):
        check_time([expression], NAMES)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "expression",
    [
        r".*\.(q|v)_proj",
        r".*layers\.(\d+)\..*(q|k)_proj",
        r"(?!.*vision)(.*\.)?[qv]_proj",
        r"(model\.)?layers\.\d{1,2}\..+",
        r"(?i).*LAYERS.*self_attn.*(q|v)_proj",
    ],
)
def test_usual_ones_are_not(expression: str) -> None:
    check_time([expression], NAMES)
    assert compiled(expression)


@pytest.mark.parametrize("expression", ["(", "a" * (LONGEST + 1), "(" * 1900 + ")" * 1900, "a{99999999999999999999}"])
def test_what_cannot_be_compiled_is_a_value_error(expression: str) -> None:
    with pytest.raises(ValueError) as found:
        compiled(expression)
    assert len(str(found.value)) < 200


def test_of_targets_and_of_a_strangers_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorank.untrusted.expressions.SECONDS", 0.3)
    with pytest.raises(TargetError, match=r"targets .* takes longer than"):
        find_targets(BertForSequenceClassification(tiny_config()), ENDLESS[4])
    with pytest.raises(TargetError, match=r"exclude_modules .* takes longer than"):
        find_targets(BertForSequenceClassification(tiny_config()), exclude_modules=ENDLESS[4])
    model = get_peft_model(
        BertForSequenceClassification(tiny_config()), LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    )
    model.save_pretrained(str(tmp_path))
    config = (tmp_path / "adapter_config.json").read_text()
    for field, value in (("rank_pattern", f'{{"{ENDLESS[3]}": 2}}'), ("target_modules", f'"{ENDLESS[3]}"')):
        (tmp_path / "adapter_config.json").write_text(
            config.replace(
                f'"{field}": ' + ("{}" if "pattern" in field else '[\n    "query"\n  ]'), f'"{field}": {value}'
            )
        )
        with pytest.raises(AdapterError, match=r"takes longer than .*do not load it elsewhere"):
            AdapterFiles.read(tmp_path)


def test_where_no_process_can_be_started_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorank.untrusted.limited_process.sys.executable", "/bin/false")
    with pytest.raises(ValueError, match="expressions could not be tried: a trial with limits ended with status 1"):
        check_time([ENDLESS[0]], NAMES)
    with pytest.raises(ValueError, match=r"the chat template could not be tried .*ended with status 1"):
        check_chat_template("{{ messages }}", {})
