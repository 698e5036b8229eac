"""One stage of training: its arguments, its trainer, its checkpoints."""
