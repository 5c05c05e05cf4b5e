"""A model here writes what transformers' own generate writes for each prompt alone, and says whether it ended."""

from __future__ import annotations

import pytest
import tiny_llms
import torch

from limbeck.core.check import LimbeckError
from limbeck.data.model_writer import Decoding, ModelWriter

PROMPTS = ["good film book", "blue", " awful red blue green one", "five"]
LONE = {"do_sample": False, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 7}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_llms.tokenizer()


def alone(model, tokenizer, prompt: str, **settings) -> list[str]:
    """What ``generate`` writes for one prompt."""
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        said = model.generate(ids, attention_mask=torch.ones_like(ids), **LONE, **settings)
    new = said[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :].tolist()
    return [tokenizer.decode(row, skip_special_tokens=True) for row in new]


@pytest.mark.parametrize("kind", tiny_llms.KINDS)
def test_batches_write_what_each_prompt_gives_alone(kind, tokenizer):
    model = tiny_llms.build(kind)
    greedy = ModelWriter(model, tokenizer, Decoding("greedy", 7), batch=3)(PROMPTS, 0)
    assert [[text for text, _ in each] for each in greedy] == [alone(model, tokenizer, p) for p in PROMPTS]
    beams = ModelWriter(model, tokenizer, Decoding("beam", 7, samples=2, beams=3), batch=3)(PROMPTS, 0)
    more = {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True}
    assert [[text for text, _ in each] for each in beams] == [alone(model, tokenizer, p, **more) for p in PROMPTS]


def test_the_models_own_settings_change_nothing(tokenizer):
    model = tiny_llms.build("llama")
    before = [
        ModelWriter(model, tokenizer, Decoding(decode, 7), batch=4)(PROMPTS, 0)
        for decode in ("greedy", "beam", "sample")
    ]
    model.generation_config.update(repetition_penalty=3.0, temperature=0.1, top_k=1, do_sample=True, num_beams=2)
    model.generation_config.update(no_repeat_ngram_size=1, length_penalty=-9.0, min_new_tokens=3, top_p=0.1)
    after = [
        ModelWriter(model, tokenizer, Decoding(decode, 7), batch=4)(PROMPTS, 0)
        for decode in ("greedy", "beam", "sample")
    ]
    assert before == after


def test_samples_follow_the_distribution_and_the_seed(tokenizer):
    model = tiny_llms.build("gpt2")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("good")["input_ids"]])).logits[0, -1]
        logits.add_(0)
    many = Decoding("sample", 1, samples=4000, temperature=2.0, seed=1)
    said = ModelWriter(model, tokenizer, many)(["good"], 0)[0]
    share = torch.zeros(len(tokenizer))
    for text, done in said:
        share[1 if done else tokenizer(text)["input_ids"][0] if text else 0] += 1 / len(said)
    expected = (logits / 2.0).softmax(-1)
    assert 0.5 * (share - expected)[2:].abs().sum() < 0.08
    few = Decoding("sample", 6, samples=3, seed=1)
    state = torch.get_rng_state()
    first = ModelWriter(model, tokenizer, few, batch=2)(PROMPTS, 5)
    assert torch.equal(torch.get_rng_state(), state), "nobody else's chance is touched"
    assert ModelWriter(model, tokenizer, few, batch=2)(PROMPTS, 5) == first
    assert ModelWriter(model, tokenizer, few, batch=2)(PROMPTS, 6) != first
    assert ModelWriter(model, tokenizer, Decoding("sample", 6, samples=3, seed=2), batch=2)(PROMPTS, 5) != first


def test_a_text_ends_before_a_stop_and_says_so(tokenizer):
    model = tiny_llms.build("llama")
    whole = ModelWriter(model, tokenizer, Decoding("greedy", 12))(PROMPTS, 0)
    mark = whole[0][0][0][3:5]
    cut = ModelWriter(model, tokenizer, Decoding("greedy", 12, stop=(mark,)))(PROMPTS, 0)
    assert cut[0] == [(whole[0][0][0].split(mark)[0], True)]
    for (text, done), (full, _) in zip((each[0] for each in cut), (each[0] for each in whole), strict=True):
        assert text == full.split(mark)[0]
        assert done or mark not in full
    token = tokenizer.decode(tokenizer(whole[2][0][0])["input_ids"][2])
    for decode in ("greedy", "beam"):
        writer = ModelWriter(model, tokenizer, Decoding(decode, 12, stop=(token,)))
        assert len(writer.ends) == 2, "a stop of one token ends beams too"
        for each in writer(PROMPTS, 0):
            assert token not in each[0][0]


def test_the_end_of_text_is_no_part_of_it(tokenizer):
    model = tiny_llms.build("gpt2")
    with torch.no_grad():
        model.lm_head.weight[1] = 0
        model.transformer.ln_f.bias.copy_(model.lm_head.weight[0] * 0)
    model.generation_config.eos_token_id = [1, *range(30, len(tokenizer))]
    for text, done in (each[0] for each in ModelWriter(model, tokenizer, Decoding("greedy", 9))(PROMPTS, 0)):
        ids = tokenizer(text)["input_ids"] if text else []
        assert all(token < 30 for token in ids)
        assert done == (len(ids) < 9)


def test_messages_go_through_the_chat_template():
    tokenizer, model = tiny_llms.tokenizer(), tiny_llms.build("llama")
    chat = [{"role": "user", "content": "good"}]
    plain = ModelWriter(model, tokenizer, Decoding("greedy", 5))([chat, "User:\ngood\n\nAssistant:\n"], 0)
    assert plain[0] == plain[1], "a tokenizer without a template gets the plain layout"
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} film{% endfor %}"
    said = ModelWriter(model, tokenizer, Decoding("greedy", 5))([chat, "good film"], 0)
    assert said[0] == said[1]


def test_what_does_not_fit_is_refused(tokenizer):
    model = tiny_llms.build("llama", positions=16)
    with pytest.raises(LimbeckError, match="a prompt of 3 tokens and 14 new ones exceed the 16 positions"):
        ModelWriter(model, tokenizer, Decoding("greedy", 14))(PROMPTS[:1], 0)
    with pytest.raises(LimbeckError, match="a prompt is empty"):
        ModelWriter(model, tokenizer, Decoding("greedy", 4))([""], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decode": "bean"}, "did you mean 'beam'"),
        ({"new_tokens": 0}, "--new-tokens 0"),
        ({"decode": "greedy", "samples": 2}, "--samples 2: expected 1 to 1 .*a greedy text is always the same"),
        ({"decode": "beam", "samples": 6}, "--samples 6: expected 1 to 5 .*raise --beams"),
        ({"decode": "beam", "beams": 1}, "--beams 1: expected 2 or more"),
        ({"temperature": 0.0}, "--temperature 0.0: expected above 0; or --decode greedy"),
        ({"top_p": 0.0}, "--top-p 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(LimbeckError, match=message):
        Decoding(**settings)


def test_settings_in_the_words_of_the_protocol():
    assert Decoding("greedy", 9, stop=("\n",)).protocol() == {"max_tokens": 9, "temperature": 0.0, "stop": ["\n"]}
    how = Decoding("sample", 9, samples=3, temperature=0.5, top_p=0.9, seed=4)
    assert how.protocol() == {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 4, "n": 3}
    with pytest.raises(LimbeckError, match="a served teacher cannot search with beams"):
        Decoding("beam").protocol()
