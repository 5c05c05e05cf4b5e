"""Models by name, and whether two of them read text alike. Nothing is loaded here."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from limbeck.core.check import require

BROKEN = (OSError, ValueError, KeyError, SafetensorError)  # what a missing or broken checkpoint raises
EMBEDDED = "limbeck:"  # "limbeck:<folder>" names a model that ships inside the package
PROBE = "A probe: 12 words, Ünïcode & ends.\nWith lines"


def place(name: str | Path) -> str:
    """Where a model named by a folder, a Hub id or ``limbeck:<folder in the package>`` is to be loaded from."""
    text = str(name)
    if not text.startswith(EMBEDDED):
        return text
    folder = Path(str(files("limbeck").joinpath(*text.removeprefix(EMBEDDED).split("/"))))
    require(
        folder.is_dir(), f"{text}: this installation does not hold that model; name a folder or Hub id, or reinstall"
    )
    return str(folder)


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


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
