"""Allocation in a user's training: the Trainer's callback and its checkpoint."""
