"""ImportanceScores: one number for each unit of rank, with where it comes from. Scored once, allocated for any budget."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lorank.artefact import checksum, write_atomically
from lorank.errors import ScoresError

FORMAT = "lorank.scores"
VERSION = 1
_HEADER = "lorank"


@dataclass(frozen=True, eq=False)
class ImportanceScores:
    """Importance of every unit of rank.

    Attributes:
        scores: module name -> float64 array `(units,)`; entry i belongs to triplet i of that module. Larger is more
            important; negative is legal.
        unit_costs: module name -> `d_in + d_out`, the parameters of one unit of rank.
        standard_errors: same shapes as `scores`: standard error of each score over scoring batches, or None.
        provenance: JSON values: method, options, number of batches, hash of the scoring set, model, versions.

    Raises:
        ScoresError: a score that is not finite, an empty set, or modules that do not match their costs.

    """

    scores: Mapping[str, np.ndarray]
    unit_costs: Mapping[str, int]
    standard_errors: Mapping[str, np.ndarray] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scores = {name: np.asarray(values, dtype=np.float64) for name, values in self.scores.items()}
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
            errors = {name: np.asarray(values, dtype=np.float64) for name, values in self.standard_errors.items()}
            object.__setattr__(self, "standard_errors", errors)
            if {n: v.shape for n, v in errors.items()} != {n: v.shape for n, v in scores.items()}:
                raise ScoresError(
                    "standard_errors do not have the modules and shapes of scores; give one for each score"
                )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over modules, scores and costs: what a plan records about the scores it was made from."""
        digest = hashlib.sha256()
        for name in sorted(self.scores):
            digest.update(f"{name}:{self.unit_costs[name]}:".encode())
            digest.update(np.ascontiguousarray(self.scores[name]).tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file with a JSON header, atomically."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "unit_costs": dict(self.unit_costs),
            "provenance": dict(self.provenance),
            "fingerprint": self.fingerprint,
        }
        header["checksum"] = checksum(header)
        tensors = {f"score/{name}": values for name, values in self.scores.items()}
        if self.standard_errors is not None:
            tensors |= {f"standard_error/{name}": values for name, values in self.standard_errors.items()}
        write_atomically(Path(path), lambda temporary: save_file(tensors, temporary, {_HEADER: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceScores":
        """Read a file that `save` wrote.

        Raises:
            ScoresError: no such file, not a scores file, another format version, truncated or edited.

        """
        path = Path(path)
        if not path.is_file():
            raise ScoresError(f"{path}: no such scores file; make one with `lorank run`")
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, json.JSONDecodeError, OSError) as error:
            raise ScoresError(f"{path}: damaged or not a safetensors file ({error}); score again") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ScoresError(
                f"{path}: a safetensors file, but not lorank scores; give the scores.safetensors of a run"
            )
        if header.get("version") != VERSION:
            raise ScoresError(
                f"{path}: format version {header.get('version')}, this lorank reads {VERSION}; score again"
            )
        stated = header.pop("checksum", None)
        if stated != checksum(header):
            raise ScoresError(f"{path}: the header was edited after it was written; restore the file or score again")
        groups: dict[str, dict[str, np.ndarray]] = {"score": {}, "standard_error": {}}
        for key, values in tensors.items():
            kind, _, name = key.partition("/")
            groups.setdefault(kind, {})[name] = values
        try:
            loaded = cls(groups["score"], header["unit_costs"], groups["standard_error"] or None, header["provenance"])
        except ScoresError as error:
            raise ScoresError(f"{path}: {error}") from None
        if loaded.fingerprint != header["fingerprint"]:
            raise ScoresError(
                f"{path}: the scores were edited after they were written; restore the file or score again"
            )
        return loaded
