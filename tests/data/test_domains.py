"""Data in domains: by file, by field, and what is refused."""

import json
from pathlib import Path

import pytest
import tiny_llms

from limbeck.core.check import LimbeckError
from limbeck.data.domains import domain_batches, natural, part_domains, text_domains

TOKENIZER = tiny_llms.tokenizer()
TEXT = "good film bad book fine song"


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def read(source, **settings):
    return domain_batches(source, TOKENIZER, 8, 2, 0, **settings)


def labelled(**counts: int) -> list[dict]:
    return [{"text": TEXT, "domain": name} for name, count in counts.items() for _ in range(count)]


def test_a_field_names_the_domain(tmp_path):
    found = read(write(tmp_path / "all.jsonl", labelled(film=9, book=4)))
    assert list(found) == ["film", "book"]
    sizes = natural(found)
    assert sizes["film"] > 2 * sizes["book"]
    assert found["film"].take(1)[0]["ids"].shape == (2, 8)
    rows = [{"text": TEXT, "kind": "x"}, {"text": TEXT, "kind": "y"}]
    assert list(read(write(tmp_path / "kinds.jsonl", rows * 3), by="kind")) == ["x", "y"]


def test_a_folder_has_a_domain_per_file_and_subfolder(tmp_path):
    write(tmp_path / "d" / "film.jsonl", [{"text": TEXT}] * 3)
    write(tmp_path / "d" / "chat" / "one.jsonl", [{"prompt": "good", "completion": " film"}] * 3)
    (tmp_path / "d" / "book.txt").write_text(f"{TEXT}\n" * 4)
    (tmp_path / "d" / "README.md").write_text("not a domain")
    found = read(tmp_path / "d")
    assert list(found) == ["book", "chat", "film"]
    assert found["chat"].size == 3
    assert list(read(tmp_path / "d", only=("film", "book"))) == ["book", "film"]


def test_a_folder_of_parts_may_be_read_by_field(tmp_path):
    for part in "ab":
        write(tmp_path / "d" / f"{part}.jsonl", labelled(film=3, book=3))
    assert list(read(tmp_path / "d", by="domain")) == ["film", "book"]


def test_what_is_refused(tmp_path):
    one = write(tmp_path / "one.jsonl", labelled(film=4))
    with pytest.raises(LimbeckError, match="need at least two of them, but there is film"):
        read(one)
    two = write(tmp_path / "two.jsonl", labelled(film=4, book=4))
    with pytest.raises(LimbeckError, match="no text of the domain 'code'; there are film, book"):
        read(two, only=("film", "code"))
    bare = write(tmp_path / "bare.jsonl", [*labelled(film=2), {"text": TEXT}])
    with pytest.raises(LimbeckError, match=r"bare.jsonl:3: the field 'domain' is missing"):
        read(bare)
    blank = write(tmp_path / "blank.jsonl", [*labelled(film=4), {"text": " ", "domain": "book"}])
    with pytest.raises(LimbeckError, match="domain 'book': the corpus holds no text"):
        read(blank)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "film.txt").write_text(f"{TEXT}\n" * 4)
    (tmp_path / "d" / "book.txt").write_text("")
    with pytest.raises(LimbeckError, match=r"domain 'book': .*book.txt: expected at least one line"):
        read(tmp_path / "d")
    write(tmp_path / "d" / "film.jsonl", [{"text": TEXT}])
    with pytest.raises(LimbeckError, match="two files are called 'film' but for their ending"):
        read(tmp_path / "d")


def test_every_domain_is_parted_or_refused(tmp_path):
    found = text_domains({"film": [TEXT] * 60, "book": [TEXT] * 12}, TOKENIZER, 8, 2)
    splits = part_domains(found)
    for name, split in splits.items():
        assert split.held_out
        assert split.batches
        assert split.stream.size + sum(len(batch["ids"]) for batch in split.batches) == found[name].size
    short = text_domains({"film": [TEXT] * 60, "book": [TEXT] * 2}, TOKENIZER, 8, 2)
    with pytest.raises(LimbeckError, match=r"domain 'book': its \d rows are too few to hold some out, which takes 8"):
        part_domains(short)
    with pytest.raises(LimbeckError, match="domain 'book': the corpus has 3 tokens, fewer than one window of 8"):
        text_domains({"film": [TEXT] * 2, "book": ["good bad"]}, TOKENIZER, 8, 2)
