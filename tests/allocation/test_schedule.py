from itertools import pairwise

from lorank.allocation.schedule import cubic_budget


def test_the_curve_starts_ends_and_falls() -> None:
    curve = [cubic_budget(t, start=100, final=20, first_step=10, last_step=50) for t in range(61)]
    assert curve[:11] == [100] * 11
    assert curve[50:] == [20] * 11
    assert curve[30] == 20 + 80 // 8  # half way: (1/2)^3 of the surplus is left
    assert all(before >= after for before, after in pairwise(curve))
