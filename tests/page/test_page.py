"""The page: what it shows is what the files of the run say, whatever these hold."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.page.run_cases import HOSTILE, make_run, write_log
from typer.testing import CliRunner

import lorank
from lorank.cli import app
from lorank.errors import OutputError
from lorank.page.page import write_page
from lorank.page.run_folder import read_run
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

_VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """What a browser would make of the page: texts, attributes, open elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        named = {key.rstrip("_"): value for key, value in wanted.items()}
        return [a for t, a in self.tags if t == tag and all(value in (a.get(k) or "") for k, value in named.items())]


def page_of(*folders: Path, to: Path, figures: bool = False) -> tuple[Page, str]:
    write_page([read_run(folder) for folder in folders], to, figures=figures)
    text = to.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    return page, text


def maps_in(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="maps">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_finished_run_is_shown_whole(tmp_path: Path) -> None:
    plan = make_run(tmp_path / "mine")
    page, text = page_of(tmp_path / "mine", to=tmp_path / "report.html", figures=True)
    readings = [reading.strip() for reading in re.findall(r'class="reading">(.*?)</', text, re.DOTALL)]
    assert not [reading for reading in readings if re.search(r"[a-z][.][0-9A-Z]", reading)], (
        "sentences without a space between"
    )
    for expected in (
        "i-lora, preset paper", "some/model", f"r=2 = {plan.budget_parameters:,} parameters", plan.spending, "accuracy", "0.5000",
        "after the cut at step 20", "nearer to it than two of their standard errors", "SHA-256 of data: train", "abc",
        f"lorank run {tmp_path}/mine/recipe.yaml --output {tmp_path}/mine",
    ):  # fmt: skip
        assert expected in page.text
    labels = [a["aria-label"] or "" for a in page.of("g", class_="cell")]
    for name, rank in plan.ranks.items():
        layer, projection = name.split(".")[2:]
        told = f"layer {layer}, {projection}: rank {rank}" + (
            f", {rank * plan.unit_costs[name]:,} parameters" if rank else ""
        )
        assert told in labels
    maps = maps_in(text)
    assert list(maps) == ["r0ranks", "r0importance", "r0cuts", "r0budgets"]
    assert maps["r0ranks"]["states"] == [[float(rank) for rank in plan.ranks.values()]]
    assert len(maps["r0cuts"]["states"]) == 3
    assert sum(maps["r0importance"]["states"][0]) == pytest.approx(100, abs=0.01)
    spent = [
        sum(r * c for r, c in zip(s, maps["r0budgets"]["costs"], strict=True)) for s in maps["r0budgets"]["states"]
    ]
    assert spent == sorted(spent)
    assert plan.spent in spent
    assert len(page.of("svg", class_="figure")) == 2  # loss and margin
    assert {file.name for file in (tmp_path / "report-figures").iterdir()} == {
        f"{name}.{ending}" for name in ("loss", "margin", "ranks", "importance", "cuts") for ending in ("png", "svg")
    }  # fmt: skip


def test_a_negative_importance_is_explained_where_there_is_one(tmp_path: Path) -> None:
    make_run(tmp_path / "positive")
    page, _ = page_of(tmp_path / "positive", to=tmp_path / "report.html")
    assert "Below zero:" not in page.text
    plan = make_run(tmp_path / "mixed")
    values = {name: np.full(4, -1.0) if k == 0 else np.arange(4.0) for k, name in enumerate(plan.ranks)}
    scores = ImportanceScores(values, dict(plan.unit_costs), None, {"method": "i-lora"})
    scores.save(tmp_path / "mixed" / "scores.safetensors")
    lorank.allocate(scores, "r=2").save(tmp_path / "mixed" / "plan.json")
    page, _ = page_of(tmp_path / "mixed", to=tmp_path / "report.html")
    assert "Below zero: added up, the units of the module made the loss that was scored larger" in page.text


def test_what_was_done_is_said_where_the_run_recorded_it(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", scoring_examples=12)
    before, _ = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert "12 for scoring" in before.text
    assert "cost of the search" not in before.text
    content = json.loads((tmp_path / "mine" / "metrics.json").read_text())
    content |= {"examples": {"train": 8551, "test": 1043}, "processes": 2}
    content["results"]["i-lora"]["search"] = {"steps": 10, "passes": 130, "seconds": 1.25}
    (tmp_path / "mine" / "metrics.json").write_text(json.dumps(content))
    (tmp_path / "mine" / "adapter").mkdir()
    (tmp_path / "mine" / "adapter" / "adapter_config.json").write_text("{}")
    page, _ = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    for expected in (
        "8,551 for train, 1,043 for test, 12 for scoring", "10 steps and 130 scoring passes, 1.2 s", "processes 2",
        f"adapter {tmp_path}/mine/adapter",
    ):  # fmt: skip
        assert expected in page.text
    content["examples"] = HOSTILE
    (tmp_path / "mine" / "metrics.json").write_text(json.dumps(content))
    page, _ = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert "metrics.json: what was done is left out" in page.text


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    page, text = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert not [a for tag, a in page.tags if tag in ("link", "img", "iframe") or a.get("src")]
    assert not [a["href"] for _, a in page.tags if (a.get("href") or "#")[0] != "#"]
    assert "url(http" not in text
    assert len(text.encode()) < 300_000


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "a<b>&\"'"
    make_run(folder, model=HOSTILE, method=HOSTILE)
    (folder / "recipe.yaml").write_text(f"# {HOSTILE}\n", encoding="utf-8")
    results = {HOSTILE: {"metrics": {HOSTILE: 1.0}, "adapter_parameters": 3}}
    (folder / "metrics.json").write_text(json.dumps({"results": results}))
    page, text = page_of(folder, to=tmp_path / "report.html")
    assert page.text.count(HOSTILE) >= 5
    assert not page.of("img")
    assert "7006652" not in page.text
    assert len(page.of("script")) == 2
    assert maps_in(text)


def test_letters_of_all_languages(tmp_path: Path) -> None:
    make_run(tmp_path / "días-日本", model="моя/модель")
    page, _ = page_of(tmp_path / "días-日本", to=tmp_path / "report.html")
    assert "días-日本" in page.text
    assert "моя/модель" in page.text


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", metrics=False)
    page, _ = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert "There are no results" in page.text
    for name in ("plan.json", "scores.safetensors"):
        (tmp_path / "mine" / name).unlink()
    page, text = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert "There is no plan yet" in page.text
    assert list(maps_in(text)) == ["r0cuts"]
    assert page.of("svg", class_="figure")  # losses so far


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    (tmp_path / "mine" / "metrics.json").write_text("[" * 100_000)
    (tmp_path / "mine" / "scores.safetensors").write_bytes(b"broken")
    (tmp_path / "mine" / "cuts.jsonl").write_text("{}\n")
    (tmp_path / "mine" / "search/checkpoint-20/trainer_state.json").write_text('{"log_history": [3, {"step": "x"}]}')
    page, text = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    for name in ("metrics.json", "scores.safetensors", "cuts.jsonl"):
        assert f"{name} is left out: " in page.text
    assert list(maps_in(text)) == ["r0ranks"]


@pytest.mark.parametrize(
    "results",
    [
        {"a": {"metrics": None}}, {"a": {"metrics": {"m": "x"}, "adapter_parameters": 1}}, {"a": {"metrics": {}, "steps": "7"}},
        {"a": {"metrics": {"m": 1.0}, "adapter_parameters": None}}, {"a": {"metrics": {"m": 1.0}, "more": {"p": None}}},
        [], {"a": 3},
    ],
)  # fmt: skip
def test_results_that_lorank_would_not_write_do_not_end_the_page(results: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    (tmp_path / "mine" / "metrics.json").write_text(json.dumps({"results": results}))
    page, text = page_of(tmp_path / "mine", tmp_path / "mine", to=tmp_path / "report.html")
    assert ("metrics.json is left out" in page.text) == bool(isinstance(results, dict) and results != {"a": 3})
    assert "r0ranks" in maps_in(text)


def test_a_log_that_is_too_large_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "mine")
    write_log(tmp_path / "mine/train/checkpoint-50", [])
    with (tmp_path / "mine/train/checkpoint-50/trainer_state.json").open("wb") as file:
        file.truncate(200 * 2**20)  # a hole: no byte is written
    page, _ = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert "trainer_state.json is left out: it has 200 MiB, and at most 32 are read" in page.text


def test_scores_of_modules_have_no_margin_but_other_budgets(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", units=1, errors=False)
    shutil.rmtree(tmp_path / "mine/search")
    page, _ = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert "Margin" not in page.text


def test_a_large_model_fits(tmp_path: Path) -> None:
    make_run(tmp_path / "mine", layers=80, units=16, budget="r=8")
    page, text = page_of(tmp_path / "mine", to=tmp_path / "report.html")
    assert len(text.encode()) < 2 * 2**20
    assert len(page.of("g", class_="cell")) == 4 * 560


def test_several_runs_stand_side_by_side_with_what_differs(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "one"), make_run(tmp_path / "two", seed=1)
    page, text = page_of(tmp_path / "one", tmp_path / "two", to=tmp_path / "report.html")
    changes = [float(second.ranks[name] - rank) for name, rank in first.ranks.items()]
    assert maps_in(text)["d1"]["states"] == [changes]
    assert f"{100 * first.moved_share(second):.1f} % of the parameters of one moved" in page.text
    make_run(tmp_path / "other", layers=2)
    page, text = page_of(tmp_path / "one", tmp_path / "other", to=tmp_path / "report.html")
    assert "different models" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no plan\.json and no recipe\.yaml"):
        read_run(tmp_path)
    with pytest.raises(OutputError, match="is no folder"):
        read_run(tmp_path / "missing")


def test_the_command_writes_beside_the_run(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "mine"), "--no-figures"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "mine" / "report.html").is_file()
    assert not (tmp_path / "mine" / "report-figures").exists()


def test_a_plan_alone_is_enough(tmp_path: Path) -> None:
    RankPlan({"a": 2, "b": 0}, {"a": 3, "b": 4}, "6", 6).save(tmp_path / "plan.json")
    page, text = page_of(tmp_path, to=tmp_path / "report.html")
    assert list(maps_in(text)) == ["r0ranks"]
    assert "not known" in page.text
