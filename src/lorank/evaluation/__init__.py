"""A trained adapter or model evaluated: tasks of lm-eval, losses on own data, samples."""
