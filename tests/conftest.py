"""For every test: no network."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LOCAL = ("127.", "::1", "localhost", "0.0.0.0", "/")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for another machine fails; processes of one machine may talk."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else str(address)
        if not str(host).startswith(LOCAL):
            raise AssertionError(f"a test tried to reach {host}; tests run without a network")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
