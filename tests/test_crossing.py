"""A student and a teacher, whatever their tokenizers: equal, of one family with padded heads, different."""

import copy
import re
from pathlib import Path

import pytest
import torch
from cutters import TEXTS, cutter
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limbeck.core.check import LimbeckError
from limbeck.core.fit import fit
from limbeck.core.signals import Signals, model_behind
from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.core.terms import Clock
from limbeck.crossing import across
from limbeck.evaluation.model import head_width
from limbeck.losses.across import squared_gap
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.objectives.across import spans, uld
from limbeck.objectives.tokens import hard, soft
from limbeck.objectives.weighted import weighted
from limbeck.sources.model import model_source
from limbeck.sources.vocabulary import elsewhere, padded

CLOCK = Clock(0, 1)
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}


def llama(rows: int, seed: int = 0):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, initializer_range=0.3, **shape)).eval()


def gpt2(rows: int, seed: int = 1):
    torch.manual_seed(seed)
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=64, **drop, **NO_ENDS)
    ).eval()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(text.replace("\n", " ") for text in TEXTS * 4))
    return path


def test_equal_tokenizers_are_left_alone(corpus):
    tokenizer = cutter("byte level")
    student, teacher = model_source(llama(len(tokenizer))), model_source(llama(len(tokenizer), 1))
    pair = across(student, teacher, tokenizer, copy.deepcopy(tokenizer))
    assert (pair.kind, pair.note, pair.on, pair.events) == ("equal", "", "answer", None)
    assert pair.student is student
    assert pair.teacher is teacher
    assert repr(pair.soft(reverse_kl, 2.0)) == repr(soft(reverse_kl, 2.0))
    assert set(pair.batches(corpus, 16, 2).at(0)) == {"ids", "mask", "targets", "answer"}


def test_heads_of_one_family_that_are_padded_alike_are_left_alone():
    tokenizer = cutter("byte level")
    pair = across(*(model_source(llama(len(tokenizer) + 8, seed)) for seed in (0, 1)), tokenizer, tokenizer)
    assert pair.kind == "equal"


@pytest.mark.parametrize(("mine", "other"), [(16, 48), (48, 16), (0, 16)])
def test_padded_heads_just_work(mine, other, corpus):
    tokenizer = cutter("byte level")
    size = len(tokenizer)
    student, teacher = llama(size + mine), llama(size + other, 1)
    pair = across(model_source(student), model_source(teacher), tokenizer, tokenizer)
    least = size + min(mine, other)
    assert pair.kind == "padded"
    assert pair.note == (
        f"output layers of {size + mine} (student) and {size + other} rows (teacher) for one tokenizer of {size} "
        f"tokens; the first {least} are compared"
    )
    batch = pair.batches(corpus, 16, 2).at(0)
    found = pair.soft()(pair.student(batch), pair.teacher(batch), batch, CLOCK)["soft"].sum
    ours, theirs = (m(input_ids=batch["ids"]).logits[batch["answer"]][:, :least] for m in (student, teacher))
    torch.testing.assert_close(found, forward_kl(ours, theirs).sum())
    stage = Stage("s", distill_step(pair.student, pair.teacher, pair.soft()), {"student": student}, [batch], 2)
    fit(stage)
    assert student.get_output_embeddings().weight.shape[0] == size + mine


def test_a_head_without_rows_for_all_tokens_is_refused():
    tokenizer = cutter("byte level")
    with pytest.raises(
        LimbeckError, match=r"the teacher's output layer has 399 rows, but its tokenizer has 400 tokens"
    ):
        across(model_source(llama(400)), model_source(llama(399)), tokenizer, tokenizer)


@pytest.mark.parametrize("goal", ["soft", "spans", "uld"])
@pytest.mark.parametrize("kind", ["unigram", "byte fallback", "word piece"])
def test_different_tokenizers_train(kind, goal, corpus):
    ours, theirs = cutter("byte level"), cutter(kind)
    student, teacher = gpt2(len(ours)), llama(len(theirs) + 3)
    pair = across(model_source(student), model_source(teacher), ours, theirs)
    assert (pair.kind, pair.on) == ("different", "aligned")
    assert f"different tokenizers of {len(ours)} and {len(theirs)} tokens" in pair.note
    wanted = {"soft": pair.soft(), "spans": spans(squared_gap), "uld": uld()}[goal]
    step = distill_step(pair.student, pair.teacher, weighted(**{goal: (1.0, wanted), "hard": (0.0, hard())}))
    batches, seen = pair.batches(corpus, 24, 4).take(2), []

    def hear(logs, clock):
        seen.append(logs[goal])

    fit(Stage("s", step, {"student": student}, batches, 8, Optim(1e-2), after=[hear], frozen={"teacher": teacher}))
    assert sum(seen[-2:]) < 0.95 * sum(seen[:2])


def test_one_vocabulary_that_is_cut_differently_is_different():
    one = cutter("byte level")
    other = copy.deepcopy(one)
    other.backend_tokenizer.pre_tokenizer = cutter("byte level, own space").backend_tokenizer.pre_tokenizer
    pair = across(model_source(llama(len(one))), model_source(llama(len(one), 1)), one, other)
    assert pair.kind == "different"
    assert pair.events is not None
    assert pair.events.ours == [[i] for i in range(len(one))]


def test_the_model_behind_a_source():
    model = llama(20)
    assert model_behind(padded(elsewhere(model_source(model)), 5)) is model
    assert head_width(model) == 20
    assert model_behind(lambda batch: Signals()) is None
    assert head_width(None) is None
    tokenizer = cutter("byte level")
    assert across(model_source(llama(400)), lambda batch: Signals(), tokenizer, tokenizer).kind == "equal"


def test_the_code_of_the_page_runs(corpus, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(corpus.parent)
    gpt2(len(cutter("byte level"))).save_pretrained("student")
    cutter("byte level").save_pretrained("student")
    said = {}
    exec(compile(code, "docs/tokenizers.md", "exec"), said)
    assert said["pair"].kind == "different"
