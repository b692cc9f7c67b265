"""Sharing: what goes to the Hub is a checkpoint that can be trusted, by huggingface_hub's own code.

A server on this machine stands for the Hub: it answers what `create_repo` and `upload_folder` ask, and keeps files.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from diffusers_stale import sharing
from diffusers_stale.checkpoint_origin import read_origin
from diffusers_stale.hub import load_pipeline
from diffusers_stale.manifest import manifest_problems
from diffusers_stale.model_card import CardPicture
from diffusers_stale.sharing import claim_repository, push_folder, write_shared


REPORT = {
    "stage": "movie", "steps": 3, "images": 27, "seconds": 1.0, "core_seconds": 2.0, "processes": 1, "seed": 0,
    "commands": ["python scripts/train.py --stage movie"], "config": {},
    "machine": {"gpu": None, "processor": "a processor", "python": "3.11", "torch": "2.13"},
}  # fmt: skip


class Hub(ThreadingHTTPServer):
    """Keeps repositories and the files that were committed to them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.message, self.refuses = "", False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        if self.server.refuses or self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            is_private = asked.get("visibility") == "private" or asked.get("private", False)
            self.server.repositories[f"{owner}/{asked['name']}"] = is_private
            self.answer({"url": f"{self.server.url}/{owner}/{asked['name']}"})
        elif re.fullmatch(r"/api/models/[\w/-]+/preupload/main", self.path):
            files = [{"path": item["path"], "uploadMode": "regular"} for item in json.loads(body)["files"]]
            self.answer({"files": [item | {"shouldIgnore": False, "oid": None} for item in files]})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.server.message = line["value"]["summary"]
                else:
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/me/horses/commit/1", "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        self.answer({"error": "Invalid credentials"}, 401)

    def chunks(self) -> bytes:
        """The body of a request that does not say its length."""
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(sharing, "HfApi", partial(HfApi, endpoint=server.url, token="hf_right"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def shared(make_pipeline: Callable, tmp_path: Path) -> Path:
    make_pipeline().save_pretrained(tmp_path / "movie")
    (tmp_path / "movie" / "training_report.json").write_text(json.dumps(REPORT))
    (tmp_path / "movie" / ".hidden").write_text("")
    (tmp_path / "ranked.png").write_bytes(b"a picture")
    pictures = [CardPicture(tmp_path / "ranked.png", "views.png", "From best to worst.")]
    card = write_shared(
        tmp_path / "movie", tmp_path / "shared", "horses", {"movie": REPORT}, "It makes horses.", (), pictures,
        {"default_negative_baseline": 0.5},
    )  # fmt: skip
    assert "It makes horses." in card
    return tmp_path / "shared"


def test_what_is_shared_is_complete_and_can_be_checked(shared: Path):
    assert manifest_problems(shared) == []
    assert "27" in (shared / "README.md").read_text()
    assert read_origin(shared) == {"movie": REPORT}
    assert (shared / "pictures" / "views.png").read_bytes() == b"a picture"
    assert not (shared / ".hidden").exists()
    assert not (shared / "training_report.json").exists()
    assert load_pipeline(shared).config["default_negative_baseline"] == 0.5


def test_a_checkpoint_goes_to_the_hub_and_comes_back_as_it_was(hub: Hub, shared: Path, tmp_path: Path):
    claim_repository("me/horses", private=True)
    assert hub.repositories == {"me/horses": True}
    assert push_folder(shared, "me/horses", "Trained").endswith("/commit/1")
    assert hub.message == "Trained"
    sent = {path.relative_to(shared).as_posix(): path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    assert hub.files == sent
    for name, content in hub.files.items():
        (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "back" / name).write_bytes(content)
    assert manifest_problems(tmp_path / "back") == []


def test_what_cannot_be_shared_is_said_with_the_way_out(hub: Hub, shared: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="owner/name, got 'horses'"):
        claim_repository("horses")
    hub.refuses = True
    with pytest.raises(ValueError, match="hf auth login"):
        claim_repository("me/horses")
    with pytest.raises(ValueError, match=f"hf upload me/horses {shared}"):
        push_folder(shared, "me/horses", "Trained")
    monkeypatch.setattr(sharing, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token="hf_right"))
    with pytest.raises(ValueError, match="cannot be written to"):
        claim_repository("me/horses")
