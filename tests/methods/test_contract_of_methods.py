"""The shared contract, one case per training method of language models and encoders."""

import encoder_stages as stages
import pytest
import torch
from contract import CHECKS, Case, stages_of
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from limbeck.core.batch import IGNORE, Batch, next_token_batch
from limbeck.data.packing import packed_batches, row, row_batches
from limbeck.data.samples import Sample
from limbeck.methods.encoders import minilm
from limbeck.methods.language_models import (
    ddk,
    distill,
    distillm,
    gkd,
    minillm,
    semantic_revision,
    seqkd,
    taid,
    teacher_hacking,
)
from limbeck.methods.multilingual import romanian_multi_teacher, vocab_trim
from limbeck.students.adapters import with_lora
from limbeck.students.layers import keep_layers

VOCABULARY, ROWS, LENGTH = 19, 8, 7


def sizes(width: int = 16, layers: int = 2) -> dict[str, int]:
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    return {"vocab_size": VOCABULARY, "num_attention_heads": 2, "max_position_embeddings": 16, **shape}


def outspoken(model):
    """A model with opinions: the usual initialisation says the same everywhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model.eval()


def llama(**size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**sizes(**size)))


def bert(**size: int) -> BertForMaskedLM:
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForMaskedLM(BertConfig(**sizes(**size), **silent))


def ids_and_mask(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH + 1, (10, ROWS, 1), generator=generator)
    ids = torch.randint(VOCABULARY, (10, ROWS, LENGTH), generator=generator)
    return list(zip(ids, torch.arange(LENGTH) < lengths, strict=True))


def masked_words(seed: int) -> list[Batch]:
    batches = []
    for ids, mask in ids_and_mask(seed):
        answer = mask & (torch.arange(LENGTH) % 3 == 1)
        batches.append({"ids": ids, "mask": mask, "answer": answer, "targets": ids.where(answer, torch.tensor(IGNORE))})
    return batches


def taid_stage(seed: int, **settings):
    torch.manual_seed(seed)
    student, teacher = llama(width=8, layers=1), outspoken(llama())
    stream = [next_token_batch(*batch) for batch in ids_and_mask(seed)]
    cfg = taid.Config(steps=8, seed=seed, alpha=0.2, **settings)
    (stage,) = stages_of(taid, lambda: taid.taid(student, teacher, stream, cfg))
    return stage


def ddk_stage(seed: int, **settings):
    torch.manual_seed(seed)
    student, teacher = llama(width=8, layers=1), outspoken(llama())
    parts = {}
    for number, name in enumerate("ab"):
        texts = [
            row(ids[mask].tolist(), [True] * int(mask.sum()))
            for batch in ids_and_mask(seed + number)
            for ids, mask in zip(*batch, strict=True)
        ]
        parts[name] = ddk.Domain(row_batches(texts, ROWS, seed), row_batches(texts, ROWS).take(1))
    cfg = ddk.Config(steps=8, seed=seed, batch=ROWS, interval=2, **settings)
    (stage,) = stages_of(ddk, lambda: ddk.ddk(student, teacher, parts, cfg))
    return stage


def distill_stage(seed: int, adapters: int = 0, packed: bool = False, **settings):
    torch.manual_seed(seed)
    student, teacher = llama(width=8, layers=1), outspoken(llama())
    if adapters:
        student = with_lora(outspoken(student), adapters)
    stream = [next_token_batch(*batch) for batch in ids_and_mask(seed)]
    if packed:
        texts = [
            row(ids[mask].tolist(), [True] * int(mask.sum()))
            for batch in ids_and_mask(seed)
            for ids, mask in zip(*batch, strict=True)
        ]
        stream = packed_batches(texts, 12, ROWS, seed)
    cfg = distill.Config(steps=8, seed=seed, **settings)
    (stage,) = stages_of(distill, lambda: distill.distill(student, teacher, stream, cfg))
    return stage


def seqkd_stage(seed: int):
    torch.manual_seed(seed)
    student = llama(width=8, layers=1)
    stream = [next_token_batch(*batch) for batch in ids_and_mask(seed)]
    (stage,) = stages_of(seqkd, lambda: seqkd.learn(student, stream, seqkd.Config(steps=8, seed=seed)))
    return stage


def minilm_stage(seed: int, **settings):
    torch.manual_seed(seed)
    student, teacher = bert(width=8, layers=1).bert, outspoken(bert()).bert
    stream = [{"ids": ids, "mask": mask} for ids, mask in ids_and_mask(seed)]
    cfg = minilm.Config(steps=8, seed=seed, assistant="never", **settings)
    (stage,) = stages_of(minilm, lambda: minilm.minilm(student, teacher, stream, cfg))
    return stage


def romanian_stage(seed: int):
    torch.manual_seed(seed)
    teachers = [outspoken(bert()), outspoken(bert())]
    student, cfg = keep_layers(teachers[0], [0]), romanian_multi_teacher.Config(steps=8, seed=seed)
    recipe = romanian_multi_teacher.romanian_multi_teacher
    (stage,) = stages_of(romanian_multi_teacher, lambda: recipe(student, teachers, masked_words(seed), cfg))
    return stage


def healing_stage(seed: int):
    torch.manual_seed(seed)
    keep = list(range(12))
    small = LlamaForCausalLM(LlamaConfig(**{**sizes(), "vocab_size": len(keep)}))
    stream = [
        {"ids": ids % len(keep), "mask": mask, "aligned": mask, "teacher_ids": ids, "teacher_mask": mask}
        | {"teacher_aligned": mask}
        for ids, mask in ids_and_mask(seed)
    ]
    cfg = vocab_trim.Config(heal=8, seed=seed)
    (stage,) = stages_of(vocab_trim, lambda: vocab_trim.heal(small, outspoken(llama()), keep, stream, cfg))
    return stage


def prompts(seed: int) -> list[Batch]:
    return [next_token_batch(ids, mask, torch.arange(LENGTH).expand_as(ids) >= 2) for ids, mask in ids_and_mask(seed)]


def on_policy_stage(seed: int, module, *more, **settings):
    torch.manual_seed(seed)
    student, teacher = llama(width=8, layers=1), outspoken(llama())
    cfg = module.Config(steps=8, seed=seed, sft_steps=0, new_tokens=5, **settings)
    recipe = getattr(module, module.__name__.split(".")[-1])
    (stage,) = stages_of(module, lambda: recipe(student, teacher, prompts(seed), *more, cfg))
    return stage


def hacking_stage(seed: int, **settings):
    torch.manual_seed(seed)
    rows = [Sample(ids[0, :3].tolist(), []) for ids, _ in ids_and_mask(seed)]
    parts = teacher_hacking.Prompts(rows[:3], rows[3:8], rows[8:])
    cfg = teacher_hacking.Config(steps=8, seed=seed, new_tokens=5, look_every=2, responses=2, **settings)
    models = llama(width=8, layers=1), outspoken(llama()), outspoken(llama())
    *_, stage = stages_of(teacher_hacking, lambda: teacher_hacking.teacher_hacking(*models, parts, cfg))
    return stage


class Letters:
    """A tokenizer of one letter per token."""

    def __call__(self, text: str, **settings):
        return {"input_ids": [1] * len(text)}

    eos_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {chr(97 + token): token for token in range(VOCABULARY)}

    def decode(self, ids, **settings) -> str:
        return "".join(chr(97 + token) for token in ids)


CASES = [
    Case("distill", distill_stage),
    Case("distill by jsd", lambda seed: distill_stage(seed, objective="jsd", temperature=2.0)),
    Case("distill without a teacher", lambda seed: distill_stage(seed, objective="sft")),
    Case("distill with adapters", lambda seed: distill_stage(seed, adapters=4)),
    Case("distill on packed rows", lambda seed: distill_stage(seed, packed=True)),
    Case("taid", taid_stage),
    Case("taid with a hard loss", lambda seed: taid_stage(seed, hard=0.5)),
    Case("taid against reverse kl", lambda seed: taid_stage(seed, objective="reverse_kl")),
    Case("ddk", ddk_stage),
    Case("ddk by reverse kl", lambda seed: ddk_stage(seed, divergence="reverse_kl", gamma=2.0)),
    Case("seqkd", seqkd_stage),
    Case("minilm", minilm_stage),
    Case("minilm version 2", lambda seed: minilm_stage(seed, version=2, relation_heads=4)),
    Case("distiller", stages.distiller_stage, micro=False),
    Case("distiller by states and labels", lambda seed: stages.distiller_stage(seed, loss="mse", weight_hard=1.0)),
    Case("well_read_students, pretrain", stages.pretrain_stage),
    Case("well_read_students, distil", stages.distil_stage),
    Case("well_read_students, finetune", stages.fine_tune_stage),
    Case("ernie_tiny, general", lambda seed: stages.ernie_stages(seed)[0]),
    Case("ernie_tiny, specific", lambda seed: stages.ernie_stages(seed)[-1]),
    Case("ernie_tiny by relations", lambda seed: stages.ernie_stages(seed, latent="relations", relation_heads=4)[-1]),
    Case("modular_encoder, pretrain", stages.exits_stage),
    Case("modular_encoder, retrieve", stages.retrieve_stage, micro=False),
    Case("romanian_multi_teacher", romanian_stage),
    Case("vocab_trim", healing_stage),
    Case("gkd", lambda seed: on_policy_stage(seed, gkd, hard=0.5)),
    Case("gkd with texts used again", lambda seed: on_policy_stage(seed, gkd, reuse=2, share=1.0)),
    Case("distillm", lambda seed: on_policy_stage(seed, distillm, prompts(1)[:1], start=0.8, capacity=16, slack=0.0)),
    Case("minillm", lambda seed: on_policy_stage(seed, minillm), falls="single"),
    Case("semantic_revision", lambda seed: on_policy_stage(seed, semantic_revision, Letters())),
    Case("teacher_hacking", hacking_stage),
    Case("teacher_hacking online", lambda seed: hacking_stage(seed, source="online_student", fixed=0.3)),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check, tmp_path):
    check(case, tmp_path)
