"""How much rank a task needs, and at which learning rates to start, from short runs on a part of the training data."""
