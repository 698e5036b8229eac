"""What one pass over the calibration examples leaves, and how the sums of several processes become those of one."""

from dataclasses import dataclass, field

import torch

from lorank.scoring.split.collectives import added_up, gathered


@dataclass
class CalibrationSums:
    """What one pass leaves: sums over the examples of each fold. Example number k of the set is in fold `k mod folds`.

    Attributes:
        columns: module name -> `(folds, d_in)`: input energies for `gram` and `kfac`, else sums of the quantity.
        outputs: module name -> `(folds,)`: output-gradient energies; `kfac` alone.
        tokens: module name -> `(folds,)`: real tokens that went in; `gram` and `kfac`.
        targets: `(folds,)`: targets that the loss counted.
        examples: number of examples that were used.
        batches: number of batches that they came in.
        alone: why examples went through the model one at a time; None if batches went whole.
        left_out: module name -> why it could not be scored; such a one is in none of the sums.
        traces: module name -> `(probes, examples)`: the estimate of each direction of each example; `hutchinson` alone.
        counts: `(examples,)`: targets of each of these examples.
        numbers: `(examples,)`: their numbers in the set.
        inputs: module name -> a number that is finite if all its inputs were, in the order in which modules ran first; but for
            `gram` and `kfac`.
        bad_losses: how many losses were not finite; None where no loss was looked at.

    """

    targets: torch.Tensor
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    examples: int = 0
    batches: int = 0
    alone: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    traces: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    numbers: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    bad_losses: torch.Tensor | None = None

    def add(self, other: "CalibrationSums") -> None:
        """Add the sums of other examples."""
        self.targets += other.targets
        self.examples += other.examples
        pairs = ((self.columns, other.columns), (self.outputs, other.outputs), (self.tokens, other.tokens))
        for sums, more in pairs:
            for name, values in more.items():
                add_to(sums, name, values)
        self.counts, self.numbers = torch.cat([self.counts, other.counts]), torch.cat([self.numbers, other.numbers])
        for name, values in other.traces.items():
            self.traces[name] = torch.cat([self.traces[name], values], 1) if name in self.traces else values

    def over_processes(self, examples: int) -> "CalibrationSums":
        """The sums of all processes, in all of them: as one process would have them, but for the order of additions.

        Args:
            examples: how many all processes have together.

        """
        groups = ("columns", "outputs", "tokens", "inputs")
        flat = {f"{group}/{name}": t for group in groups for name, t in getattr(self, group).items()}
        flat["targets/"] = self.targets
        if self.bad_losses is not None:
            flat["bad_losses/"] = self.bad_losses
        # Directions belong to single examples: each in its place, and which places are filled.
        placed = {"counts/": self.counts, "filled/": torch.ones_like(self.counts)}
        placed |= {f"traces/{name}": traces for name, traces in self.traces.items()}
        for key, values in placed.items():
            wide = values.new_zeros(*values.shape[:-1], examples)
            flat[key] = wide.index_copy(-1, self.numbers, values)
        summed = added_up(flat)
        notes = gathered((self.alone, self.left_out))

        def of(group: str) -> dict[str, torch.Tensor]:
            own = {key.partition("/"): values for key, values in summed.items()}
            return {name: values for (kind, _, name), values in own.items() if kind == group}

        filled = summed["filled/"] > 0
        return CalibrationSums(
            targets=summed["targets/"],
            columns=of("columns"),
            outputs=of("outputs"),
            tokens=of("tokens"),
            inputs=of("inputs"),
            examples=examples,
            alone=next((alone for alone, _ in notes if alone is not None), None),
            left_out={name: why for _, left_out in reversed(notes) for name, why in left_out.items()},
            traces={name: traces[:, filled] for name, traces in of("traces").items()},
            counts=summed["counts/"][filled],
            numbers=torch.nonzero(filled)[:, 0],
            bad_losses=summed.get("bad_losses/"),
        )


def add_to(sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    """Add to the sums of a module. The values may be shared with others, so they are never changed."""
    sums[name] = sums[name] + values.to(sums[name].device) if name in sums else values
