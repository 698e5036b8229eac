"""Would an engine compute what was trained? Recomputed from the files alone, under each engine's loading rule."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lorank.errors import AdapterError
from lorank.module_names import leaf_of
from lorank.serving.adapter_files import AdapterFiles, warn_if_idle
from lorank.serving.base_layers import BaseLayers
from lorank.serving.delta import difference_norm, product_norm, rounding
from lorank.serving.engines import ENGINES, NEED_BASE, Loading
from lorank.serving.names import choose
from lorank.serving.old_names import with_present_names


@dataclass(frozen=True)
class Verdict:
    """What one engine would make of an adapter.

    Attributes:
        engine: short name, as `--engine` takes it.
        label: name and versions.
        answer: "right": every module's update is the trained one, to one ulp of the dtype of the files, and nothing is lost;
            "wrong"; "refused": the engine does not load it; "unknown": right as far as can be told without the base model.
        why: why it is not right; empty where it is.
        error: largest `‖ΔW - ΔW_trained‖ / ‖ΔW_trained‖` (Frobenius) over all modules; None where it is refused.
        worst: the module with that error.
        settings: what has to be set for the engine to load it.

    """

    engine: str
    label: str
    answer: Literal["right", "wrong", "refused", "unknown"]
    why: str
    error: float | None
    worst: str
    settings: str

    @property
    def right(self) -> bool:
        """Whether the engine computes what was trained."""
        return self.answer == "right"


@dataclass(frozen=True)
class Verification:
    """What engines would make of an adapter.

    Attributes:
        verdicts: one for each engine.
        unread_base: why the base model was not looked at; empty where it was.

    """

    verdicts: tuple[Verdict, ...]
    unread_base: str


def verify(
    adapter: str | Path,
    against: str | Path | None = None,
    engines: str | Iterable[str] | None = None,
    *,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Verification:
    """Say which serving engines would compute what was trained, from the files alone.

    Args:
        adapter: folder of a LoRA adapter, from whatever tool.
        against: folder of the trained adapter that it should compute; None: itself, by PEFT's rule.
        engines: a name out of `lorank.serving.names.ENGINES`, or several; None takes all.
        base: hub name or folder of the base model, of which the config is read, and which weights it has; None: the one that
            the adapter names.
        trust_remote_code: let the base model's own code run.

    Raises:
        AdapterError: an adapter or a base model that was asked for and cannot be read; an unknown engine; adapters of different
            models.

    Warns:
        LorankWarning: the trained adapter changes nothing.

    """
    engines = (engines,) if isinstance(engines, str) else engines
    files = AdapterFiles.read(adapter)
    trained = AdapterFiles.read(against) if against is not None else None
    layers, unread = BaseLayers.if_readable(files, base, trust_remote_code=trust_remote_code)
    return Verification(tuple(engine_verdicts(files, trained, layers, engines)), unread)


def engine_verdicts(
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

    Warns:
        LorankWarning: the trained adapter changes nothing.

    """
    chosen = [choose("engine", name, ENGINES) for name in (ENGINES if engines is None else engines)]
    if base is not None:
        adapter, trained = with_present_names(adapter, base), trained and with_present_names(trained, base)
    truth = trained or adapter
    if base is not None:
        base.check(adapter)
        base.check(truth)
    warn_if_idle(truth)
    for module in adapter.pairs:
        if module in truth.pairs and truth.pairs[module].shape != adapter.pairs[module].shape:
            raise AdapterError(
                f"{module!r} is of shape {adapter.pairs[module].shape} in {adapter.folder} and {truth.pairs[module].shape} in "
                f"{truth.folder}; these are adapters of different models"
            )
    comparison = _Comparison(adapter, truth)
    return [_verdict(name, comparison, base) for name in chosen]


class _Comparison:
    """Errors of single modules, each computed once for every factor that an engine scales it by."""

    def __init__(self, adapter: AdapterFiles, truth: AdapterFiles) -> None:
        self.adapter, self.truth, self.scales = adapter, truth, truth.peft_scales()
        self.norms = {module: product_norm(pair, self.scales[module]) for module, pair in truth.pairs.items()}
        self.modules = list(dict.fromkeys([*truth.pairs, *adapter.pairs]))
        self._dtype = adapter.dtype
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
            allowed = rounding(trained, self.scales[module], self._dtype) + 1e-12 * norm
        relative = distance / norm if norm else (math.inf if distance else 0.0)
        return relative, distance <= allowed


def _verdict(name: str, comparison: _Comparison, base: BaseLayers | None) -> Verdict:
    label, rule = ENGINES[name]
    loading = rule(comparison.adapter, base)
    if loading.refused:
        return Verdict(name, label, "refused", loading.refused, None, "", loading.settings)
    found = {module: comparison.error(module, loading.scales.get(module)) for module in comparison.modules}
    worst = max(found, key=lambda module: found[module][0])
    reasons = _reasons(comparison, loading, [module for module, (_, right) in found.items() if not right])
    answer: Literal["right", "wrong", "unknown"] = "wrong" if reasons else "right"
    if not reasons and base is None and name in NEED_BASE:
        answer, reasons = "unknown", ["depends on the base model, whose config was not read"]
    return Verdict(name, label, answer, "; ".join(reasons), found[worst][0], worst, loading.settings)


def _reasons(comparison: _Comparison, loading: Loading, wrong: Sequence[str]) -> list[str]:
    """What is wrong, in words."""
    held, trained = comparison.adapter.pairs, comparison.truth.pairs
    lost = dict.fromkeys([*loading.lost, *_missing_heads(comparison)])
    kinds = {
        "only the trained adapter has": [module for module in wrong if module not in held],
        "only this adapter has": [module for module in wrong if module not in trained],
        "are served without their update:": [
            m for m in wrong if m in held and m in trained and m not in loading.scales
        ],
    }
    counted = {module for modules in kinds.values() for module in modules}
    # Against another adapter, a module that differs need not be a matter of scale.
    other = "are scaled wrongly:" if comparison.adapter is comparison.truth else "are not what was trained:"
    kinds[other] = [module for module in wrong if module not in counted]
    said = [f"modules trained whole are lost: {', '.join(lost)}"] if lost else []
    for what, modules in kinds.items():
        if modules and what.startswith("only"):
            said.append(f"{what} {len(modules)} modules, {modules[0]} first")
        elif modules:
            said.append(f"{len(modules)} of {len(comparison.modules)} modules {what} {modules[0]} first")
    return said


def _missing_heads(comparison: _Comparison) -> list[str]:
    """Modules that were trained whole and are not, or not the same, in the adapter that is to be served."""
    held = comparison.adapter.saved_modules
    return [
        leaf_of(key.removesuffix(".weight").removesuffix(".bias"))
        for key, tensor in comparison.truth.saved_modules.items()
        if key not in held or held[key].shape != tensor.shape or not torch.equal(held[key], tensor.to(held[key].dtype))
    ]
