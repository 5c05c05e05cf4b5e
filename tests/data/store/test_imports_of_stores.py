"""Log-probabilities that other programs wrote down, from files made by hand in their formats."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from toy_teacher import SIZE, ToyTeacher, collate, rows, tokenizer

from limbeck.core.check import LimbeckError
from limbeck.data.store.distillkit import Scheme
from limbeck.data.store.imports import import_store
from limbeck.losses.divergence import forward_kl
from limbeck.sources.stored import stored

TOP = 20


def live(ids):
    """The toy teacher's best tokens after each of ``ids``: ids t k and log-probabilities t k."""
    batch = collate([(ids, 1)])
    best = ToyTeacher()(batch).logits[0].log_softmax(-1).topk(TOP, -1)
    return best.indices.numpy(), best.values.numpy()


def likely(count=12):
    """Texts in which each token is among the teacher's best after the one before."""
    draw, found = np.random.default_rng(0), []
    for ids, begin in rows(count):
        text = ids[:2]
        while len(text) < len(ids) + 2:
            text.append(int(draw.choice(live(text)[0][-1][:5])))
        found.append((text, begin + 1))
    return found


def check(store, texts, begins=True, within=0.05):
    """The store knows ``texts``, and what it says of their best tokens is what the teacher says."""
    for ids, begin in texts:
        batch = collate([(ids, begin if begins else 1)])
        told = stored(store, tokenizer())(batch).logits_at(batch["answer"])
        names, values = (part[(begin if begins else 1) - 1 : -1] for part in live(ids))
        near = told.gather(1, torch.from_numpy(names)).numpy()
        assert np.abs(near - values).max() < within
        assert told.logsumexp(-1).abs().max() < 1e-3


def named(names, values, style):
    if style == "numbers":
        return {f"token_id:{n}": float(v) for n, v in zip(names, values, strict=True)}
    return {str(n): {"logprob": float(v), "rank": r + 1} for r, (n, v) in enumerate(zip(names, values, strict=True))}


def vllm_row(ids, begin, style):
    """One of the shapes in which vLLM answers."""
    names, values = live(ids)
    lists = [None, *(named(n, v, "dicts") for n, v in zip(names[:-1], values[:-1], strict=True))]
    if style == "scored":
        return {"prompt_token_ids": ids, "prompt_logprobs": lists}
    if style == "served":
        return {"choices": [{"index": 0, "prompt_token_ids": ids, "prompt_logprobs": lists, "logprobs": None}]}
    said = {"prompt_token_ids": ids[:begin], "token_ids": ids[begin:]}
    lists = list(zip(names[begin - 1 : -1], values[begin - 1 : -1], strict=True))
    if style == "generated":
        outputs = {"token_ids": ids[begin:], "logprobs": [named(n, v, "dicts") for n, v in lists]}
        return {"prompt_token_ids": ids[:begin], "prompt_logprobs": None, "outputs": [outputs]}
    if style == "completions":
        tops = {"tokens": [], "top_logprobs": [named(n, v, "numbers") for n, v in lists]}
        return {"choices": [{**said, "logprobs": tops}]}
    content = [
        {"top_logprobs": [{"token": name, "logprob": value} for name, value in named(n, v, "numbers").items()]}
        for n, v in lists
    ]
    return {"prompt_token_ids": said.pop("prompt_token_ids"), "choices": [{**said, "logprobs": {"content": content}}]}


def write(path, found):
    path.write_text("\n".join(json.dumps(row) for row in found))
    return path


@pytest.mark.parametrize("style", ["scored", "served", "generated", "completions", "chat"])
def test_vllm(tmp_path, style):
    texts = likely()
    path = write(tmp_path / "said.jsonl", [vllm_row(ids, begin, style) for ids, begin in texts])
    done = import_store("vllm", path, tokenizer(), SIZE, tmp_path / "store", TOP)
    assert done["rows"] == len(texts)
    check(tmp_path / "store", texts, begins=style not in ("scored", "served"))
    beside = [json.loads(line) for line in (tmp_path / "store" / "rows.jsonl").read_text().splitlines()]
    assert [row["ids"] for row in beside] == [ids for ids, _ in texts]
    begin = 1 if style in ("scored", "served") else texts[0][1]
    assert beside[0]["keep"] == [[begin, len(texts[0][0])]]


