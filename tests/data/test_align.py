"""How far each token has read, checked against what the tokens before it spell; and where two cuts agree."""

import unicodedata
from itertools import permutations

import numpy as np
import pytest
from cutters import HARD, KINDS, TEXTS, cutter

from limbeck.core.check import LimbeckError
from limbeck.data.align import UNKNOWN, Cut, agree, cuts, join, mark, silent, words

EXACT = ["byte level", "byte level, own space", "byte fallback"]


def read(cut: Cut) -> list[int]:
    """Bytes of the text itself."""
    return [int(end) - 2 if end != UNKNOWN else UNKNOWN for end in cut.ends]


def bare(text: str) -> str:
    """What all tokenizers see of a text, whatever they do to it first."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in plain if not c.isspace() and unicodedata.category(c) not in ("Mn", "Cf"))


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("text", TEXTS + HARD)
def test_bytes_of_tokenizers_that_spell_every_byte(kind, text):
    tokenizer, raw = cutter(kind), text.encode()
    cut = words(tokenizer, text)
    for n, end in enumerate(read(cut), 1):
        whole = b"".join(spelled(tokenizer, cut.ids[:n]))
        assert whole.removeprefix(b" " if cut.start == 1 else b"") == raw[:end]
    assert len(raw) == (read(cut)[-1] if text else 0)
    assert cut.size == len(raw) + 2


def spelled(tokenizer, ids):
    from limbeck.data.spelling import spelling

    return [spelling(tokenizer).pieces[i] for i in ids]


@pytest.mark.parametrize("text", [*TEXTS, *HARD, "  two spaces e\u0301", " e\u0301 \n\n x"])
def test_places_in_a_text_that_is_normalised_first(text):
    """White space counts too: the front of the text, normalised, is what the tokens spell."""
    tokenizer = cutter("byte level, NFC")
    cut = words(tokenizer, text)
    for n, end in enumerate(read(cut), 1):
        if end != UNKNOWN:
            front = text.encode()[:end]
            whole = b"".join(spelled(tokenizer, cut.ids[:n]))
            assert whole in (front, unicodedata.normalize("NFC", front.decode(errors="replace")).encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS + HARD)
def test_what_was_read_is_what_the_tokens_decode_to(kind, text):
    """A known place parts the text as the tokens do: the decoded front and rest are those of the text."""
    tokenizer, raw = cutter(kind), text.encode()
    cut = words(tokenizer, text)
    known = [(n, end) for n, end in enumerate(read(cut), 1) if end != UNKNOWN]
    assert sorted(end for _, end in known) == [end for _, end in known]
    unknown = tokenizer.unk_token_id
    for n, end in known:
        front, rest = (piece.decode(errors="replace") for piece in (raw[:end], raw[end:]))
        if "\ufffd" in front or unknown in cut.ids[:n]:
            continue
        assert bare(tokenizer.decode(cut.ids[:n])) == bare(front), (n, end, rest)


def test_most_places_are_known_also_where_the_text_is_changed():
    for kind in KINDS:
        ends = np.concatenate([words(cutter(kind), text).ends for text in TEXTS])
        assert (ends != UNKNOWN).mean() > 0.9, kind


def test_parts_of_a_character_are_told_apart():
    """Characters would say that half an apple is an apple."""
    cut = words(cutter("byte level"), "🍎𝒳")
    assert read(cut) == [2, 4, 5, 6, 7, 8]
    assert read(words(cutter("byte fallback"), "北")) == [0, 1, 2, 3]  # its own space, then three bytes


def test_what_a_tokenizer_drops_belongs_to_the_token_before():
    accent = "cafe\u0301 x"
    assert 5 not in read(words(cutter("word piece"), accent))  # after the e, before the accent
    assert 6 in read(words(cutter("word piece"), accent))
    assert 4 in read(words(cutter("byte level"), accent))
    assert 4 not in read(words(cutter("byte level, NFC"), accent))
    assert read(words(cutter("word piece"), "a  \n"))[-1] == 1  # white space belongs to none


def test_a_character_that_becomes_several_tokens_has_no_inner_place():
    cut = words(cutter("unigram"), "½")
    assert len(cut.ids) > 1
    assert read(cut) == [UNKNOWN] * (len(cut.ids) - 1) + [2]


def test_a_text_begins_elsewhere_for_a_tokenizer_with_a_space_of_its_own():
    starts = {kind: words(cutter(kind), "pere").start for kind in KINDS}
    own = {"byte level, own space", "unigram", "unigram by word", "byte fallback", "word piece"}
    assert starts == {kind: 1 if kind in own else 2 for kind in KINDS}
    assert words(cutter("byte fallback"), " pere").start == 1
    assert words(cutter("byte level"), " pere").start == 2


@pytest.mark.parametrize(("one", "two"), list(permutations(KINDS, 2)))
def test_two_cuts_agree_on_the_same_text(one, two):
    for text in TEXTS + HARD:
        ours, theirs = words(cutter(one), text), words(cutter(two), text)
        places = agree(ours, theirs)
        assert (np.diff(places, axis=0) > 0).all()
        assert (ours.ends[places[:, 0]] == theirs.ends[places[:, 1]]).all()
        both = set(read(ours)) & set(read(theirs)) - {UNKNOWN}
        assert [read(ours)[i] for i, _ in places] == sorted(both)


def test_equal_cuts_agree_everywhere():
    cut = words(cutter("unigram"), "½ ﬁne")
    assert UNKNOWN in cut.ends
    assert agree(cut, cut).tolist() == [[i, i] for i in range(len(cut.ids))]


def test_many_texts_are_cut_as_each_alone():
    for text, cut in zip(TEXTS, cuts(cutter("unigram"), TEXTS, at_once=4), strict=True):
        alone = words(cutter("unigram"), text)
        assert cut.ids.tolist() == alone.ids.tolist()
        assert cut.ends.tolist() == alone.ends.tolist()


def test_parts_of_a_row():
    ours, theirs = cutter("byte level"), cutter("byte level, NFC")
    mine = join([silent([7, 8]), words(ours, "pere"), mark([0])])
    other = join([silent([5]), words(theirs, "pere"), mark([9, 0])])
    places = agree(mine, other)
    assert places[0].tolist() == [1, 0]  # after each side's own prompt, before the text
    assert places[-1].tolist() == [len(mine.ids) - 1, len(other.ids) - 1]
    assert (mine.size, mine.keep.tolist()[:3]) == (4 + 2 + 1, [False, False, True])
    mixed = join([silent([5]), words(cutter("unigram"), "pere"), mark([1])])
    assert agree(mine, mixed)[0].tolist() != [1, 0]  # one of the two predicts a space there
    assert agree(mine, mixed)[-1].tolist() == [len(mine.ids) - 1, len(mixed.ids) - 1]


def test_two_texts_in_a_row():
    ours, theirs = cutter("byte level"), cutter("byte level, NFC")
    rows = [join([words(t, "mere"), mark([0]), words(t, "🍎"), mark([0])]) for t in (ours, theirs)]
    ends = [row.ends[row.ends != UNKNOWN] for row in rows]
    assert all((np.diff(e) > 0).all() for e in ends)
    assert ends[0][-1] == ends[1][-1] == 6 + 1 + 6 + 1


def test_a_slow_tokenizer_is_refused():
    class Slow:
        def __len__(self):
            return 3

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(LimbeckError, match=r"fast tokenizers, those with a tokenizer.json, but this is a Slow"):
        words(Slow(), "a")
