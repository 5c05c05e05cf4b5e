"""Option scores: against a plain computation without cache or padding, against golden arrays, and what is refused."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from limbeck.core.check import LimbeckError
from limbeck.evaluation.cache import head_at
from limbeck.evaluation.prefix import read_prefix
from limbeck.evaluation.score import best, score_options, sequence_scores

GOLDEN = Path(__file__).parents[1] / "golden"
DECODERS, ENCODER_DECODERS = ("gpt2", "llama", "gemma2", "mamba"), ("t5", "bart")


@pytest.fixture
def items(ids):
    """Options of different lengths behind one prompt, and prompts of different lengths before one text (channel)."""
    prompt, text = ids(5), ids(6)
    return [
        [(prompt, ids(3)), (prompt, ids(1)), (prompt, ids(4))],
        [(ids(2), text), (ids(7), text)],
        [(ids(3), [5]), ([4], [5])],
    ]


@pytest.fixture(params=["tokens", "vectors", "nothing"])
def prefix(request, ids):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(4, 24, generator=generator, dtype=torch.float64) * 0.3
    made = {"tokens": torch.tensor(ids(9)), "vectors": vectors, "nothing": None}
    return made[request.param]


@torch.no_grad()
def plain(lm, prefix, prompt, scored):
    """Mean log-probability by one unpadded pass over everything, head included."""
    table = lm.get_input_embeddings()
    before = None if prefix is None else table(prefix)[None] if prefix.dim() == 1 else prefix[None]
    if lm.config.is_encoder_decoder:
        before = table(torch.tensor([[lm.config.eos_token_id]])) if before is None else before
        start = torch.tensor([[lm.config.decoder_start_token_id, *prompt, *scored]])
        logits, first = lm(inputs_embeds=before, decoder_input_ids=start).logits[0], len(prompt)
    else:
        embeds = table(torch.tensor([[*prompt, *scored]]))
        embeds = embeds if before is None else torch.cat([before, embeds], 1)
        logits, first = lm(inputs_embeds=embeds).logits[0], embeds.shape[1] - len(scored) - 1
    logp = logits.log_softmax(-1)
    return sum(logp[first + i, token] for i, token in enumerate(scored)) / len(scored)


@pytest.mark.parametrize("name", DECODERS + ENCODER_DECODERS)
def test_scores_equal_the_plain_computation(model, items, prefix, name):
    lm = model(name)
    wanted = [torch.stack([plain(lm, prefix, *pair) for pair in item]) for item in items]
    read = read_prefix(lm, prefix)
    assert (read.cache is None) == (name == "mamba" or (prefix is None and name in DECODERS))
    for scores in (
        score_options(lm, prefix, items),
        score_options(lm, prefix, items, share=False),
        score_options(lm, read, items, batch=1),
        score_options(lm, read, items),  # the cache is as good as new after two uses
    ):
        for got, want in zip(scores, wanted, strict=True):
            close(got, want)


def close(got, want):
    """Equal; some models compute a part in float32 even when their weights are float64."""
    torch.testing.assert_close(got.double(), want.double(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_used_or_copied_prefix_gives_the_same(model, items, ids, name):
    lm = model(name)
    read = read_prefix(lm, torch.tensor(ids(9)))
    before = [t.clone() for t in tensors(read.cache)]
    first = score_options(lm, read, items)
    twin = copy.deepcopy(read.cache)
    again = score_options(lm, read, items)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert all(a.equal(b) for a, b in zip(before, tensors(read.cache), strict=True))
    assert all(a.equal(b) for a, b in zip(before, tensors(twin), strict=True))


def tensors(cache):
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]
    return [t for part in parts for layer in part.layers for t in (layer.keys, layer.values)]


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_encoder_may_read_the_query(model, items, prefix, name):
    lm = model(name)
    table = lm.get_input_embeddings()
    scores = score_options(lm, prefix, items, query="encoder")
    for item, got in zip(items, scores, strict=True):
        for (prompt, scored), value in zip(item, got, strict=True):
            with torch.no_grad():
                embeds = table(torch.tensor([prompt]))
                before = [] if prefix is None else [table(prefix)[None] if prefix.dim() == 1 else prefix[None]]
                start = torch.tensor([[lm.config.decoder_start_token_id, *scored]])
                logits = lm(inputs_embeds=torch.cat([*before, embeds], 1), decoder_input_ids=start).logits[0]
            want = logits.log_softmax(-1)[torch.arange(len(scored)), scored].mean()
            close(value, want)


def test_vectors_may_stand_for_the_encoder_s_output(model, items):
    from transformers.modeling_outputs import BaseModelOutput

    lm, states = model("t5"), torch.randn(4, 24, generator=torch.Generator().manual_seed(1)).double()
    prompt, scored = items[0][0]
    with torch.no_grad():
        given = BaseModelOutput(last_hidden_state=states[None])
        logits = lm(encoder_outputs=given, decoder_input_ids=torch.tensor([[0, *prompt, *scored]])).logits[0]
    want = logits.log_softmax(-1)[torch.arange(len(prompt), len(prompt) + len(scored)), scored].mean()
    close(score_options(lm, states, items, enter="states")[0][0], want)
    with pytest.raises(LimbeckError, match="leave no room there for a query"):
        score_options(lm, states, items, enter="states", query="encoder")


def test_the_sum_is_the_mean_times_the_number_of_tokens(model, items, ids):
    lm, prefix = model("gpt2"), torch.tensor(ids(9))
    for item, mean, total in zip(
        items, score_options(lm, prefix, items), score_options(lm, prefix, items, reduce="sum"), strict=True
    ):
        torch.testing.assert_close(total, mean * torch.tensor([len(scored) for _, scored in item]))


def test_calibration_subtracts_the_score_without_content(model, items, ids):
    lm, prefix, neutral = model("llama"), torch.tensor(ids(9)), ids(2)
    empty = [[(neutral, scored) for _, scored in item] for item in items[:1]]
    got = score_options(lm, prefix, items[:1], neutral=empty)
    want = score_options(lm, prefix, items[:1])[0] - score_options(lm, prefix, empty)[0]
    close(got[0], want)


def test_only_scored_positions_reach_the_head(model, ids):
    lm, seen = model("gpt2"), []
    prompt = ids(5)
    handle = lm.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    try:
        score_options(lm, torch.tensor(ids(9)), [[(prompt, ids(3)), (prompt, ids(1))]])
    finally:
        handle.remove()
    assert [shape[:2] for shape in seen] == [(1, 0), (1, 4)]  # none for the prefix, 3 + 1 for the options


def test_the_head_is_as_before_afterwards(model):
    lm = model("gpt2")
    with head_at(lm, torch.zeros(1, 3, dtype=torch.bool)):
        assert lm(torch.tensor([[1, 2, 3]])).logits.shape == (1, 0, 60)
    assert lm(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 60)


def test_equal_rows_are_read_once(model, ids):
    lm, rows = model("gpt2"), []
    item = [(ids(4), ids(2)), (ids(4), ids(2))]
    handle = lm.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["attention_mask"].shape[0]), with_kwargs=True
    )
    try:
        first, *others = score_options(lm, None, [item] * 20)
    finally:
        handle.remove()
    assert rows == [2]
    assert all(other.equal(first) for other in others)


def test_a_long_prefix_makes_batches_smaller(model, ids, monkeypatch):
    read = read_prefix(model("gpt2"), torch.tensor(ids(10)))
    one_row = 2 * 2 * 10 * 24 * 8  # keys and values, layers, positions, width, bytes
    monkeypatch.setattr("limbeck.evaluation.prefix.CACHE_BYTES", 3 * one_row)
    assert read.at_once(32) == 3
    assert read.at_once(2) == 2
    monkeypatch.setattr("limbeck.evaluation.prefix.CACHE_BYTES", 10)
    assert read.at_once(32) == 1


def test_a_model_in_training_is_read_without_dropout_and_trains_on(ids):
    lm = GPT2LMHeadModel(
        GPT2Config(vocab_size=60, n_positions=64, n_embd=24, n_layer=1, n_head=2, resid_pdrop=0.5)
    ).train()
    item = [(ids(4), ids(2)), (ids(4), ids(2))]
    first, second = (score_options(lm, None, [item])[0] for _ in range(2))
    assert first.equal(second)
    assert not first.requires_grad
    assert lm.training


def test_golden_mend_scores():
    """Vectors of each demonstration set in front of GPT-2; mean log-probability over the option's tokens."""
    z = np.load(GOLDEN / "mend/score_options.npz")
    stored = np.load(GOLDEN / "mend/weights_projected.npz")
    weights = {k.removeprefix("w_"): torch.from_numpy(stored[k]).float() for k in stored}
    lm, distiller = (gpt2_from(z, weights, name) for name in ("llm", "dist"))
    for number, (demos, real) in enumerate(zip(z["in_demo_ids"], z["in_demo_mask"], strict=True)):
        with torch.no_grad():
            embeds = torch.cat([distiller.wte(torch.from_numpy(demos[real == 1])), weights["prompt"]])[None]
            states = distiller(inputs_embeds=embeds).last_hidden_state[0, -len(weights["prompt"]) :]
            vectors = torch.tanh(states @ weights["pool.weight"].T + weights["pool.bias"])
        rows = range(number * 3, number * 3 + 3)
        kept = [i for i in rows if z["in_real_num_class_mask"][number, i - rows[0]]]
        host = GPT2LMHeadModel(lm.config).eval()
        host.transformer.load_state_dict(lm.state_dict())
        got = score_options(host, vectors, [[pair_of(z, i) for i in kept]])[0]
        wanted = [z["fix_scores"][number, i - rows[0]] for i in kept]
        np.testing.assert_allclose(got.numpy(), wanted, atol=2e-5)


