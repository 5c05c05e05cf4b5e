"""Batches: order, resuming, padding, and the two language-model streams."""

from collections import Counter

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.data.stream import Batches, lengths_mask, lm_batches, masked, mlm_batches, pad, text_batches

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[END]"]


@pytest.fixture(scope="module")
def tokenizer():
    """One token per letter; [CLS] and [SEP] around a row, [END] behind a document."""
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*SPECIAL, *"abcdefghij"])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "eos": "[END]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{f"{k}_token": v for k, v in names.items()})


def rows_of(stream, batches):
    return [row for batch in stream.take(batches) for row in batch]


def test_every_epoch_holds_every_row_once_though_batches_cross_its_border():
    rows = rows_of(Batches(list(range(7)), list, 3, seed=1), 7)
    epochs = [rows[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_without_shuffling_rows_come_in_order():
    assert rows_of(Batches("abc", list, 2, shuffle=False), 3) == list("abcabc")


def test_the_order_is_the_seed_s():
    orders = [rows_of(Batches(list(range(50)), list, 10, seed=seed), 5) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_resuming_at_any_batch_gives_what_would_have_come():
    make = lambda: Batches(list(range(11)), lambda rows, rng: (rows, rng.random()), 4, seed=3, draws=True)  # noqa: E731
    whole = make().take(12)
    for stop in range(12):
        first, second = make(), make()
        first.take(stop)
        second.load_state_dict(first.state_dict())
        assert second.take(12 - stop) == whole[stop:]


def test_the_position_counts_the_batch_that_was_just_given():
    stream = Batches("abc", list, 1)
    iterator = iter(stream)
    next(iterator)
    assert stream.state_dict()["position"] == 1


def test_a_batch_can_be_asked_for_by_number():
    stream = Batches(list(range(11)), list, 4, seed=3)
    assert stream.at(5) == Batches(list(range(11)), list, 4, seed=3).take(6)[5]
    assert stream.position == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Batches([], list, 2), "the stream has no rows"),
        (lambda: Batches([1], list, 0), "a batch must hold at least one row, but batch is 0"),
        (lambda: Batches(type("E", (), {"__getitem__": lambda s, i: i})(), list, 1), "rows without a length"),
        (
            lambda: Batches([1, 2], list, 1).load_state_dict(Batches([1], list, 1).state_dict()),
            "the saved stream had rows 1, but this one has 2",
        ),
        (
            lambda: Batches([1], list, 1, seed=1).load_state_dict(Batches([1], list, 1).state_dict()),
            "the saved stream had seed 0, but this one has 1",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def test_padding():
    assert pad([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert pad([[1]], length=3).tolist() == [[1, 0, 0]]
    assert lengths_mask([[1, 2, 3], [4]]).tolist() == [[True, True, True], [True, False, False]]
    assert lengths_mask([[1]], length=2).tolist() == [[True, False]]


def test_lm_batches_pack_documents_with_an_end_between(tokenizer):
    stream = lm_batches(["abc", "de", "fghij"], tokenizer, 4, 3)
    batch = stream.take(1)[0]
    text = sorted(tokenizer.decode(row).replace(" ", "") for row in batch["ids"])
    assert text == ["abc[END]", "de[END]f", "ghij"]  # the last [END] is a rest
    assert batch["mask"].all()
    assert batch["targets"][:, :-1].equal(batch["ids"][:, 1:])
    assert (batch["targets"][:, -1] == IGNORE).all()
    assert batch["answer"].sum() == 9


def test_lm_batches_need_a_window_of_text(tokenizer):
    with pytest.raises(LimbeckError, match="the corpus has 3 tokens, fewer than one window of 4"):
        lm_batches(["ab"], tokenizer, 4, 1)
    with pytest.raises(LimbeckError, match="the corpus holds no text"):
        lm_batches([], tokenizer, 4, 1)
    with pytest.raises(LimbeckError, match="a window needs at least 2 tokens"):
        lm_batches(["ab"], tokenizer, 1, 1)


def test_text_rows_have_special_tokens_and_long_documents_several_rows(tokenizer):
    batch = text_batches(["abcdefg", "h", ""], tokenizer, 5, 4).take(1)[0]
    text = sorted(
        tokenizer.decode(row[mask]).replace(" ", "") for row, mask in zip(batch["ids"], batch["mask"], strict=True)
    )
    assert text == ["[CLS]abc[SEP]", "[CLS]def[SEP]", "[CLS]g[SEP]", "[CLS]h[SEP]"]


def test_mlm_hides_what_it_asks_for_and_nothing_else(tokenizer):
    stream = mlm_batches(["abcdefghij" * 2, "abc", "j"], tokenizer, 12, 4, probability=0.3)
    plain = text_batches(["abcdefghij" * 2, "abc", "j"], tokenizer, 12, 4)
    for hidden, whole in zip(stream.take(20), plain.take(20), strict=True):
        answer = hidden["answer"]
        assert answer.any()
        assert hidden["targets"][answer].equal(whole["ids"][answer])
        assert (hidden["targets"][~answer] == IGNORE).all()
        assert hidden["ids"][~answer].equal(whole["ids"][~answer])
        assert (whole["ids"][answer] >= len(SPECIAL)).all()  # neither padding nor [CLS] nor [SEP]
        assert hidden["mask"].equal(whole["mask"])


def test_mlm_chooses_the_share_and_divides_it_80_10_10(tokenizer):
    import numpy as np

    ids = torch.randint(6, 16, (200, 100), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = 2
    out = masked(ids, torch.ones_like(ids, dtype=torch.bool), tokenizer, 0.15, np.random.default_rng(0))
    chosen = out["answer"]
    assert abs(chosen[:, 1:].float().mean() - 0.15) < 0.01
    assert not chosen[:, 0].any()
    became = Counter(
        "mask" if new == 4 else "same" if new == old else "random"
        for new, old in zip(out["ids"][chosen].tolist(), ids[chosen].tolist(), strict=True)
    )
    total = int(chosen.sum())
    assert abs(became["mask"] / total - (0.8 + 0.1 / 16)) < 0.03  # a random token may be the mask, or the old one
    assert abs(became["same"] / total - (0.1 + 0.1 / 16)) < 0.03
    assert abs(became["random"] / total - 0.1 * 14 / 16) < 0.03


def test_mlm_masks_depend_on_the_visit_and_resume(tokenizer):
    make = lambda: mlm_batches(["abcdefghij"], tokenizer, 12, 1, seed=5)  # noqa: E731
    whole = make().take(6)
    assert len({tuple(batch["answer"][0].tolist()) for batch in whole}) > 1
    again = make()
    again.load_state_dict({**again.state_dict(), "position": 3})
    assert all(a["ids"].equal(b["ids"]) for a, b in zip(again.take(3), whole[3:], strict=True))


def test_mlm_refuses_what_cannot_be_masked(tokenizer):
    import copy

    without = copy.deepcopy(tokenizer)
    without.mask_token = None
    with pytest.raises(LimbeckError, match="needs a tokenizer with a mask token"):
        mlm_batches(["abc"], without, 8, 1)
    with pytest.raises(LimbeckError, match="the masking probability must lie between 0 and 1, but is 0"):
        mlm_batches(["abc"], tokenizer, 8, 1, probability=0)
    with pytest.raises(LimbeckError, match="rows of 2 tokens leave no room"):
        mlm_batches(["abc"], tokenizer, 2, 1)
    with pytest.raises(LimbeckError, match="the corpus holds no text"):
        mlm_batches([""], tokenizer, 8, 1)


def test_rows_of_like_size_share_a_batch_and_every_row_comes_once_per_epoch():
    rows = [[n] * (1 + n % 40) for n in range(512)]

    def batches(**settings):
        return Batches(rows, lambda found: {"ids": pad(found)}, 8, **settings)

    def first(stream):
        return [stream.at(number)["ids"][:, 0].tolist() for number in range(64)]

    def area(stream):
        return sum(stream.at(number)["ids"].numel() for number in range(64))

    alike = batches(size_of=len)
    assert sorted(row for batch in first(alike) for row in batch) == list(range(512))
    assert alike.at(64)["ids"][:, 0].tolist() != alike.at(0)["ids"][:, 0].tolist()  # the next epoch has another order
    assert area(alike) < 0.7 * area(batches())
    assert first(batches(size_of=len)) == first(alike)


def test_endless_rows_of_like_size_share_a_batch():
    class Rows:
        def __getitem__(self, index):
            return [index] * (1 + index % 7)

    stream = Batches(Rows(), lambda found: {"ids": pad(found)}, 4, shuffle=False, size_of=len)
    seen = [stream.at(number)["ids"] for number in range(128)]
    assert sorted(row for ids in seen for row in ids[:, 0].tolist()) == list(range(512))
    assert sum(ids.numel() for ids in seen) < 512 * 7 * 0.75
    single = Batches(Rows(), lambda found: {"ids": pad(found)}, 1, shuffle=False, size_of=len)
    assert [single.at(i)["ids"][0, 0].item() for i in range(4)] == seen[0][:, 0].tolist()


def test_few_rows_of_like_size_come_once_per_epoch_too():
    rows = [[n] * (1 + n % 5) for n in range(37)]
    stream = Batches(rows, lambda found: {"ids": pad(found)}, 1, size_of=len)
    for epoch in range(3):
        seen = [stream.at(37 * epoch + number)["ids"][0, 0].item() for number in range(37)]
        assert sorted(seen) == list(range(37))
