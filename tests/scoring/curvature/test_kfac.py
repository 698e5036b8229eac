import torch
from tests.scoring.curvature.networks import Stack, column_sums, mean_columns


def batch_of(examples: int, tokens: int) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(examples)
    x = torch.randn(examples, tokens, 4, dtype=torch.float64, generator=source)
    return {"x": x, "labels": torch.randn(examples, tokens, 3, dtype=torch.float64, generator=source)}


def test_it_is_input_energy_times_output_gradient_energy() -> None:
    model, batch = Stack(4, 3), batch_of(6, 5)
    sums = column_sums(model, [batch], "kfac")
    delta = 2 * (model(batch["x"]) - batch["labels"]).detach()
    a = batch["x"].square().flatten(0, 1).mean(0)
    torch.testing.assert_close(sums.columns["layers.0"].sum(0) / sums.tokens["layers.0"].sum(), a)
    torch.testing.assert_close(sums.outputs["layers.0"].sum() / sums.targets.sum(), delta.square().sum() / 6)


def test_for_a_single_token_it_is_the_fisher_matrix() -> None:
    model, batch = Stack(4, 5, 3), batch_of(1, 1)
    kfac, fisher = (column_sums(model, [batch], quantity) for quantity in ("kfac", "fisher"))
    for name in ("layers.0", "layers.1"):
        columns = kfac.columns[name].sum(0) / kfac.tokens[name].sum() * kfac.outputs[name].sum() / kfac.targets.sum()
        torch.testing.assert_close(columns, mean_columns(fisher, name))


def test_for_inputs_that_do_not_depend_on_the_gradients_it_is_the_fisher_matrix_on_average() -> None:
    # Labels of pure noise around the model's own outputs: output gradients say nothing about inputs.
    model, source = Stack(4, 3), torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 4, dtype=torch.float64, generator=source)
    noise = torch.randn(20_000, 3, dtype=torch.float64, generator=source)
    batch = {"x": x, "labels": model(x).detach() + noise}
    kfac, fisher = (column_sums(model, [batch], quantity) for quantity in ("kfac", "fisher"))
    columns = kfac.columns["layers.0"].sum(0) / kfac.tokens["layers.0"].sum() * kfac.outputs["layers.0"].sum() / 20_000
    torch.testing.assert_close(columns, mean_columns(fisher), rtol=0.05, atol=0)
