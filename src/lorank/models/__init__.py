"""The base model: loading, padding, heads, size, and adapters loaded on it."""
