"""``limbeck doctor``, and the same check before step 0 of a run."""

import json

import pytest
import torch
from cutters import TEXTS, cutter
from tiny_llms import build, save
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from limbeck.analyses.doctor import Finding, Findings
from limbeck.cli import main
from limbeck.core.check import LimbeckError
from limbeck.methods.language_models import taid
from limbeck.methods.language_models.doctor import Doctor, examine
from limbeck.run import Run, begin


def llama(folder, kind="byte level", extra=0, seed=0, spoil=None):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": cutter(kind).eos_token_id}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(cutter(kind)) + extra, max_position_embeddings=64, **shape, **ends)
    )
    if spoil:
        spoil(model)
    model.save_pretrained(folder)
    cutter(kind).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(text.replace("\n", " ") for text in TEXTS * 8))
    return str(path)


def doctor(*words):
    return main(["doctor", *words, "--length", "24", "--rows", "4", "--device", "cpu"])


def test_one_family_padded_differently(tmp_path, corpus, capsys):
    words = ["--teacher", llama(tmp_path / "t", extra=24), "--student", llama(tmp_path / "s", extra=8, seed=1)]
    assert doctor(*words, "--data", corpus, "--out", str(tmp_path / "found.json")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "one is padded further than the other: the first 408 rows are compared" in said
    assert "one tokenizer of 400 tokens" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["level"] for row in found} <= {"ok", "note"}


def test_different_tokenizers_bring_a_survey(tmp_path, corpus, capsys):
    words = ["--teacher", llama(tmp_path / "t", "unigram"), "--student", llama(tmp_path / "s"), "--data", corpus]
    assert doctor(*words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for told in ("different tokenizers", "bytes in tokens that are the same on both sides", "Where they differ most"):
        assert told in said


def test_prompts_and_completions(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Q{i}:", "completion": text} for i, text in enumerate(TEXTS[:3] * 2)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--teacher", llama(tmp_path / "t", "byte fallback"), "--student", llama(tmp_path / "s")]
    assert main(["doctor", *words, "--data", str(data), "--length", "64", "--device", "cpu"]) == 0
    assert "of the student's" in " ".join(capsys.readouterr().out.split())


def test_a_student_made_from_its_teacher(tmp_path, corpus):
    found = examine(Doctor(teacher=llama(tmp_path / "t"), student="1x8", data=corpus, length=24, device="cpu"))
    assert not found.at("stop")


def test_what_spoils_a_run_ends_in_code_2(tmp_path, corpus, capsys):
    def poison(model):
        model.lm_head.weight.data[3] = torch.nan

    words = ["--teacher", llama(tmp_path / "t", spoil=poison), "--student", llama(tmp_path / "s", seed=1)]
    assert doctor(*words, "--data", corpus) == 2
    said = capsys.readouterr()
    assert "STOP" in said.out
    assert said.err.startswith("limbeck: the run would be spoiled: the teacher's weights lm_head.weight hold NaN")
    assert doctor("--teacher", llama(tmp_path / "u", extra=-1), "--student", words[-1], "--data", corpus) == 2
    assert "output layer has 399 rows, but its tokenizer 400 tokens" in capsys.readouterr().err


def test_masked_models(tmp_path, corpus):
    tokenizer = cutter("word piece")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    found = examine(Doctor(teacher=str(tmp_path), data=corpus, length=24, device="cpu"))
    assert "perplexity" in {finding.check for finding in found.found}


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(LimbeckError, match="T5ForConditionalGeneration; the doctor examines causal and masked"):
        examine(Doctor(teacher=str(save("t5", tmp_path / "t5")), student="1x8", device="cpu"))
    for flags, message in (({"rows": 0}, "--rows 0"), ({"length": 1}, "--length 1")):
        with pytest.raises(LimbeckError, match=message):
            examine(Doctor(**flags))


STOP = Findings((Finding("weights", "stop", "they are gone"),))
NOTE = Findings((Finding("ends", "note", "they differ"), Finding("weights", "ok", "fine")))


def test_a_run_that_would_be_spoiled_stops_and_leaves_nothing(tmp_path, capsys):
    run = begin(Run(out=tmp_path / "new"), "taid")
    with pytest.raises(LimbeckError, match="the run would be spoiled: they are gone"):
        run.heed(STOP)
    assert not (tmp_path / "new").exists()
    assert "they are gone" in capsys.readouterr().out
    begin(Run(out=tmp_path / "new", seed=3), "taid")  # another configuration is welcome there


def test_a_run_that_has_trained_keeps_what_it_has(tmp_path):
    run = begin(Run(out=tmp_path), "taid")
    run.stage_dir.mkdir()
    with pytest.raises(LimbeckError, match="they are gone"):
        run.heed(STOP)
    assert (tmp_path / "run.json").exists()


def test_what_was_found_stands_in_the_report(tmp_path, capsys):
    run = begin(Run(out=tmp_path), "taid")
    run.heed(NOTE)
    assert "they differ" in capsys.readouterr().out
    run.finish(build("gpt2"), metrics={"loss": 1.0})
    report = (tmp_path / "report.html").read_text()
    assert "Before step 0" in report
    assert "they differ" in report
    run.heed(Findings(NOTE.found[1:]))
    assert capsys.readouterr().out.count("fine") == 0


def test_taid_trains_one_family_with_padded_heads(tmp_path, corpus, capsys):
    teacher, student = llama(tmp_path / "t", extra=24), llama(tmp_path / "s", extra=8, seed=1)
    cfg = taid.Config(tmp_path / "run", device="cpu", teacher=teacher, student=student, data=corpus, steps=2, length=24)
    taid.main(cfg)
    assert "the first 408 rows are compared" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["vocab_size"] == 408
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())["before"]
    assert 0 < before["forward_kl"] < 5


def test_taid_stops_before_step_0(tmp_path, corpus, capsys):
    def poison(model):
        model.lm_head.weight.data[3] = torch.nan

    teacher = llama(tmp_path / "t", spoil=poison)
    words = ["--student", llama(tmp_path / "s", seed=1), "--data", corpus, "--length", "24", "--device", "cpu"]
    assert main(["taid", "--out", str(tmp_path / "run"), "--teacher", teacher, *words]) == 2
    assert "lm_head.weight hold NaN" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
