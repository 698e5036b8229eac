"""Data, texts, labels, tokens, metrics and evaluation of a task."""
