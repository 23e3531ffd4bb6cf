"""Models on the Hugging Face Hub: `hf:user/model` or `hf:user/model@revision` can be given wherever
the folder of a trained model can. Anything else is a path, for which no network is used.

The client is huggingface_hub, with its own settings: HF_HOME (cache), HF_TOKEN or `hf auth login`,
HF_ENDPOINT, HF_HUB_OFFLINE. A model is downloaded once per commit. Nothing in it is imported: the
cache is not searched for modules, and a model that lists files of code is refused.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from asrtool.errors import UserError
from asrtool.log import logger

PREFIX = "hf:"
NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@(.+))?", re.ASCII)
CODE = {".py", ".pyc", ".pyd", ".pyi", ".so", ".dll", ".dylib", ".pth", ".egg", ".whl", ".zip"}
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Reference:
    """A model on the hub. revision: a branch, tag or commit; None: the main branch."""

    repo: str  # user/model
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `UserError` if the text is not of the form hf:user/model[@revision]."""
        match = NAME.fullmatch(text)
        if match is None:
            raise UserError(
                f"'{text}' is not the name of a model on the hub; expected hf:user/model or "
                "hf:user/model@revision (give a local folder of that name by its absolute path)"
            )
        return cls(*match.groups())

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def is_reference(path: Path | str) -> bool:
    """Whether `path` names a model on the hub."""
    return str(path).startswith(PREFIX)


def local(path: Path | str, listing: str) -> Path:
    """The folder of a model: `path` itself, or the local copy of a model on the hub.

    listing: name of the JSON file whose `files` lists all others; only these are downloaded. Raises
    `UserError` if the model does not exist, cannot be read, or is not from asrtool, and if it is
    not in the cache while the hub cannot be reached.
    """
    if not is_reference(path):
        return Path(path)
    reference = Reference.parse(str(path))
    folder = _download(reference, listing)
    logger.info("%s is commit %s: %s", reference, folder.name[:12], folder)
    return folder


def origin(folder: Path) -> str | None:
    """`hf:user/model@commit` of a folder in the cache of the hub's client; None of any other."""
    repo = folder.parent.parent.name.split("--")
    if folder.parent.name != "snapshots" or repo[0] != "models" or len(repo) < 3:
        return None
    return str(Reference(f"{repo[1]}/{'--'.join(repo[2:])}", folder.name))


def client() -> object:
    """The package huggingface_hub. Raises `UserError` if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            "the Hugging Face Hub needs huggingface_hub, which is not installed: pip install -e "
            "'.[hub]'"
        ) from None
    return huggingface_hub


def _download(reference: Reference, listing: str) -> Path:
    hub = client()
    about = {"repo_id": reference.repo, "library_name": "asrtool"}
    failures = (hub.errors.HTTPError, hub.errors.EntryNotFoundError, OSError, ValueError)
    try:
        card = Path(
            hub.hf_hub_download(filename=listing, revision=reference.revision, **about)
        ).absolute()
        names = _listed(card, reference)
        # By commit: the branch may have moved since its list of files was read.
        folder = hub.snapshot_download(
            revision=card.parent.name, allow_patterns=[listing, *map(glob.escape, names)], **about
        )
    except UserError:
        raise
    except failures as error:
        raise _not_downloaded(reference, listing, error) from error
    return Path(folder)


def _listed(card: Path, reference: Reference) -> list[str]:
    """The files that a model lists. Raises `UserError` for code and names outside its folder."""
    try:
        names = list(json.loads(card.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{reference} is not an asrtool model: its {card.name} lists no files"
        ) from None
    for name in names:
        parts = PurePosixPath(str(name)).parts
        if not parts or any(part.startswith((".", "/")) for part in parts) or "\\" in name:
            raise UserError(f"{reference} lists the file '{name}', which is not inside its folder")
        if PurePosixPath(name).suffix.lower() in CODE:
            raise UserError(f"{reference} lists the file '{name}': a model must not contain code")
    return names


def _not_downloaded(reference: Reference, listing: str, error: Exception) -> UserError:
    """The sentence for an error of the client while downloading."""
    errors, constants = client().errors, client().constants
    text = _first_line(error)
    if isinstance(error, errors.GatedRepoError):
        text = f"{reference}: request access to this model on its page, then {LOG_IN}"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"hf:{reference.repo} has no revision '{reference.revision}'"
    elif isinstance(error, errors.RepositoryNotFoundError):
        if client().get_token() is None:
            text = f"the hub has no public model {reference.repo}; if it is private, {LOG_IN}"
        else:
            text = f"the hub has no model {reference.repo} that your token may read"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            why = "HF_HUB_OFFLINE is set"
        else:
            why = f"the hub cannot be reached ({_first_line(error.__cause__ or error)})"
        text = f"{reference}: {why}, and it is not in the cache, {constants.HF_HUB_CACHE}"
    elif isinstance(error, errors.EntryNotFoundError):
        text = (
            f"{reference} is not an asrtool model: it has no {listing}, which `asrtool push` writes"
        )
    else:
        text = f"{reference} cannot be downloaded: {text}"
    return UserError(text)


def upload(
    folder: Path, reference: Reference, message: str, replaced: Sequence[str], private: bool = False
) -> str:
    """Upload a folder in one commit to a model on the hub, which is created if necessary; returns
    the commit's URL.

    replaced: patterns of files that are deleted there if the folder does not have them. private:
    create a private model; an existing one must be private. Raises `UserError` if the hub refuses
    the upload or cannot be reached.
    """
    hub = client()
    api = hub.HfApi(library_name="asrtool")
    try:
        api.create_repo(reference.repo, private=private or None, exist_ok=True)
        if private and not api.model_info(reference.repo).private:
            raise UserError(
                f"hf:{reference.repo} exists and is public: make it private on its page, or omit "
                "--private"
            )
        if reference.revision is not None:
            api.create_branch(reference.repo, branch=reference.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=reference.repo,
            folder_path=folder,
            revision=reference.revision,
            commit_message=message,
            delete_patterns=list(replaced),
        )
    except UserError:
        raise
    except (hub.errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _not_uploaded(reference, error) from error
    return commit.commit_url


def _not_uploaded(reference: Reference, error: Exception) -> UserError:
    """The sentence for an error of the client while uploading."""
    errors = client().errors
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(f"{reference} cannot be uploaded: HF_HUB_OFFLINE is set")
    if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"you have no permission to write to {reference.repo}: {LOG_IN}, with a token that has "
            "write access"
        )
    reasons = dict.fromkeys(_first_line(one) for one in (error, error.__cause__) if one is not None)
    return UserError(f"{reference} cannot be uploaded: {': '.join(reasons)}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
