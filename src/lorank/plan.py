"""RankPlan: which module gets which rank, what was asked and what was spent; and the PEFT config that it means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorank.artefact import checksum, read_json, write_json
from lorank.errors import PlanError, one_line
from lorank.model_parts import unwrapped
from lorank.received_files import PlanFile, unreadable, what_is_wrong
from lorank.targets import EXPERTS, first_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import LoraConfig
    from torch import nn

    from lorank.scores import ImportanceScores

FORMAT = "lorank.rank_plan"
VERSION = 1
WITH_RSLORA = 2  # of a plan that scales by alpha / sqrt(r): versions of lorank that know none refuse it
WITH_EXPERTS = 3  # of a plan for parameters of fused experts: so do those that would take them for modules
GROUPS = "groups"  # in the provenance of a plan with a budget for each of several groups of modules: what each asked and spent
WEIGHTED = "weighted_units"  # in the provenance of a plan whose budget weighs units: what the kept ones take from it


@dataclass(frozen=True, repr=False)
class RankPlan:
    """A rank for every module that was considered.

    Attributes:
        ranks: full module name -> rank; 0 is legal and means no adapter. Of fused experts the full name of their parameter.
        unit_costs: full module name -> `d_in + d_out`, the parameters of one unit of rank; of E experts `E (d_in + d_out)`.
        budget: the budget as it was asked for.
        budget_parameters: the adapter parameters that it means. With `budget_units` what the kept units cost: `spent`.
        scale: `alpha / r`, the factor of `B A`; the same for every module, whatever its rank. Changing it with the
            rank that is left hurts (AdaLoRA's authors), so alpha follows the rank.
        alpha: None; or one alpha for every module, so that each is scaled by `alpha / r_m` in place of `scale`
            (reading A13, `active`).
        rslora: with `alpha`: each module is scaled by `alpha / sqrt(r_m)` (rsLoRA, arXiv 2312.03732).
        provenance: JSON values: scores, method, limits; under `experts` which names are parameters of how many experts.
        budget_units: units of rank that were asked for, where a budget counts these and not parameters; else None.

    Raises:
        PlanError: no modules, a negative rank, ranks and costs of different modules, more spent than asked, or `rslora` without
            an alpha.

    """

    ranks: Mapping[str, int]
    unit_costs: Mapping[str, int]
    budget: str
    budget_parameters: int
    scale: float = 2.0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | None = None
    budget_units: int | None = None
    rslora: bool = False

    def __post_init__(self) -> None:
        if not self.ranks:
            raise PlanError("a plan needs at least one module; ranks are empty")
        if different := sorted(set(self.ranks) ^ set(self.unit_costs)):
            raise PlanError(f"ranks and unit_costs name different modules, first {different[0]!r}; give both for each")
        for name, rank in self.ranks.items():
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0:
                raise PlanError(f"rank of {name!r} is {rank!r}; allowed: whole numbers from 0")
        if self.rslora and self.alpha is None:
            raise PlanError("rslora scales by alpha / sqrt(r), and the plan has no alpha; give one")
        if self.spent > self.budget_parameters:
            raise PlanError(
                f"the ranks spend {self.spent:,} parameters, above the budget's {self.budget_parameters:,}; lower some rank"
            )

    def __repr__(self) -> str:
        adapted = [rank for rank in self.ranks.values() if rank]
        return (
            f"RankPlan({self.provenance.get('method', 'no method')}, budget {self.budget}: {self.spending}, "
            f"{len(adapted)} of {len(self.ranks)} modules, ranks up to "
            f"{max(self.ranks.values())}, scale {self.scale:g})"
        )

    @property
    def spent(self) -> int:
        """Adapter parameters of the plan, `Σ r_m (d_in + d_out)`."""
        return sum(rank * self.unit_costs[name] for name, rank in self.ranks.items())

    @property
    def spending(self) -> str:
        """In words: what is spent of what was asked for."""
        if self.budget_units is None:
            return f"{self.spent:,} of {self.budget_parameters:,} parameters"
        weighted = self.provenance.get(WEIGHTED)
        kept = f"{self.total_rank:,} units of rank" if weighted is None else f"{weighted:,.2f} weighted units of rank"
        return f"{kept} ({self.budget_units:,} asked for), {self.spent:,} parameters"

    @property
    def budget_record(self) -> dict[str, Any]:
        """As plan.json and metrics.json have it: what was asked for and spent; in units too, where these were asked for."""
        record = {"asked": self.budget, "parameters": self.budget_parameters, "spent": self.spent}
        units = {} if self.budget_units is None else {"units": self.budget_units, "units_kept": self.total_rank}
        return record | units

    @property
    def total_rank(self) -> int:
        """Sum of the ranks."""
        return sum(self.ranks.values())

    @property
    def experts(self) -> dict[str, int]:
        """Of the names, those of parameters that hold the weights of several experts -> how many; empty for most models."""
        counts = self.provenance.get(EXPERTS) or {}
        return {name: counts[name] for name in self.ranks if name in counts}

    @property
    def budgets(self) -> int | dict[str, int]:
        """The adapter parameters that the budget means; of a plan with a budget for each group of modules: group -> its own."""
        groups = self.provenance.get(GROUPS)
        return {group: one["parameters"] for group, one in groups.items()} if groups else self.budget_parameters

    def moved_share(self, other: "RankPlan") -> float:
        """Share of this plan's parameters that `other` spends on another module or not at all, 0..1.

        `Σ_m c_m max(0, r_m - r'_m) / Σ_m c_m r_m`; 0 for equal plans.
        """
        if set(self.ranks) != set(other.ranks):
            raise PlanError("the plans are for different modules and cannot be compared; use two plans of one model")
        moved = sum(self.unit_costs[name] * max(0, rank - other.ranks[name]) for name, rank in self.ranks.items())
        return moved / self.spent if self.spent else 0.0

    def check_model(self, model: "nn.Module") -> None:
        """Refuse a model that this plan is not for: other modules, or of another shape. Its weights are not looked at.

        Raises:
            PlanError: names the first module that differs; or the model is wrapped (torch.compile, DataParallel), so that PEFT
                would see other names.

        """
        if unwrapped(model) is not model:
            raise PlanError(
                f"the model is wrapped ({type(model).__name__}), so PEFT would see other names than the plan's; adapt what is "
                "inside (lorank.model_parts.unwrapped(model)), and compile or wrap it afterwards"
            )
        if difference := first_difference(self.unit_costs, model, self.provenance):
            raise PlanError(f"the plan is for another model: {difference}; allocate from scores of this model")

    def lora_config(self, **options: Any) -> "LoraConfig":
        """Make the plain PEFT config of this plan: modules of rank 0 carry no adapter.

        `r` is the largest rank and `lora_alpha = scale · r`, so an engine that ignores patterns and scales by
        `lora_alpha / r` of the config (vLLM) scales every module right. One that divides by each tensor's own rank
        (llama.cpp, TensorRT-LLM) does not. `rank_pattern` and `alpha_pattern` are keyed by the anchored full name. The scale of
        rsLoRA is written into the patterns, `alpha_m = alpha · sqrt(r_m)`, and `use_rslora` stays off: not every engine reads it.
        Parameters of fused experts are in `target_parameters`, and in the patterns by their full names.

        What PEFT then trains is the plan's own parameters, `spent`, to the last one. Options that would train more, less or
        elsewhere are refused (DoRA, biases, other modules, ...), and so are modules that PEFT replaces in models of the plan's
        type. Beside the adapters `modules_to_save`, the head of the task type and `trainable_token_indices` train whole: these
        are no adapter parameters and not in the budget.

        Args:
            **options: passed on to `peft.LoraConfig` (`task_type`, `lora_dropout`, `modules_to_save`, ...).

        Raises:
            PlanError: every rank is 0, an option that the plan itself decides or that changes what it spends, or a module that
                PEFT cannot adapt.

        """
        from peft import LoraConfig

        from lorank.lora_options import check_modules, check_options, check_with_experts, exactly, whole

        check_options(options)
        check_with_experts(options, self.experts)
        adapted = {name: rank for name, rank in self.ranks.items() if rank > 0}
        if not adapted:
            raise PlanError("every rank in the plan is 0, so there is no adapter to make; allocate a larger budget")
        without = set(self.ranks) - set(adapted)
        check_modules(adapted, without, options, self.provenance.get("model_type"), self.experts)
        largest = max(adapted.values())
        alphas = {name: self._alpha_of(rank) for name, rank in adapted.items()}
        try:
            return LoraConfig(
                r=largest,
                lora_alpha=whole(self._alpha_of(largest)),
                target_modules=[name for name in adapted if name not in self.experts],
                target_parameters=[name for name in adapted if name in self.experts] or None,
                rank_pattern={exactly(name): rank for name, rank in adapted.items()},
                alpha_pattern={exactly(name): whole(alpha) for name, alpha in alphas.items()},
                **options,
            )
        except (ValueError, TypeError, ImportError) as error:
            raise PlanError(f"PEFT refuses these options: {one_line(error)}") from None

    def _alpha_of(self, rank: int) -> float:
        """PEFT's alpha of a module of this rank, which PEFT divides by the rank."""
        if self.alpha is None:
            return self.scale * rank
        return self.alpha * rank**0.5 if self.rslora else self.alpha

    def plot(self, path: str | Path | None = None, scores: "ImportanceScores | None" = None) -> "Figure":
        """Draw the ranks by layer and projection, with mean rank and share of the parameters of each (needs no model).

        Args:
            path: where the picture is written, PNG or SVG by its ending, in place of what is there; None writes nothing.
            scores: that the plan was made from: a second map shows the importance of each module, the sum of the scores of
                its units in percent of all.

        Returns:
            The figure, for changes of your own: `plan.plot().axes[0]`.

        Raises:
            OutputError: another ending, or a place that cannot be written to.
            PlanError: the plan was made from other scores.

        """
        from lorank.report.picture import picture_format, plain_text, save_picture
        from lorank.report.rank_map import rank_figure

        if path is not None:
            picture_format(Path(path))
        with plain_text():
            figure = rank_figure(self, scores)
        if path is not None:
            save_picture(figure, Path(path))
        return figure

    def to_json(self) -> dict[str, Any]:
        """What plan.json holds, but for its checksum."""
        return {
            "format": FORMAT,
            "version": WITH_EXPERTS if self.experts else WITH_RSLORA if self.rslora else VERSION,
            "budget": self.budget_record,
            "total_rank": self.total_rank,
            "scale": self.scale,
            "alpha": self.alpha,
            **({"rslora": True} if self.rslora else {}),
            "modules": {name: {"rank": self.ranks[name], "unit_cost": self.unit_costs[name]} for name in self.ranks},
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically.

        Raises:
            PlanError: what `load` would refuse, in the provenance for one.

        """
        content = self.to_json()
        if (wrong := unreadable(PlanFile, content)) is not None:
            raise PlanError(f"{path}: the plan is not written, as nobody could read it again: {wrong}; put it right")
        write_json(Path(path), content | {"checksum": checksum(content)})

    @classmethod
    def load(cls, path: str | Path) -> "RankPlan":
        """Read a file that `save` wrote.

        Raises:
            PlanError: no such file, not a plan, another format version, truncated or edited.

        """
        path = Path(path)
        if not path.is_file():
            raise PlanError(f"{path}: no such plan; make one with `lorank allocate` or `lorank run`")
        try:
            content = read_json(path)
        except (ValueError, OSError, RecursionError) as error:
            raise PlanError(f"{path}: damaged or not JSON ({one_line(error)}); allocate again") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise PlanError(f"{path}: JSON, but not a lorank plan; give the plan.json of a run")
        if content.get("version") not in (VERSION, WITH_RSLORA, WITH_EXPERTS):
            raise PlanError(
                f"{path}: format version {content.get('version')}, this lorank reads {VERSION} to {WITH_EXPERTS}; allocate again"
            )
        if content.pop("checksum", None) != checksum(content):
            raise PlanError(
                f"{path}: edited after it was written; to change ranks by hand, build lorank.RankPlan and save it"
            )
        if (wrong := what_is_wrong(PlanFile, content)) is not None:
            raise PlanError(f"{path}: not a plan that lorank wrote: {wrong}; allocate again")
        return cls(
            ranks={name: module["rank"] for name, module in content["modules"].items()},
            unit_costs={name: module["unit_cost"] for name, module in content["modules"].items()},
            budget=content["budget"]["asked"],
            budget_parameters=content["budget"]["parameters"],
            scale=content["scale"],
            alpha=content["alpha"],
            provenance=content["provenance"],
            budget_units=content["budget"].get("units"),
            rslora=content.get("rslora", False),
        )
