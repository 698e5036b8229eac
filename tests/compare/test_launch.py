"""Cells side by side: their cores and GPUs."""

import pytest

from lorank.compare.launch import cores_of, environment_of


def test_side_by_side_cells_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment_of(3)["OMP_NUM_THREADS"] == "3"
    assert environment_of(3, "5")["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment_of(3)["OMP_NUM_THREADS"] == "1"
    assert cores_of(10_000) == 1
