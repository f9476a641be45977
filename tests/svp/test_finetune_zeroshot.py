import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from svp.encoders.encoder import open_encoder
from svp.encoders.texttower import open_text_tower, prompt_templates
from svp.errors import InputError
from svp.finetune.data import FinetuneData
from svp.finetune.export import export_model
from svp.finetune.presets import preset
from svp.finetune.run import finetune
from svp.finetune.zeroshot import zero_shot_head

CLASSES = ("golden_retriever", "tabby cat", "ant")
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.")
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def tiny_clip(folder, **more):
    """Write a small CLIP with random weights as open_clip's own folder."""
    import open_clip

    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **more}
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CLIP
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(**config)
    folder.mkdir()
    said = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(said))
    save_file({n: v.clone() for n, v in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    return model.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "model"
    return tiny_clip(folder), f"open_clip:@{folder}"


def head_of(spec):
    return zero_shot_head(open_text_tower(spec), CLASSES, TEMPLATES)


def expected_weight(model):
    import open_clip

    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    rows = []
    for name in ("golden retriever", "tabby cat", "ant"):
        tokens = tokenizer([template.format(name) for template in TEMPLATES])
        with torch.no_grad():
            vectors = model.encode_text(tokens, normalize=True)
        mean = vectors.mean(0)
        rows.append(mean / mean.norm() * model.logit_scale.detach().exp())
    return torch.stack(rows)


def test_the_head_is_the_mean_of_the_prompts_at_the_towers_scale(clip):
    model, spec = clip
    head = head_of(spec)
    torch.testing.assert_close(head.weight_Cd, expected_weight(model), rtol=1e-4, atol=1e-4)
    scale = model.logit_scale.detach().exp()
    torch.testing.assert_close(head.weight_Cd.norm(dim=1), scale.expand(3), rtol=1e-4, atol=1e-4)
    assert (head.bias_C == 0).all()
    assert head.unit_features
    assert zero_shot_head(open_text_tower(spec), ("one",), TEMPLATES).weight_Cd.shape == (1, 24)


def test_a_captioner_s_text_tower_reads_prompts_too(tmp_path):
    multimodal = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                  "n_queries": 8}  # fmt: skip
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    model = tiny_clip(
        tmp_path / "coca", vision_cfg=vision, text_cfg=text, multimodal_cfg=multimodal
    )
    head = head_of(f"open_clip:@{tmp_path / 'coca'}")
    torch.testing.assert_close(head.weight_Cd, expected_weight(model), rtol=1e-4, atol=1e-4)


def images(count=6):
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    )


def tuned(clip, folder, **changes):
    _, spec = clip
    data = FinetuneData(
        images_N3SS=images(),
        ids=tuple("abcdef"),
        class_names=CLASSES,
        labelled_rows=np.arange(6),
        labels_L=np.array([0, 1, 2, 0, 1, 2]),
    )
    config = preset("small", method="supervised", head="zero-shot", batch_size=4, flip=False,
                    **changes)  # fmt: skip
    return finetune(open_encoder(spec), data, config, output=folder, seed=0, head=head_of(spec))


def test_training_starts_at_the_zero_shot_predictions(clip, tmp_path):
    model, _ = clip
    start = tuned(clip, tmp_path / "start", steps=0).model
    x = images(20)
    with torch.no_grad():
        z = model.encode_image((x.float() / 255 - 0.5) / 0.25, normalize=True)
    theirs = z @ expected_weight(model).T
    torch.testing.assert_close(start.logits(x), theirs, rtol=1e-3, atol=1e-3)
    assert torch.equal(start.logits(x).argmax(1), theirs.argmax(1))  # so is the accuracy
    moved = tuned(clip, tmp_path / "moved", steps=2, head_lr=0.1, backbone_lr=0.1).model
    assert not torch.equal(moved.head.weight_Cd, start.head.weight_Cd)


def test_open_clip_loads_the_exported_tower(clip, tmp_path):
    import open_clip
    from safetensors.torch import load_file

    ours = tuned(clip, tmp_path / "model", steps=1).model
    export_model(ours, tmp_path / "out", "open_clip")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = open_clip.CLIP(**said["model_cfg"], text_cfg=TEXT).eval()
    theirs.visual.load_state_dict(load_file(tmp_path / "out" / "visual.safetensors"))
    head = load_file(tmp_path / "out" / "head.safetensors")
    x, data = images(9), said["preprocess_cfg"]
    with torch.no_grad():
        mean, std = (torch.tensor(data[k])[:, None, None] for k in ("mean", "std"))
        z = theirs.encode_image((x.float() / 255 - mean) / std, normalize=said["unit_features"])
        logits = z @ head["weight"].T + head["bias"]
    torch.testing.assert_close(logits, ours.logits(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="timm"):
        export_model(ours, tmp_path / "timm", "timm")


def test_a_network_for_which_blocks_can_be_computed_again_trains_alike(clip, tmp_path):
    plain = tuned(clip, tmp_path / "plain", steps=2).model
    again = tuned(clip, tmp_path / "again", steps=2, checkpoint_blocks=True).model
    for name, value in plain.state().items():
        torch.testing.assert_close(again.state()[name], value, rtol=1e-4, atol=1e-5)


def test_layer_decay_slows_the_blocks_of_a_vision_transformer(clip):
    from svp.finetune.model import trainable_copy
    from svp.finetune.optimiser import build_optimiser

    _, spec = clip
    classifier = trainable_copy(open_encoder(spec), 3)
    config = preset("small", method="supervised", layer_decay=0.5, backbone_lr=1.0, head_lr=1.0)
    rates = {}
    for group in build_optimiser(classifier, config).param_groups:
        for name, parameter in classifier.named_parameters():
            if any(parameter is one for one in group["params"]):
                rates[name] = group["lr"]
    block = "backbone.visual.transformer.resblocks.{}.mlp.c_fc.weight"
    assert rates["backbone.visual.conv1.weight"] == 0.125
    assert rates[block.format(0)] == 0.25
    assert rates[block.format(1)] == 0.5
    assert rates["backbone.visual.ln_post.weight"] == 1.0


def test_templates():
    assert prompt_templates(TEMPLATES) == TEMPLATES
    assert len(prompt_templates(("imagenet",))) == 80
    assert len(prompt_templates(("simple",))) == 7
    assert all("{}" in template for template in prompt_templates(("imagenet",)))
    for wrong in ((), ("a photo",), ("{} or {}",)):
        with pytest.raises(InputError, match="templates must"):
            prompt_templates(wrong)


def test_what_has_no_text_tower_says_so(tmp_path, clip):
    with pytest.raises(InputError, match="open_clip encoder"):
        open_text_tower("timm:resnet18.a1_in1k")
    bare = tmp_path / "bare"
    bare.mkdir()
    said = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION}}
    (bare / "open_clip_config.json").write_text(json.dumps(said))
    (bare / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="text tower"):
        open_text_tower(f"open_clip:@{bare}")


def test_a_zero_shot_start_needs_its_head_and_no_probe(tmp_path):
    from tiny_finetune import TinyEncoder, digits

    config = preset("small", method="supervised", head="zero-shot", steps=1)
    with pytest.raises(InputError, match="head must be given"):
        finetune(TinyEncoder(), digits(), config, output=tmp_path, seed=0)
    with pytest.raises(InputError, match="head must be random"):
        preset("small", head="zero-shot", mode="lp-ft")
