"""Whether lorank works on this machine: versions beside those that are supported, devices, and a small training."""
