"""How a budget shrinks while adapters train."""


def cubic_budget(step: int, *, start: int, final: int, first_step: int, last_step: int) -> int:
    """Budget at `step`: `start` until `first_step`, then a cubic decline to `final` at `last_step` (AdaLoRA, eq. 14).

    `b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (t_l - t_i))^3`, rounded down, where `first_step = t_i` and
    `last_step = t_l = T - t_f`. The exponent's argument is that of AdaLoRA's code: the printed one neither starts at
    `b_0` nor ends at `b_T`.
    """
    if step <= first_step:
        return start
    if step >= last_step:
        return final
    left = 1 - (step - first_step) / (last_step - first_step)
    return int(final + (start - final) * left**3)