def gpt2_from(z, weights, name):
    mine = {k.removeprefix(f"{name}."): w for k, w in weights.items() if k.startswith(f"{name}.")}
    (words, width), positions = mine["wte.weight"].shape, len(mine["wpe.weight"])
    size = {"n_layer": int(z[f"hp_{name}_layers"]), "n_head": int(z[f"hp_{name}_heads"]), "n_embd": width}
    model = GPT2Model(
        GPT2Config(vocab_size=words, n_positions=positions, layer_norm_epsilon=float(z["hp_ln_eps"]), **size)
    )
    model.load_state_dict(mine)
    return model.eval()


def pair_of(z, row):
    real, scored = z["in_attention_mask"][row] == 1, z["in_token_type_ids"][row] == 1
    ids = z["in_input_ids"][row]
    return ids[real & ~scored].tolist(), ids[real & scored].tolist()


def test_golden_metaicl_ranking():
    z = np.load(GOLDEN / "metaicl-evaluation/ranking.npz")
    ids, scored = torch.from_numpy(z["in_input_ids"]), torch.from_numpy(z["in_token_type_ids"]).bool()
    plain, empty = (sequence_scores(torch.from_numpy(z[f"in_{k}logits"]), ids, scored) for k in ("", "content_free_"))
    np.testing.assert_allclose(-plain.numpy(), z["out_loss"], atol=1e-10)
    np.testing.assert_allclose(-empty.numpy(), z["out_content_free_loss"], atol=1e-10)
    summed = sequence_scores(torch.from_numpy(z["in_logits"]), ids, scored, reduce="sum")
    sizes = z["in_num_options"].tolist()
    assert [best(part) for part in plain.split(sizes)] == z["out_choice"].tolist()
    assert [best(part) for part in (plain - empty).split(sizes)] == z["out_choice_calibrated"].tolist()
    assert (
        [best(part) for part in summed.split(sizes)] == z["bad_choice_summed_loss"].tolist() != z["out_choice"].tolist()
    )