@pytest.mark.parametrize("shifted", [True, False], ids=["at the token", "one before"])
def test_axolotl(tmp_path, shifted):
    """Its plugin sets a list beside the token it predicts; others set it one before. Both are found out."""
    texts, found = likely(), []
    for ids, begin in texts:
        names, values = live(ids)
        values = values - np.logaddexp.reduce(values, 1)[:, None]
        if shifted:
            names, values = np.roll(names, 1, 0), np.roll(values, 1, 0)
        first = begin if shifted else begin - 1
        real = [[int(first <= i < len(ids) - (not shifted))] * TOP for i in range(len(ids))]
        columns = {"target_token_ids": names.tolist(), "target_logprobs": values.tolist(), "target_mask": real}
        found.append({"input_ids": ids, "labels": [-100] * begin + ids[begin:], **columns})
    path = write(tmp_path / "prepared.jsonl", found)
    import_store("axolotl", path, tokenizer(), SIZE, tmp_path / "store", TOP)
    for ids, begin in texts:
        batch = collate([(ids, begin)])
        told = stored(tmp_path / "store", tokenizer())(batch).logits_at(batch["answer"])
        names, values = (part[begin - 1 : -1] for part in live(ids))
        near = told.gather(1, torch.from_numpy(names)).numpy()
        assert np.abs(near - (values - np.logaddexp.reduce(values, 1)[:, None])).max() < 0.05, "made to sum to 1"


def packed_bits(values, width):
    """Numbers n k as bits from high to low, in whole bytes per row."""
    bits = (values[..., None] >> np.arange(width)[::-1]) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)


SCHEMES = {
    "exact": Scheme(SIZE, TOP, TOP, "float32", delta_encoding=False),
    "deltas": Scheme(SIZE, TOP, TOP, "float32"),
    "bins": Scheme(
        SIZE,
        TOP,
        4,
        "bfloat16",
        [0, 1, "sqrt"],
        "float32",
        [
            {"scale_dtype": "float16", "element_bits": 8, "num_elements": 10},
            {"scale_dtype": "float32", "element_bits": 12, "num_elements": 6},
        ],
        delta_encoding=False,
    ),
}


def compress(values, scheme):
    """Bytes of log-probabilities n k that fall, as DistillKit's README describes them."""
    values = np.diff(values, axis=1, prepend=0) if scheme.delta_encoding else values
    exact = values[:, : scheme.exact_k].astype(np.float32)
    short = exact.view(np.uint32) >> 16
    parts = [short.astype("<u2").view(np.uint8) if scheme.exact_dtype == "bfloat16" else exact.view(np.uint8)]
    left = values[:, scheme.exact_k :].astype(np.float64)
    if scheme.polynomial_terms:
        at = np.arange(left.shape[1], dtype=float)
        terms = np.stack([np.sqrt(at) if t == "sqrt" else at**t for t in scheme.polynomial_terms], 1)
        weights = np.linalg.lstsq(terms, left.T, rcond=None)[0].T.astype(np.float32)
        left = left - weights @ terms.T
        parts.append(np.ascontiguousarray(weights).view(np.uint8))
    at = 0
    for group in scheme.residual_bins:
        width, count = group["element_bits"], group["num_elements"]
        here = left[:, at : at + count]
        kind = {"float16": np.float16, "float32": np.float32}[group["scale_dtype"]]
        scale = (np.abs(here).max(1, keepdims=True) / 2 ** (width - 1)).astype(kind)
        steps = np.clip(np.round(here / scale), -(2 ** (width - 1)), 2 ** (width - 1) - 1).astype(int) + 2 ** (
            width - 1
        )
        parts += [scale.view(np.uint8), packed_bits(steps, width)]
        at += count
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("name", SCHEMES)
def test_distillkit(tmp_path, name):
    from pyarrow import Table, parquet

    scheme, texts = SCHEMES[name], likely()
    folder = tmp_path / "logits"
    folder.mkdir()
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(scheme).items()}
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    found = []
    for ids, _ in texts:
        names, values = (part[:-1] for part in live(ids))
        packed = packed_bits(names, math.ceil(math.log2(SIZE)))
        squeezed = compress(values, scheme)
        assert squeezed.shape[1] + packed.shape[1] == scheme.bytes_per_token
        columns = {"compressed_logprobs": squeezed.tolist(), "bytepacked_indices": packed.tolist()}
        found.append({"input_ids": ids, **columns})
    parquet.write_table(Table.from_pylist(found), folder / "data_0.parquet")
    import_store("distillkit", folder, tokenizer(), SIZE, tmp_path / "store", TOP)
    check(tmp_path / "store", texts, begins=False, within=0.08 if name == "bins" else 0.05)  # bfloat16 is coarse


