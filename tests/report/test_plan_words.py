from lorank.plan import RankPlan
from lorank.report.plan_words import allocation_lines, module_groups


def test_what_an_allocation_did_in_two_lines() -> None:
    ranks = {
        f"layers.{k}.{kind}": rank for k in range(4) for kind, rank in (("query", 0 if k != 2 else 3), ("value", k))
    }
    plan = RankPlan(ranks, dict.fromkeys(ranks, 10), "r=2", 120, provenance={"method": "igu-lora"})
    assert allocation_lines(plan, dict.fromkeys(ranks, 4)) == [
        "igu-lora, budget r=2: 90 of 120 parameters; the adapter began with 320; ranks 1 to 3 in 4 of 8 modules",
        "without an adapter: query (layers 0-1, 3), value (layer 0)",
    ]
    full = RankPlan(dict.fromkeys(ranks, 2), plan.unit_costs, "r=2", 160)
    assert len(allocation_lines(full, full.ranks)) == 1
    assert "rank 2 in 8 of 8 modules" in allocation_lines(full, full.ranks)[0]
    none = RankPlan(dict.fromkeys(ranks, 0), plan.unit_costs, "r=2", 160)
    assert allocation_lines(none, full.ranks)[0].endswith("no module has an adapter")


def test_modules_are_named_by_projection_and_stack() -> None:
    names = [f"{stack}.layers.{k}.q" for stack in ("model.encoder", "model.decoder") for k in (0, 1)]
    among = [*names, "head", *(f"model.encoder.layers.0.p{k}" for k in range(9))]
    assert module_groups(names[:3], among) == "q (encoder, all layers), q (decoder, layer 0)"
    assert module_groups(["head"], ["head"]) == "head"
    assert module_groups(among[-9:], among).endswith("and 3 more kinds of modules")
