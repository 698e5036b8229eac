"""Would an engine compute what was trained? Recomputed from the files alone, under each engine's loading rule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lorank.errors import AdapterError
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base_layers import BaseLayers
from lorank.serving.delta import difference_norm, product_norm, rounding
from lorank.serving.engines import ENGINES
from lorank.validation import nearest


@dataclass(frozen=True)
class Verdict:
    """What one engine would make of an adapter.

    Attributes:
        engine: short name, as `--engine` takes it.
        label: name and versions.
        right: every module's update is the trained one, to one ulp of the dtype of the files, and nothing is lost.
        why: why the adapter is refused, or what is wrong; empty where it is right.
        error: largest `‖ΔW - ΔW_trained‖ / ‖ΔW_trained‖` (Frobenius) over all modules; None where it is refused.
        worst: the module with that error.
        settings: what has to be set for the engine to load it.

    """

    engine: str
    label: str
    right: bool
    why: str
    error: float | None
    worst: str
    settings: str


def verify(
    adapter: AdapterFiles,
    trained: AdapterFiles | None = None,
    base: BaseLayers | None = None,
    engines: Iterable[str] | None = None,
) -> list[Verdict]:
    """Recompute `ΔW = s B A` of every module under each engine's rule and compare it with the trained one.

    Args:
        adapter: the adapter that is to be served.
        trained: what it should compute, by PEFT's rule; None: `adapter` itself, by PEFT's rule.
        base: its base model; where it is known, names and shapes are checked, and layers that an engine misses are seen.
        engines: names out of `ENGINES`; None takes all.

    Raises:
        AdapterError: an unknown engine; an adapter that is not for the base model, or not for the same layers as `trained`.

    """
    chosen = list(ENGINES if engines is None else engines)
    check_engines(chosen)
    truth = trained or adapter
    if base is not None:
        base.check(adapter)
        base.check(truth)
    for module in adapter.pairs:
        if module in truth.pairs and truth.pairs[module].shape != adapter.pairs[module].shape:
            raise AdapterError(
                f"{module!r} is of shape {adapter.pairs[module].shape} in {adapter.folder} and {truth.pairs[module].shape} in "
                f"{truth.folder}; these are adapters of different models"
            )
    comparison = _Comparison(adapter, truth)
    return [_verdict(name, comparison, base) for name in chosen]


def check_engines(names: Iterable[str]) -> None:
    """Refuse a name that is no engine's.

    Raises:
        AdapterError: names the nearest one.

    """
    for name in names:
        if name not in ENGINES:
            raise AdapterError(f"engine {name!r} is unknown{nearest(name, ENGINES)}; allowed: {', '.join(ENGINES)}")


class _Comparison:
    """Errors of single modules, each computed once for every factor that an engine scales it by."""

    def __init__(self, adapter: AdapterFiles, truth: AdapterFiles) -> None:
        self.adapter, self.truth, self.scales = adapter, truth, truth.peft_scales()
        self.norms = {module: product_norm(pair, self.scales[module]) for module, pair in truth.pairs.items()}
        self.modules = list(dict.fromkeys([*truth.pairs, *adapter.pairs]))
        self._errors: dict[tuple[str, float | None], tuple[float, bool]] = {}

    def error(self, module: str, scale: float | None) -> tuple[float, bool]:
        """Relative error of a module that is scaled by `scale` (None: not loaded), and whether rounding explains it."""
        key = (module, scale)
        if key not in self._errors:
            self._errors[key] = self._error(module, scale)
        return self._errors[key]

    def _error(self, module: str, scale: float | None) -> tuple[float, bool]:
        served = self.adapter.pairs.get(module) if scale is not None else None
        trained, norm = self.truth.pairs.get(module), self.norms.get(module, 0.0)
        if trained is None:
            distance, allowed = (product_norm(served, scale) if served and scale is not None else 0.0), 0.0
        elif served is None or scale is None:
            distance, allowed = norm, 0.0
        else:
            distance = difference_norm(served, scale, trained, self.scales[module])
            # Twice float64's own noise in sums of many products.
            allowed = rounding(trained, self.scales[module], self.adapter.dtype) + 1e-12 * norm
        relative = distance / norm if norm else (math.inf if distance else 0.0)
        return relative, distance <= allowed


def _verdict(name: str, comparison: _Comparison, base: BaseLayers | None) -> Verdict:
    label, rule = ENGINES[name]
    loading = rule(comparison.adapter, base)
    if loading.refused:
        return Verdict(name, label, False, f"refused: {loading.refused}", None, "", loading.settings)
    found = {module: comparison.error(module, loading.scales.get(module)) for module in comparison.modules}
    worst = max(found, key=lambda module: found[module][0])
    wrong = [module for module, (_, right) in found.items() if not right]
    left_out = [module for module in wrong if module not in loading.scales]
    lost = [*loading.lost, *_missing_heads(comparison)]
    reasons = []
    if lost:
        reasons.append(f"modules trained whole are not loaded: {', '.join(dict.fromkeys(lost))}")
    if left_out:
        reasons.append(f"{len(left_out)} of {len(found)} modules are served without their update, {left_out[0]}")
    if scaled := len(wrong) - len(left_out):
        reasons.append(f"{scaled} of {len(found)} modules are scaled wrongly")
    return Verdict(name, label, not reasons, "; ".join(reasons), found[worst][0], worst, loading.settings)


def _missing_heads(comparison: _Comparison) -> list[str]:
    """Modules that were trained whole and are not, or not the same, in the adapter that is to be served."""
    held = comparison.adapter.saved_modules
    return [
        key
        for key, tensor in comparison.truth.saved_modules.items()
        if key not in held
        or held[key].shape != tensor.shape
        or not bool((held[key] == tensor.to(held[key].dtype)).all())
    ]
