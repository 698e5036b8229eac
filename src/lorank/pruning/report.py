"""What pruning cost, in tables, a sentence and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorank.report.markdown import plain_table
from lorank.report.picture import drawable, drawing, save_picture
from lorank.report.split_table import SplitTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_table(measured: Mapping[str, Any]) -> SplitTable:
    """Parameters, losses and metrics before and after, as far as they are known."""
    table = SplitTable("what pruning cost", ("", "before", "after"))
    for row in _costs(measured):
        table.add_row(*row)
    return table


def cost_markdown(measured: Mapping[str, Any]) -> str:
    """The rows of `cost_table` as a Markdown table."""
    return plain_table(("", "before", "after"), _costs(measured), numbers=True).rstrip()


def _costs(measured: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, after = measured["before"], measured["after"]
    rows = [("adapter parameters", f"{before['adapter_parameters']:,}", f"{after['adapter_parameters']:,}")]
    if energy := measured.get("energy_kept"):
        rows.append(("energy of the updates", "100.0 %", f"{100 * energy['whole']:.1f} %"))
    for key, what in (("calibration_loss", "loss, calibration set"), ("loss", "loss, test part")):
        if before.get(key) is not None:
            rows.append((what, _number(before[key]), _number(after.get(key))))
    for metric, value in before.get("metrics", {}).items():
        rows.append((f"{metric}, test part", _number(value), _number(after["metrics"][metric])))
    return rows


def svd_lines(after: Mapping[str, Any]) -> list[str]:
    """That a cut by singular values has a lower loss, where a cut by path was asked for and it has."""
    by_svd = after.get("calibration_loss_by_svd")
    if by_svd is None or by_svd >= after["calibration_loss"]:
        return []
    return [
        f"a cut by singular values has a lower loss on the calibration set: {by_svd:.4f} and not "
        f"{after['calibration_loss']:.4f}; try --by svd"
    ]


def energy_lines(measured: Mapping[str, Any], most: int = 3) -> list[str]:
    """How much energy is kept, in words; and the modules that lose most of theirs."""
    energy = measured["energy_kept"]
    lost = sorted((share, name) for name, share in energy["modules"].items() if share < 1)[:most]
    said = f"{100 * energy['whole']:.1f} % of the energy of the updates (squared singular values) is kept"
    if not lost:
        return [said]
    return [f"{said}; least in {', '.join(f'{name} ({100 * share:.1f} %)' for share, name in lost)}"]


def budget_table(before: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]]) -> SplitTable:
    """One row for the adapter as it was, and one for each budget.

    Args:
        before: `adapter_parameters`, and losses and metrics as far as they are known.
        after: budget -> the same, and `energy_kept`.

    """
    losses = [key for key in _LOSSES if before.get(key) is not None]
    metrics = list(before.get("metrics", {}))
    known = [_LOSSES[key] for key in losses]
    columns = ("budget", "parameters", "of before", "energy kept", "lowest in a module", *known, *metrics)
    table, held = SplitTable("pruned to several budgets", columns), before["adapter_parameters"]
    for name, row in {"before": before, **after}.items():
        energy = row.get("energy_kept", {"whole": 1.0, "modules": {"": 1.0}})
        table.add_row(
            name,
            f"{row['adapter_parameters']:,}",
            f"{100 * row['adapter_parameters'] / held:.1f} %",
            f"{100 * energy['whole']:.1f} %",
            f"{100 * min(energy['modules'].values()):.1f} %",
            *(_number(row[key]) for key in losses),
            *(_number(row["metrics"][metric]) for metric in metrics),
        )
    return table


def draw_pruning_curve(
    before: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]], path: Path, title: str
) -> None:
    """Draw energy, and the losses that are known, against the parameters that are left.

    Args:
        before: as in `budget_table`.
        after: as in `budget_table`.
        path: of the picture.
        title: above it.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(_figure(before, after, title), path)


def _figure(before: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]], title: str) -> "Figure":
    from matplotlib.figure import Figure

    points = sorted([*after.items(), ("before", before)], key=lambda item: item[1]["adapter_parameters"])
    parameters = [row["adapter_parameters"] for _, row in points]
    losses = [key for key in _LOSSES if before.get(key) is not None]
    figure = Figure(figsize=(6.4, 5.6 if losses else 3.6), layout="constrained")
    axes: Any = figure.subplots(2 if losses else 1, 1, sharex=True, squeeze=False)[:, 0]
    energies = [row.get("energy_kept", {"whole": 1.0})["whole"] for _, row in points]
    axes[0].plot(parameters, [100 * share for share in energies], marker="o", markersize=5)
    for number, ((name, _), x, share) in enumerate(zip(points, parameters, energies, strict=True)):
        # Above and below in turn, so that names of budgets that are near each other stay apart.
        place = (0, -14 if number % 2 else 7)
        axes[0].annotate(drawable(name), (x, 100 * share), place, textcoords="offset points", fontsize=8, ha="center")
    axes[0].set_ylabel("energy kept, %")
    axes[0].set_ylim(0, 112)
    axes[0].set_title(drawable(title), loc="left", fontsize=10)
    if losses:
        for key in losses:
            axes[1].plot(parameters, [row[key] for _, row in points], marker="s", markersize=4, label=_LOSSES[key])
        axes[1].set_ylabel("mean loss")
        axes[1].legend(fontsize=8)
    axes[-1].set_xlabel("adapter parameters")
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    for axis in axes:
        axis.margins(x=0.08)
        axis.grid(alpha=0.3)
    return figure


_LOSSES = {"calibration_loss": "loss, calibration set", "loss": "loss, test part"}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
