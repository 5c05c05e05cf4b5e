"""Writing under a prefix: the same as choosing the likeliest token again and again without any cache."""

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.evaluation.generate import generate
from limbeck.evaluation.prefix import read_prefix

FIRST = 48  # character of token 0


class Letters:
    """One character per token."""

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(c) - FIRST for c in text]}

    def batch_decode(self, ids, skip_special_tokens=True):
        return ["".join(chr(FIRST + int(i)) for i in row) for row in ids]


@torch.no_grad()
def plain(lm, prefix, prompt, count):
    """The greedy continuation, everything read anew for each token."""
    table, out = lm.get_input_embeddings(), []
    before = None if prefix is None else table(prefix)[None] if prefix.dim() == 1 else prefix[None]
    for _ in range(count):
        if lm.config.is_encoder_decoder:
            before = table(torch.tensor([[lm.config.eos_token_id]])) if before is None else before
            start = torch.tensor([[lm.config.decoder_start_token_id, *prompt, *out]])
            logits = lm(inputs_embeds=before, decoder_input_ids=start).logits
        else:
            embeds = table(torch.tensor([[*prompt, *out]]))
            logits = lm(inputs_embeds=embeds if before is None else torch.cat([before, embeds], 1)).logits
        out.append(int(logits[0, -1].argmax()))
    return "".join(chr(FIRST + i) for i in out)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba", "t5", "bart"])
@pytest.mark.parametrize("kind", ["tokens", "vectors", "nothing"])
def test_greedy_answers_equal_the_plain_computation(model, ids, name, kind):
    lm, tokens = model(name), torch.tensor(ids(9))
    vectors = torch.randn(4, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    prefix = {"tokens": tokens, "vectors": vectors, "nothing": None}[kind]
    prompts = [ids(5), ids(3), ids(5)]
    wanted = [plain(lm, prefix, prompt, 6) for prompt in prompts]
    read = read_prefix(lm, prefix)
    assert generate(lm, Letters(), read, prompts, new_tokens=6, stop=()) == wanted
    assert generate(lm, Letters(), read, prompts, new_tokens=6, stop=(), batch=1) == wanted  # the prefix is unharmed


def test_the_encoder_may_read_the_prompt(model, ids):
    lm, prompt = model("t5"), ids(5)
    start = torch.tensor([[0]])
    with torch.no_grad():
        first = lm(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0, -1].argmax()
    got = generate(lm, Letters(), None, [prompt], new_tokens=1, stop=(), query="encoder")
    assert got == [chr(FIRST + int(first))]


def test_an_answer_ends_before_a_stop_text(model, ids):
    lm, prefix, prompts = model("llama"), torch.tensor(ids(9)), [ids(4), ids(4)]
    whole = generate(lm, Letters(), prefix, prompts, new_tokens=10, stop=())
    mark = whole[0][3:5]
    assert mark not in whole[0][:4]
    cut = generate(lm, Letters(), prefix, prompts, new_tokens=10, stop=(mark,))
    assert cut == [text.split(mark)[0] for text in whole]


def test_the_model_stops_when_every_answer_is_complete(model, ids):
    lm, prefix, steps = model("llama"), torch.tensor(ids(9)), []
    prompt = ids(4)
    first = generate(lm, Letters(), prefix, [prompt], new_tokens=2, stop=())[0]
    handle = lm.model.register_forward_hook(lambda *args: steps.append(1))
    try:
        generate(lm, Letters(), prefix, [prompt], new_tokens=20, stop=(first[1],))
    finally:
        handle.remove()
    assert len(steps) <= 3  # the prefix, and two tokens


def test_a_stop_of_white_space_is_seen_at_once(model, ids):
    lm, prompt, steps = model("llama"), ids(4), []
    first = generate(lm, Letters(), None, [prompt], new_tokens=2, stop=())[0]

    class Newline(Letters):
        def batch_decode(self, rows, skip_special_tokens=True):
            return [text.replace(first[1], "\n") for text in super().batch_decode(rows)]

    handle = lm.model.register_forward_hook(lambda *args: steps.append(1))
    try:
        assert generate(lm, Newline(), None, [prompt], new_tokens=20) == [first[0]]
    finally:
        handle.remove()
    assert len(steps) == 2


def test_the_model_s_own_end_is_kept_out(model, ids):
    lm, prompt = model("gpt2"), ids(4)
    whole = generate(lm, Letters(), None, [prompt], new_tokens=6, stop=())[0]
    lm.generation_config.eos_token_id = ord(whole[2]) - FIRST

    class Special(Letters):
        def batch_decode(self, rows, skip_special_tokens=True):
            keep = [[i for i in row if int(i) != lm.generation_config.eos_token_id] for row in rows]
            return super().batch_decode(keep)

    try:
        got = generate(lm, Special(), None, [prompt], new_tokens=6, stop=())
    finally:
        lm.generation_config.eos_token_id = None
    assert got == [whole[: whole.index(whole[2])]]


def test_what_does_not_fit_is_refused(model, ids):
    with pytest.raises(LimbeckError, match="prompt 2 is empty"):
        generate(model("gpt2"), Letters(), None, [[3], []])
    with pytest.raises(LimbeckError, match="a prefix of 9 positions and 59 tokens behind it exceed the 64"):
        generate(model("gpt2"), Letters(), torch.tensor(ids(9)), [ids(40)], new_tokens=20)
    with pytest.raises(LimbeckError, match="token 99 is outside the language model's vocabulary of 60"):
        generate(model("gpt2"), Letters(), None, [[99]])
