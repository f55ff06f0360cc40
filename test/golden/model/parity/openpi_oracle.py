"""A second way to a record of pi05.py or pi0.py: openpi's own PI0Pytorch with the record's weights and inputs, which must come to the same
velocity, actions, loss and gradients.

    .venv-parity/bin/python test/golden/model/parity/openpi_oracle.py FOLDER CHECKOUT

CHECKOUT is one of github.com/Physical-Intelligence/openpi (15a9616 was used). Its Transformers, 4.53.2 with openpi's replacements, lies apart
in .venv-parity/openpi. openpi runs without JAX here: its table of extents is the record's config.json.
"""
import json
import pathlib
import sys
import types

sys.path.insert(0, str(pathlib.Path(sys.prefix) / "openpi"))

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import common

folder, source = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]) / "src"
config = json.loads((folder / "config.json").read_text())
language, expert, vision = config["language"], config["expert"], config["vision"]

for name in ("openpi", "openpi.models", "openpi.models_pytorch", "openpi.shared"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(source / name.replace(".", "/"))]
for name in ("openpi.models.gemma", "openpi.shared.image_tools"):
    sys.modules[name] = types.ModuleType(name)
    parent, _, leaf = name.rpartition(".")
    setattr(sys.modules[parent], leaf, sys.modules[name])


def extents(of):
    return types.SimpleNamespace(width=of["width"], depth=of["layers"], mlp_dim=of["mlp"], num_heads=of["heads"], num_kv_heads=of["kv_heads"],
                                 head_dim=of["head_dim"])


sys.modules["openpi.models.gemma"].get_config = lambda variant: extents(config[variant])
from openpi.models_pytorch import gemma_pytorch as G  # noqa: E402
from openpi.models_pytorch import pi0_pytorch as P  # noqa: E402

whole, causal = G.PaliGemmaForConditionalGeneration, G.GemmaForCausalLM


def small_whole(config):
    config.image_token_index = config.text_config.vocab_size = language["vocabulary"]
    config.projection_dim = config.vision_config.projection_dim = language["width"]
    config.text_config.hidden_act = "gelu_pytorch_tanh"
    for ours, theirs in {"width": "hidden_size", "mlp": "intermediate_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
                         "patch": "patch_size", "image": "image_size"}.items():
        setattr(config.vision_config, theirs, vision[ours])
    return whole(config)


def small_causal(config):
    config.vocab_size = language["vocabulary"]
    return causal(config)


G.PaliGemmaForConditionalGeneration, G.GemmaForCausalLM = small_whole, small_causal


def make(dtype):
    model = P.PI0Pytorch(types.SimpleNamespace(
        pi05=config["type"] == "pi05", paligemma_variant="language", action_expert_variant="expert", dtype=dtype, action_dim=config["action"],
        action_horizon=config["horizon"], pytorch_compile_mode=None)).eval()
    weights = {name.removeprefix("model."): value for name, value in load_file(folder / "model.safetensors").items()}
    missing, surplus = model.load_state_dict(weights, strict=False)
    tied = model.paligemma_with_expert.paligemma
    assert not surplus and set(missing) <= {"paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"}, (missing, surplus)
    tied.language_model.embed_tokens.weight.data.copy_(tied.lm_head.weight.data)
    model._preprocess_observation = lambda observation, train: (
        [record[f"input.image.{view}"] for view in range(config["views"])], list(record["input.image_mask"].unbind(1)), record["input.token"],
        record["input.token_mask"], record.get("input.state"))
    return model


common.begin(0)
record = load_file(folder / "record.safetensors")
with safe_open(folder / "record.safetensors", "pt") as file:
    gradient_names = json.loads(file.metadata()["gradients"])
observation = types.SimpleNamespace(state=record["input.noise"])

model = make("float32")
kept = common.Kept()
kept.module("velocity", model.action_out_proj)
loss = model.forward(observation, record["input.action"], record["input.noise"], record["input.time"]).mean()
loss.backward()
common.agree("openpi's velocity", kept.last("velocity"), record["output.velocity"], 5e-6)
common.agree("openpi's loss", loss.detach(), record["output.loss"], 5e-6)
parameters, tied = dict(model.named_parameters()), model.paligemma_with_expert.paligemma
embedding = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
for at, name in enumerate(gradient_names):
    name = name.removeprefix("model.")
    gradient = tied.language_model.embed_tokens.weight.grad if name == embedding else parameters[name].grad
    found = torch.zeros(common.SAMPLES) if gradient is None else gradient.flatten()[record["gradient.index"][at].long()]
    norm = torch.zeros(()) if gradient is None else gradient.norm()
    limit = 2e-5 * record["gradient.norm"][at].clamp_min(1e-6)
    assert (found - record["gradient.value"][at]).abs().max() <= limit and (norm - record["gradient.norm"][at]).abs() <= limit, name
print(f"  openpi's gradients of {len(gradient_names)} parameters: norm and {common.SAMPLES} entries each within 2e-5 of the norm")
actions = model.sample_actions("cpu", observation, noise=record["input.noise"], num_steps=config["steps"])
common.agree("openpi's actions", actions, record["output.actions"], 1e-5)

half = make("bfloat16")
kept = common.Kept()
kept.module("velocity", half.action_out_proj)
with torch.no_grad():
    half.forward(observation, record["input.action"], record["input.noise"], record["input.time"])
print(f"  openpi in bfloat16 (vision too): velocity {common.relative(kept.last('velocity'), record['output.velocity']):.1e} from float32")
