from lorank.headroom.plans import KINDS, tried_plans
from lorank.module_names import is_attention
from lorank.targets import Target

BERT = {"attention.self.query": 16, "attention.self.key": 16, "attention.self.value": 16, "attention.output.dense": 16}
NAMES = [*BERT, "intermediate.dense", "output.dense"]
SIZES = {"intermediate.dense": (16, 64), "output.dense": (64, 16)}
LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")


def targets() -> tuple[Target, ...]:
    return tuple(
        Target(f"bert.encoder.layer.{layer}.{name}", *SIZES.get(name, (16, 16))) for layer in range(3) for name in NAMES
    )


def test_every_plan_spends_the_budget() -> None:
    budget = 3 * (4 * 32 + 2 * 80)
    plans, left_out = tried_plans(targets(), budget, 2.0, random=5, seed=0)
    alone = [f"{name} alone" for name in ("query", "key", "value", "attention.output", "intermediate", "output")]
    assert list(plans) == ["uniform", *KINDS, *alone, *(f"random {k}" for k in range(5))]
    assert not left_out
    assert {name for name, rank in plans["output alone"].ranks.items() if rank} == {
        f"bert.encoder.layer.{layer}.output.dense" for layer in range(3)
    }
    assert set(plans["uniform"].ranks.values()) == {1}
    for name, plan in plans.items():
        cheapest = min(plan.unit_costs[module] for module, rank in plan.ranks.items() if rank)
        assert budget - cheapest < plan.spent <= budget, name
        assert set(plan.ranks) == {target.name for target in targets()}
    attention = {name for name, rank in plans["attention"].ranks.items() if rank}
    assert attention == {target.name for target in targets() if is_attention(target.name)}
    assert not {name for name, rank in plans["query, key"].ranks.items() if rank and "self.value" in name}
    assert all(rank == 0 for name, rank in plans["value, output"].ranks.items() if "query" in name)
    again, _ = tried_plans(targets(), budget, 2.0, random=5, seed=0)
    other, _ = tried_plans(targets(), budget, 2.0, random=5, seed=1)
    assert again["random 3"].ranks == plans["random 3"].ranks != other["random 3"].ranks


def test_kinds_that_a_model_lacks_are_left_out_with_the_reason() -> None:
    only = tuple(Target(f"model.layers.0.{name}", 8, 8) for name in LLAMA[:4])
    plans, left_out = tried_plans(only, 64, 2.0, random=2, seed=0)
    assert left_out["feed-forward"] == "no target is of this kind"
    assert left_out["attention"] == "every target is of this kind"
    assert {"query, key", "value, output"} <= set(plans)
    names = [Target(f"layers.{k}.mixer.in_proj", 8, 8) for k in range(2)]
    plans, left_out = tried_plans(tuple(names), 32, 2.0, random=2, seed=0)
    assert {"attention", "query, key", "value, output", "feed-forward"} <= set(left_out)
    assert "ranks of uniform" in " ".join(left_out.values()) or len(plans) > 1
    experts = [f"layers.{k}.mlp.experts.{e}.{n}" for k in range(2) for e in range(4) for n in ("up_proj", "down_proj")]
    plans, left_out = tried_plans(tuple(Target(name, 8, 8) for name in experts), 128, 2.0, random=0, seed=0)
    assert len([name for name, rank in plans["up_proj alone"].ranks.items() if rank]) == 8
    many = tuple(Target(f"layers.0.part{k}", 8, 8) for k in range(9))
    _, left_out = tried_plans(many, 64, 2.0, random=0, seed=0)
    assert "9 projections" in left_out["each projection alone"]
    few = tuple(Target(f"model.layers.0.{name}", 8, 8) for name in LLAMA)
    _, left_out = tried_plans(few, 5 * 8 * 16, 2.0, random=2, seed=0)
    assert "can spend only" in left_out["query, key"]
