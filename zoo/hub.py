"""From a name to a folder, and from a folder to the Hub."""

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.tasks import Task

PUBLISHED: dict[str, tuple[str, str]] = {}
"""Name -> (Hub repository, commit). `publish` prints the line to add."""

CHECKPOINTS_VARIABLE = "ZOO_CHECKPOINTS"


def _homes() -> list[Path]:
    """The folders of models on this machine, the first that has a name winning."""
    chosen = os.environ.get(CHECKPOINTS_VARIABLE)
    source = Path(__file__).resolve().parent.parent
    homes = [Path(chosen).expanduser()] if chosen else []
    homes.append(Path("checkpoints"))
    if (source / "pyproject.toml").exists():
        homes.append(source / "checkpoints")
    return homes


def folders() -> dict[str, Path]:
    """The models on this machine by name, in alphabetical order."""
    found: dict[str, Path] = {}
    for home in reversed(_homes()):
        found |= {file.parent.name: file.parent for file in home.glob("*/config.yaml")}
    return dict(sorted(found.items()))


def names() -> list[str]:
    """Every name that `load` and `build` know: the models on this machine, and the published ones."""
    return sorted({*folders(), *PUBLISHED})


def folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model: an existing folder, a name, or a Hub repository (`owner/name`, at `revision`).

    A name is looked up in `$ZOO_CHECKPOINTS`, `./checkpoints`, the source checkout's `checkpoints`, and among the
    published ones, which come from the Hub at their pinned commit. Raises `UserError` where there is none.
    """
    path = Path(name).expanduser()
    local = path if (path / "config.yaml").is_file() else folders().get(name)
    if local:
        if revision is not None:
            raise UserError(f"revision {revision!r} is for the Hub; {name} is the folder {local}")
        return local
    if name in PUBLISHED:
        repository, commit = PUBLISHED[name]
        return _download(repository, revision or commit)
    if path.is_dir():
        raise UserError(f"{name} is a folder but no model: it has no config.yaml")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name, revision)
    close = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
    known = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names()) or 'none'}."
    places = ", ".join(map(str, _homes()))
    raise UserError(f"no model {name!r}: {known} Looked in {places}; ${CHECKPOINTS_VARIABLE} may name another folder")


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, by its version

    from zoo.bundle import PATTERNS

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

    return bundle.load(folder(name, revision))


def build(name: str, revision: str | None = None) -> "Task":
    """The model of `name`'s recipe with fresh weights, in training mode."""
    from zoo import bundle

    return bundle.build(folder(name, revision))


def publish(name: str, repository: str, *, private: bool = False) -> str:
    """Uploads the folder of `name` to a Hub repository (created where there is none) and returns the commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, by its version

    from zoo import bundle

    source = folder(name)
    bundle.require_weights(source)
    bundle.verify(source)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=source,
            allow_patterns=bundle.PATTERNS,
            commit_message=f"Recurrent Zoo: {source.name}",
        )
    except LocalTokenNotFoundError as error:
        raise UserError("publishing needs a Hub token: 'hf auth login', or HF_TOKEN; nothing was uploaded") from error
    except (httpx.HTTPError, OSError) as error:
        raise UserError(f"{repository} could not be written: {error}") from error
    return commit.oid
