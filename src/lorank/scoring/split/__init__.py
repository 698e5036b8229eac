"""Scoring on several processes: each passes its share of the examples, and all get the sums of all."""
