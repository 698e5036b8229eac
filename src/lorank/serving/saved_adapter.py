"""Whether the file of a trained adapter holds what its plan says: an audit after saving, above all of a sharded training."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

from lorank.errors import AdapterError, PlanError
from lorank.module_names import without_adapter
from lorank.plan import RankPlan
from lorank.serving.adapter_files import CONFIG, WEIGHTS, AdapterFiles


class FactorShapes(NamedTuple):
    """Shapes of A `(r, d_in)` and B `(d_out, r)` in a file, of E experts `(E r, d_in)` and `(d_out, E r)`; empty: missing."""

    a: tuple[int, ...] = ()
    b: tuple[int, ...] = ()

    @property
    def parameters(self) -> int:
        """Of both."""
        return sum(prod(shape) for shape in self if shape)

    def fits(self, plan: RankPlan, name: str) -> bool:
        """Whether they are what the plan gives a module, or a parameter of experts."""
        rank, experts = plan.ranks.get(name, 0), plan.experts.get(name, 1)
        if not rank or len(self.a) != 2 or len(self.b) != 2:
            return False
        units, cost = rank * experts, plan.unit_costs[name] // experts
        return (self.a[0], self.b[1], self.a[1] + self.b[0]) == (units, units, cost)


def check_saved_adapter(folder: str | Path, plan: RankPlan | str | Path) -> int:
    """Check that a saved adapter is the plan's, whole and trained; reads the two files, and no model.

    Every module with a rank `r_m > 0` in the plan has `lora_A` and `lora_B`, together `r_m · unit_cost_m` parameters, and no
    other module has any; `adapter_config.json` gives every module the rank of its tensors; no tensor is a shard, empty or not
    finite; no `lora_B` is zero in every entry, as it is before training. Call it on one process, after all have saved. The
    scale (alpha) is not compared: it is what the adapter was trained with, whatever the plan proposes.

    PEFT's keys do not name the parameters of fused experts: the tensors of a module of experts are told apart by their shapes.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        plan: that was trained, or the path of its plan.json.

    Returns:
        The adapter parameters in the file, `plan.spent`; modules that were trained whole (heads) are not counted.

    Raises:
        AdapterError: the file is missing, damaged or no plain LoRA, or one of the above does not hold; names the first module.
        PlanError: there is no such plan, or it is damaged.

    """
    if isinstance(plan, str | Path):
        plan = RankPlan.load(plan)
    if not isinstance(plan, RankPlan):
        raise PlanError(f"plan is {type(plan).__name__}; give a lorank.RankPlan, or the path of a plan.json")
    files = AdapterFiles.read(folder, experts=bool(plan.experts))
    held = {name: FactorShapes(tuple(pair.a.shape), tuple(pair.b.shape)) for name, pair in files.pairs.items()}
    names = _names_in_plan(held, plan)
    check_factors(files.folder / WEIGHTS, {names[module]: shapes for module, shapes in held.items()}, plan)
    if plan.experts:
        _check_config(files, plan)
    if idle := [names[module] for module, pair in files.pairs.items() if not pair.b.any()]:
        raise AdapterError(
            f"{files.folder / WEIGHTS}: lora_B of {idle[0]!r} is zero in every entry ({_several(idle)}), as before training: not "
            "trained, or not gathered before it was saved; look whether the loss reaches the module, and save with all processes "
            "(trainer.save_model)"
        )
    return files.parameters


def check_factors(path: Path, held: Mapping[str, FactorShapes], plan: RankPlan) -> None:
    """Compare the shapes of an adapter's tensors with a plan.

    Args:
        path: of the file, for the message.
        held: name in the plan, or of a module that the plan does not have -> shapes in the file.
        plan: ranks and costs.

    Raises:
        AdapterError: a module that is missing or too many, or a tensor of another shape than the plan's (a shard, say); names
            the first module.

    """
    wanted = [name for name, rank in plan.ranks.items() if rank > 0]
    wrong = [name for name in dict.fromkeys([*wanted, *held]) if not held.get(name, FactorShapes()).fits(plan, name)]
    if wrong:
        name, shapes = wrong[0], held.get(wrong[0], FactorShapes())
        rank = plan.ranks.get(name, 0)
        raise AdapterError(
            f"{path} holds {shapes.parameters:,} parameters of {name!r}{_shown(shapes)}, the plan says "
            f"{rank * plan.unit_costs.get(name, 0):,}, rank {rank} ({_several(wrong)}): the adapter of another plan, or shards "
            f"of one that was trained on several devices; take {WEIGHTS} and {CONFIG} from one training, after it has ended, and "
            "save with all processes (trainer.save_model)"
        )


def _names_in_plan(held: Mapping[str, FactorShapes], plan: RankPlan) -> dict[str, str]:
    """Module in the file -> name in the plan. A module of experts has tensors of several parameters, one wrapper in another."""
    names: dict[str, str] = {}
    for only_fitting in (True, False):
        for module, shapes in held.items():
            inside = without_adapter(f"{module}.")
            of_module = (name for name in plan.experts if name.rpartition(".")[0] + "." == inside and plan.ranks[name])
            free = [name for name in of_module if name not in names.values()]
            if module not in names and (
                found := [name for name in free if not only_fitting or shapes.fits(plan, name)]
            ):
                names[module] = found[0]
    return {module: names.get(module, module) for module in held}


def _check_config(files: AdapterFiles, plan: RankPlan) -> None:
    """Whether PEFT would give the tensors of experts to the plan's parameters: the config alone names these.

    Raises:
        AdapterError: it would not.

    """
    path = files.folder / CONFIG
    wanted = {name for name in plan.experts if plan.ranks[name]}
    if other := sorted(wanted ^ set(files.config.get("target_parameters") or ())):
        where = "does not name" if other[0] in wanted else "names"
        raise AdapterError(f"{path} {where} {other[0]!r} in target_parameters; take both files from one training")
    for name, rank in plan.ranks.items():
        if rank and (said := files.pattern("rank_pattern", name, files.config["r"])) != rank:
            raise AdapterError(
                f"{path} says rank {said} for {name!r}, the plan {rank}; take both files from one training"
            )


def _shown(shapes: FactorShapes) -> str:
    return f" (A {shapes.a}, B {shapes.b})" if any(shapes) else ""


def _several(names: list[str]) -> str:
    return "this module alone" if len(names) == 1 else f"and {len(names) - 1:,} more modules"
