"""What openvla_oft.py and openvla.py share: the two towers of timm, the projector, and Transformers' Llama. The published modelling code is
no package; these are the parts that it is made of, put together as it does (prismatic/extern/hf/modeling_prismatic.py of
moojink/openvla-oft at 213c5ff), and openvla_oracle.py compares with that code itself."""
import pathlib
import subprocess
import sys

import timm
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import common

TOWERS = {"featurizer": "vit_large_patch14_reg4_dinov2", "fused_featurizer": "vit_so400m_patch14_siglip_224"}
BINS, PADDING = 256, 64  # action ids are the 256 before the 64 that only fill the vocabulary up
BOS, STOP = 1, 2
# Layers with adapters, as RLinf names them (rlinf 0.3.0, models/__init__.py:261).
TARGETS = ("proj", "qkv", "fc1", "fc2", "q", "kv", "fc3", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def parser(description, **more):
    made = common.parser(description, layers=2, width=48, mlp=96, heads=4, dino_width=32, dino_layers=3, dino_heads=4, siglip_width=24, siglip_layers=3,
                         siglip_heads=4, image=28, words=80, text=7, batch=3, action=7, **more)
    made.add_argument("--checkout", help="--checkout=OPENVLA_OFT,TRANSFORMERS: also compare with the published code of these two checkouts")
    return made


class Reference(nn.Module):
    """Names are the public ones but for LayerScale, which the published code renames from gamma to scale_factor
    (modeling_prismatic.py:61)."""

    def __init__(self, a, attention="sdpa"):
        super().__init__()
        self.vision_backbone = nn.ModuleDict({
            "featurizer": timm.create_model(TOWERS["featurizer"], num_classes=0, img_size=a.image, embed_dim=a.dino_width, depth=a.dino_layers,
                                            num_heads=a.dino_heads),
            "fused_featurizer": timm.create_model(TOWERS["fused_featurizer"], num_classes=0, img_size=a.image, embed_dim=a.siglip_width,
                                                  depth=a.siglip_layers, num_heads=a.siglip_heads)})
        vision = a.dino_width + a.siglip_width
        self.projector = nn.ModuleDict({"fc1": nn.Linear(vision, 4 * vision), "fc2": nn.Linear(4 * vision, a.width), "fc3": nn.Linear(a.width, a.width)})
        self.language_model = LlamaForCausalLM(LlamaConfig(
            hidden_size=a.width, intermediate_size=a.mlp, num_hidden_layers=a.layers, num_attention_heads=a.heads, num_key_value_heads=a.heads,
            vocab_size=a.words + BINS + PADDING, pad_token_id=a.words + BINS, attn_implementation=attention))

    def patches(self, pixels):
        """[B, 6 x views, H, W] -> [B, patches x views, vision]: of each view the first three channels go to DINOv2; what leaves a tower is the
        output of its last block but one, without a norm and without the tokens before the patches."""
        made = []
        for view in pixels.split(6, 1):
            of_view = []
            for tower, channels in zip(self.vision_backbone.values(), view.split(3, 1), strict=True):
                of_view += tower.get_intermediate_layers(channels, n=[len(tower.blocks) - 2])
            made.append(torch.cat(of_view, 2))
        return torch.cat(made, 1)

    def project(self, patches):
        gelu = nn.functional.gelu
        return self.projector["fc3"](gelu(self.projector["fc2"](gelu(self.projector["fc1"](patches)))))

    def embed(self, ids):
        return self.language_model.get_input_embeddings()(ids)


def public(name):
    return name.replace("ls1.gamma", "ls1.scale_factor").replace("ls2.gamma", "ls2.scale_factor")


def inputs(a, draw, views):
    """Prompts of different length, padded as RLinf does (rlinf 0.3.0, models/embodiment/prismatic/processing_prismatic.py:230): BOS first, then padding, then the words, the last of
    which is the token for the empty word that follows `Out: `. That token is `words - 1` here, padding `words + 256`."""
    length = torch.tensor([a.text, a.text - a.text // 3, 2]).repeat(a.batch)[:a.batch]
    token_mask = torch.arange(a.text) >= (a.text - length)[:, None]
    token = draw.integers("token", 3, a.words - 1, a.batch, a.text).where(token_mask, a.words + BINS)
    token[:, -1] = a.words - 1
    token = torch.cat([torch.full((a.batch, 1), BOS), token], 1)
    token_mask = torch.cat([torch.ones(a.batch, 1, dtype=torch.bool), token_mask], 1)
    return {"token": token, "token_mask": token_mask, "pixels": draw.normal("pixels", a.batch, 6 * views, a.image, a.image)}


def keep_vision(model, kept):
    for name, tower in model.vision_backbone.items():
        kept.module(f"{name}.embedding", tower.norm_pre)
        for at in range(len(tower.blocks) - 1):
            kept.module(f"{name}.layer.{at}", tower.blocks[at])


def vision_record(a, kept, record):
    """Of the first view."""
    for name, layers in (("featurizer", a.dino_layers), ("fused_featurizer", a.siglip_layers)):
        record[f"activation.{name}.0.embedding"] = kept.calls[f"{name}.embedding"][0]
        for at in range(layers - 1):
            record[f"activation.{name}.0.layer.{at}"] = kept.calls[f"{name}.layer.{at}"][0]


def log_probs(logits, tokens, words, temperature=1.0):
    """Over the 256 action ids alone."""
    log_p = torch.log_softmax(logits[..., words:words + BINS].float() / temperature, -1)
    return log_p.gather(-1, (tokens - words)[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)


def extents(kind, a, views, model):
    towers = {"featurizer": ("dino", 5), "fused_featurizer": ("siglip", 0)}
    made = {"type": kind}
    for name, (of, before) in towers.items():
        tower = model.vision_backbone[name]
        made[name] = {"width": getattr(a, of + "_width"), "layers": getattr(a, of + "_layers"), "heads": getattr(a, of + "_heads"),
                      "mlp": tower.blocks[0].mlp.fc1.out_features, "image": a.image, "patch": 14, "prefix_tokens": before}
    config = model.language_model.config
    made["language"] = {"width": a.width, "layers": a.layers, "heads": a.heads, "kv_heads": a.heads, "head_dim": a.width // a.heads, "mlp": a.mlp,
                        "vocabulary": config.vocab_size, "rms_norm_eps": config.rms_norm_eps, "rope_theta": 10000.0}
    made |= {"views": views, "text": a.text, "action": a.action, "bos": BOS, "stop": STOP, "space": a.words - 1, "pad": a.words + BINS,
             "first_action_id": a.words, "bins": BINS, "vocabulary_padding": PADDING}
    return made


def checkout(a):
    """In a process of its own, as the published code needs other packages."""
    return subprocess.run([sys.executable, pathlib.Path(__file__).with_name("openvla_oracle.py"), a.folder, *a.checkout.split(",")]).returncode
