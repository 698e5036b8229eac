"""ImportanceScores: one number for each unit of rank, or for each module, with where it comes from.

Scored once, allocated for any budget.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lorank.artefact import checksum, write_atomically
from lorank.errors import ScoresError, one_line
from lorank.received_files import ScoresHeader, unreadable, what_is_wrong
from lorank.targets import first_difference

if TYPE_CHECKING:
    from torch import nn

FORMAT = "lorank.scores"
VERSION = 2
_READ = (1, 2)  # version 1 knew triplets only, and no resamples
_HEADER = "lorank"


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceScores:
    """Importance of every unit of rank, or with `max_ranks` of every module as a whole.

    Attributes:
        scores: module name -> float64 array `(units,)`; entry i belongs to triplet i of that module. Larger is more
            important; negative is legal. With `max_ranks` it is `(1,)`: one score for the module.
        unit_costs: module name -> `d_in + d_out`, the parameters of one unit of rank.
        standard_errors: same shapes as `scores`: standard error of each score over what was scored on, or None.
        provenance: JSON values: method, options, number of batches, hash of the scoring set, model, versions.
        max_ranks: module name -> the largest rank that it can have, `min(d_in, d_out)`; None where units are scored,
            which limit it by their number.
        resamples: what the scores would have been on other calibration examples: `"halves"`, module name -> `(2,)`, from
            every other fold of the examples; `"bootstrap"`, `(draws,)`, from folds drawn with replacement. None where
            it is not known.

    Raises:
        ScoresError: a score that is not finite, an empty set, or modules that do not match their costs.

    """

    scores: Mapping[str, np.ndarray]
    unit_costs: Mapping[str, int]
    standard_errors: Mapping[str, np.ndarray] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    max_ranks: Mapping[str, int] | None = None
    resamples: Mapping[str, Mapping[str, np.ndarray]] | None = None

    def __post_init__(self) -> None:
        scores = {name: np.ascontiguousarray(values, dtype=np.float64) for name, values in self.scores.items()}
        object.__setattr__(self, "scores", scores)
        if not scores or all(values.size == 0 for values in scores.values()):
            raise ScoresError(
                "there is no unit of rank to score: scores are empty; give at least one module with one unit"
            )
        if different := sorted(set(scores) ^ set(self.unit_costs)):
            raise ScoresError(
                f"scores and unit_costs name different modules, first {different[0]!r}; give both for each"
            )
        for name, values in scores.items():
            if values.ndim != 1:
                raise ScoresError(f"scores of {name!r} have shape {values.shape}; allowed: one number a unit, (units,)")
            if not np.isfinite(values).all():
                unit = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ScoresError(
                    f"score of {name!r}, unit {unit}, is {values[unit]}; scores must be finite: score again"
                )
            if self.unit_costs[name] <= 0:
                raise ScoresError(
                    f"unit cost of {name!r} is {self.unit_costs[name]}; it must be d_in + d_out, above zero"
                )
        if self.standard_errors is not None:
            errors = {n: np.ascontiguousarray(values, dtype=np.float64) for n, values in self.standard_errors.items()}
            object.__setattr__(self, "standard_errors", errors)
            if {n: v.shape for n, v in errors.items()} != {n: v.shape for n, v in scores.items()}:
                raise ScoresError(
                    "standard_errors do not have the modules and shapes of scores; give one for each score"
                )
        if self.max_ranks is not None:
            for name, values in scores.items():
                if values.shape != (1,) or self.max_ranks.get(name, 0) < 1:
                    raise ScoresError(
                        f"{name!r} has {len(values)} scores and largest rank {self.max_ranks.get(name)}; with max_ranks every "
                        "module has one score and a largest rank above zero"
                    )
        if self.resamples is not None:
            object.__setattr__(self, "resamples", {kind: self._checked(kind) for kind in self.resamples})

    def _checked(self, kind: str) -> dict[str, np.ndarray]:
        """The resamples of one kind as arrays. (safetensors would write a strided one as it lies in memory.)"""
        assert self.resamples is not None
        arrays = {n: np.ascontiguousarray(values, dtype=np.float64) for n, values in self.resamples[kind].items()}
        if set(arrays) != set(self.scores) or len({values.shape for values in arrays.values()}) != 1:
            raise ScoresError(
                f"resamples {kind!r} do not have the modules of scores; give equally many for each module"
            )
        if not all(np.isfinite(values).all() for values in arrays.values()):
            raise ScoresError(f"resamples {kind!r} are not all finite; score again")
        return arrays

    def __repr__(self) -> str:
        units = "modules" if self.of_modules else f"units of {len(self.scores)} modules"
        count = sum(values.size for values in self.scores.values())
        return f"ImportanceScores({self.provenance.get('method', 'no method')}, {count} {units})"

    @property
    def of_modules(self) -> bool:
        """Whether a score is for a whole module, not for a unit of rank."""
        return self.max_ranks is not None

    def resampled(self, kind: str) -> "list[ImportanceScores]":
        """The scores of each resample of `kind`, `"halves"` or `"bootstrap"`; empty where there is none."""
        found = (self.resamples or {}).get(kind, {})
        draws = len(next(iter(found.values()))) if found else 0
        return [
            ImportanceScores(
                {name: values[draw : draw + 1] for name, values in found.items()},
                self.unit_costs,
                None,
                {},
                self.max_ranks,
            )
            for draw in range(draws)
        ]

    def check_model(self, model: "nn.Module") -> None:
        """Refuse a model that these scores are not of: other modules, or of another shape. Its weights are not looked at.

        Raises:
            ScoresError: names the first module that differs.

        """
        if difference := first_difference(self.unit_costs, model, self.provenance):
            raise ScoresError(f"the scores are of another model: {difference}; score this model")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over modules, scores and costs: what a plan records about the scores it was made from."""
        digest = hashlib.sha256()
        for name in sorted(self.scores):
            digest.update(f"{name}:{self.unit_costs[name]}:".encode())
            digest.update(np.ascontiguousarray(self.scores[name]).tobytes())
        if self.max_ranks is not None:
            digest.update(json.dumps(dict(self.max_ranks), sort_keys=True).encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with a JSON header, atomically.

        Raises:
            ScoresError: what `load` would refuse, in the provenance for one.

        """
        header = {
            "format": FORMAT,
            "version": VERSION,
            "unit_costs": dict(self.unit_costs),
            "max_ranks": None if self.max_ranks is None else dict(self.max_ranks),
            "provenance": dict(self.provenance),
            "fingerprint": self.fingerprint,
        }
        tensors = {f"score/{name}": values for name, values in self.scores.items()}
        if self.standard_errors is not None:
            tensors |= {f"standard_error/{name}": values for name, values in self.standard_errors.items()}
        for kind, resampled in (self.resamples or {}).items():
            tensors |= {f"{kind}/{name}": values for name, values in resampled.items()}
        header["tensors"] = _digest(tensors)
        if (wrong := unreadable(ScoresHeader, header)) is not None:
            raise ScoresError(
                f"{path}: the scores are not written, as nobody could read them again: {wrong}; put it right"
            )
        header["checksum"] = checksum(header)
        write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, {_HEADER: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceScores":
        """Read a file that `save` wrote.

        Raises:
            ScoresError: no such file, not a scores file, another format version, truncated or edited.

        """
        path = Path(path)
        if path.is_dir():
            raise ScoresError(f"{path} is a folder; give the scores.safetensors in it")
        if path.suffix == ".json":
            raise ScoresError(
                f"{path} is JSON, a rank plan perhaps, and no scores file; give the scores.safetensors of a run"
            )
        if not path.is_file():
            raise ScoresError(f"{path}: no such scores file; make one with `lorank score` or `lorank run`")
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, ValueError, OSError, RecursionError, TypeError) as error:
            raise ScoresError(f"{path}: damaged or not a safetensors file ({one_line(error)}); score again") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ScoresError(
                f"{path}: a safetensors file, but not lorank scores; give the scores.safetensors of a run or of `lorank score`"
            )
        if header.get("version") not in _READ:
            raise ScoresError(
                f"{path}: format version {header.get('version')}, this lorank reads {VERSION} and older; score again"
            )
        stated = header.pop("checksum", None)
        if stated != checksum(header):
            raise ScoresError(f"{path}: the header was edited after it was written; restore the file or score again")
        if (wrong := what_is_wrong(ScoresHeader, header)) is not None:
            raise ScoresError(f"{path}: not scores that lorank wrote: {wrong}; score again")
        groups: dict[str, dict[str, np.ndarray]] = {"score": {}, "standard_error": {}}
        for kind in dict.fromkeys(key.partition("/")[0] for key in tensors):
            # In the model's order, which the tensors of the file are not in.
            groups[kind] = {n: tensors[f"{kind}/{n}"] for n in header["unit_costs"] if f"{kind}/{n}" in tensors}
        scored, errors = groups.pop("score"), groups.pop("standard_error")
        try:
            loaded = cls(
                scored,
                header["unit_costs"],
                errors or None,
                header["provenance"],
                header.get("max_ranks"),
                groups or None,
            )
        except ScoresError as error:
            raise ScoresError(f"{path}: {error}") from None
        if loaded.fingerprint != header["fingerprint"] or header.get("tensors", _digest(tensors)) != _digest(tensors):
            raise ScoresError(
                f"{path}: the scores were edited after they were written; restore the file or score again"
            )
        return loaded


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over all tensors of a file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
