"""Names and shapes of the published checkpoints: builds the reference classes at full size without their numbers (on the meta device), and writes
a table for each beside this file, with a file of hashes that a test can check the tables by.

    .venv-parity/bin/python test/golden/model/names/make_names.py

A line is name, shape, dtype that the class has, and what the tensor is: `used`; `alias` of another one, of which a file may hold either or
both; `dead`: in files, read by nothing. pi0.5 and pi0 have openpi's names (lerobot's files add a leading `model.`), SmolVLA lerobot's.
OpenVLA has the names and shapes of OpenVLA-OFT. What OpenVLA-OFT never reads (a tower's last block, its norm, attn_pool) counts as used, as
published figures do.
"""
import hashlib
import pathlib
import sys
import types

import torch

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent / "parity"))
KINDS = {torch.float32: "F32", torch.bfloat16: "BF16"}


def pi05():
    from lerobot.policies.pi05.configuration_pi05 import PI05Config
    from lerobot.policies.pi05.modeling_pi05 import PI05Pytorch

    return PI05Pytorch(PI05Config(device="cpu")).state_dict()


def pi0():
    from lerobot.policies.pi0.configuration_pi0 import PI0Config
    from lerobot.policies.pi0.modeling_pi0 import PI0Pytorch

    return PI0Pytorch(PI0Config(device="cpu")).state_dict()


def smolvla():
    from lerobot.policies.smolvla import modeling_smolvla as M
    from lerobot.policies.smolvla import smolvlm_with_expert as E
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from transformers import SmolVLMConfig

    def published(*_):  # SmolVLM2-500M's extents
        return SmolVLMConfig(
            text_config={"model_type": "llama", "vocab_size": 49280, "hidden_size": 960, "num_hidden_layers": 32, "num_attention_heads": 15,
                         "num_key_value_heads": 5, "head_dim": 64, "intermediate_size": 2560, "rms_norm_eps": 1e-5, "pad_token_id": 2},
            vision_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "image_size": 512,
                           "patch_size": 16}, scale_factor=4, pad_token_id=2, image_token_id=49190)

    tokenizer = types.SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)
    E.AutoConfig = types.SimpleNamespace(from_pretrained=published)
    E.AutoProcessor = types.SimpleNamespace(from_pretrained=lambda *_: types.SimpleNamespace(tokenizer=tokenizer))
    return {"model." + name: value for name, value in M.VLAFlowMatching(SmolVLAConfig(device="cpu", load_vlm_weights=False)).state_dict().items()}


def openvla_oft():
    import openvla_family

    extents = types.SimpleNamespace(layers=32, width=4096, mlp=11008, heads=32, words=31744, image=224, dino_width=1024, dino_layers=24, dino_heads=16,
                                    siglip_width=1152, siglip_layers=27, siglip_heads=16)
    return {openvla_family.public(name): value for name, value in openvla_family.Reference(extents).state_dict().items()}


def role(name):
    if name == "paligemma_with_expert.gemma_expert.lm_head.weight" or name == "model.vlm_with_expert.vlm.lm_head.weight":
        return "dead"
    return "alias" if name == "paligemma_with_expert.paligemma.lm_head.weight" else "used"


hashes = []
for make in (pi05, pi0, smolvla, openvla_oft):
    with torch.device("meta"):
        tensors = make()
    counts = {"used": 0, "alias": 0, "dead": 0}
    lines = []
    for name, value in sorted(tensors.items()):
        counts[role(name)] += value.numel()
        lines.append(f"{name}\t{'x'.join(map(str, value.shape))}\t{KINDS[value.dtype]}\t{role(name)}\n")
    head = f"# {make.__name__}: {len(lines)} tensors; used {counts['used']:,}, dead {counts['dead']:,}, alias {counts['alias']:,} numbers\n"
    text = (head + "".join(lines)).encode()
    (here / f"{make.__name__}.tsv").write_bytes(text)
    hashes.append(f"{hashlib.sha256(text).hexdigest()}  {make.__name__}.tsv\n")
    print(head, end="")
(here / "sha256sums").write_text("".join(hashes))
