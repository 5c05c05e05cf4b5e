import json

import pytest
from PIL import Image

from limbeck.atlas.export import KINDS, export
from limbeck.core.check import LimbeckError

FIELDS = {
    "sentences": {"text"},
    "documents": {"text"},
    "parallel": {"source", "target"},
    "entities": {"words", "tags"},
    "questions": {"context", "question", "answer", "start"},
    "similarity": {"sentence1", "sentence2", "score"},
    "retrieval": {"query", "positive", "negatives"},
    "parallel_retrieval": {"query", "positive", "negatives"},
    "digits": {"image", "label", "caption"},
    "rendered": {"image", "caption"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_as_jsonl(kind, tmp_path):
    path = export(kind, tmp_path, locale="ro", n=4, other="en")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4
    assert all(set(row) == FIELDS[kind] for row in rows)
    if "image" in FIELDS[kind]:
        assert Image.open(tmp_path / rows[3]["image"]).mode == "L"
    else:
        assert list(tmp_path.iterdir()) == [path]


def test_the_same_call_writes_the_same_bytes(tmp_path):
    first = export("questions", tmp_path / "a", "ro", 5).read_bytes()
    assert first == export("questions", tmp_path / "b", "ro", 5).read_bytes()
    assert "ă".encode() in export("sentences", tmp_path, "ro", 30).read_bytes()


def test_bad_requests_leave_nothing(tmp_path):
    with pytest.raises(LimbeckError, match="needs a second locale"):
        export("parallel", tmp_path / "x")
    with pytest.raises(LimbeckError, match="'sentence'; did you mean 'sentences'"):
        export("sentence", tmp_path / "x")
    assert not (tmp_path / "x").exists()
