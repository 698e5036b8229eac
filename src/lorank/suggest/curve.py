"""The loss as a function of the budget: `loss(b) = floor + gain · (b / b_1)^-power`, with b_1 the smallest budget."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import chi2

POWERS = (0.05, 4.0)  # a power outside of these cannot be told from a straight line, or from a step, with few budgets
_GRID = 150  # powers that are tried


@dataclass(frozen=True)
class Curve:
    """A fitted curve.

    Attributes:
        smallest: parameters of the smallest budget.
        floor: loss of an endless budget, 0 or more.
        gain: what the smallest budget's loss is above the floor, 0 or more.
        power: how fast the loss falls, within `POWERS`.

    """

    smallest: float
    floor: float
    gain: float
    power: float

    def at(self, parameters: np.ndarray | float) -> np.ndarray:
        """Loss of budgets, of the same shape, float64."""
        ratio = np.asarray(parameters, dtype=np.float64) / self.smallest
        return np.asarray(self.floor + self.gain * ratio**-self.power)


def fit_curve(budgets: Sequence[float], losses: np.ndarray) -> Curve:
    """The curve with the least squared distance to mean losses.

    Args:
        budgets: parameters, ascending, `(n,)`.
        losses: mean loss of each, `(n,)`, finite.

    """
    x, y = np.asarray(budgets, dtype=np.float64) / budgets[0], np.asarray(losses, dtype=np.float64)
    unit = max(float(np.ptp(y)), 1e-12)  # residuals of about 1, whatever the loss is measured in

    def residuals(values: np.ndarray) -> np.ndarray:
        return (values[0] + values[1] * x ** -values[2] - y) / unit

    (near,) = _fit_on_grid(x, y[None])
    found = least_squares(
        residuals, near, bounds=((0.0, 0.0, POWERS[0]), (np.inf, np.inf, POWERS[1])), x_scale=(unit, unit, 1.0)
    )
    best = found.x if found.cost <= 0.5 * float((residuals(near) ** 2).sum()) else near
    return Curve(float(budgets[0]), *map(float, best))


def _fit_on_grid(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The best floor, gain and power of a grid of powers, `(draws, 3)`, for losses `(draws, n)`.

    With the power given, floor and gain are a straight line's; where one of them is below 0, the best pair has one that is 0.
    """
    powers = np.geomspace(*POWERS, _GRID)
    f = x[None] ** -powers[:, None]
    f_mean, y_mean = f.mean(1)[:, None], losses.mean(1)[None]
    spread = (f**2).mean(1)[:, None] - f_mean**2
    products = f @ losses.T / len(x)
    gain = np.maximum((products - f_mean * y_mean) / spread, 0)
    floor = y_mean - gain * f_mean
    through_zero = floor < 0
    gain = np.where(through_zero, products / (f**2).mean(1)[:, None], gain)
    floor = np.where(through_zero, 0, floor)
    squares = ((floor[..., None] + gain[..., None] * f[:, None] - losses[None]) ** 2).sum(-1)
    best, each = squares.argmin(0), np.arange(len(losses))
    return np.stack([floor[best, each], gain[best, each], powers[best]], 1)


@dataclass(frozen=True)
class FittedCurve:
    """A curve, what resampled seeds and examples would have made of it, and whether it describes the losses.

    Attributes:
        curve: fitted to the means.
        draws: fitted to the means of each draw.
        residuals: mean loss minus curve, of each budget.
        errors: standard error of each mean loss relative to the mean over budgets, by the draws.
        problem: why the curve is not to be trusted; empty where nothing speaks against it.

    """

    curve: Curve
    draws: tuple[Curve, ...]
    residuals: tuple[float, ...]
    errors: tuple[float, ...]
    problem: str

    def interval(self, parameters: float, level: float = 0.9) -> tuple[float, float]:
        """Percentile interval of the loss at a budget."""
        values = [float(curve.at(parameters)) for curve in self.draws]
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def gain_beyond(self, parameters: float, factor: float = 2.0, level: float = 0.9) -> tuple[float, float, float]:
        """What a budget `factor` times as large would gain by the curve, and its percentile interval."""

        def gain(curve: Curve) -> float:
            return float(curve.at(parameters) - curve.at(factor * parameters))

        low, high = np.quantile([gain(curve) for curve in self.draws], [(1 - level) / 2, (1 + level) / 2])
        return gain(self.curve), float(low), float(high)


def fit_with_uncertainty(
    budgets: Sequence[float], losses: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> FittedCurve:
    """Fit a curve, and fit it again to draws of seeds and of examples, both with replacement.

    Budgets share seeds and examples, so all budgets of a draw have the same ones. Few seeds make the draws too alike: with n
    seeds, deviations of seeds are widened by `sqrt(n / (n - 1))`.

    Args:
        budgets: parameters, ascending, `(n,)`.
        losses: of each example, `(n, seeds, examples)`, finite.
        draws: how many.
        seed: of the draws.

    """
    generator, means = np.random.default_rng(seed), losses.mean((1, 2))
    count, examples = losses.shape[1:]
    by_seed, by_example = losses.mean(2) - means[:, None], losses.mean(1) - means[:, None]
    wider = np.sqrt(count / (count - 1)) if count > 1 else 1.0
    # How often each seed and each example is drawn.
    seeds_drawn, examples_drawn = (
        generator.multinomial(size, np.full(size, 1 / size), draws) / size for size in (count, examples)
    )
    drawn = means + wider * seeds_drawn @ by_seed.T + examples_drawn @ by_example.T
    curve = fit_curve(budgets, means)
    residuals = means - curve.at(np.asarray(budgets))
    errors = (drawn - drawn.mean(1, keepdims=True)).std(0)
    x = np.asarray(budgets, dtype=np.float64) / budgets[0]
    curves = tuple(Curve(float(budgets[0]), *map(float, one)) for one in _fit_on_grid(x, drawn))
    return FittedCurve(
        curve,
        curves,
        tuple(map(float, residuals)),
        tuple(map(float, errors)),
        _problem(curve, means, residuals, errors),
    )


def _problem(curve: Curve, means: np.ndarray, residuals: np.ndarray, errors: np.ndarray) -> str:
    spread, count = float(np.ptp(means)), len(means)
    # Squared deviations of means that are all the same in truth have this distribution.
    if float(((means - means.mean()) ** 2).sum()) <= chi2.ppf(0.95, count - 1) * float((errors**2).sum()) / (count - 1):
        return "the losses of the budgets differ by no more than their noise"
    if curve.gain <= 1e-6 * spread or means[-1] > means[0]:
        return "larger budgets did not do better: the learning rate may be too high for them, or the data too few"
    worst = float(np.abs(residuals).max())
    # A fifth of the whole spread, and more than noise explains.
    if worst > 0.2 * spread and worst > 2 * float(errors[np.abs(residuals).argmax()]):
        return f"the fit is poor: a budget is {worst:.4f} away from it, where all budgets span {spread:.4f}"
    return ""
