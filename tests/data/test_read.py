"""Readers: what they give, and what they say about bad files."""

import builtins
import json

import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.read import field, lines, read_jsonl, read_rows, read_text

PARQUET = pytest.importorskip("pyarrow.parquet")


def test_jsonl_gives_rows_with_their_line_numbers_and_passes_over_blank_lines(write):
    path = write("a.jsonl", {"x": 1}, "", {"x": "é"})
    assert list(read_jsonl(path)) == [(1, {"x": 1}), (3, {"x": "é"})]


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(write):
    path = write("a.txt", b"\xef\xbb\xbfone\r", "two")
    assert list(lines(path)) == [(1, "one"), (2, "two")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([{"x": 1}, '{"x": '], r"a.jsonl:2: expected one JSON object per line, but Expecting value at column"),
        (["[1, 2]"], r"a.jsonl:1: expected a JSON object, but got a list"),
        ([{"x": 1}, b'{"x": "\xff"}'], r"a.jsonl:2: expected UTF-8 text, but byte 7"),
        ([], r"a.jsonl: expected at least one line of text, but the file is empty"),
        (["", "  "], r"the file is empty"),
    ],
)
def test_bad_jsonl_names_file_and_line(write, raw, message):
    path = write("a.jsonl", *raw)
    with pytest.raises(LimbeckError, match=message):
        list(read_jsonl(path))


def test_a_field_is_there_and_of_its_type():
    assert field({"a": "b"}, "a", str, "f:1") == "b"
    with pytest.raises(LimbeckError, match="f:1: the field 'text' is missing; the row has 'a', 'b'"):
        field({"a": 1, "b": 2}, "text", str, "f:1")
    with pytest.raises(LimbeckError, match="f:1: the field 'a' must be a string, but got null"):
        field({"a": None}, "a", str, "f:1")


def test_text_from_jsonl_txt_and_parquet_is_the_same(write, tmp_path):
    import pyarrow

    table = pyarrow.table({"text": ["one", None, "two", " "], "other": [1, 2, 3, 4]})
    PARQUET.write_table(table, tmp_path / "c.parquet")
    paths = [write("a.jsonl", {"text": "one"}, {"text": " "}, {"text": "two"}), write("b.txt", "one", "", "two")]
    for path in (*paths, tmp_path / "c.parquet"):
        assert list(read_text(path)) == ["one", "two"]
    assert list(read_text(tmp_path)) == ["one", "two"] * 3  # a folder: its files in order of their names


def test_another_field_can_be_the_text(write):
    assert list(read_text(write("a.jsonl", {"body": "one"}), field_name="body")) == ["one"]


def test_a_corpus_that_is_not_there_or_of_unknown_kind_is_refused(write, tmp_path):
    with pytest.raises(LimbeckError, match=r"nowhere.jsonl: no such file or folder"):
        list(read_text(tmp_path / "nowhere.jsonl"))
    with pytest.raises(
        LimbeckError, match=r"a.csv: expected a file that ends in .jsonl, .txt, .parquet, but got '.csv'"
    ):
        list(read_text(write("a.csv", "x")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimbeckError, match=r"empty: the folder holds no file that ends in"):
        list(read_text(tmp_path / "empty"))


def test_bad_parquet_is_one_sentence(write, tmp_path):
    import pyarrow

    with pytest.raises(LimbeckError, match=r"a.parquet: expected a parquet file, but it cannot be read"):
        list(read_text(write("a.parquet", "no parquet")))
    PARQUET.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "n.parquet")
    with pytest.raises(LimbeckError, match=r"n.parquet: the column 'text' must hold strings, but got a number"):
        list(read_text(tmp_path / "n.parquet"))
    PARQUET.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(LimbeckError, match=r"b.parquet: the column 'text' is missing; the file has 'body'"):
        list(read_text(tmp_path / "b.parquet"))


def test_a_missing_extra_is_named(monkeypatch, write):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LimbeckError, match=r"needs pyarrow; install it with pip install 'limbeck\[data\]'"):
        list(read_text(write("a.parquet", "x")))
    with pytest.raises(
        LimbeckError, match=r"'some/corpus' is neither a file nor a folder; .* pip install 'limbeck\[data\]'"
    ):
        list(read_text("some/corpus"))


def test_a_hub_id_streams_its_text(monkeypatch):
    import datasets

    seen = {}

    def load(name, **settings):
        seen.update(settings, name=name)
        return iter([{"text": "one"}, {"text": ""}, {"text": "two"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_text("some/corpus", split="validation")) == ["one", "two"]
    assert seen == {"name": "some/corpus", "split": "validation", "streaming": True}


def test_a_hub_id_that_cannot_be_loaded_is_one_sentence(monkeypatch):
    import datasets

    def load(name, **settings):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(LimbeckError, match=r"'corpus' is neither a file nor a folder, and the Hub gave .*: no route$"):
        list(read_text("corpus"))


def test_rows_come_with_their_place_whatever_the_file(write, tmp_path):
    import pyarrow

    rows = [{"a": "one", "b": [1]}, {"a": "two", "b": [2]}]
    lines_, text = write("f/a.jsonl", *rows), write("f/c.txt", "three")
    PARQUET.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f" / "b.parquet")
    whole = tmp_path / "whole.json"
    whole.write_text(json.dumps(rows))
    assert list(read_rows(lines_)) == [(f"{lines_}:1", rows[0]), (f"{lines_}:2", rows[1])]
    assert list(read_rows(whole)) == [(f"{whole}[0]", rows[0]), (f"{whole}[1]", rows[1])]
    parquet = tmp_path / "f" / "b.parquet"
    assert list(read_rows(parquet)) == [(f"{parquet}:1", rows[0]), (f"{parquet}:2", rows[1])]
    assert [row for _, row in read_rows(tmp_path / "f")] == [*rows, *rows, {"text": "three"}]
    assert list(read_rows(text)) == [(f"{text}:1", {"text": "three"})]


def test_rows_of_the_hub(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: iter([{"messages": []}]))
    assert list(read_rows("some/chats")) == [("some/chats (train) row 0", {"messages": []})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, ", "a.json: expected JSON, but it cannot be read: Expecting value"),
        ('{"a": 1}', "a.json: expected a list of objects, but got a object"),
        ('[{"a": 1}, 2]', r"a.json\[1\]: expected a JSON object, but got a number"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LimbeckError, match=message):
        list(read_rows(tmp_path / "a.json"))
    with pytest.raises(LimbeckError, match="no such file"):
        list(read_rows(tmp_path / "b.json"))
