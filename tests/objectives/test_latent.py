"""Comparisons of inner states against TinyBERT's released code, or its formula where that code errs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.attention import scores_of
from limbeck.objectives.latent import Latent, relations, states
from limbeck.sources.model import model_source
from limbeck.students.layers import shape

GOLDEN = Path(__file__).parents[1] / "golden" / "ernie-tiny"
START = Clock(0, 1)


def golden(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


def shared(made: Latent, weight: Tensor, bias: Tensor) -> Latent:
    """``made`` with the released code's one map for all pairs."""
    one = nn.Linear(*reversed(weight.shape), dtype=weight.dtype)
    one.weight, one.bias = nn.Parameter(weight), nn.Parameter(bias)
    for name in made.links:
        made.links[name] = one
    return made


def of_scores(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v whose attention scores these are."""
    width = scores.shape[-1]
    key = torch.eye(width, dtype=scores.dtype).expand_as(scores)
    return scores * width**0.5, key, key


def sums(made: Latent, ours: Signals, theirs: Signals, mask: Tensor) -> dict[str, Tensor]:
    """Each term as the golden arrays average it: states over real tokens, attention over all pairs of them."""
    terms = made.goal(ours, theirs, {"ids": mask, "mask": mask}, START)
    means = {name: terms[name].sum / mask.sum() for name in ("embeddings", "states")}
    rows = range(len(mask))
    alone = [made.goal(row(ours, i), row(theirs, i), {"mask": mask[i : i + 1]}, START)["attention"].sum for i in rows]
    torch.testing.assert_close(sum(alone), terms["attention"].sum)
    pairs = mask.sum(1) ** 2
    return means | {"attention": (torch.stack(alone) * pairs).sum() / pairs.sum()}


def row(said: Signals, i: int) -> Signals:
    hidden = {n: value[i : i + 1] for n, value in said.hidden.items()}
    qkv = {n: tuple(x[i : i + 1] for x in value) for n, value in said.qkv.items()}
    return Signals(hidden=hidden, qkv=qkv)


def test_golden_terms():
    case = {name: value.double() for name, value in golden("latent_losses").items()}
    made, mask = shared(states((2, 5, 2), (6, 8, 2)), case["w_fit"], case["w_fit_bias"]), case["in_mask"].bool()
    ours, theirs = (
        Signals(
            hidden=dict(enumerate(case[f"in_{side}_reps"])),
            qkv={i + 1: of_scores(scores) for i, scores in enumerate(case[f"in_{side}_atts"])},
        )
        for side in ("student", "teacher")
    )
    torch.testing.assert_close(made.links["1-3"](ours.hidden[1]), case["ref_fit_states"][1], rtol=1e-6, atol=1e-6)
    every = sums(made, ours, theirs, torch.ones_like(mask))
    terms = case["ref_rep_terms"].float()
    torch.testing.assert_close(
        torch.stack([every["embeddings"], every["states"]]), terms.new_tensor([terms[0], terms[1:].sum()])
    )
    found = sums(made, ours, theirs, mask)
    torch.testing.assert_close(found["attention"].double(), case["fix_att_loss_valid_pairs"], rtol=1e-6, atol=0)
    both = (found["embeddings"] + found["states"]).double()
    torch.testing.assert_close(both, case["fix_rep_loss_valid_tokens"], rtol=1e-6, atol=0)


def tinybert(case: dict[str, Tensor], side: str) -> BertModel:
    weights = {name.removeprefix(f"w_{side}."): value for name, value in case.items() if name.startswith(f"w_{side}.")}
    inner = weights["encoder.layer.0.intermediate.dense.weight"]
    words, positions, types = (
        len(weights[f"embeddings.{kind}_embeddings.weight"]) for kind in ("word", "position", "token_type")
    )
    config = BertConfig(
        vocab_size=words,
        max_position_embeddings=positions,
        type_vocab_size=types,
        hidden_size=inner.shape[1],
        intermediate_size=inner.shape[0],
        num_hidden_layers=int(case[f"hp_{side}_layers"]),
        num_attention_heads=int(case[f"hp_{side}_heads"]),
        layer_norm_eps=float(case["hp_ln_eps"]),
    )
    model = BertModel(config, add_pooling_layer=any(name.startswith("pooler") for name in weights))
    model.load_state_dict(weights)
    return model.eval()


@torch.no_grad()
def test_golden_models():
    case = golden("tinybert_model")
    student, teacher = tinybert(case, "student"), tinybert(case, "teacher")
    made, mask = (
        shared(states(shape(student), shape(teacher)), case["w_fit"], case["w_fit_bias"]),
        case["in_attention_mask"].bool(),
    )
    batch = {"ids": case["in_input_ids"], "types": case["in_token_type_ids"], "mask": mask}
    ours, theirs = (
        model_source(model, **asked)(batch) for model, asked in zip((student, teacher), made.asked, strict=True)
    )
    for i, j in ((0, 0), (1, 2), (2, 4)):
        fitted = made.links[f"{i}-{j}"](ours.hidden[i])
        torch.testing.assert_close(fitted[mask], case["out_student_reps"][i][mask], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs.hidden[j][mask], case["out_teacher_reps"][j][mask], rtol=1e-5, atol=1e-5)
    both = mask[:, None, :, None] & mask[:, None, None, :]
    for said, name, layer in ((ours, "student", 2), (theirs, "teacher", 4)):
        found, expected = scores_of(*said.qkv[layer][:2]), case[f"out_{name}_atts"][layer - 1]
        torch.testing.assert_close(found * both, expected * both, rtol=1e-5, atol=1e-5)
    found = sums(made, ours, theirs, mask)
    torch.testing.assert_close(found["attention"].double(), case["fix_att_loss_valid_pairs"], rtol=1e-5, atol=0)
    both = (found["embeddings"] + found["states"]).double()
    torch.testing.assert_close(both, case["fix_rep_loss_valid_tokens"], rtol=1e-5, atol=0)


def test_each_pair_has_a_map_of_its_own_without_a_bias():
    made = states((2, 5, 1), (4, 8, 2))
    assert {name: tuple(link.weight.shape) for name, link in made.links.items()} == dict.fromkeys(
        ("0-0", "1-2", "2-4"), (8, 5)
    )
    assert all(link.bias is None for link in made.links.values())
    assert made.asked == ({"hidden": [0, 1, 2], "qkv": [1, 2]}, {"hidden": [0, 2, 4], "qkv": [2, 4]})
    assert not list(states((2, 8, 2), (4, 8, 2)).links.parameters())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(LimbeckError, match="a student of 6 layers cannot learn layer by layer from a teacher of 4"):
        states((6, 8, 2), (4, 8, 2))
    with pytest.raises(LimbeckError, match="3 relation heads do not divide a width of 8"):
        relations((2, 6, 2), (4, 8, 2), 3)


def test_relations_of_equal_layers_are_zero():
    generator = torch.Generator().manual_seed(0)
    said = Signals(qkv={1: tuple(torch.randn(2, 2, 3, 4, generator=generator) for _ in "qkv")})
    made = relations((1, 8, 2), (1, 8, 2), 4)
    terms = made.goal(said, said, {"mask": torch.ones(2, 3, dtype=torch.bool)}, START)
    assert set(terms) == {"queries", "keys", "values"}
    assert all(abs(float(term.sum)) < 1e-6 for term in terms.values())
    assert made.asked == ({"qkv": [-1]}, {"qkv": [-1]})
