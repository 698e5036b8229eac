"""What the short runs will take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Time of the runs that are not finished yet.

    Attributes:
        step: seconds of an optimizer step of one adapter.
        first_runs: trainings before the curve: of rates.
        first_judging: seconds in which these are judged.
        seed_runs: trainings of a seed of the curve: one for each rank.
        seed_judging: seconds in which these are judged.

    """

    step: float
    first_runs: float
    first_judging: float
    seed_runs: int
    seed_judging: float

    def seconds(self, steps: int, seeds: int) -> float:
        """Time of all runs, with so many seeds that are not finished yet."""
        return self.step * steps * (self.first_runs + seeds * self.seed_runs) + self._judging(seeds)

    def seeds_within(self, seconds: float, steps: int) -> int:
        """How many seeds fit into a time; 0 where the runs before them do not."""
        left = seconds - self.seconds(steps, 0)
        return max(0, int(left / (self.step * steps * self.seed_runs + self.seed_judging)))

    def steps_within(self, seconds: float, seeds: int) -> int:
        """Of how many steps runs may be to fit into a time."""
        left = seconds - self._judging(seeds)
        return max(0, int(left / (self.step * (self.first_runs + seeds * self.seed_runs))))

    def _judging(self, seeds: int) -> float:
        return self.first_judging + seeds * self.seed_judging