def test_distillkit_without_compression(tmp_path):
    texts = likely()
    found = []
    for ids, _ in texts:
        names, values = (part[:-1].tolist() for part in live(ids))
        found.append({"input_ids": ids, "token_ids": names, "top_values": values})
    import_store("distillkit", write(tmp_path / "x.jsonl", found), tokenizer(), SIZE, tmp_path / "store", TOP)
    check(tmp_path / "store", texts, begins=False)


def test_an_imported_rest_is_what_is_missing_to_one(tmp_path):
    texts = likely()
    path = write(tmp_path / "said.jsonl", [vllm_row(ids, begin, "scored") for ids, begin in texts])
    import_store("vllm", path, tokenizer(), SIZE, tmp_path / "store", TOP)
    batch = collate([(texts[0][0], 1)])
    told = stored(tmp_path / "store")(batch).logits_at(batch["answer"])
    real = ToyTeacher()(batch).logits_at(batch["answer"])
    best = real.topk(TOP, -1).indices
    rest = real.softmax(-1).scatter(1, best, 0.0)
    torch.testing.assert_close(told.exp().scatter(1, best, 0.0).sum(1), rest.sum(1), atol=2e-3, rtol=0)
    assert forward_kl(told, real).mean() < 0.5


SPOILED = [
    (lambda r: r.pop("prompt_token_ids"), "prompt_token_ids: expected a list of token ids, but got None"),
    (lambda r: r["prompt_logprobs"].pop(), "prompt_token_ids, but .* prompt_logprobs"),
    (lambda r: r["prompt_logprobs"].__setitem__(2, {"the": -1.0}), "expected tokens by number"),
    (lambda r: r["prompt_logprobs"].__setitem__(2, {"999999": -1.0}), "names the token 999999"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED)
def test_a_line_of_another_shape_is_named(tmp_path, spoil, message):
    found = [vllm_row(ids, begin, "scored") for ids, begin in likely()]
    spoil(found[3])
    path = write(tmp_path / "said.jsonl", found)
    with pytest.raises(LimbeckError, match=f"said.jsonl:4: .*{message}"):
        import_store("vllm", path, tokenizer(), SIZE, tmp_path / "store", TOP)


def test_lists_that_belong_to_other_tokens_are_refused(tmp_path):
    found = [vllm_row(ids, begin, "scored") for ids, begin in likely()]
    for row in found:
        row["prompt_token_ids"] = [(i * 7) % SIZE for i in row["prompt_token_ids"]]
    with pytest.raises(LimbeckError, match="the texts' own tokens are among the candidates for the next place in"):
        import_store("vllm", write(tmp_path / "x.jsonl", found), tokenizer(), SIZE, tmp_path / "store", TOP)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(LimbeckError, match=r"--import: expected one of vllm, axolotl, distillkit, but got 'vlm'"):
        import_store("vlm", tmp_path, tokenizer(), SIZE, tmp_path / "store")
    write(tmp_path / "a.jsonl", [{"prompt_token_ids": [1, 2, 3], "prompt_logprobs": None}])
    with pytest.raises(LimbeckError, match=r"a.jsonl: holds no log-probabilities"):
        import_store("vllm", tmp_path / "a.jsonl", tokenizer(), SIZE, tmp_path / "store")
    write(tmp_path / "b.jsonl", [{"input_ids": [1, 2], "compressed_logprobs": [[0]], "bytepacked_indices": [[0]]}])
    with pytest.raises(LimbeckError, match=r"compression_config.yaml: no such file"):
        import_store("distillkit", tmp_path / "b.jsonl", tokenizer(), SIZE, tmp_path / "store")
    write(tmp_path / "c.jsonl", [{"input_ids": [1, 2], "packed_indices": [[0]]}])
    with pytest.raises(LimbeckError, match=r"c.jsonl:1: expected compressed_logprobs and bytepacked_indices"):
        import_store("distillkit", tmp_path / "c.jsonl", tokenizer(), SIZE, tmp_path / "store")
