import pytest
import torch
from tests.scoring.curvature.networks import Stack, column_sums, hessian_columns, mean_columns, summed

from lorank.scoring.calibration import calibrate
from lorank.scoring.curvature.hutchinson import OuterProductProbes, trace_with_errors


@pytest.mark.parametrize("at_once", [1, "all"])
@pytest.mark.parametrize("how", ["squares", "classes"])
def test_the_mean_over_directions_is_the_hessian_of_a_two_layer_network(how: str, at_once: int | str) -> None:
    model = Stack(4, 5, 3, how=how)
    x = torch.randn(8, 4, dtype=torch.float64)
    labels = torch.randn(8, 3, dtype=torch.float64) if how == "squares" else torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    batch = {"x": x, "labels": labels}
    draws = [
        column_sums(model, [batch], "hutchinson", probes=25, seed=seed, modules_at_once=at_once) for seed in range(40)
    ]
    for layer, name in enumerate(("layers.0", "layers.1")):
        found = torch.stack([mean_columns(sums, name) for sums in draws])
        error = found.std(0) / len(draws) ** 0.5
        gap = (found.mean(0) - hessian_columns(model, batch, layer)).abs()
        assert bool((gap < 4 * error).all()), (gap / error).tolist()


def test_modules_at_once_carry_the_curvature_between_them() -> None:
    model = Stack(3, 4, 5, 2, how="classes")
    batch = {"x": torch.randn(6, 3, dtype=torch.float64), "labels": torch.tensor([0, 1, 1, 0, 1, 0])}

    def traces(at_once: int | str, *layers: int) -> float:
        targets = [model.targets()[k] for k in layers]
        sums = calibrate(model, targets, [batch], "hutchinson", loss=summed, modules_at_once=at_once, seed=3)
        return float(sum(columns.sum() for columns in sums.columns.values()))

    # v' H v along all weights is that of each layer and, twice, that between each two; directions are those of the layers
    # that are looked at, so the same layers are looked at throughout.
    each, pairs, whole = traces(1, 0, 1, 2), traces(2, 0, 1, 2), traces("all", 0, 1, 2)
    assert traces(3, 0, 1, 2) == traces(9, 0, 1, 2) == whole
    assert len({round(one, 6) for one in (each, pairs, whole)}) == 3
    directions = OuterProductProbes(model.targets(), seed=3)
    directions.draw(range(6), 0)
    assert whole == pytest.approx(float(dense_product(model, batch, directions, (0, 1, 2))))
    assert pairs == pytest.approx(
        float(dense_product(model, batch, directions, (0, 1)) + dense_product(model, batch, directions, (2,)))
    )


def dense_product(
    model: Stack, batch: dict[str, torch.Tensor], directions: OuterProductProbes, layers: tuple[int, ...]
) -> torch.Tensor:
    """`Σ_n v_n' H_n v_n` along the directions of these layers, by second derivatives of the loss by a step along all."""
    total = torch.zeros((), dtype=torch.float64)
    for example in range(len(batch["x"])):
        moves = []
        for k in layers:
            start, d_in, d_out = directions._place[f"layers.{k}"]
            signs = directions._signs[example, start : start + d_in + d_out].double()
            moves.append(torch.outer(signs[d_in:], signs[:d_in]))

        def loss(step: torch.Tensor, example: int = example, moves: list[torch.Tensor] = moves) -> torch.Tensor:
            own = {
                f"layers.{k}.weight": model.layers[k].weight.detach() + step * v
                for k, v in zip(layers, moves, strict=True)
            }
            outputs = torch.func.functional_call(model, own, (batch["x"][example : example + 1],))
            return torch.nn.functional.cross_entropy(outputs, batch["labels"][example : example + 1])

        total = total + torch.func.hessian(loss)(torch.zeros((), dtype=torch.float64)).detach()
    return total


def test_one_direction_gives_the_product_of_the_dense_hessian_with_it() -> None:
    model = Stack(3, 4, 2)
    x, labels = torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    probes = OuterProductProbes(model.targets()[:1], seed=5)
    probes.draw([0], 0)
    signs = probes._signs[0].double()
    b, a = signs[:3], signs[3:]
    model.layers[0].register_forward_hook(
        lambda _, args, output: probes.move("layers.0", args[0][:, None], output[:, None])[:, 0]
    )
    found = probes.columns(model.losses(x, labels).sum())["layers.0"][0]

    plain = Stack(3, 4, 2)
    first, second = (layer.weight.detach() for layer in plain.layers)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(x @ weight.T) @ second.T - labels).square().sum()

    along = torch.einsum("ijkl,kl->ij", torch.func.hessian(loss)(first), torch.outer(a, b))
    torch.testing.assert_close(found, (along * torch.outer(a, b)).sum(0))


