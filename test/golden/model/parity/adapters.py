"""Adapters by PEFT on the references of the parity scripts. `--adapter=RANK` records them, for C++ to read and to agree with; `--exported=FOLDER` plays what
C++ has written (examples/parity RECORD FOLDER), adapters and merged weights, and stops where the reference's outputs are not C++'s.

OUT_FOLDER/adapter has what PEFT saves, adapter_model.safetensors and adapter_config.json, and record.safetensors with `output.*` and the
gradients of A and B as in the record itself. A and B are drawn, so that B is not 0; beside what the loss does not reach it stays 0, as in any training.
"""
import json
import pathlib
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import common


def options(parser):
    parser.add_argument("--adapter", type=int, default=0, metavar="RANK", help="--adapter=RANK: also record adapters of that rank, with an alpha of three halves of it")
    parser.add_argument("--exported", type=pathlib.Path, metavar="FOLDER", help="--exported=FOLDER: also play what examples/parity has written there")


class Inside(nn.Module):
    """lerobot's policies have their networks as `model`."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def play(a, model, targets, outputs, draw, public=lambda name: name):
    """`outputs()`: of `model` as it is then, by recorded name, the loss among them. `public`: a weight's name in files."""
    if a.exported:
        check(a.exported, model, outputs, public)
    if a.adapter:
        record(a, model, targets, outputs, draw)


def record(a, model, targets, outputs, draw):
    adapted = get_peft_model(model, LoraConfig(r=a.adapter, lora_alpha=3 * a.adapter // 2, target_modules=list(targets)))
    own = {name.replace(".default", ""): parameter for name, parameter in adapted.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(draw.normal(name, *parameter.shape, std=0.1))
    outputs()["output.loss"].backward()
    with torch.no_grad():
        for name, parameter in own.items():
            if "lora_B" in name and (parameter.grad is None or not parameter.grad.any()):
                parameter.zero_()
    adapted.zero_grad()
    found = outputs()
    found["output.loss"].backward()
    before = "base_model.model."
    if getattr(a, "layout", "") == "lerobot":  # gradients are under the names without the leading `model.`, as the record's
        own = {before + name.removeprefix(before + "model."): parameter for name, parameter in own.items()}
    names, gradient_record = common.gradients(own.items(), draw, samples=8)
    folder = a.folder / "adapter"
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()  # PEFT's is a set
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    common.save(folder / "record.safetensors", {name: value.detach().float() if value.is_floating_point() else value for name, value in
                                                {**found, **gradient_record}.items()}, {"gradients": json.dumps(names), "adapters": "peft"})
    adapted.unload()
    count = sum(parameter.numel() for parameter in own.values())
    print(f"  adapters: {count:,} numbers beside {len(own) // 2} layers, {sum(each.stat().st_size for each in folder.iterdir()) / 1e6:.2f} MB")


def check(folder, model, outputs, public):
    wanted = load_file(folder / "record.safetensors")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it misses or does not know
        adapted = PeftModel.from_pretrained(model, folder / "adapters")
    kept = load_file(folder / "adapters" / "adapter_model.safetensors")
    ours = {name.replace(".default", ""): value for name, value in adapted.state_dict().items() if ".lora_" in name}
    if ours.keys() != kept.keys() or not all(torch.equal(ours[name], kept[name]) for name in kept):
        sys.exit("stopped: PEFT has put other adapters beside the reference than C++ has written")
    compare("with exported adapters", outputs(), wanted)
    model = adapted.unload()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = folder / "merged" / "model.safetensors"
    names = {public(name): name for name in model.state_dict()}
    weights = load_file(merged)
    with safe_open(merged, "pt") as file:  # aliases, which the reference keeps twice
        weights |= {name: weights[other] for name, other in file.metadata().items() if name in names and other in weights}
    model.load_state_dict({names[name]: value for name, value in weights.items()}, strict=True)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    print(f"  merged: {len(changed)} of {len(before)} tensors differ from the base")
    compare("with exported merged weights", outputs(), wanted)
    model.load_state_dict(before)


def compare(form, found, wanted):
    for name, value in wanted.items():
        common.agree(f"{form}: {name.removeprefix('output.')}", found[name].detach().float(), value, 1e-5)
