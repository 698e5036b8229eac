"""Pushing, with a stand-in for the hub's client: no hub is reached from tests."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from lorank.errors import OutputError
from lorank.serving import hub


class Hub:
    """What of HfApi is used; keeps what was asked of it."""

    asked: tuple[Any, ...] = ()
    fails: Exception | None = None

    def whoami(self) -> dict[str, str]:
        if Hub.fails:
            raise Hub.fails
        return {"name": "me"}

    def create_repo(self, name: str, **options: Any) -> Any:
        if Hub.fails:
            raise Hub.fails
        Hub.asked = (name, options)
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, **options: Any) -> str:
        Hub.asked += (options,)
        return f"https://hub/{options['repo_id']}"


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "fails", None)


def test_a_folder_is_pushed_to_a_repository_that_is_made(tmp_path: Path) -> None:
    hub.check_hub("me/adapter")
    assert hub.push(tmp_path, "me/adapter", private=True) == "https://hub/me/adapter"
    name, made, uploaded = Hub.asked
    assert (name, made["private"], made["exist_ok"], uploaded["folder_path"]) == ("me/adapter", True, True, tmp_path)


def test_a_missing_login_and_a_bad_name_are_found_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"nothing can be pushed to 'a b/c'.*USER/NAME"):
        hub.check_hub("a b/c")
    monkeypatch.setattr(Hub, "fails", LocalTokenNotFoundError("Token is required"))
    with pytest.raises(OutputError, match=r"Token is required; .*hf auth login"):
        hub.check_hub("me/adapter")


def test_a_failed_push_says_that_the_folder_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Hub, "fails", ConnectionError("no network"))
    with pytest.raises(OutputError, match=r"is written, but could not be pushed to 'me/adapter': no network"):
        hub.push(tmp_path, "me/adapter")
