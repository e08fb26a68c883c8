"""From a name to a folder, and from a folder to the Hub."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zoo.arguments import check_type
from zoo.errors import UserError, suggestion
from zoo.files import CARD, PATTERNS, RECIPE, has_weights

PUBLISHED: dict[str, tuple[str, str]] = {}
"""Name -> (Hub repository, commit). `publish` prints the line to add."""

CHECKPOINTS_VARIABLE = "ZOO_CHECKPOINTS"


@dataclass(frozen=True)
class Found:
    """Where a name leads."""

    name: str
    """What the model is called; a snapshot from the Hub lies in a folder that is called by its commit."""

    folder: Path
    repository: str | None = None
    """Where on the Hub it came from."""

    @property
    def origin(self) -> str:
        """What a card calls it: the repository, or the name of one of our own."""
        return self.repository or self.name


@dataclass(frozen=True)
class Publication:
    """A model as it is to lie on the Hub."""

    name: str
    repo_id: str
    tag: str | None
    files: dict[str, bytes]
    """By their names: the folder's own, and the card, which is written for the repository."""

    def __str__(self) -> str:
        """The files with their sizes in bytes, and the card's front matter."""
        title = f"{self.name} as {self.repo_id}{f', tagged {self.tag}' if self.tag else ''}:"
        sizes = [f"{len(content):>13,}  {file}" for file, content in self.files.items()]
        return "\n".join([title, *sizes, f"{CARD} begins:", self.files[CARD].decode().split("---\n")[1]])


def _homes() -> list[Path]:
    """The folders of models on this machine, the first that has a name winning."""
    chosen = os.environ.get(CHECKPOINTS_VARIABLE)
    package = Path(__file__).resolve().parent
    in_checkout = (package.parent / "pyproject.toml").exists()
    own = (package.parent if in_checkout else package) / "checkpoints"  # an installed package has the recipes alone
    return [*([_path(chosen)] if chosen else []), Path("checkpoints"), own]


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # Path.expanduser raises where there is no such user


def folders() -> dict[str, Path]:
    """The models on this machine by name, in alphabetical order; a recipe alone gives way to its published weights."""
    found: dict[str, Path] = {}
    for home in reversed(_homes()):
        found |= {file.parent.name: file.parent for file in home.glob(f"*/{RECIPE}")}
    return {name: found[name] for name in sorted(found) if name not in PUBLISHED or has_weights(found[name])}


def names(pretrained: bool = False) -> list[str]:
    """Every name that `build` knows, of this machine's models and the published ones; `pretrained`, that `load` does."""
    here = folders()
    return sorted(name for name in {*here, *PUBLISHED} if not pretrained or name not in here or has_weights(here[name]))


def find(name: str | Path, revision: str | None = None) -> Found:
    """A model by an existing folder, a name, or a Hub repository (`owner/name`, at `revision`).

    A name is looked up in `$ZOO_CHECKPOINTS`, `./checkpoints`, the checkout's `checkpoints` or an installed package's
    recipes, and among the published ones, which come from the Hub at their pinned commit. Raises `UserError` where there is
    none.
    """
    check_type("name", name, str, Path)
    name = str(name)
    if not name:
        raise UserError(f"name is empty; known are {', '.join(names()) or 'none'}")
    path = _path(name)
    local = path if os.path.isfile(path / RECIPE) else folders().get(name)  # Path.is_file raises for a name too long
    if local:
        if revision is not None:
            raise UserError(f"revision {revision!r} is for the Hub; {name} is the folder {local}")
        return Found(local.resolve().name, local)
    if name in PUBLISHED:
        repository, commit = PUBLISHED[name]
        return Found(name, _download(repository, revision or commit), repository)
    if os.path.isdir(path):
        raise UserError(f"{name} is a folder but no model: it has no {RECIPE}")
    if _may_be_repository(name):
        return Found(path.name, _download(name, revision), name)
    if path.is_absolute() or path.suffix in (".yaml", ".yml"):
        raise UserError(f"there is no file or folder {path}")
    known = suggestion(path.name, names(), 3, 0.4)
    places = ", ".join(map(str, _homes()))
    raise UserError(f"no model {name!r}: {known} Looked in {places}; ${CHECKPOINTS_VARIABLE} may name another folder")


def _may_be_repository(name: str) -> bool:
    """Whether it is written owner/name and owner is no folder here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not os.path.isdir(_path(name).parent)


def _download(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, by its version

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=PATTERNS))
    except (httpx.HTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repository} at {revision or 'main'} could not be had from the Hub: {error}") from error


def load(name: str | Path, revision: str | None = None) -> Any:
    """The pretrained model `name` in evaluation mode: a name of `names(pretrained=True)`, a folder, or a Hub
    repository.

    Only safetensors are opened, only classes of this package, or of modules imported before that extend them, are built, and
    every file is verified by its sha256. Raises `UserError` for an unknown name, a recipe without weights, or a folder that
    is incomplete, changed or inconsistent.

    Which kind of `zoo.tasks.Task` it is, the folder says; a type checker is told by
    `model: zoo.tasks.LanguageModel = zoo.load(...)`.
    """
    from zoo import bundle

    return bundle.load(find(name, revision).folder)


def build(name: str | Path, revision: str | None = None) -> Any:
    """The model of `name`'s recipe with fresh weights, in training mode."""
    from zoo import bundle

    return bundle.build(find(name, revision).folder)


