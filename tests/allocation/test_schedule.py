import pytest

from lorank.allocation.schedule import CutSchedule, budget_at
from lorank.errors import AllocationError


def test_the_cubic_curve_of_adalora() -> None:
    at = [budget_at(step, start=1000, final=200, first_step=10, last_step=30) for step in (0, 10, 20, 30, 40)]
    assert at == [1000, 1000, 300, 200, 200]
    every = [budget_at(step, start=1000, final=200, first_step=10, last_step=30) for step in range(40)]
    assert every == sorted(every, reverse=True)


def test_linear_and_one_shot() -> None:
    def at(step: int, curve: str) -> float:
        return budget_at(step, start=1000, final=200, first_step=10, last_step=30, curve=curve)

    assert [at(step, "linear") for step in (10, 15, 20, 30)] == [1000, 800, 600, 200]
    assert [at(step, "one-shot") for step in (10, 29, 30, 31)] == [1000, 1000, 200, 200]


def test_shares_of_a_run_and_steps_mean_the_same() -> None:
    schedule = CutSchedule(100, 600, 10)
    assert CutSchedule.of_run(1000, 0.1, 0.6, 0.01) == schedule
    assert CutSchedule.of_run(1000, 100, 600, 10) == schedule
    assert CutSchedule.of_run(1000, 0, 1.0, 1) == CutSchedule(0, 1000, 1)
    assert CutSchedule.of_run(20, 0.1, 0.6, 0.01).interval == 1


def test_when_cuts_fall() -> None:
    schedule = CutSchedule(100, 605, 10)
    due = [step for step in range(1, 620) if schedule.is_due(step)]
    assert due[:2] == [110, 120]
    # 605 is no multiple of 10, and a last cut that was missed falls at the next step there is.
    assert due[-16:] == [600, *range(605, 620)]


@pytest.mark.parametrize(
    ("total", "begin", "end", "said"),
    [
        (100, 0.6, 0.1, "begin must come first"),
        (100, 0, 101, "the run has 100"),
        (1, 0.9, 1.0, "begin must come first"),
    ],
)
def test_a_schedule_without_room_is_refused(total: int, begin: float, end: float, said: str) -> None:
    """PEFT takes tinit + tfinal >= total for an error too, but crashed in kthvalue before that (peft #2337)."""
    with pytest.raises(AllocationError, match=said):
        CutSchedule.of_run(total, begin, end, 1)
