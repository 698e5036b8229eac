"""What a training will need, from the config of its model alone: bytes, extra passes, and what no adapter touches."""
