"""A tokenizer of one token per character, and files of rows."""

import json

import pytest

from limbeck.data.tasks import Task
from limbeck.data.templates import Example


class Characters:
    """One token per character, id = code point, as in the golden layouts."""

    calls = 0

    def __call__(self, text, add_special_tokens=True):
        assert add_special_tokens is False
        self.calls += 1
        return {"input_ids": [ord(c) for c in text]}


@pytest.fixture
def characters():
    return Characters()


@pytest.fixture
def write(tmp_path):
    """Writes lines (text, bytes or objects to be JSON) to a file and returns its path."""

    def write(name, *lines):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = [x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines]
        path.write_bytes(b"".join(line + b"\n" for line in raw))
        return path

    return write


@pytest.fixture
def make_task():
    """A task whose row i is ``x<i>`` to ``y<i mod labels>``."""

    def make(name, rows, labels=3, options=True):
        names = tuple(f"y{i}" for i in range(labels)) if options else ()
        return Task(name, [Example(name, f"x{i}", f"y{i % labels}", names) for i in range(rows)])

    return make
