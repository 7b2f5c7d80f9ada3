"""Sends an exported model to the Hugging Face hub, with the token of the environment or of a login."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from reticent.errors import ModelError

_ANSWERS = {401: "the token is not valid", 403: "the token may not write there"}


class Repository:
    """``name``, as "somebody/model", of whoever is logged in.

    Raises:
        ModelError: it is no name of a repository, the hub cannot be reached, or nobody is logged in.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            huggingface_hub.utils.validate_repo_id(name)  # type: ignore[attr-defined]  # a lazy module hides it
        except HFValidationError:
            raise ModelError(f"--push must be a repository of the hub, as somebody/name, got {name}") from None
        self._api = huggingface_hub.HfApi()
        with self._reaching("nothing was exported"):
            self._api.whoami()

    def push(self, folder: Path) -> str:
        """Sends the files of ``folder``; the repository is made private where there is none. Returns its address.

        Raises:
            ModelError: it was not sent, or not wholly.
        """
        with self._reaching(f"the checked model is in {folder}; send it with: hf upload {self.name} {folder}"):
            address = str(self._api.create_repo(self.name, private=True, exist_ok=True))
            self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message="Exported and checked")
        return address

    @contextmanager
    def _reaching(self, state: str) -> Iterator[None]:
        """Turns every failure into a message that says what to do. The client's own text may hold more than that."""
        try:
            yield
        except Exception as error:
            raise ModelError(f"cannot push to {self.name}: {_why(error)}. Besides: {state}") from None


def _why(error: Exception) -> str:
    """And what to do."""
    match error:
        case LocalTokenNotFoundError():
            return "nobody is logged in; log in with: hf auth login"
        case OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE switches the hub off here; unset it"
        case HfHubHTTPError():
            status = error.response.status_code
            return f"{_ANSWERS.get(status, f'it answers HTTP {status}')}; log in with one that may: hf auth login"
    return f"the hub cannot be reached ({type(error).__name__}); try again"
