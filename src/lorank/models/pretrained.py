"""A pretrained model by name: what has to be known to load it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pretrained:
    """A base model that is not loaded yet.

    Attributes:
        name: hub name or folder.
        trust_remote_code: let the code that comes with a hub model run.
        dropout: inside of the model; None: as its config says.
        classifier_dropout: in front of the head of a classifier; None: as its config says.

    """

    name: str
    trust_remote_code: bool = False
    dropout: float | None = None
    classifier_dropout: float | None = None
