from io import StringIO

from rich.console import Console

from lorank.pruning.report import budget_table, cost_table, energy_lines, svd_lines
from lorank.report.split_table import SplitTable


def shown(table: SplitTable) -> str:
    written = StringIO()
    Console(file=written, width=200).print(table)
    return written.getvalue()


def test_cost_of_pruning_with_and_without_a_test_part() -> None:
    alone = {"adapter_parameters": 40, "calibration_loss": None}
    energy = {"whole": 0.875, "modules": {"a": 1.0, "b": 0.5, "c": 0.25}}
    text = shown(cost_table({"before": alone, "after": alone, "energy_kept": energy}))
    assert "87.5 %" in text
    assert "loss" not in text
    tested = alone | {"calibration_loss": 0.5, "loss": 0.25, "metrics": {"accuracy": 0.75}}
    text = shown(cost_table({"before": tested, "after": tested}))
    assert "accuracy, test part" in text
    assert "0.7500" in text
    assert svd_lines({"calibration_loss": 0.4, "calibration_loss_by_svd": 0.5}) == svd_lines({}) == []
    assert "0.3000 and not 0.4000" in svd_lines({"calibration_loss": 0.4, "calibration_loss_by_svd": 0.3})[0]
    (line,) = energy_lines({"energy_kept": energy}, most=2)
    assert line.startswith("87.5 % of the energy")
    assert line.endswith("least in c (25.0 %), b (50.0 %)")
    row = next(
        line
        for line in shown(budget_table(tested, {"half": {**tested, "energy_kept": energy}})).splitlines()
        if "half" in line
    )
    assert [cell.strip() for cell in row.strip("│").split("│")][1:5] == ["40", "100.0 %", "87.5 %", "25.0 %"]
