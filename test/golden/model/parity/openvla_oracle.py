"""A second way to a record of openvla_oft.py or openvla.py: the published modelling code with the record's weights and inputs.

    .venv-parity/bin/python test/golden/model/parity/openvla_oracle.py FOLDER OPENVLA_OFT TRANSFORMERS

OPENVLA_OFT is a checkout of github.com/moojink/openvla-oft (213c5ff was used), TRANSFORMERS one of github.com/moojink/transformers-openvla-oft
(4.40.1 with a Llama that sees both ways; bc339d9 was used). timm 0.9.10 and tokenizers 0.19.1, which they ask for, lie apart in
.venv-parity/openvla. That the state dict loads shows that the names are the public ones.
"""
import json
import pathlib
import sys
import types

folder, source, transformers_source = (pathlib.Path(each) for each in sys.argv[1:4])
sys.path[:0] = [str(transformers_source / "src"), str(pathlib.Path(sys.prefix) / "openvla")]

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import common

config = json.loads((folder / "config.json").read_text())
record = load_file(folder / "record.safetensors")
with safe_open(folder / "record.safetensors", "pt") as file:
    gradient_names = json.loads(file.metadata()["gradients"])
first, bins, slots = config["first_action_id"], config["bins"], config.get("horizon", 1) * config["action"]

for name in ("prismatic", "prismatic.extern", "prismatic.extern.hf", "prismatic.vla", "prismatic.training", "prismatic.models"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(source / name.replace(".", "/"))]
for name in ("diffusers", "diffusers.schedulers", "diffusers.schedulers.scheduling_ddim"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["diffusers.schedulers.scheduling_ddim"].DDIMScheduler = None
from prismatic.vla import constants  # noqa: E402

constants.NUM_ACTIONS_CHUNK, constants.ACTION_DIM, constants.ACTION_TOKEN_BEGIN_IDX = config.get("horizon", 1), config["action"], first - 1
from prismatic.extern.hf import modeling_prismatic as M  # noqa: E402
from prismatic.extern.hf.configuration_prismatic import OpenVLAConfig  # noqa: E402
from prismatic.models.action_heads import L1RegressionActionHead  # noqa: E402
from prismatic.models.projectors import ProprioProjector  # noqa: E402

create = M.timm.create_model


def small(identifier, **words):
    tower = config["featurizer" if "dinov2" in identifier else "fused_featurizer"]
    words.update(embed_dim=tower["width"], depth=tower["layers"], num_heads=tower["heads"])
    return create(identifier.split(".")[0], **{name: value for name, value in words.items() if value is not None})


M.timm = types.SimpleNamespace(create_model=small, __version__=M.timm.__version__)
language = config["language"]
settings = OpenVLAConfig(
    vision_backbone_id="dinosiglip-vit-so-224px", llm_backbone_id="llama2-7b-pure", arch_specifier="no-align+fused-gelu-mlp", norm_stats={},
    text_config={"hidden_size": language["width"], "intermediate_size": language["mlp"], "num_hidden_layers": language["layers"],
                 "num_attention_heads": language["heads"], "num_key_value_heads": language["kv_heads"], "vocab_size": language["vocabulary"],
                 "pad_token_id": config["pad"]}, pad_token_id=config["pad"])
settings.image_sizes = [config["featurizer"]["image"]] * 2

common.begin(0)
model = M.OpenVLAForActionPrediction(settings).eval()
model.load_state_dict(load_file(folder / "model.safetensors"))
model.vision_backbone.set_num_images_in_input(config["views"])
print("  the published code's attention:", type(model.language_model.model.layers[0].self_attn).__name__)


if config["type"] == "openvla_oft":
    # As its authors run it: no padding, STOP at the end.
    token = record["official.input.token"]
    batch, length = token.shape
    ids = torch.cat([token, torch.ones(batch, slots, dtype=torch.long), torch.full((batch, 1), config["stop"])], 1)
    labels = torch.full_like(ids, M.IGNORE_INDEX)
    labels[:, length:-1], labels[:, -1] = first + 1, config["stop"]
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": record["input.pixels"], "labels": labels,
             "output_hidden_states": True}
    with torch.no_grad():
        output = model(**words)
        before = output.logits.shape[1] - slots - 2
        common.agree("official logits of the published code", output.logits[:, before:before + slots, first:first + bins],
                     record["official.output.logits"], 5e-6)
        projector = ProprioProjector(language["width"], config["state"]).eval()
        projector.load_state_dict(load_file(folder / "proprio_projector.safetensors"))
        head = L1RegressionActionHead(language["width"], language["width"], config["action"]).eval()
        head.load_state_dict(load_file(folder / "action_head.safetensors"))
        output = model(**words, proprio=record["official.input.state"], proprio_projector=projector)
        hidden = output.hidden_states[-1][:, before + 1:before + 1 + slots]
        common.agree("actions of the published L1 head", head.predict_action(hidden), record["official.output.actions"], 1e-5)

if config["type"] == "openvla":  # causal, as the fork's Llama still is under eager attention
    causal = type(model.language_model)._from_config(settings.text_config, attn_implementation="eager").eval()
    causal.load_state_dict(model.language_model.state_dict())
    model.language_model = causal

# As RLinf runs it.
token, mask = record["input.token"], record["input.token_mask"]
tail = record["input.action_token"] if config["type"] == "openvla" else torch.ones_like(record["input.action_token"])
embedding = model.get_input_embeddings()(torch.cat([token, tail], 1))
if config["type"] == "openvla_oft":
    embedding = torch.cat([embedding[:, :token.shape[1]], torch.zeros_like(embedding[:, token.shape[1]:])], 1)
embedding, mask = model._build_multimodal_attention(embedding, model._process_vision_features(record["input.pixels"]),
                                                    torch.cat([mask.long(), torch.ones_like(tail)], 1))
output = model.language_model(inputs_embeds=embedding, attention_mask=mask, position_ids=mask.cumsum(1) - 1)
logits = output.logits[:, -slots - 1:-1, first:first + bins]
common.agree("logits of the published code", logits.detach(), record["output.logits"], 5e-6)
log_p = torch.log_softmax(logits, -1).gather(-1, (record["input.action_token"] - first)[..., None])
loss = -log_p.mean()
common.agree("its loss", loss.detach(), record["output.loss"], 5e-6)
loss.backward()
parameters = dict(model.named_parameters())
for at, name in enumerate(gradient_names):
    gradient = torch.zeros_like(parameters[name]) if parameters[name].grad is None else parameters[name].grad
    norm = record["gradient.norm"][at]
    limit = 5e-5 * norm.clamp_min(1e-6)
    assert (gradient.flatten()[record["gradient.index"][at].long()] - record["gradient.value"][at]).abs().max() <= limit, name
    assert (gradient.norm() - norm).abs() <= limit, name
print(f"  its gradients of {len(gradient_names)} parameters: norm and {common.SAMPLES} entries each within 5e-5 of the norm")
