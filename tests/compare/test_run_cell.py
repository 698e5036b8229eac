"""The process of a cell."""

import os

import pytest

from lorank.compare.run_cell import end_with


def test_a_cell_ends_with_the_grid_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(os, "getppid", iter((5, 1)).__next__)
    with pytest.raises(SystemExit):
        end_with(5)
