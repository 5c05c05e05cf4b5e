"""Vision transformers as sources: released features and gradients, hidden patches, classifiers."""

from pathlib import Path

import numpy as np
import tiny_autoencoders as tiny
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from limbeck.losses.feature import hidden_sse
from limbeck.losses.reconstruction import patch_mse
from limbeck.models.images import image_classifier, plane_waves
from limbeck.sources.images import AutoencoderSource, ImageSource, first_state, keeping

GOLDEN = Path(__file__).parents[1] / "golden" / "selfdistill-further-pretraining" / "vit_feature_loss.npz"
NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "o": "attention.o_proj",
}


def ours(name: str) -> str:
    """The golden's neutral name of a weight as this version of transformers has it."""
    parts = name.split(".")
    return ".".join(["layers", parts[1], NAMES[parts[2]], *parts[3:]]) if parts[0] == "layer" else name


def golden_model(case: dict, who: str):
    sizes = {"num_hidden_layers": int(case["hp_layers"]), "num_attention_heads": int(case["hp_heads"])}
    sizes |= {"hidden_size": 12, "intermediate_size": 24, "image_size": 8, "patch_size": int(case["hp_patch"])}
    small = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(num_channels=1, layer_norm_eps=float(case["hp_ln_eps"]), **sizes, **small)
    model = ViTMAEForPreTraining(config).eval()
    weights = {ours(name.removeprefix(f"w_{who}.")): value for name, value in case.items() if f"w_{who}." in name}
    model.vit.load_state_dict(weights)
    return model


def test_golden_features_of_whole_images_their_distance_and_its_gradients():
    case = {name: torch.as_tensor(value) for name, value in np.load(GOLDEN).items()}
    student, teacher = (golden_model(case, who) for who in ("student", "teacher"))
    batch = {"pixels": case["in_pixels"]}
    said, told = (AutoencoderSource(model, hidden_view=False)(batch).pooled for model in (student, teacher))
    torch.testing.assert_close(said, case["out_student_feature"], rtol=0, atol=5e-6)
    torch.testing.assert_close(told, case["out_teacher_feature"], rtol=0, atol=5e-6)
    loss = hidden_sse(said, told.detach()).mean()
    loss.backward()
    torch.testing.assert_close(loss.detach(), case["out_distill_loss"], rtol=5e-6, atol=0)
    parameters = dict(student.vit.named_parameters())
    for name in (name for name in case if name.startswith("out_grad_")):
        gradient = parameters[ours(name.removeprefix("out_grad_"))].grad
        torch.testing.assert_close(gradient, case[name], rtol=1e-4, atol=2e-5)


def test_the_hidden_view_is_the_librarys_own_with_the_same_patches():
    model, batch = tiny.autoencoder(), tiny.batches(0)[0]
    said = AutoencoderSource(model)(batch).extra["patches"]
    with keeping(model, 4):
        own = model(pixel_values=batch["pixels"], noise=batch["masked"].float())
    assert torch.equal(own.mask.bool(), batch["masked"])
    torch.testing.assert_close(said, own.logits)
    torch.testing.assert_close(patch_mse(said, batch["pixels"], 2)[batch["masked"]].mean(), own.loss)
    assert model.config.mask_ratio == 0.75


def test_any_number_of_patches_can_be_hidden():
    model = tiny.autoencoder()
    for hidden in range(1, tiny.PATCHES):
        batch = tiny.batches(hidden, hidden=hidden)[0]
        with keeping(model, tiny.PATCHES - hidden):
            own = model(pixel_values=batch["pixels"], noise=batch["masked"].float())
        assert torch.equal(own.mask.bool(), batch["masked"])


def test_what_is_hidden_does_not_reach_the_hidden_view_but_the_whole_one():
    model, batch = tiny.autoencoder(), tiny.batches(0)[0]
    hidden = batch["masked"].reshape(8, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = batch | {"pixels": batch["pixels"].where(~hidden, 0.5)}
    one, two = (AutoencoderSource(model)(b) for b in (batch, other))
    torch.testing.assert_close(one.extra["patches"], two.extra["patches"])
    assert not torch.allclose(one.pooled, two.pooled, atol=1e-3)


def test_a_classifier_takes_the_encoder_over_and_shares_nothing():
    model = tiny.autoencoder(channels=3)
    classifier = image_classifier(model, ["cat", "dog"])
    pixels = torch.rand(2, 3, 8, 8)
    own = classifier.vit(pixel_values=pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(first_state(model, pixels), own)
    assert ImageSource(classifier)({"pixels": pixels}).logits.shape == (2, 2)
    assert classifier.config.id2label == {0: "cat", 1: "dog"}
    classifier.vit.embeddings.cls_token.data += 1
    assert not torch.equal(classifier.vit.embeddings.cls_token, model.vit.embeddings.cls_token)


def test_a_new_autoencoder_tells_places_apart():
    model = tiny.autoencoder()
    for places in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert len({tuple(place) for place in places[0, 1:].tolist()}) == tiny.PATCHES
    assert model.vit.embeddings.cls_token.abs().max() > 0
    waves = plane_waves(4, 8)
    assert waves[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert torch.equal(waves[1, 4:], waves[0, 4:])  # the next column of the same row
    assert torch.equal(waves[4, :4], waves[0, :4])  # the same column of the next row
    torch.testing.assert_close(waves[2, 0], torch.tensor(2.0).sin())
