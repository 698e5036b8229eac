"""A trained adapter made smaller."""