def test_the_first_of_equal_scores_is_the_best():
    assert best(torch.tensor([0.0, 1.0, 1.0])) == 1


def test_sequence_scores_need_something_that_can_be_scored():
    logits, ids = torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(LimbeckError, match="a row has no scored token"):
        sequence_scores(logits, ids, torch.tensor([[False, False, False]]))
    with pytest.raises(LimbeckError, match="the first token of a row cannot be scored"):
        sequence_scores(logits, ids, torch.tensor([[True, False, True]]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([([1], [2])], "item 1 has 1 option; choosing needs at least two"),
        ([([], [2]), ([], [3])], "item 1, option 1: the prompt is empty; a query needs at least one token"),
        ([([1], [2]), ([1], [])], "item 1, option 2: there is no token to score; an option needs text"),
        ([([1], [2]), ([1], [2])], "item 1 has two options with the same tokens"),
        ([([1], [2]), ([1], [60])], "token 60 is outside the language model's vocabulary of 60"),
        ([([1] * 40, [2]), ([1] * 40, [3] * 17)], "a prefix of 9 positions and 56 tokens behind it exceed the 64"),
    ],
)
def test_bad_items_are_refused(model, ids, item, message):
    with pytest.raises(LimbeckError, match=message):
        score_options(model("gpt2"), torch.tensor(ids(9)), [item])


def test_the_longest_row_that_fits_is_scored(model, ids):
    item = [([1] * 40, [2]), ([1] * 40, [3] * 16)]  # 9 + 40 + 15 positions are read: 64
    assert score_options(model("gpt2"), torch.tensor(ids(9)), [item])[0].isfinite().all()


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (torch.zeros(4, 25), "the vectors are 25 wide, but the language model's embeddings are 24 wide"),
        (torch.zeros(0, 24), "the prefix is empty"),
        (torch.zeros(0, dtype=torch.long), "the prefix is empty"),
        (torch.full((2, 24), float("nan")), "the vectors hold NaN or infinite values"),
        (torch.tensor([3, 77]), "token 77 is outside the language model's vocabulary of 60"),
        (torch.zeros(1, 4, 24), r"a prefix is ids \(l\) or vectors \(l d\)"),
        (torch.ones(65, dtype=torch.long), "a prefix of 65 positions and 0 tokens behind it exceed the 64 positions"),
    ],
)
def test_bad_prefixes_are_refused(model, prefix, message):
    with pytest.raises(LimbeckError, match=message):
        read_prefix(model("gpt2"), prefix)


def test_bad_calls_are_refused(model):
    item = [([1], [2]), ([1], [3])]
    with pytest.raises(LimbeckError, match="there is nothing to score"):
        score_options(model("gpt2"), None, [])
    with pytest.raises(LimbeckError, match="there are 1 items, but 2 neutral ones"):
        score_options(model("gpt2"), None, [item], neutral=[item, item])
    with pytest.raises(LimbeckError, match=r"item 1 \(neutral\) has 1 option"):
        score_options(model("gpt2"), None, [item], neutral=[item[:1]])
    with pytest.raises(LimbeckError, match="reduce: expected one of mean, sum, but got 'mena'; did you mean 'mean'"):
        score_options(model("gpt2"), None, [item], reduce="mena")


def test_a_broken_model_is_named(ids):
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_positions=64, n_embd=24, n_layer=1, n_head=2))
    lm.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(LimbeckError, match="the language model gave NaN"):
        score_options(lm, None, [[([1], [2]), ([1], [3])]])
