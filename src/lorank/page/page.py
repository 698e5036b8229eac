"""The report of runs: one HTML file with everything in it, that opens from disk and needs no network."""

import html
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from lorank.artefact import check_file, make_folder, versions, write_text
from lorank.errors import LorankWarning, as_seen, one_line
from lorank.page.facts import plan_facts, result_rows, work_facts
from lorank.page.figures import inline_svg, loss_figure, margin_figure
from lorank.page.margin import plan_margin
from lorank.page.run_folder import RunFolder
from lorank.page.run_maps import difference_maps, maps_of
from lorank.report.cut_map import cuts_figure
from lorank.report.markdown import in_shell
from lorank.report.picture import drawing, plain_text, save_picture
from lorank.report.rank_map import is_made_from, rank_figure
from lorank.report.tables import quadrature_lines, stability_lines, summary_words

REPORT = "report.html"


def write_page(runs: Sequence[RunFolder], path: Path, *, figures: bool = True) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        runs: of `read_run`.
        path: of the HTML file.
        figures: whether loss curves, margins and the maps of ranks, importance and cuts are also written as PNG and SVG, into a
            folder beside it.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.

    Warns:
        LorankWarning: a figure could not be drawn.

    """
    check_file(path)
    shown = [_run_view(run, f"r{number}") for number, run in enumerate(runs)]
    differences = difference_maps(runs)
    maps = [one for view in shown for one in view["maps"]] + differences
    data = {one.key: one.data() for one in maps}
    environment = _environment()
    text = environment.get_template("report.html.j2").render(
        title=", ".join(run.name for run in runs),
        runs=shown,
        differences=differences,
        compared=_compared(runs, shown),
        data=_in_script(data),
        css=_asset("report.css"),
        script=_asset("report.js"),
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        version=versions()["lorank"],
    )
    write_text(path, text)
    for number, (run, view) in enumerate(zip(runs, shown, strict=True) if figures else (), 1):
        _save_figures(run, view, path.parent / f"{path.stem}-figures" / (f"run-{number}" if len(runs) > 1 else ""))
    return path


def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        finalize=_seen,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_asset),
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    return environment


def _seen(value: Any) -> Any:
    """What the template prints, as it is seen; SVG and other parts of the page are markup already."""
    return value if hasattr(value, "__html__") else as_seen(str(value), "\n\t")


def _asset(name: str) -> str:
    return (files("lorank.page") / "assets" / name).read_text(encoding="utf-8")


def _in_script(data: Any) -> str:
    """JSON that can end neither its script element nor be read as a comment."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _run_view(run: RunFolder, key: str) -> dict[str, Any]:
    """What the template shows of a run."""
    plan, maps = run.plan, maps_of(run, key)
    margin = plan_margin(plan, run.scores) if plan is not None and run.scores is not None else None
    drawn: dict[str, str | None] = {"loss": None, "margin": None}
    if run.curves:
        drawn["loss"] = _drawn(partial(loss_figure, run.curves), f"{key}loss", "Loss while training")
    if margin is not None:
        drawn["margin"] = _drawn(partial(margin_figure, margin), f"{key}margin", "Margin of the plan")
    return {
        "key": key,
        "name": run.name,
        "folder": str(run.folder),
        "facts": [
            *_shown(run, "plan.json", plan_facts, []),
            *_shown(run, "metrics.json: what was done", work_facts, []),
        ],
        "summary": summary_words(plan) if plan is not None else "",
        "results": _shown(run, "metrics.json", result_rows, None),
        "maps": maps,
        "figures": drawn,
        "margin": margin,
        "crossed": margin is not None and any(one.kept != (one.score > margin.threshold) for one in margin.units),
        "stages": {curve.stage for curve in run.curves},
        "evaluated": any(curve.eval_steps for curve in run.curves),
        "quality": _shown(run, "plan.json: how sure", _quality, []),
        "notes": run.notes,
        "unseen": _unseen(run),
        "command": _command(run),
        "recipe": run.recipe,
        "origin": _origin(run),
    }


def _shown(run: RunFolder, file: str, make: Callable[[RunFolder], Any], otherwise: Any) -> Any:
    """What `make` makes of a run; where its files hold what lorank would not write, a note and `otherwise`."""
    try:
        return make(run)
    except Exception as error:  # any kind, as values may be of any type
        run.notes.append(
            f"{file} is left out: it holds what is not understood ({type(error).__name__}: {one_line(error):.200})"
        )
        return otherwise


