"""Every illness is found, named and graded; the healthy are left in peace."""

import copy

import pytest
import torch
from cutters import TEXTS, cutter
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from limbeck.analyses.doctor import Finding, Findings, doctor
from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Readout, Signals
from limbeck.crossing import across
from limbeck.data.crossed import row_batches, text_rows
from limbeck.data.stream import lm_batches, mlm_batches
from limbeck.sources.model import model_source
from limbeck.sources.vocabulary import padded

KIND = "byte level"
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}


def llama(rows=400, seed=0, **settings):
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=rows, max_position_embeddings=64, **shape, **ends, **settings)
    ).eval()


def gpt2(rows=400, seed=1, **settings):
    torch.manual_seed(seed)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=rows, **shape, **NO_ENDS, **settings)).eval()


def knowing(tokenizer, sure=6.0):
    """A source that knows the next token: what a good teacher says."""

    def says(batch):
        following = batch["ids"].roll(-1, 1)
        return Signals(logits=sure * torch.nn.functional.one_hot(following, len(tokenizer)).float())

    return says


def rows_of(kind=KIND, length=24, count=6):
    return lm_batches(TEXTS * 2, cutter(kind), length, count).take(1)


def asked(found, check, level):
    return [finding.says for finding in found.at(level) if finding.check == check]


def test_a_healthy_pair():
    tokenizer = cutter(KIND)
    found = doctor(model_source(llama()), knowing(tokenizer), tokenizer, batches=rows_of())
    assert found.well, found
    assert not found.at("stop")
    found.heed()
    assert [f.check for f in found.at("ok") if "tokenizer of 400" in f.says] == ["tokenizers"]
    assert asked(found, "row lengths", "ok") == ["student: 24 of 64 tokens"]
    assert asked(found, "supervision", "ok") == ["138 of the 144 tokens are supervised"]
    (told,) = asked(found, "perplexity", "ok")
    assert told.startswith("student 5.9") or told.startswith("student 6.0"), told
    assert told.endswith("a uniform guess 5.99 nats per token")


def test_nothing_given_nothing_said():
    assert doctor(lambda b: Signals(), lambda b: Signals()).found[:1] == (Finding("chat templates", "ok", "none"),)


def test_it_prints_as_a_table_and_stops_in_one_sentence():
    found = Findings(
        (Finding("a", "ok", "fine"), Finding("a", "stop", "this"), Finding("long one", "stop", "and that"))
    )
    assert repr(found).splitlines() == ["a         ok    fine", "          STOP  this", "long one  STOP  and that"]
    assert not found.well
    with pytest.raises(LimbeckError, match=r"^the run would be spoiled: this; and that$"):
        found.heed()


def test_other_tokenizers_in_one_cut_stop():
    found = doctor(model_source(llama()), model_source(llama(96)), cutter(KIND), cutter("unigram"), rows_of())
    (told,) = asked(found, "tokenizers", "stop")
    assert "rows in one cut only: the teacher would read foreign ids" in told


def test_other_tokenizers_in_two_cuts_are_a_note():
    ours, theirs = cutter(KIND), cutter("unigram")
    pair = across(model_source(llama()), model_source(llama(len(theirs), 1)), ours, theirs)
    batches = row_batches(list(text_rows(TEXTS * 2, ours, theirs, 24)), 6).take(1)
    found = doctor(pair.student, pair.teacher, ours, theirs, batches)
    (told,) = asked(found, "tokenizers", "note")
    joint = float(batches[0]["aligned"].sum() / batches[0]["answer"].sum())
    assert told.endswith(f"both have read the same at {joint:.0%} of the supervised places")
    assert len(asked(found, "supervision", "ok")) == 2
    told = [f.says for f in found.found if f.check == "perplexity"]
    assert "per chunk of both cuts student" in told[0]
    assert found.at("stop") == []


