"""A Hub of one process on the loopback: the endpoints that huggingface_hub calls to publish and to load a model.

It shows which calls the client makes and that our side works with them; it is not proof of what the real Hub accepts.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN = "me", "a-token"


class Hub:
    """Repositories as lists of commits; a commit is its files. `TOKEN` may write to those of `OWNER`.

    The first `cuts` answers of over 1 kB end half-way; a repository's `spoilt` file loses its last byte when committed.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.tags: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cuts = 0
        self.spoilt: dict[str, str] = {}
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        self._server = server
        self._thread = Thread(target=server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        """Ends the server and frees its port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, repository: str, folder: Path) -> str:
        """A commit of the folder's files, as if published."""
        self.commits.setdefault(repository, [("0" * 40, {})])
        content = {file.name: file.read_bytes() for file in folder.iterdir()}
        return self.commit(
            repository,
            [
                {"key": "file", "value": {"path": name, "content": base64.b64encode(data)}}
                for name, data in content.items()
            ],
        )

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit that a branch, tag or commit name stands for."""
        wanted = self.tags.get(repository, {}).get(revision, revision)
        for oid, files in reversed(self.commits.get(repository, [])):
            if wanted in ("main", oid):
                return oid, files
        return None

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> str:
        """Applies the lines of a commit request."""
        files = dict(self.commits[repository][-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        if name := self.spoilt.get(repository):
            files[name] = files[name][:-1]
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[repository].append((oid, files))
        return oid


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        repository = r"(?P<repository>[\w.-]+/[\w.-]+)"
        routes: list[tuple[str, str, Callable[..., None]]] = [
            ("POST", "/api/repos/create", self._create),
            ("POST", "/api/validate-yaml", lambda: self._json({"errors": [], "warnings": []})),
            ("POST", rf"/api/models/{repository}/preupload/.*", self._preupload),
            ("POST", rf"/{repository}\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/lfs/(?P<oid>\w+)", self._store),
            ("POST", rf"/api/models/{repository}/commit/.*", self._commit),
            ("GET", rf"/api/models/{repository}(/revision/(?P<revision>.+))?", self._info),
            ("GET", rf"/api/models/{repository}/tree/(?P<revision>[^/]+)", self._tree),
            ("GET", rf"/api/models/{repository}/refs", self._refs),
            ("POST", rf"/api/models/{repository}/tag/(?P<revision>.+)", self._tag),
            ("GET|HEAD", rf"/{repository}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self._resolve),
        ]
        for methods, pattern, answer in routes:
            if method in methods.split("|") and (match := re.fullmatch(pattern, path)):
                return answer(**match.groupdict())
        self._json({"error": f"no route for {method} {path}"}, 501)

    def _json(self, content: object, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(content).encode(), status, **{"Content-Type": "application/json"}, **headers)

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _may_write(self, repository: str) -> bool:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            message = "Invalid credentials in Authorization header"
            self._json({"error": message}, 401, **{"X-Error-Message": message})
        elif not repository.startswith(f"{OWNER}/"):
            self._json({"error": "no right"}, 403, **{"X-Error-Message": "You have no right to write here"})
        else:
            return True
        return False

    def _create(self) -> None:
        request = json.loads(self.body)
        repository = f"{request['organization']}/{request['name']}"
        if not self._may_write(repository):
            return
        exists = repository in self.hub.commits
        if not exists and request["visibility"] == "private":
            self.hub.private.add(repository)
        self.hub.commits.setdefault(repository, [("0" * 40, {})])
        self._json({"url": f"{self.hub.url}/{repository}"}, 409 if exists else 200)

    def _preupload(self, repository: str) -> None:
        if not self._may_write(repository):
            return
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._json({"files": modes})

    def _batch(self, repository: str) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}", "header": {}}}}
            for item in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        self.hub.stored[oid] = self.body
        self._json({})

    def _commit(self, repository: str) -> None:
        oid = self.hub.commit(repository, [json.loads(line) for line in self.body.splitlines()])
        self._json({"commitOid": oid, "commitUrl": f"{self.hub.url}/{repository}/commit/{oid}"})

    def _found(self, repository: str, revision: str | None) -> tuple[str, dict[str, bytes]] | None:
        found = self.hub.files(repository, revision or "main")
        if found is None:
            code = "RevisionNotFound" if repository in self.hub.commits else "RepoNotFound"
            self._json({"error": code}, 404, **{"X-Error-Code": code})
        return found

    def _info(self, repository: str, revision: str | None) -> None:
        if found := self._found(repository, revision):
            siblings = [{"rfilename": file} for file in found[1]]
            private = repository in self.hub.private
            self._json({"id": repository, "sha": found[0], "private": private, "tags": [], "siblings": siblings})

    def _tree(self, repository: str, revision: str) -> None:
        if found := self._found(repository, revision):
            self._json(
                [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in found[1].items()
                ]
            )

    def _refs(self, repository: str) -> None:
        refs = {"heads": {"main": self.hub.commits[repository][-1][0]}, "tags": self.hub.tags.get(repository, {})}
        branches, tags = (
            [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in named.items()]
            for kind, named in refs.items()
        )
        self._json({"branches": branches, "converts": [], "tags": tags})

    def _tag(self, repository: str, revision: str) -> None:
        if found := self._found(repository, revision):
            self.hub.tags.setdefault(repository, {})[json.loads(self.body)["tag"]] = found[0]
            self._json({})

    def _resolve(self, repository: str, revision: str, file: str) -> None:
        if not (found := self._found(repository, revision)):
            return
        oid, files = found
        if file not in files:
            self._json({"error": "no file"}, 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
            return
        data = files[file]
        headers = {"X-Repo-Commit": oid, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        status, offset = (206, int(start[1])) if start else (200, 0)
        if start:
            headers["Content-Range"] = f"bytes {offset}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and self.hub.cuts and len(data) - offset > 1000:
            self.hub.cuts -= 1
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data) - offset), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[offset : (offset + len(data)) // 2])
            self.close_connection = True
            return
        self._send(data[offset:], status, **headers)
