"""A budget as a person writes it, and the number of adapter parameters that it means for one model.

One unit of rank of a module costs `d_in + d_out` parameters: one row of `A` and one column of `B`.
Heads that are trained beside the adapters are not adapter parameters and are not counted.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lorank.errors import AllocationError, BudgetError, LorankWarning, in_short
from lorank.findings import Findings
from lorank.untrusted.expressions import compiled

BudgetKind = Literal[
    "parameters", "base fraction", "uniform rank", "total rank", "kept share", "pruning ratio", "units"
]

_MOST, _LONGEST = 10**18, 100  # of parameters or units, as files of plans have it; characters
_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
_PREFIXES: dict[str, BudgetKind] = {
    **{"r": "uniform rank", "rank": "total rank"},
    **{"keep": "kept share", "beta": "pruning ratio"},
}
_FORM = re.compile(
    r"(?:(?P<prefix>r|rank|keep|beta)\s*=\s*)?(?P<number>[0-9_]*\.?[0-9]+(?:e[+-]?\d{1,2})?)\s*(?P<suffix>[kmbg%]?)",
    re.I,
)


@dataclass(frozen=True)
class Budget:
    """A number of adapter parameters or a share of the units of rank, in one of these forms.

    | text         | meaning, with `c_m = d_in + d_out` the cost of one unit of rank of module m, n modules        |
    |--------------|------------------------------------------------------------------------------------------------|
    | `"0.33M"`    | that many parameters (suffixes K, M, B)                                                        |
    | `"0.06%"`    | that share of the base model's parameters, see `lorank.models.base_size.base_parameters`             |
    | `"r=2"`      | what uniform rank 2 costs on the same modules: `2 Σ c_m`                                       |
    | `"rank=144"` | what a total rank of 144 costs at the mean unit cost: `144/n Σ c_m`                            |
    | `"keep=50%"` | that share of the units of rank that an adapter starts with, whatever each of them costs      |
    | `"beta=0.5"` | the same in the paper's word: the pruning ratio β is what goes, `keep=75%` is `beta=0.25`      |

    `keep` and `beta` count units of rank, the others parameters. β drops exactly `floor(β t)` of the t units that the adapter
    starts with (I-LoRA, section 1.3: threshold index `t·β`); `units` has the number, and what the units cost follows from
    which they are. Where nothing says which units there are (uniform LoRA, scores of modules), `parameters` takes them at the
    mean cost. Fractions of a parameter are rounded down.

    Example:
        >>> Budget.parse("r=2").parameters({"query": 768, "up": 1920})
        5376
        >>> Budget.parse("0.33M").parameters({"query": 768, "up": 1920})
        330000
        >>> Budget.parse("beta=0.5").units(144)
        72

    """

    kind: BudgetKind
    value: Fraction
    text: str

    @classmethod
    def parse(cls, budget: "str | int | Budget | Budgets") -> "Budget":
        """Read a budget. A plain number is a number of parameters; groups of modules are refused, see `read_budgets`.

        Raises:
            BudgetError: the text has no such form, or the number is not above zero (for β: not inside 0..1).

        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, Mapping):
            raise BudgetError(
                f"budget names {len(budget)} groups of modules, and here is one budget for all; lorank.allocate, recipes of "
                "`lorank run`, RankAllocation and AllocationLoop take a budget for each group"
            )
        text = str(budget).strip() if not isinstance(budget, int) or abs(budget) <= _MOST else f"{_MOST}0"
        if len(text) > _LONGEST:
            raise BudgetError(f"budget {in_short(text)!r} cannot be read: it has {len(text):,} characters")
        match = _FORM.fullmatch(text) if not isinstance(budget, bool) else None
        if match is None:
            raise BudgetError(f"budget {text!r} cannot be read, or is not above zero")
        value, suffix = Fraction(match["number"].replace("_", "")), match["suffix"].lower()
        kind: BudgetKind = _PREFIXES[match["prefix"].lower()] if match["prefix"] else "parameters"
        if kind == "kept share" and suffix != "%":
            raise BudgetError(f"budget {text!r} says no percentage, as keep=50% does")
        if match["prefix"] and suffix and kind != "kept share":
            raise BudgetError(f"budget {text!r} mixes two forms")
        if suffix == "%":
            kind, value = kind if kind == "kept share" else "base fraction", value / 100
        else:
            value *= _SUFFIXES[suffix]
        if kind == "pruning ratio" and not 0 < value < 1:
            what = "prune everything" if value else "prune nothing; for that give keep=100%"
            raise BudgetError(f"budget {text!r} would {what}; beta lies between 0 and 1")
        if value <= 0:
            raise BudgetError(f"budget {text!r} is not above zero")
        if value > _MOST:
            raise BudgetError(
                f"budget {text!r} is above what any model has; at most {_MOST:.0e} parameters or units are read"
            )
        if kind == "kept share" and value > 1:
            raise BudgetError(f"budget {text!r} is more than there is; keep is up to 100%")
        return cls(kind, value, text)

    @property
    def counts_units(self) -> bool:
        """Whether it counts units of rank, and not parameters."""
        return self.kind in ("kept share", "pruning ratio", "units")

    def units(self, initial: int) -> int:
        """How many of `initial` units of rank stay: `t - floor(β t)`; of a budget that counts units."""
        if self.kind == "units":
            return int(self.value)
        return math.ceil((1 - self.value if self.kind == "pruning ratio" else self.value) * initial)

    def of_units(self, initial: int) -> "Budget":
        """The same budget; one that counts units as their number, which no longer depends on how many are left."""
        return Budget("units", Fraction(self.units(initial)), self.text) if self.counts_units else self

    def in_parameters(self, unit_costs: Mapping[str, int], **size: int | None) -> "Budget":
        """The same budget; one that counts units as what they cost at the mean, see `parameters`."""
        if not self.counts_units:
            return self
        return Budget("parameters", Fraction(self.parameters(unit_costs, **size)), self.text)

    def parameters(
        self,
        unit_costs: Mapping[str, int],
        *,
        base_parameters: int | None = None,
        initial_rank: int | None = None,
    ) -> int:
        """How many adapter parameters this budget means; of one that counts units, what they cost at the mean unit cost.

        Args:
            unit_costs: module name -> `d_in + d_out`.
            base_parameters: parameters of the base model; needed for `%`, and if given also the upper limit.
            initial_rank: rank per module before ranks are decided; needed for `keep` and `beta`.

        Raises:
            BudgetError: below one unit of rank of the cheapest module, above the base model, or a form whose
                reference number was not given.

        """
        if not unit_costs:
            raise BudgetError(
                f"budget {self.text!r} has no modules to be spent on: unit_costs is empty; give the cost of each"
            )
        uniform = sum(unit_costs.values())
        if self.kind == "parameters":
            parameters = math.floor(self.value)
        elif self.kind == "uniform rank":
            parameters = math.floor(self.value * uniform)
        elif self.kind == "total rank":
            parameters = math.floor(self.value * uniform / len(unit_costs))
        elif self.kind == "base fraction":
            if base_parameters is None:
                raise BudgetError(f"budget {self.text!r} is a share of the base model, whose size is not known here")
            parameters = math.floor(self.value * base_parameters)
        else:
            if initial_rank is None:
                raise BudgetError(
                    f"budget {self.text!r} is a share of the initial ranks, and none are known; give another form"
                )
            kept = self.units(initial_rank * len(unit_costs))
            parameters = math.floor(Fraction(kept * uniform, len(unit_costs)))
        cheapest = min(unit_costs.values())
        if parameters < cheapest:
            raise BudgetError(
                f"budget {self.text!r} is {parameters:,} parameters, below one unit of rank: "
                f"the cheapest module costs {cheapest:,}; ask for at least that"
            )
        if base_parameters is not None and parameters > base_parameters:
            raise BudgetError(
                f"budget {self.text!r} is {parameters:,} adapter parameters, above the base model's {base_parameters:,}; "
                f"train the full model, or ask for less"
            )
        return parameters

    def __str__(self) -> str:
        return self.text


