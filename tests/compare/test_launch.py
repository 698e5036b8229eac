"""Cells side by side: their cores and GPUs."""

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lorank.compare import launch
from lorank.compare.launch import cores_of, environment_of


def test_side_by_side_cells_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment_of(3)["OMP_NUM_THREADS"] == "3"
    assert environment_of(3, "5")["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment_of(3)["OMP_NUM_THREADS"] == "1"
    assert cores_of(10_000) == 1


def test_cells_are_stopped_with_their_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))  # a cell that would run for a minute
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    with ThreadPoolExecutor() as pool:
        cell = pool.submit(launch.in_process, tmp_path, dict(os.environ))
        while not launch._RUNNING:
            time.sleep(0.01)
        launch.stop_cells()
        assert cell.result(timeout=10) == -signal.SIGTERM
    assert not launch._RUNNING
