"""Whether two models read text alike."""

from __future__ import annotations

from typing import Any

from limbeck.core.check import require

PROBE = "A probe: 12 words, Ünïcode & ends.\nWith lines"


def check_same_tokenizer(one: Any, other: Any, whose: str = "student and teacher") -> None:
    """Raise ``LimbeckError`` unless both tokenizers give every token the same id and split text alike."""
    ours, theirs = one.get_vocab(), other.get_vocab()
    odd = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    require(
        not odd,
        f"{whose} need one tokenizer, but theirs have {len(ours)} and {len(theirs)} tokens of which {len(odd)} differ "
        f"(such as {odd[:1]}); take models of one family",
    )
    ids = [tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (one, other)]
    require(ids[0] == ids[1], f"{whose} have one vocabulary but split text differently; give them one tokenizer")