def prepare(
    name: str, repo_id: str, *, tag: str | None = None, license: str | None = None, partial: bool = False
) -> Publication:
    """What `publish` would upload, without a network and a token; the folder stays as it is.

    Raises `UserError` where `repo_id` or `tag` is malformed, or the folder is no trained model, is damaged, has a card
    without measurements or without a licence, or holds a run that was cut short (unless `partial`).
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    from zoo import bundle, card

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"repo_id is {repo_id!r}; owner/name is expected: {error}") from error
    if "/" not in repo_id:
        raise UserError(f"repo_id is {repo_id!r}; owner/name is expected, such as your-account/{repo_id}")
    if tag is not None and not re.fullmatch(r"\w[\w.-]*", tag):
        raise UserError(f"tag is {tag!r}; letters, digits, '.', '-' and '_' are expected, such as v1")
    found = find(name)
    bundle.verify(found.folder)
    entry = card.read(found.folder)
    measured = entry.measured
    if measured is None:
        raise UserError(f"{found.folder / CARD} says nothing of the training; the card that fit writes is expected")
    if not measured.finished and not partial:
        raise UserError(f"{found.folder} holds a run that was cut short; partial=true publishes it nevertheless")
    described = replace(entry.card, license=license or entry.card.license)
    if not described.license:
        raise UserError(
            f"card.license is not set in {found.folder / RECIPE}, and a published model needs a licence: give license, "
            "by the Hub's abbreviation, such as mit; for the next training set it in the recipe"
        )
    files = {file.name: file.read_bytes() for pattern in PATTERNS for file in found.folder.glob(pattern)}
    text = card.render(
        found.name,
        described,
        measured,
        repo_id=repo_id,
        base_model=_repository(measured.training.get("started_from", "")),
        picture="curve.png" in files,
    )
    return Publication(found.name, repo_id, tag, dict(sorted({**files, CARD: text.encode()}.items())))


def _repository(name: str) -> str | None:
    """Where on the Hub the model of that name lies, as far as the name says."""
    if name in PUBLISHED:
        return PUBLISHED[name][0]
    return name if _may_be_repository(name) else None


def publish(
    name: str,
    repo_id: str,
    *,
    tag: str | None = None,
    license: str | None = None,
    private: bool = False,
    partial: bool = False,
) -> str:
    """Uploads the folder of `name` to a Hub repository (created where there is none) and returns the commit.

    The card is written for the repository, with `license` in the place of the recipe's own. Every file is read back from
    the commit, which is then tagged. What an earlier model left in the repository goes. Raises `UserError` as `prepare`
    does, and where `tag` exists, `private` is asked of a public repository, the Hub refuses, or what it returns is not
    what was sent.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    publication = prepare(name, repo_id, tag=tag, license=license, partial=partial)
    api = HfApi(token=True)  # a missing token is an error here, before any request
    with _hub_errors(f"{repo_id} could not be written"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.model_info(repo_id)
        if private and not there.private:
            raise UserError(f"private is true, and {repo_id} exists and is public: make it private, or name another")
        if tag is not None:
            refs = api.list_repo_refs(repo_id)
            if tag in {ref.name for ref in [*refs.tags, *refs.branches]}:
                raise UserError(f"{repo_id} has a tag or branch {tag!r}: give another tag; nothing was uploaded")
        stale = {file.rfilename for file in there.siblings or []} - publication.files.keys()
        commit: str = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(file, content) for file, content in publication.files.items()),
                *(CommitOperationDelete(file) for file in stale if any(fnmatch(file, like) for like in PATTERNS)),
            ],
            commit_message=f"Recurrent Zoo: {publication.name}",
        ).oid
    published = f"{repo_id} was written at commit {commit}, but"
    with _hub_errors(f"{published} could not be read back"), TemporaryDirectory() as cache:
        copy = Path(
            api.snapshot_download(repo_id, revision=commit, cache_dir=cache, allow_patterns=list(publication.files))
        )
        for file, content in publication.files.items():
            sent, read = (hashlib.sha256(data).hexdigest() for data in (content, (copy / file).read_bytes()))
            if read != sent:
                raise UserError(f"{published} {file} comes back with the sha256 {read}, {sent} was sent: do not use it")
    if tag is not None:
        with _hub_errors(f"{published} could not be tagged {tag}"):
            api.create_tag(repo_id, tag=tag, revision=commit)
    return commit


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a `UserError` that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError("publishing needs a Hub token: 'hf auth login', or HF_TOKEN; nothing was uploaded") from error
    except (httpx.HTTPError, OSError, ValueError, RuntimeError) as error:  # ValueError: a card that the Hub refuses
        advice = {
            401: "the Hub does not accept the token; log in anew with 'hf auth login', or set HF_TOKEN. ",
            403: "the token may not write there; its role must be 'write', the owner you or your organisation. ",
        }
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        raise UserError(f"{what}: {advice.get(status, '')}{' '.join(str(error).split())}") from error
