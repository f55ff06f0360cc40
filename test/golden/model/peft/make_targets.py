"""Beside which of OpenVLA-OFT's layers PEFT puts adapters of rank 32 where it is given the modules that RLinf names, at full size on the meta device:
writes openvla_oft.tsv beside this file, which a test of C++ compares its own with.

    .venv-parity/bin/python test/golden/model/peft/make_targets.py

A line is the layer, the shapes of A and B, and whether a pass reads the layer: `used`, or `dead`: a small model of the same structure gets no gradient
in that layer's B (its last blocks, by their place from the end).
"""
import pathlib
import re
import sys
import types

import torch
from peft import LoraConfig, get_peft_model

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "parity"))
import openvla_family as family  # noqa: E402

RANK = 32


def adapted(extents):
    model = get_peft_model(family.Reference(extents), LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(family.TARGETS)))
    tensors = {name.removeprefix("base_model.model.").replace(".default.weight", ""): value for name, value in model.named_parameters() if ".lora_" in name}
    return model.base_model.model, tensors


def from_the_end(layer, layers):
    """Blocks of the vision towers counted from the last."""
    return re.sub(r"(fused_)?featurizer\.blocks\.(\d+)", lambda m: f"{m[1] or ''}featurizer.blocks.{int(m[2]) - layers[m[1] or '']}", layer)


small = types.SimpleNamespace(layers=2, width=48, mlp=96, heads=4, words=80, image=28, dino_width=32, dino_layers=3, dino_heads=4, siglip_width=24,
                              siglip_layers=3, siglip_heads=4)
torch.manual_seed(1)
model, tensors = adapted(small)
with torch.no_grad():
    for value in tensors.values():
        value.normal_()
words = model.project(model.patches(torch.randn(1, 6, 28, 28)))
model.language_model(inputs_embeds=words).logits.square().sum().backward()
dead = {from_the_end(name.removesuffix(".lora_B"), {"": 3, "fused_": 3}) for name, value in tensors.items()
        if name.endswith(".lora_B") and (value.grad is None or not value.grad.any())}

full = types.SimpleNamespace(layers=32, width=4096, mlp=11008, heads=32, words=31744, image=224, dino_width=1024, dino_layers=24, dino_heads=16,
                             siglip_width=1152, siglip_layers=27, siglip_heads=16)
with torch.device("meta"):
    _, tensors = adapted(full)
lines, counts = [], {"used": 0, "dead": 0}
for name, a in sorted(tensors.items()):
    if not name.endswith(".lora_A"):
        continue
    layer = name.removesuffix(".lora_A")
    b = tensors[layer + ".lora_B"]
    role = "dead" if from_the_end(layer, {"": 24, "fused_": 27}) in dead else "used"
    counts[role] += a.numel() + b.numel()
    lines.append(f"{layer}\t{'x'.join(map(str, a.shape))}\t{'x'.join(map(str, b.shape))}\t{role}\n")
head = f"# openvla_oft, rank {RANK}: {len(lines)} layers; used {counts['used']:,}, dead {counts['dead']:,} numbers\n"
(here / "openvla_oft.tsv").write_text(head + "".join(lines))
print(head, end="")
