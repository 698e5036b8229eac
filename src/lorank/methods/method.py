"""What a rank-allocation method is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """Five choices; everything else is shared.

    Attributes:
        name: as in a recipe.
        reference: where it is published.
        trained: what is trained while scoring: `"triplets"` that stay until one cut; `"pruned triplets"`, cut on the way; or
            `"nothing"`, for a method that needs no scores.
        presets: preset name -> recipe sections with the other four choices: the score and its smoothing (`scoring`),
            when the cut falls (`stage1`, or both in `pruning`), how scores become ranks (`allocation`). A recipe
            overrides any of it.
        default_preset: the one that is used when a recipe names none.

    """

    name: str
    reference: str
    trained: Literal["triplets", "pruned triplets", "nothing"]
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    default_preset: str
