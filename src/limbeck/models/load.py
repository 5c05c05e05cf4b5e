"""Models and tokenizers by name: found in a folder, on the Hub or in the package, and loaded whole or not at all.

The only place that loads them. Code that comes with a model is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from limbeck.core.check import LimbeckError, first_line, require
from limbeck.core.save import STORE

Kind = Literal["base", "masked", "causal", "language", "pretraining", "saved"]
Dtype = Literal["float32", "bfloat16", "float16"]
AUTO = {
    "base": "AutoModel",
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "pretraining": "AutoModelForPreTraining",
}
EMBEDDED = "limbeck:"  # "limbeck:<folder>" names a model that ships inside the package
PLAIN: dict[str, Any] = {"trust_remote_code": False}  # None, the default of transformers, asks on the terminal


def place(name: str | Path) -> str:
    """Where a model named by a folder, a Hub id or ``limbeck:<folder in the package>`` is to be loaded from."""
    text = str(name)
    if not text.startswith(EMBEDDED):
        path = text.startswith((".", "/")) or text.count("/") > 1  # no Hub id looks like that
        require(not path or Path(text).exists(), f"cannot load {text!r}: no such folder; give a folder or a Hub id")
        return text
    folder = Path(str(files("limbeck").joinpath(*text.removeprefix(EMBEDDED).split("/"))))
    require(
        folder.is_dir(), f"{text}: this installation does not hold that model; name a folder or Hub id, or reinstall"
    )
    return str(folder)


def load_model(
    name: str | Path, kind: Kind, dtype: Dtype | Literal["auto"] = "float32", **settings: Any
) -> tuple[Any, Any]:
    """The model that ``name`` stands for (see ``place``), in eval mode, and its tokenizer.

    ``kind``: "base" (no head), "masked" or "causal" language model, "language" (causal or encoder-decoder, as its
    configuration says), "pretraining" (with the head that it was first trained with) or "saved" (of the class that it
    was saved as). ``dtype`` "auto": the precision it was saved in.
    ``settings`` go to ``from_pretrained`` (see ``models.placement.held``).

    Raises ``LimbeckError`` if there is no such model, if its files are broken, or if they lack weights, which would
    silently be random. A base model whose files lack the pooler's is left without one.
    """
    return load_network(name, kind, dtype, **settings), load_tokenizer(name)


def load_network(name: str | Path, kind: Kind, dtype: Dtype | Literal["auto"] = "float32", **settings: Any) -> Any:
    """The model alone: ``load_model`` without a tokenizer."""
    import transformers

    where, what = place(name), f"{str(name)!r} as a {kind} model"
    require(
        not (Path(where) / STORE).is_file(),
        f"{str(name)!r} is a store of what a teacher said (limbeck teach), but here the model itself is needed; what "
        "compares logits on fixed data takes a store",
    )
    with _loading(what):
        config = transformers.AutoConfig.from_pretrained(where, **PLAIN)
    if kind in ("causal", "language"):
        _check_causal(config, str(name))
    with _loading(what):
        model, info = _class(config, kind).from_pretrained(
            where,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **PLAIN,
            **settings,
        )
    absent = sorted(info["missing_keys"])
    if kind == "base" and any(key.startswith("pooler.") for key in absent):
        model.pooler, absent = None, [key for key in absent if not key.startswith("pooler.")]
    if odd := sorted(key for key, *_ in info["mismatched_keys"]):
        raise LimbeckError(f"cannot load {what}: the shape of {_some(odd)} is not what its config.json says")
    if absent:
        raise LimbeckError(
            f"{str(name)!r} holds no weights for {_some(absent)}, so as a {kind} model it would be random there; give "
            "a whole checkpoint that was trained as one"
        )
    return model.eval()


def new_network(config: Any, kind: Kind) -> Any:
    """A model of ``config``, randomly initialised (seed it with torch)."""
    return _class(config, kind).from_config(config, **PLAIN)


def load_config(name: str | Path) -> Any:
    """What a model looks like, without its weights."""
    from transformers import AutoConfig

    where = place(name)
    with _loading(f"the configuration of {str(name)!r}"):
        return AutoConfig.from_pretrained(where, **PLAIN)


def _check_causal(config: Any, name: str) -> None:
    """Refuse an encoder, which transformers would load as a language model that sees what it is to predict."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    causal = config.is_encoder_decoder or any(getattr(config, flag, False) for flag in ("is_decoder", "causal"))
    require(
        causal or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        f"{name!r} is an encoder ({config.model_type}), which reads the tokens that it would have to predict; a causal "
        "language model is needed here",
    )


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer that stands beside a model."""
    from transformers import AutoTokenizer

    where = place(name)
    with _loading(f"the tokenizer of {str(name)!r}"):
        return AutoTokenizer.from_pretrained(where, **PLAIN)


def _class(config: Any, kind: Kind) -> Any:
    """The class of transformers for ``config`` as a ``kind``."""
    import transformers

    if kind == "saved":
        return getattr(transformers, (config.architectures or ["AutoModel"])[0])
    if kind != "language":
        return getattr(transformers, AUTO[kind])
    return getattr(transformers, AUTO["seq2seq" if config.is_encoder_decoder else "causal"])


def _some(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} ({len(keys)} in all)"


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Inside, transformers loads without progress bars and notes; whatever it raises becomes one sentence."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # broken files raise almost anything: ZeroDivisionError, struct.error, ...
        raise LimbeckError(f"cannot load {what}: {first_line(error)}; give a folder or a Hub id") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
