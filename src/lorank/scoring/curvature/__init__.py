"""Diagonals of the Hessian of one linear layer, as column sums `h_j = Σ_i h_ij`: `O(d_in)` numbers a module."""
