"""The tiny models and trained adapters of the serving tests, for the commands that serve them."""

from tests.serving.conftest import bases, trained

__all__ = ["bases", "trained"]
