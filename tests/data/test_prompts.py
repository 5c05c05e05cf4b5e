"""Prompts with completions from pairs and from running text."""

import json

import pytest
from tiny_llms import tokenizer

from limbeck.core.check import LimbeckError
from limbeck.data.prompts import prompt_batches
from limbeck.data.samples import Sample, samples_of


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"good {w}", "completion": f" {w} film"} for w in ("one", "two", "three", "four")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_pairs_are_read_as_they_are(pairs):
    reads = tokenizer()
    rows = samples_of(prompt_batches(pairs, reads, 12, 4, seed=0).take(1)[0])
    texts = {(reads.decode(row.prompt), reads.decode(row.completion)) for row in rows}
    assert ("good two", " two film</s>") in texts
    assert len(texts) == 4


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_completion(pairs):
    reads = tokenizer()
    for row in samples_of(prompt_batches(pairs, reads, 12, 4, start=0).take(1)[0]):
        assert row.prompt == [0]
        assert reads.decode(row.source).startswith("good ")
        assert reads.decode(row.completion).endswith(" film</s>")


def test_running_text_is_cut_in_two_and_a_completion_stops_at_the_end_of_its_text():
    reads, texts = tokenizer(), ["good bad fine poor film", "one two three"]
    ids = [token for text in texts for token in [*reads(text)["input_ids"], 1]]
    stream = prompt_batches(texts, reads, 5, 1, completion=3)
    assert set(map(str, (samples_of(stream.at(i))[0] for i in range(2)))) == {
        str(Sample(ids[0:2], ids[2:5])),
        str(Sample(ids[5:7], ids[7:10])),
    }
    ended = prompt_batches(texts, reads, 7, 1, completion=4)
    assert samples_of(ended.at(0)) == [Sample(ids[:3], ids[3:6])]


@pytest.mark.parametrize(
    ("length", "completion", "message"), [(8, 8, "leave no room for a prompt"), (80, 8, "fewer than one row")]
)
def test_rows_that_do_not_fit_are_refused(length, completion, message):
    with pytest.raises(LimbeckError, match=message):
        prompt_batches(["good bad fine"], tokenizer(), length, 1, completion=completion)