def test_a_network_that_is_linear_in_its_weights_up_to_the_loss_needs_one_direction_for_its_trace_on_average() -> None:
    # Linear regression: H = 2 E[x xᵀ] ⊗ 1, so v' H v for v = a bᵀ is 2 d_out (b · x)², whose mean over b is 2 d_out ‖x‖².
    model, x = Stack(4, 3), torch.randn(500, 4, dtype=torch.float64)
    batch = {"x": x, "labels": torch.zeros(500, 3, dtype=torch.float64)}
    found = mean_columns(column_sums(model, [batch], "hutchinson", probes=8))
    assert float(found.sum()) == pytest.approx(6 * float(x.square().sum(1).mean()), rel=0.1)


def test_a_loss_linear_in_all_weights_has_no_curvature() -> None:
    model = Stack(4, 3)
    model.losses = lambda x, labels: model(x).sum(1)  # type: ignore[method-assign]
    batch = {"x": torch.randn(2, 4, dtype=torch.float64), "labels": torch.zeros(2)}
    assert summed(model, batch)[0].requires_grad
    assert not mean_columns(column_sums(model, [batch], "hutchinson")).any()


@pytest.mark.parametrize("layer", [0, 1])
def test_over_all_directions_there_are_it_is_the_hessian_exactly_whatever_the_other_modules_do(layer: int) -> None:
    # 32 copies of one example, each with other signs of one layer; the other layer moves along random directions.
    model = Stack(2, 3, 2, how="classes")
    target = model.targets()[layer]
    bits = torch.tensor([[index >> bit & 1 for bit in range(5)] for index in range(32)], dtype=torch.int8) * 2 - 1
    x = torch.randn(1, 2, dtype=torch.float64)
    probes = OuterProductProbes(model.targets(), seed=0)
    probes.draw(range(32), 0)
    start, _, _ = probes._place[target.name]
    probes._signs[:, start : start + 5] = bits
    for k, one in enumerate(model.layers):
        one.register_forward_hook(
            lambda _, args, output, k=k: probes.move(f"layers.{k}", args[0][:, None], output[:, None])[:, 0]
        )
    labels = torch.zeros(32, dtype=torch.long)
    found = probes.columns(model.losses(x.expand(32, 2), labels).sum())[target.name].mean(0)
    plain = Stack(2, 3, 2, how="classes")
    torch.testing.assert_close(found, hessian_columns(plain, {"x": x, "labels": labels[:1]}, layer))


def test_standard_errors_by_hand() -> None:
    # Two directions (rows) of two examples: means 2 and 4, each of variance 2.
    traces = torch.tensor([[1.0, 3.0], [3.0, 5.0]], dtype=torch.float64)
    found = trace_with_errors(traces, torch.ones(2, dtype=torch.float64))
    assert found == pytest.approx((3, (2 * (1 + 1)) ** 0.5 / 2, ((2 + 2) / 2) ** 0.5 / 2))
    # With 1 and 3 targets T = 6 / 4, and the residuals are 2 - 1.5 and 4 - 4.5.
    assert trace_with_errors(traces, torch.tensor([1.0, 3.0]).double())[:2] == pytest.approx((1.5, 1 / 4))
    assert str(trace_with_errors(traces[:1, :1], torch.ones(1).double())) == "(1.0, nan, nan)"


def test_the_standard_error_of_directions_is_their_spread_and_covers_the_exact_trace() -> None:
    model = Stack(4, 5, 3, how="classes")
    batch = {"x": torch.randn(8, 4, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])}
    draws = [column_sums(model, [batch], "hutchinson", probes=4, seed=seed) for seed in range(60)]
    for layer, name in enumerate(("layers.0", "layers.1")):
        found = torch.tensor([trace_with_errors(sums.traces[name], sums.counts) for sums in draws])
        trace, error = found[:, 0], found[:, 2].square().mean().sqrt()
        assert float(error) == pytest.approx(float(trace.std()), rel=0.35)
        exact = hessian_columns(model, batch, layer).sum()
        assert abs(float(trace.mean() - exact)) < 4 * float(error) / 60**0.5
        assert float(trace[0]) == pytest.approx(float(mean_columns(draws[0], name).sum()))
