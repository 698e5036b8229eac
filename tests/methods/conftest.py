"""Every test here finds the registry without what another one registered."""

from collections.abc import Iterator

import pytest

from lorank.methods import METHODS, plugins


@pytest.fixture(autouse=True)
def _registry_as_before() -> Iterator[None]:
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)
    plugins._LOADED.clear()