# Group of modules -> its budget. A group is a part between the dots of module names, or a regular expression for whole names.
Budgets = Mapping[str, str | int | Budget]


def read_budgets(budget: str | int | Budget | Budgets) -> Budget | dict[str, Budget]:
    """Read one budget, or one for each of several groups of modules.

    Raises:
        BudgetError: a budget that cannot be read (with its group), or some that count units of rank beside others that count
            parameters.
        AllocationError: no groups, or a group's name that is no regular expression.
        SeveralFindings: more than one of these.

    """
    if not isinstance(budget, Mapping):
        return Budget.parse(budget)
    if not budget or not all(isinstance(group, str) and group for group in budget):
        raise AllocationError(
            "budgets of groups are empty, or name a group by something else than a string; give {part of the names: budget}"
        )
    found, findings = dict[str, Budget](), Findings()
    for group, one in budget.items():
        with findings.check():
            try:
                compiled(group)
            except ValueError as error:
                raise AllocationError(f"group {group!r} is no regular expression ({error}); mend it") from None
        with findings.check(), of_group(group):
            found[group] = Budget.parse(one)
    with findings.check():
        check_one_kind({group: one.counts_units for group, one in found.items()}, "units of rank")
    findings.raise_all()
    return found


def check_one_kind(counts: Mapping[str, bool], what: str) -> None:
    """Refuse groups of which some budgets count units and others parameters: one plan has one kind.

    Raises:
        BudgetError: names a group of each kind.

    """
    units, others = ([group for group, one in counts.items() if one == counted] for counted in (True, False))
    if units and others:
        raise BudgetError(
            f"the budget of group {units[0]!r} counts {what}, and that of {others[0]!r} parameters; give one kind for all groups"
        )


def budget_text(budget: Budget | Mapping[str, Budget]) -> str:
    """As a plan records it: the budget as it was written, of groups `vision_model: r=2, language_model: 20M`."""
    return ", ".join(f"{group}: {one}" for group, one in budget.items()) if isinstance(budget, Mapping) else str(budget)


@contextmanager
def of_group(group: str) -> Iterator[None]:
    """Name the group in errors about budgets and limits, and in warnings, of what is done for it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", LorankWarning)
        try:
            yield
        except (BudgetError, AllocationError) as error:
            raise type(error)(f"group {group!r}: {error}") from None
    for one in said:
        text = f"group {group!r}: {one.message}" if issubclass(one.category, LorankWarning) else str(one.message)
        warnings.warn(text, one.category, stacklevel=3)