def test_the_teacher_is_judged_on_the_same_text_where_cuts_differ():
    """Its many small tokens cost less each; the chunks are what both say."""
    ours, theirs = cutter(KIND), cutter("byte fallback")
    batches = row_batches(list(text_rows(TEXTS * 2, ours, theirs, 24)), 6).take(1)
    found = doctor(knowing(ours), knowing(theirs), ours, theirs, batches)
    batch = batches[0]
    sums = []
    for side, tokenizer in (("", ours), ("teacher_", theirs)):
        logits = knowing(tokenizer)({"ids": batch[f"{side}ids"]}).logits.log_softmax(-1)
        inside = batch[f"{side}chunk"] > 0
        nats = -logits[inside].gather(1, batch[f"{side}targets"][inside][:, None]).sum() / batch["aligned"].sum()
        sums.append(f"{float(nats):.2f}")
    (told,) = (f.says for f in found.found if f.check == "perplexity")
    assert told.endswith(f"student {sums[0]}, teacher {sums[1]}")


def test_ends():
    plain = cutter(KIND)
    other = copy.deepcopy(plain)
    other.eos_token = "A"
    found = doctor(model_source(llama()), model_source(llama(seed=1)), plain, other)
    told = asked(found, "ends", "note")
    assert "the teacher's tokenizer ends a text with 'A', but its model stops at '<|endoftext|>'" in told
    assert "texts end with '<|endoftext|>' (student) and with 'A' (teacher): answers may run on" in told
    endless = cutter("word piece")
    told = asked(doctor(lambda b: Signals(), lambda b: Signals(), endless), "ends", "note")
    assert told == ["no tokenizer has an end-of-text token, so the student cannot learn to stop"]
    beginning = copy.deepcopy(cutter("word piece"))
    beginning.backend_tokenizer.post_processor = cutter(KIND).backend_tokenizer.post_processor
    told = asked(doctor(lambda b: Signals(), lambda b: Signals(), endless, beginning), "ends", "note")
    assert "texts begin with '[CLS]' (student) and with None (teacher)" in told


def test_chat_templates():
    one, two = copy.deepcopy(cutter(KIND)), copy.deepcopy(cutter(KIND))
    one.chat_template = "{{ messages }}"
    silent = lambda b: Signals()  # noqa: E731
    assert asked(doctor(silent, silent, one), "chat templates", "ok") == ["the same"]
    assert asked(doctor(silent, silent, one, two), "chat templates", "note") == ["only the student has one"]
    two.chat_template = "{{ messages }}!"
    (told,) = asked(doctor(silent, silent, one, two), "chat templates", "note")
    assert told == "they differ; both sides read the student's"


def test_output_layers():
    tokenizer = cutter(KIND)
    found = doctor(model_source(llama(399)), model_source(llama(410)), tokenizer)
    assert asked(found, "output layers", "stop") == [
        "the student's output layer has 399 rows, but its tokenizer 400 tokens",
        "the student's table of embeddings has 399 rows, but its tokenizer 400 tokens",
    ]
    found = doctor(model_source(llama(416)), model_source(llama(410)), tokenizer)
    assert asked(found, "output layers", "note") == [
        "one is padded further than the other: the first 410 rows are compared"
    ]
    assert "teacher: 410 rows for 400 tokens" in asked(found, "output layers", "ok")


def test_output_layers_of_a_teacher_that_is_not_here():
    class Kept:
        width = 405

        def __call__(self, batch):
            return Signals()

    found = doctor(model_source(llama(416)), padded(Kept(), 405), cutter(KIND))
    (told,) = asked(found, "output layers", "note")
    assert told.endswith("the first 405 rows are compared")


def test_caps_and_scales():
    model = llama()
    model.config.final_logit_softcapping, model.config.logit_scale = 30.0, 0.25
    found = doctor(model_source(model), model_source(llama(seed=1)), cutter(KIND))
    told = ["student: final logit softcapping 30, logit scale 0.25, which is kept"]
    assert asked(found, "caps and scales", "ok") == told


