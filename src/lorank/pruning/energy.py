"""How much of the updates of a trained adapter is left after a cut: energy, the sum of squared singular values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorank.adapter.triplet import TripletAdapter


@dataclass(frozen=True)
class KeptEnergy:
    """Shares of the energy that a cut keeps.

    The energy of an update `dW = scale · B A` is the sum of its squared singular values, `‖dW‖²` (Frobenius).

    Attributes:
        whole: of all modules together, from 0 to 1.
        modules: module -> share of its own energy; 1 where the module's update is 0, since nothing is lost.

    """

    whole: float
    modules: Mapping[str, float]

    @classmethod
    def of(cls, energies: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> "KeptEnergy":
        """Shares of the kept triplets.

        Args:
            energies: module -> energy of each triplet, `(r_m,)`.
            kept: module -> indices of the triplets that stay.

        """
        before = {name: float(values.sum()) for name, values in energies.items()}
        after = {name: float(values[kept[name]].sum()) for name, values in energies.items()}
        total = sum(before.values())
        modules = {name: after[name] / before[name] if before[name] else 1.0 for name in energies}
        return cls(sum(after.values()) / total if total else 1.0, modules)

    def lowest(self, count: int = 5) -> list[tuple[str, float]]:
        """The modules that lose most of their own energy, the worst first; those that keep all of it are left out."""
        ordered = sorted(self.modules.items(), key=lambda item: item[1])
        return [(name, share) for name, share in ordered[:count] if share < 1]

    def record(self) -> dict[str, Any]:
        """The same for a JSON file."""
        return {"whole": self.whole, "modules": dict(self.modules)}


def triplet_energies(adapter: TripletAdapter) -> dict[str, np.ndarray]:
    """Module -> `(scale σ_i)²` of each triplet of a trained adapter, `(r_m,)` float64; P and Q are orthonormal there."""
    return {
        module: (lambdas.detach().double() * layer.scaling[adapter.adapter_name]).square().cpu().numpy()
        for module, lambdas, layer in zip(adapter.names, adapter.lambdas, adapter.layers, strict=True)
    }
