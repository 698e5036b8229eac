"""Errors of independent checks, collected and raised together: one attempt shows everything that has to be mended."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lorank.errors import LorankError, RecipeError


class SeveralFindings(RecipeError):
    """More than one thing to mend; each on a line of its own, `errors` has them one by one."""

    def __init__(self, errors: Sequence[LorankError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join([f"{len(self.errors)} things have to be mended:", *(f"- {e}" for e in self.errors)]))


class Findings:
    """Collects what independent checks raise."""

    def __init__(self) -> None:
        self.errors: list[LorankError] = []

    @contextmanager
    def check(self) -> Iterator[None]:
        """Keep an error of the family for later; each message once. Code behind it must not need what the block made."""
        try:
            yield
        except LorankError as error:
            for one in error.errors if isinstance(error, SeveralFindings) else (error,):
                if str(one) not in map(str, self.errors):
                    self.errors.append(one)

    def raise_all(self) -> None:
        """Raise what was found: a single error as it is, several as one `SeveralFindings`."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise SeveralFindings(self.errors)
