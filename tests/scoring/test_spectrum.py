import pytest
import torch

from lorank.scoring.spectrum import combined, effective_rank, topk_share


def test_equal_columns_have_full_effective_rank_and_the_share_of_their_number() -> None:
    flat = torch.full((20,), 3.0, dtype=torch.float64)
    assert float(effective_rank(flat)) == pytest.approx(20)
    assert float(topk_share(flat, 0.1)) == pytest.approx(0.1)


def test_a_single_column_has_effective_rank_one_and_all_of_the_share() -> None:
    single = torch.zeros(20, dtype=torch.float64)
    single[7] = 2.0
    assert float(effective_rank(single)) == pytest.approx(1)
    assert float(topk_share(single, 0.1)) == 1.0


def test_hand_made() -> None:
    columns = torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(topk_share(columns, 0.3), torch.tensor([0.7, 1.0], dtype=torch.float64))
    p = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    expected = torch.stack([torch.exp(-(p * p.log()).sum()), torch.tensor(2.0, dtype=torch.float64)])
    torch.testing.assert_close(effective_rank(columns), expected)


@pytest.mark.parametrize("columns", [torch.zeros(5), torch.tensor([-1.0, -2.0])])
def test_nothing_above_zero_scores_zero(columns: torch.Tensor) -> None:
    assert float(effective_rank(columns)) == 0
    assert float(topk_share(columns, 0.5)) == 0


def test_metrics_are_combined_on_the_scale_of_their_means() -> None:
    trace, share = torch.tensor([1.0, 3.0]), torch.tensor([0.1, 0.3])
    torch.testing.assert_close(combined([(trace, 1.0), (share, 2.0)]), torch.tensor([0.5 * 0.25, 1.5 * 2.25]))
    torch.testing.assert_close(combined([(trace * 1e6, 1.0), (share, 0.0)]), torch.tensor([0.5, 1.5]))


def test_a_negative_trace_counts_as_none() -> None:
    assert combined([(torch.tensor([-1.0, 2.0]), 1.0)]).tolist() == [0.0, 2.0]
