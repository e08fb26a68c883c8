"""From a name to a folder, and from a folder to the Hub."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError
from zoo.files import INDEX, PATTERNS, RECIPE, SHARDS

if TYPE_CHECKING:
    from zoo.tasks import Task

PUBLISHED: dict[str, tuple[str, str]] = {}
"""Name -> (Hub repository, commit). `publish` prints the line to add."""

CHECKPOINTS_VARIABLE = "ZOO_CHECKPOINTS"


@dataclass(frozen=True)
class Found:
    """Where a name leads."""

    name: str
    """What the model is called; a snapshot from the Hub lies in a folder that is called by its commit."""

    folder: Path
    from_hub: bool = False


def _homes() -> list[Path]:
    """The folders of models on this machine, the first that has a name winning."""
    chosen = os.environ.get(CHECKPOINTS_VARIABLE)
    source = Path(__file__).resolve().parent.parent
    homes = [_path(chosen)] if chosen else []
    homes.append(Path("checkpoints"))
    if (source / "pyproject.toml").exists():
        homes.append(source / "checkpoints")
    return homes


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # Path.expanduser raises where there is no such user


def folders() -> dict[str, Path]:
    """The models on this machine by name, in alphabetical order."""
    found: dict[str, Path] = {}
    for home in reversed(_homes()):
        found |= {file.parent.name: file.parent for file in home.glob(f"*/{RECIPE}")}
    return dict(sorted(found.items()))


def names() -> list[str]:
    """Every name that `load` and `build` know: the models on this machine, and the published ones."""
    return sorted({*folders(), *PUBLISHED})


def find(name: str, revision: str | None = None) -> Found:
    """A model by an existing folder, a name, or a Hub repository (`owner/name`, at `revision`).

    A name is looked up in `$ZOO_CHECKPOINTS`, `./checkpoints`, the source checkout's `checkpoints`, and among the
    published ones, which come from the Hub at their pinned commit. Raises `UserError` where there is none.
    """
    path = _path(name)
    local = path if (path / RECIPE).is_file() else folders().get(name)
    if local:
        if revision is not None:
            raise UserError(f"revision {revision!r} is for the Hub; {name} is the folder {local}")
        return Found(local.resolve().name, local)
    if name in PUBLISHED:
        repository, commit = PUBLISHED[name]
        return Found(name, _download(repository, revision or commit), from_hub=True)
    if path.is_dir():
        raise UserError(f"{name} is a folder but no model: it has no {RECIPE}")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not path.parent.is_dir():
        return Found(path.name, _download(name, revision), from_hub=True)
    close = difflib.get_close_matches(path.name, names(), n=3, cutoff=0.4)
    known = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names()) or 'none'}."
    places = ", ".join(map(str, _homes()))
    raise UserError(f"no model {name!r}: {known} Looked in {places}; ${CHECKPOINTS_VARIABLE} may name another folder")


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, by its version

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    except (httpx.HTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repository} at {revision or 'main'} could not be had from the Hub: {error}") from error


def load(name: str, revision: str | None = None) -> "Task":
    """The pretrained model `name` in evaluation mode: a name of `names()`, a folder, or a Hub repository.

    Only safetensors are opened, only classes of this package are built, and every file is verified by its sha256. Raises
    `UserError` for an unknown name, a recipe without weights, or a folder that is incomplete, changed or inconsistent.
    """
    from zoo import bundle

    return bundle.load(find(name, revision).folder)


def build(name: str, revision: str | None = None) -> "Task":
    """The model of `name`'s recipe with fresh weights, in training mode."""
    from zoo import bundle

    return bundle.build(find(name, revision).folder)


def publish(name: str, repository: str, *, private: bool = False, partial: bool = False) -> str:
    """Uploads the folder of `name` to a Hub repository (created where there is none) and returns the commit.

    Raises `UserError` where the folder is no trained model, is damaged, holds a run that was cut short (unless `partial`),
    or where the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    from zoo import bundle, card

    found = find(name)
    bundle.verify(found.folder)
    measured = card.read(found.folder).measured
    if measured and not measured.finished and not partial:
        raise UserError(f"{found.folder} holds a run that was cut short; partial=true publishes it nevertheless")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=found.folder,
            allow_patterns=PATTERNS,
            delete_patterns=[SHARDS, INDEX],
            commit_message=f"Recurrent Zoo: {found.name}",
        )
    except LocalTokenNotFoundError as error:
        raise UserError("publishing needs a Hub token: 'hf auth login', or HF_TOKEN; nothing was uploaded") from error
    except (httpx.HTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repository} could not be written: {error}") from error
    return commit.oid