def test_number_formats():
    halves = [model_source(llama(seed=seed).half()) for seed in (0, 1)]
    found = doctor(*halves, cutter(KIND))
    assert "the student is held in float16" in asked(found, "number formats", "stop")[0]
    assert "overflows at 65504" in asked(found, "number formats", "note")[0]
    found = doctor(model_source(llama().bfloat16()), model_source(llama(seed=1)), cutter(KIND))
    assert "steps below 1/256 of a weight are lost" in asked(found, "number formats", "note")[0]
    assert asked(found, "number formats", "ok") == ["student bfloat16, teacher float32"]


def test_large_logits_in_float16():
    loud = llama(seed=1)
    loud.lm_head.weight.data *= 1e6
    found = doctor(model_source(llama()), model_source(loud.half()), cutter(KIND), batches=rows_of())
    told = asked(found, "speech", "note") + asked(found, "speech", "stop")
    assert "near float16's end" in told[0] or "NaN or infinity" in told[0]


def test_weights():
    sick = llama(seed=1)
    sick.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    sick.model.norm.weight.data[0] = torch.inf
    found = doctor(model_source(llama()), model_source(sick), cutter(KIND), batches=rows_of())
    (told,) = asked(found, "weights", "stop")
    assert told == "the teacher's weights model.layers.0.mlp.up_proj.weight and 1 more hold NaN or infinity"
    assert asked(found, "speech", "stop") == [
        "the teacher's logits hold NaN or infinity; check its weights and number format"
    ]
    assert not [f for f in found.found if f.check == "perplexity"]
    same = doctor(model_source(llama()), model_source(llama()), cutter(KIND))
    assert "the same weights" in asked(same, "weights", "note")[0]


def test_row_lengths():
    found = doctor(model_source(llama()), model_source(gpt2()), cutter(KIND), batches=rows_of(length=40))
    assert asked(found, "row lengths", "stop") == ["rows of 40 tokens, but the teacher reads 32; shorten them"]
    batch = rows_of()[0]
    batch["ids"][0, 3] = 450
    found = doctor(model_source(llama()), model_source(llama(500, 1)), cutter(KIND), batches=[batch])
    (told,) = asked(found, "row lengths", "stop")
    assert told == "the rows hold id 450, but the student's table has 400 rows; encode by its tokenizer"


def test_supervision():
    source = model_source(llama())

    def told(level, **changed):
        batch = {**rows_of()[0], **changed}
        return asked(doctor(source, knowing(cutter(KIND)), cutter(KIND), batches=[batch]), "supervision", level)

    batch = rows_of()[0]
    nothing = torch.zeros_like(batch["answer"])
    assert told("stop", answer=nothing) == ["none of the places is supervised; check what of the data is to be learned"]
    some = batch["answer"].clone()
    some[1:3] = False
    assert told("note", answer=some) == ["2 of 6 rows have nothing supervised"]
    assert told("stop", answer=torch.ones_like(nothing))[0] == "6 of the supervised places have no target"
    short = batch["mask"].clone()
    short[:, 20:] = False
    assert told("stop", mask=short) == ["places behind a row's end are supervised"]
    twice = batch["targets"].where(batch["targets"] < 0, batch["targets"] + 1)
    assert "targets are not the token that follows" in told("stop", targets=twice)[0]


def test_answers_that_never_end():
    tokenizer = cutter(KIND)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    keep = torch.tensor([[False, False, True, True, True]])
    for last, expected in ((9, ["no target is the end of the text, so answers never learn to stop"]), (0, [])):
        batch = next_token_batch(torch.cat([ids[:, :4], torch.tensor([[last]])], 1), torch.ones_like(keep), keep)
        found = doctor(model_source(llama()), knowing(tokenizer), tokenizer, batches=[batch])
        assert asked(found, "supervision", "note") == expected


