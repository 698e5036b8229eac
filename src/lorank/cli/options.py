"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Adapter = Annotated[Path, typer.Argument(help="folder of a LoRA adapter, from whatever tool")]
Base = Annotated[
    str | None, typer.Option(help="base model, hub name or folder; default: the one that the adapter names")
]
RemoteCode = Annotated[bool, typer.Option(help="let the base model's own code run")]
PushToHub = Annotated[str | None, typer.Option(metavar="USER/NAME", help="also upload it to the Hugging Face hub")]
Private = Annotated[bool, typer.Option(help="with --push-to-hub: a private repository")]
