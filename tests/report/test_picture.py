"""Names may hold anything, and a picture that cannot be drawn loses nothing else."""

import warnings
from pathlib import Path

import matplotlib
import pytest
from tests.report.test_rank_map import some_plan

from lorank.errors import LorankWarning
from lorank.report.picture import drawable
from lorank.report.rank_map import draw_rank_map

NAMES = [
    "from_$5_to_$10",
    r"\frac{1}{",
    "😀 数据",
    "a\nb\nc\nd\ne\nf",
    "x" * 5000,
    "\udcff\x00\x07",
    "100 % {of} #all_&~^",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn(name: str, tmp_path: Path) -> None:
    with matplotlib.rc_context({"text.usetex": True}), warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_rank_map(some_plan(), tmp_path / "ranks.png", f"lora · {name}\nbudget r=1")
    assert (tmp_path / "ranks.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("Image size is too large")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.warns(LorankWarning, match=r"ranks\.png was not drawn \(ValueError: Image size is too large\)"):
        draw_rank_map(some_plan(), tmp_path / "ranks.png", "title")
    assert not list(tmp_path.iterdir())


def test_what_is_drawn_is_short() -> None:
    assert drawable("a$b\n" * 9) == "a$b\na$b\na$b\na$b"
    assert len(drawable("x" * 5000)) == 110
    assert drawable("\udcff\x07") == "??"
