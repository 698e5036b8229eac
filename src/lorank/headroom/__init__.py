"""Headroom of a task: how much an assignment of ranks can gain over uniform ranks at the same budget."""
