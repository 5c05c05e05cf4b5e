"""Text by a model: the same for a row alone or among others, for every family, and without a trace in training."""

import pytest
import torch
from tiny_llms import build

from limbeck.core.check import LimbeckError
from limbeck.data.samples import Sample
from limbeck.data.writer import Sampling, Writer, end_tokens, silent

DECODERS = [Sample([5, 6, 7], []), Sample([8, 9, 10, 11, 12], []), Sample([4], [])]
SEQ2SEQ = [Sample([0], [], [5, 6, 7]), Sample([0, 9], [], [8, 9, 10, 11]), Sample([0], [], [4])]


def rows(kind: str) -> list[Sample]:
    return SEQ2SEQ if kind == "t5" else DECODERS


def logits(model, row: Sample) -> torch.Tensor:
    ids = torch.tensor([row.prompt + row.completion])
    if row.source:
        return model(input_ids=torch.tensor([row.source]), decoder_input_ids=ids).logits[0]
    return model(ids).logits[0]


def greedy(model, row: Sample, count: int) -> list[int]:
    """Step by step, without a cache, padding or neighbours."""
    new: list[int] = []
    with torch.no_grad():
        while len(new) < count and 1 not in new:
            new.append(int(logits(model, Sample(row.prompt, new, row.source))[-1].argmax()))
    return new


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_the_likeliest_text_is_that_of_a_plain_loop(kind):
    model = build(kind)
    written = Writer(model, Sampling(6, temperature=0))(rows(kind), 0)
    assert [row.completion for row in written] == [greedy(model, row, 6) for row in rows(kind)]
    assert [row.prompt for row in written] == [row.prompt for row in rows(kind)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_mixture_is_one_model_or_the_other_at_its_ends(kind):
    one, two = build(kind), build(kind, seed=5)
    how = Sampling(6, temperature=0)
    for share, alone in ((0.0, one), (1.0, two)):
        mixed = Writer(one, how, mixed=(two, share))(rows(kind), 0)
        assert mixed == Writer(alone, how)(rows(kind), 0)


def test_a_decoder_starts_with_whatever_token_its_prompt_starts_with():
    model, row = build("t5"), Sample([7], [], [5, 6])
    assert Writer(model, Sampling(6, temperature=0))([row], 0)[0].completion == greedy(model, row, 6)


def test_drawn_tokens_follow_the_mixture():
    one, two = build("gpt2"), build("gpt2", seed=5)
    row, share = Sample([5, 6, 7], []), 0.3
    own, other = (logits(model, row)[-1].softmax(-1).detach() for model in (one, two))
    wanted = (1 - share) * own + share * other
    drawn = Writer(one, Sampling(1), mixed=(two, share))([row] * 4000, 7)
    seen = torch.bincount(torch.tensor([r.completion[0] for r in drawn]), minlength=len(wanted)) / len(drawn)
    assert float((seen - wanted).abs().sum()) < 0.15
    assert float((seen - own).abs().sum()) > 0.3


def test_output_layers_padded_differently_mix_what_both_have():
    one, two = build("gpt2"), build("gpt2", seed=5, vocabulary=150)
    size, row = one.config.vocab_size, Sample([5, 6, 7], [])
    assert size < 150
    for first, second in ((one, two), (two, one)):
        drawn = Writer(first, Sampling(1), mixed=(second, 0.5))([row] * 8000, 7)
        assert max(sample.completion[0] for sample in drawn) < size
        halves = [logits(model, row)[-1, :size].softmax(-1).detach() / 2 for model in (one, two)]
        seen = torch.bincount(torch.tensor([s.completion[0] for s in drawn]), minlength=size) / len(drawn)
        assert float((seen - sum(halves)).abs().sum()) < 0.15


def test_only_ids_below_the_size_are_written():
    model = build("gpt2")
    drawn = Writer(model, Sampling(4), ends=[], size=20)([Sample([5, 6, 7], [])] * 50, 7)
    mixed = Writer(model, Sampling(4), ends=[], size=20, mixed=(build("gpt2", seed=5), 0.5))([Sample([5], [])] * 50, 7)
    for samples in (drawn, mixed):
        assert len(set(samples[0].completion)) <= 20
        assert max(token for sample in samples for token in sample.completion) < 20


def test_whatever_the_model_calls_its_defaults_the_distribution_is_the_asked_one():
    model, row = build("gpt2"), Sample([5, 6, 7], [])
    model.generation_config.update(do_sample=True, top_k=1, temperature=0.1, repetition_penalty=3.0)
    drawn = Writer(model, Sampling(1))([row] * 4000, 7)
    seen = torch.bincount(torch.tensor([r.completion[0] for r in drawn]), minlength=model.config.vocab_size)
    assert float((seen / len(drawn) - logits(model, row)[-1].softmax(-1)).abs().sum().detach()) < 0.15


def test_neither_does_the_model_s_own_end_count_where_others_are_asked_for():
    model = build("gpt2")
    free = Writer(model, Sampling(8, temperature=0), ends=[])(DECODERS, 0)
    model.generation_config.eos_token_id = model.config.eos_token_id = free[0].completion[2]
    settings = model.generation_config
    assert Writer(model, Sampling(8, temperature=0), ends=[])(DECODERS, 0) == free
    assert model.generation_config is settings


def test_a_student_with_adapters_writes_and_keeps_its_settings():
    from peft import LoraConfig, get_peft_model

    plain = Writer(build("gpt2"), Sampling(8, temperature=0))(DECODERS, 0)
    model = build("gpt2")
    own = model.generation_config
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"]))
    write = Writer(adapted, Sampling(8, temperature=0))
    assert write(DECODERS, 0) == plain, "a new adapter changes nothing"
    mixed = Writer(build("gpt2", seed=5), Sampling(8, temperature=0), mixed=(adapted, 1.0))
    assert mixed(DECODERS, 0) == plain
    assert model.generation_config is own
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert write(DECODERS, 0) != plain


def test_the_seed_decides_and_training_s_random_state_is_left_alone():
    model = build("gpt2")
    write = Writer(model, Sampling(8))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert write(DECODERS, 1) == write(DECODERS, 1) != write(DECODERS, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_while_writing_and_every_part_gets_its_mode_back():
    model = build("gpt2")
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    model.train()
    model.transformer.h[0].eval()
    modes = [part.training for part in model.modules()]
    write = Writer(model, Sampling(8, temperature=0))
    assert write(DECODERS, 1) == write(DECODERS, 2)
    assert [part.training for part in model.modules()] == modes
    with silent(model):
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in model.modules())


def test_a_text_ends_with_its_first_end_and_rooms_bound_each_row():
    model = build("gpt2")
    free = Writer(model, Sampling(12, temperature=0), ends=[])(DECODERS, 0)
    end = free[0].completion[3]
    cut = free[0].completion.index(end) + 1
    ended = Writer(model, Sampling(12, temperature=0), ends=[end])(DECODERS, 0)
    assert ended[0].completion == free[0].completion[:cut]
    bounded = Writer(model, Sampling(12, temperature=0), ends=[])(DECODERS, 0, rooms=[2, 0, 5])
    assert [row.completion for row in bounded] == [free[0].completion[:2], [], free[2].completion[:5]]


def test_ends_are_those_of_model_and_tokenizer():
    model = build("llama")
    model.generation_config.eos_token_id = [4, 7]
    assert end_tokens(model) == [1, 4, 7]
    assert end_tokens(model, type("T", (), {"eos_token_id": 9})()) == [1, 4, 7, 9]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampling(0), "at least 1 new token"),
        (lambda: Sampling(temperature=-1), "temperature of at least 0"),
        (lambda: Sampling(top_p=0), "top_p above 0"),
        (lambda: Sampling(top_k=-1), "top_k of at least 0"),
        (lambda: Writer(build("gpt2", positions=16), Sampling(14))(DECODERS, 0), "exceed the 16 positions"),
        (lambda: Writer(build("gpt2"))([Sample([], [])], 0), "a prompt is empty"),
        (lambda: Writer(build("t5"))(DECODERS, 0), "writes from a source"),
        (lambda: Writer(build("gpt2"), mixed=(build("gpt2"), 1.5)), "share must lie from 0 to 1"),
    ],
)
def test_what_cannot_be_written_is_refused(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()
