"""Files of torch.hub and the Hugging Face hub, from their caches or downloaded.

The package huggingface_hub is optional: `hf:` and most `timm:` sources need it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from fastadv.errors import CheckpointError, ConfigError, OutputError
from fastadv.files import file_sha256
from fastadv.models.architecture_names import MODEL_FILE
from fastadv.models.checkpoint_files import WEIGHT_FILES, listed_parts

_SHA256 = re.compile(r"[0-9a-f]{64}")


def read_config(path: Path) -> dict[str, Any]:
    """Return the `config.json` beside weights; it is empty where there is none.

    Raises:
        CheckpointError: It is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; write it again")
    return content


def torch_hub_path(url: str) -> Path:
    """Return the path where torch.hub keeps the file of `url`, whether it exists or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def torch_hub_file(url: str, what: str, download: bool) -> Path:
    """Return the file that torch.hub keeps for `url`.

    Args:
        url: Its address; a file name that ends in `-0123abcd.pth` is checked.
        what: How the user named it.
        download: Fetch the file if it is not on this machine.

    Raises:
        CheckpointError: The file is not here, and fetching was not allowed or failed.
    """
    return cached_download(torch_hub_path(url), url, what, download)


def cached_download(file: Path, url: str, what: str, download: bool) -> Path:
    """Return `file`, fetched from `url` where it is missing; see `torch_hub_file`."""
    if file.is_file():
        return file
    if not download:
        raise CheckpointError(
            f"{what} is not on this machine (looked for {file}); add `download`, or put "
            f"{url} there by other means"
        )
    match = torch.hub.HASH_REGEX.search(file.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(
            url, str(file), match[1] if match else None, progress=True
        )
    except (OSError, RuntimeError) as error:  # no network; another hash
        raise _unfetched(what, url, error) from error
    return file


def hugging_face_file(
    repo: str, name: str | None, revision: str | None, what: str, download: bool
) -> Path:
    """Return a file of a Hugging Face repository, with its `config.json` beside it.

    Args:
        repo: `org/name`.
        name: Path within it; None takes `model.safetensors` or `pytorch_model.bin`, or the
            index of several of them, with all that it lists.
        revision: Branch, tag or commit; None is the default branch.
        what: How the user named it.
        download: Fetch the file if it is not in the cache.

    Raises:
        ConfigError: The package huggingface_hub is not installed.
        CheckpointError: The file is not here, and fetching was not allowed or failed.
    """
    try:
        import huggingface_hub as library
        from huggingface_hub.constants import HF_HUB_CACHE
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ConfigError(
            f"{what} needs the huggingface_hub package, which is not installed; run: "
            "pip install huggingface-hub, or give the path of the file"
        ) from error
    # In order of preference; other files of a repository must be named.
    choices = [name] if name else [*WEIGHT_FILES]
    shown = [name] if name else [MODEL_FILE, "pytorch_model.bin"]
    for choice in choices:
        cached = library.try_to_load_from_cache(repo, choice, revision=revision)
        if isinstance(cached, str) and _is_whole(Path(cached)):
            return Path(cached)
    if not download:
        raise CheckpointError(
            f"{what} is not in the Hugging Face cache ({HF_HUB_CACHE}; "
            f"looked for {' and '.join(shown)} of {repo}); add `download`, or put the "
            "file anywhere and give its path"
        )
    try:
        return _fetch(repo, choices, revision)
    except LocalEntryNotFoundError as error:  # no network; an EntryNotFoundError too
        raise _unfetched(what, f"https://huggingface.co/{repo}", error) from error
    except EntryNotFoundError as error:
        raise CheckpointError(
            f"{what}: the repository holds no {' or '.join(shown)}; name the file: "
            f"hf:{repo}/FILE"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # HTTP errors are OSErrors
        raise _unfetched(what, f"https://huggingface.co/{repo}", error) from error


def _fetch(repo: str, choices: list[str], revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    # The configuration first, so that the folder is complete when the weights are there.
    for choice in ("config.json", *choices[:-1]):
        try:
            file = hf_hub_download(repo, choice, revision=revision)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
        if choice in choices:
            return _with_parts(Path(file), repo, choice, revision)
    file = hf_hub_download(repo, choices[-1], revision=revision)
    return _with_parts(Path(file), repo, choices[-1], revision)


def _with_parts(file: Path, repo: str, name: str, revision: str | None) -> Path:
    """Return a file that was just fetched; of an index, fetch the files that it lists."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = name.rpartition("/")[0]
    for part in listed_parts(file):
        path = f"{folder}/{part}".lstrip("/")
        try:
            _checked(Path(hf_hub_download(repo, path, revision=revision)))
        except LocalEntryNotFoundError:  # no network
            raise
        except EntryNotFoundError as error:
            raise CheckpointError(
                f"{repo}: {name} lists {part}, which the repository does not hold"
            ) from error
    return _checked(file)


def _is_whole(file: Path) -> bool:
    """Return whether the files that an index lists are there, too."""
    return all((file.parent / part).is_file() for part in listed_parts(file))


def _checked(file: Path) -> Path:
    """Return a file that was just fetched, if its content has the hash the hub states.

    The hub names large files by their SHA-256, and its client keeps them under that
    name without computing it.
    """
    stated = file.resolve()
    if _SHA256.fullmatch(stated.name) and file_sha256(stated) != stated.name:
        stated.unlink()
        file.unlink(missing_ok=True)
        raise OSError(
            f"the content of {file.name} has another hash than the hub states"
        )
    return file


def _unfetched(what: str, address: str, error: Exception) -> CheckpointError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"could not fetch {what} from {address}: {first}. Without a network, download "
        "the file elsewhere and give its path"
    )


def push_folder(folder: Path, repo: str, *, private: bool, token: str | None) -> str:
    """Upload the files of a folder to a model repository of the Hugging Face hub.

    The repository is made if it does not exist. Who may write is known from `token`, or
    from what `hf auth login` stored.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: The package huggingface_hub is not installed, or `repo` is no name.
        OutputError: The hub refuses, or cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"{repo!r} is no repository; write it as ORG/NAME")
    try:
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise ConfigError(
            "pushing needs the huggingface_hub package, which is not installed; run: "
            "pip install huggingface-hub"
        ) from error
    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message="Weights, and a card written from the results table",
        )
    except (OSError, ValueError, RuntimeError) as error:  # HTTP errors are OSErrors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise OutputError(
            f"could not push to {repo} at {constants.ENDPOINT}: {first}. Log in by `hf auth "
            "login`, or set HF_TOKEN to a token that may write there"
        ) from error
    return str(commit.commit_url)
