"""Adapters on the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from lorank.errors import OutputError, one_line
from lorank.received_files import check_adapter_folder

# What the hub's client raises for a name, a login or a network that is not there; requests that fail are OSErrors.
_FAILURES = (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError)


def check_hub(repository: str) -> None:
    """Refuse a name that the hub would refuse, and a login that is missing, before any expensive work.

    Raises:
        OutputError: what is wrong with it.

    """
    try:
        validate_repo_id(repository)
        HfApi().whoami()
    except _FAILURES as error:
        reason = one_line(error, 200)
        raise OutputError(
            f"nothing can be pushed to {repository!r}: {reason}; give USER/NAME, log in with `hf auth login`, or leave out "
            "--push-to-hub"
        ) from None


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder as a model repository, which is made if it is not there.

    Returns:
        Its address.

    Raises:
        AdapterError: a link that leads out of the folder: the hub's client would upload what it leads to.
        OutputError: the hub refuses, or cannot be reached; the folder stays.

    """
    check_adapter_folder(folder)
    try:
        api = HfApi()
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(folder_path=folder, repo_id=name, commit_message="Upload with lorank"))
    except _FAILURES as error:
        reason = one_line(error, 200)
        raise OutputError(
            f"{folder} is written, but could not be pushed to {repository!r}: {reason}; push it again"
        ) from None
