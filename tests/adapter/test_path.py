import pytest
import torch
from tests.conftest import random_batch, triplet_model

from lorank.adapter.path import capture, displacement, path_point


@pytest.mark.parametrize("moved", ["lambda", "all"])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_the_point_lies_on_the_line_and_the_end_is_restored(moved: str, with_baseline: bool) -> None:
    _, adapter = triplet_model()
    end = capture(adapter, "all")
    baseline = [torch.randn_like(values) for values in capture(adapter, moved)] if with_baseline else None
    line = displacement(adapter, moved=moved, baseline=baseline)
    with path_point(adapter, 0.3, moved=moved, baseline=baseline):
        inside = capture(adapter, moved)
    starts = baseline or [torch.zeros_like(length) for length in line]
    for values, start, length in zip(inside, starts, line, strict=True):
        assert torch.allclose(values, start + 0.3 * length, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(end, capture(adapter, "all"), strict=True))


def test_lambda_alone_scales_the_update_and_all_factors_cube_it() -> None:
    model, adapter = triplet_model()
    layer = model.get_base_model().get_submodule(adapter.names[0])
    with torch.no_grad():
        whole = layer.get_delta_weight("default")
        with path_point(adapter, 0.5):
            assert torch.allclose(layer.get_delta_weight("default"), 0.5 * whole, atol=1e-14)
        with path_point(adapter, 0.5, moved="all"):
            assert torch.allclose(layer.get_delta_weight("default"), 0.125 * whole, atol=1e-14)


def test_the_start_of_the_path_is_the_base_model() -> None:
    model, adapter = triplet_model()
    batch = random_batch()
    with torch.no_grad(), model.disable_adapter():
        base = model(**batch).logits
    with torch.no_grad(), path_point(adapter, 0.0):
        assert torch.equal(model(**batch).logits, base)


def test_one_module_moves_alone() -> None:
    _, adapter = triplet_model()
    before = capture(adapter)
    with path_point(adapter.only(2), 0.0):
        now = capture(adapter)
    assert torch.count_nonzero(now[2]) == 0
    assert all(torch.equal(a, b) for k, (a, b) in enumerate(zip(before, now, strict=True)) if k != 2)


def test_an_exception_restores_exactly_and_gradients_flow_inside() -> None:
    model, adapter = triplet_model()
    before = capture(adapter, "all")

    def fail_on_the_path() -> None:
        with path_point(adapter, 0.7, moved="all"):
            assert model(**random_batch()).loss.requires_grad
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail_on_the_path()
    assert all(torch.equal(a, b) for a, b in zip(before, capture(adapter, "all"), strict=True))
