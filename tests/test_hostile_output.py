"""Names that would steer a terminal or a page: in tables, lines, JSON, figures and the report of a run they are text."""

import json
import warnings
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from lorank.budget import read_budgets
from lorank.cli import app
from lorank.errors import BudgetError, LorankWarning, PlanError, ScoresError
from lorank.page.page import write_page
from lorank.page.run_folder import read_run
from lorank.plan import RankPlan
from lorank.report.rank_map import draw_rank_map
from lorank.scores import ImportanceScores
from tests.page.run_cases import make_run

EVIL = "\x1b[31mred\x9b2J\u202e[/bold] [red]<b>&\x07"
LONG = "x" * 900


def plan_of(name: str) -> RankPlan:
    names = [f"layers.{layer}.{one}" for layer in range(2) for one in (name, "value")]
    made = {"method": name, "preset": name, "model": name, "groups": {name: GROUP}}
    return RankPlan(dict.fromkeys(names, 1), dict.fromkeys(names, 10), name, 40, provenance=made)


GROUP = {"modules": 2, "asked": EVIL, "parameters": 40, "spent": 40}


@pytest.mark.parametrize("name", [EVIL, LONG, "a\nb\r\tc", "{x} %s $y$ \\"])
def test_nothing_of_a_file_steers_the_terminal(name: str, tmp_path: Path) -> None:
    plan_of(name).save(tmp_path / "plan.json")
    for command in (["plan", "show"], ["plan", "diff", str(tmp_path / "plan.json")], ["plan", "show", "--json", "-"]):
        result = CliRunner().invoke(app, [*command, str(tmp_path / "plan.json")])
        assert result.exit_code == 0, result.output
        said = result.stdout + result.stderr
        assert not {one for one in said if not one.isprintable()} - {"\n"}
    assert json.loads(result.stdout)["provenance"]["method"] == name


def test_an_error_about_a_file_steers_no_terminal_either(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m\u202e.json"
    path.write_text("[]")
    result = CliRunner().invoke(app, ["plan", "show", str(path)])
    assert result.exit_code == 1
    assert r"\x1b[31m\u202e.json: JSON, but not a lorank plan" in result.stderr


@pytest.mark.parametrize("name", [EVIL, LONG, "a\nb", "$\\frac{1}{0}$"])
def test_figures_hold_names_as_text(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LorankWarning)  # of a figure that was not drawn
        draw_rank_map(plan_of(name), tmp_path / "ranks.svg", name)
    svg = ElementTree.parse(tmp_path / "ranks.svg")
    assert not [one for one in svg.iter() if one.tag.endswith(("}script", "}a", "}foreignObject"))]
    texts = "".join(text for one in svg.iter() for text in one.itertext())
    assert "\x1b" not in texts
    assert "\u202e" not in texts


class Tags(HTMLParser):
    """Counts the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts = Counter[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] += 1
        assert not [key for key, _ in attributes if key.startswith("on")]


@pytest.mark.parametrize(
    "name", [EVIL, LONG, "</title><h1>x</h1>", "'\"><script>x</script>", "</pre></style><!--", "{{ 7*7 }}"]
)
def test_a_page_of_hostile_names_has_the_tags_of_any_page(name: str, tmp_path: Path) -> None:
    def tags(given: str, folder: Path) -> Counter[str]:
        make_run(folder, preset=given, model=given, rank_by=given, versions={given: given})
        (folder / "recipe.yaml").write_text(json.dumps({"method": given, "resolved": {"data": {given: given}}}))
        result = {"metrics": {given: 0.5}, "adapter_parameters": 4, "steps": 40, "seconds": 2.0}
        (folder / "metrics.json").write_text(json.dumps({"results": {given: result}}))
        page = write_page([read_run(folder)], folder / "report.html", figures=False)
        return Tags(page.read_text("utf-8")).counts

    assert tags(name, tmp_path / "one") == tags("name", tmp_path / "other")


def test_nothing_of_a_file_steers_the_page(tmp_path: Path) -> None:
    folder = tmp_path / "a\u202eb"
    make_run(folder, preset=EVIL, model=EVIL, versions={EVIL: EVIL})
    plan = plan_of(EVIL)
    plan.save(folder / "plan.json")
    (folder / "recipe.yaml").write_text(f"# \u202e\n\ta: {json.dumps(EVIL)}\n")
    text = write_page([read_run(folder)], folder / "report.html", figures=False).read_text("utf-8")
    assert not {one for one in text if not one.isprintable()} - {"\n", "\t"}
    assert "# \\u202e\n\ta: " in text
    assert "--output $&#39;" in text  # what the shell reads as the folder
    data = json.loads(text.split('id="maps">')[1].split("</script>")[0])
    told = [one for of in data.values() for name in ("where", "told", "labels") for one in of[name]]
    assert any("\\u202e" in one for one in told)
    assert all(map(str.isprintable, told))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"method": 7}, "provenance.method: Input should be a valid string"),
        ({"choices": [1]}, "provenance.choices"),
        ({"method": "x" * 20_000}, "provenance.method: String should have at most 10000"),
        ({"a": {1, 2}}, "a value that JSON cannot hold"),
        ({"a": float("nan")}, "a value that JSON cannot hold"),
        ({"a": "\ud800"}, "a value that JSON cannot hold"),
        ({"experts": {"a": 0}}, "provenance.experts"),
    ],
)
def test_what_nobody_could_read_again_is_not_written(made: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=f"nobody could read it again: {said}"):
        RankPlan({"a": 1}, {"a": 10}, "10", 10, provenance=made).save(tmp_path / "plan.json")
    with pytest.raises(ScoresError, match=f"nobody could read them again: {said}"):
        ImportanceScores({"a": [1.0]}, {"a": 10}, None, made).save(tmp_path / "s.safetensors")  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("budget", ["1e99", "r=1e99", "1e99%", "9" * 10_000, "huge", "1" + "_" * 200, {"a": "1e99"}])
def test_a_budget_above_any_model_is_refused_in_few_digits(budget: object) -> None:
    with pytest.raises(BudgetError, match=r"above what any model has|cannot be read") as found:
        read_budgets(10**5000 if budget == "huge" else budget)  # type: ignore[arg-type]
    assert len(str(found.value)) < 450