def _quality(run: RunFolder) -> list[str]:
    plan = run.plan
    return [] if plan is None else [*stability_lines(plan), *quadrature_lines(plan), *_gap(plan.provenance)]


def _command(run: RunFolder) -> str | None:
    """What continues the run, or repeats what is missing of it."""
    if run.recipe is None:
        return None
    return f"lorank run {in_shell(str(run.folder / 'recipe.yaml'))} --output {in_shell(str(run.folder))}"


def _drawn(draw: Callable[[], Any], key: str, title: str) -> str | None:
    """A figure as SVG for the page; None where it cannot be drawn, which is said."""
    try:
        with plain_text():
            return inline_svg(draw(), key, html.escape(title, quote=True))
    except Exception as error:  # matplotlib raises many kinds, and no figure is worth the page
        warnings.warn(f"{title} was not drawn ({type(error).__name__}: {one_line(error)})", LorankWarning, stacklevel=4)
        return None


def _save(draw: Callable[[], Any], file: Path) -> None:
    """A figure as PNG and as SVG; a failure is said."""
    with drawing(file):
        make_folder(file.parent)
        figure = draw()
        for ending in (".png", ".svg"):
            save_picture(figure, file.with_suffix(ending))


def _save_figures(run: RunFolder, view: Mapping[str, Any], folder: Path) -> None:
    """Loss and margin; ranks, with the importance beside them, and before and after the cuts: where there is what they need."""
    plan, scores, margin = run.plan, run.scores, view["margin"]
    if view["figures"]["loss"] is not None:
        _save(lambda: loss_figure(run.curves), folder / "loss")
    if view["figures"]["margin"] is not None:
        _save(lambda: margin_figure(margin), folder / "margin")
    if plan is not None:
        _save(lambda: rank_figure(plan), folder / "ranks")
        if scores is not None and is_made_from(plan, scores):
            _save(lambda: rank_figure(plan, scores), folder / "importance")
    if (history := run.history) is not None and history.cuts:
        _save(lambda: cuts_figure(history, run.name), folder / "cuts")


def _compared(runs: Sequence[RunFolder], shown: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each of several runs: budget, what is spent, results of its method."""
    if len(runs) < 2:
        return []
    rows: list[tuple[str, ...]] = []
    for run, view in zip(runs, shown, strict=True):
        plan, results = run.plan, view["results"]
        told = "-"
        if results:
            values = zip(results["metrics"], results["rows"][0][2], strict=True)
            told = ", ".join(f"{name} {value}" for name, value in values if value != "-") or "-"
        made = (
            ("-", "-", "-")
            if plan is None
            else (str(plan.provenance.get("method", "-")), plan.budget, f"{plan.spent:,}")
        )
        rows.append((run.name, *made, told))
    return rows


def _unseen(run: RunFolder) -> list[str]:
    """What was measured and is in the folder, but not in the page."""
    found = []
    if run.scores is not None and not run.scores.of_modules:
        units = sum(len(values) for values in run.scores.scores.values())
        found.append(f"the score of each of {units:,} units of rank (scores.safetensors)")
    if run.scores is not None and run.scores.resamples:
        draws = ", ".join(run.scores.resamples)
        found.append(f"scores on parts of the scoring examples: {draws} (scores.safetensors)")
    if run.history is not None and run.history.cuts:
        found.append("importance of each module at each cut (cuts.jsonl)")
    if any(one.get("more") for one in run.results.values() if isinstance(one, Mapping)):
        found.append("losses and metrics of further parts (metrics.json)")
    return found


def _gap(made: Mapping[str, Any]) -> list[str]:
    """How far the integrated gradients are from the loss that they share out."""
    gap = (made.get("quadrature") or {}).get("completeness_gap")
    return (
        [] if not isinstance(gap, int | float) else [f"completeness gap |Σ IG - (L(θ) - L(0))|: {gap:.3g} (0 is exact)"]
    )


def _origin(run: RunFolder) -> list[tuple[str, str]]:
    """Versions and hashes, from the recipe of the run or from its plan."""
    made = run.plan.provenance if run.plan is not None else {}
    used = run.resolved.get("versions") or made.get("versions") or {}
    found = [(f"version of {name}", str(one)) for name, one in used.items()] if isinstance(used, Mapping) else []
    data = run.resolved.get("data")
    found += (
        [(f"SHA-256 of data: {part}", str(sum_)) for part, sum_ in data.items()] if isinstance(data, Mapping) else []
    )
    if made.get("scores"):
        found.append(("fingerprint of the scores", str(made["scores"])))
    if made.get("seed") is not None:
        found.append(("seed", str(made["seed"])))
    return found
