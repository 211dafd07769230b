import hashlib
import pickle
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gender_cls.errors import UserError
from gender_cls.models import weights
from gender_cls.models.weights import download, read_state_dict


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's own cache folder, empty, and no proxy."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "torch" / "hub" / "checkpoints"


def entry(url: str) -> Any:
    return SimpleNamespace(name="IMAGENET1K_V1", url=url)


def failed(url: str, checkpoints: Path) -> str:
    before = socket.getdefaulttimeout()
    with pytest.raises(UserError) as failure:
        download(entry(url))
    assert failure.value.code == "download-failed"
    assert socket.getdefaulttimeout() == before
    assert not list(checkpoints.iterdir())
    message = str(failure.value)
    for way_out in ("model.weights=FILE", str(checkpoints), "model=efficientnet_lite0", "experiment=demo"):
        assert way_out in message
    assert "\n" not in message
    return message


def test_a_server_that_never_answers(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts the connection
        url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet18-f37072fd.pth"
        assert "timed out" in failed(url, checkpoints)


def test_a_server_that_stops_in_the_middle(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "STALL_SECONDS", 0.2)
    accepted: list[socket.socket] = []

    def serve() -> None:
        accepted.append(server.accept()[0])
        accepted[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nsome")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet18-f37072fd.pth"
        assert "timed out" in failed(url, checkpoints)
    accepted[0].close()


def test_a_refused_connection(checkpoints: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "refused" in failed(f"http://127.0.0.1:{port}/resnet18-f37072fd.pth", checkpoints).lower()


def test_a_file_with_another_hash(checkpoints: Path, backbone_file: Path, tmp_path: Path) -> None:
    shutil.copy(backbone_file, tmp_path / "resnet18-f37072fd.pth")
    assert "invalid hash value" in failed((tmp_path / "resnet18-f37072fd.pth").as_uri(), checkpoints)


def test_a_download_is_read_and_kept(checkpoints: Path, backbone_file: Path, tmp_path: Path) -> None:
    content = backbone_file.read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    state = download(entry((tmp_path / name).as_uri()))
    assert state["fc.weight"].shape == (1000, 512)
    assert (checkpoints / name).read_bytes() == content
    (tmp_path / name).unlink()
    assert download(entry((tmp_path / name).as_uri())).keys() == state.keys()


@pytest.mark.parametrize(
    ("code", "content"),
    [
        ("not-found", None),
        ("bad-model", [1, 2]),
        ("bad-model", b""),
        ("unsafe-file", pickle.dumps(Path("x"), protocol=2)),
    ],
)
def test_what_is_no_state_dict_is_refused(code: str, content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"^model\.weights=weights\.pth") as failure:
        read_state_dict(path, "model.weights=weights.pth")
    assert failure.value.code == code


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.weights=here is a folder") as failure:
        read_state_dict(tmp_path, "model.weights=here")
    assert failure.value.code == "bad-model"