def test_masked_models():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer, models = cutter("word piece"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(
            BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape)).eval()
        )
    batches = mlm_batches(TEXTS * 2, tokenizer, 24, 6).take(1)
    found = doctor(*map(model_source, models), tokenizer, batches=batches)
    assert found.at("stop") == []
    assert [f.check for f in found.found][-1] == "perplexity"


def test_perplexity():
    tokenizer, batches = cutter(KIND), rows_of()
    student = model_source(llama())

    def judged(teacher, **strict):
        found = doctor(student, teacher, tokenizer, batches=batches, **strict).found
        (one,) = (f for f in found if f.check == "perplexity")
        return one.level, one.says.split(":")[0]

    assert judged(knowing(tokenizer))[0] == "ok"
    assert judged(knowing(tokenizer, -0.5)) == ("note", "the teacher is no better than a uniform guess")
    wrong = "the teacher is far worse than a uniform guess, so it is untrained or reads wrongly"
    foreign = lambda batch: knowing(tokenizer, 20.0)({"ids": batch["ids"].roll(1, 1)})  # noqa: E731
    assert judged(foreign) == ("note", wrong)
    assert judged(foreign, strict=True) == ("stop", wrong)
    weak, strong = knowing(tokenizer, 1.0), knowing(tokenizer, 5.0)
    found = doctor(strong, weak, tokenizer, batches=batches)
    assert "no better than the student" in asked(found, "perplexity", "note")[0]


def test_a_teacher_without_a_model_is_judged_by_what_it_says():
    def stored(batch):
        raise LimbeckError("row 3 is not in the store")

    found = doctor(model_source(llama()), stored, cutter(KIND), batches=rows_of())
    assert asked(found, "speech", "stop") == ["the teacher cannot be asked: row 3 is not in the store"]
    assert all("teacher" not in f.says for f in found.found if f.check in ("weights", "output layers", "row lengths"))


def test_logits_that_cannot_be_read_late_are_a_note():
    model = llama(seed=1)
    said = doctor(model_source(llama()), model_source(model), cutter(KIND), batches=rows_of())
    assert asked(said, "speech", "note") == []
    source = model_source(model)
    source._tried = model.get_output_embeddings(), False
    said = doctor(model_source(llama()), source, cutter(KIND), batches=rows_of())
    assert "cannot be read apart from it" in asked(said, "speech", "note")[0]


def test_nothing_is_changed():
    """Not the mode, not the weights, not the random state."""
    model, tokenizer = llama(), cutter(KIND)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    teacher = model_source(llama(seed=1))
    torch.random.set_rng_state(state)
    doctor(model_source(model), teacher, tokenizer, batches=rows_of())
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_readouts_are_read_in_pieces():
    hidden, weight = torch.randn(4, 100, 3), torch.randn(20, 3)
    ids = torch.randint(20, (4, 100))
    batch = next_token_batch(ids, torch.ones_like(ids).bool())
    source = lambda b: Signals(readout=Readout(hidden, weight))  # noqa: E731
    found = doctor(source, source, batches=[batch])
    nats = torch.nn.functional.cross_entropy((hidden @ weight.T)[batch["answer"]], batch["targets"][batch["answer"]])
    assert f"student {float(nats):.2f}, teacher {float(nats):.2f}" in next(f for f in found.found[::-1]).says


def test_rows_of_several_batches_are_looked_at_together():
    tokenizer = cutter(KIND)
    short, long = rows_of(length=10, count=3)[0], rows_of(length=24, count=3)[0]
    found = doctor(model_source(llama()), knowing(tokenizer), tokenizer, batches=[short, long], rows=5)
    assert found.well, found
    assert asked(found, "row lengths", "ok") == ["student: 24 of 64 tokens"]
    assert asked(found, "supervision", "ok") == [f"{3 * 9 + 2 * 23} of the {3 * 10 + 2 * 24} tokens are supervised"]
