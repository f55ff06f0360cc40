"""SmolVLA: lerobot 0.6.1's VLAFlowMatching at a small size, recorded for C++ to agree with.

    .venv-parity/bin/python test/golden/model/parity/smolvla.py --seed 7 --layers 6 --width 80 OUT_FOLDER

Quirks of the reference that the record exercises (files of lerobot 0.6.1 under policies/smolvla/; E is smolvlm_with_expert.py, M modeling_smolvla.py):
- even layers are one self-attention over prefix and actions; in odd ones the expert's keys and values are projections of the prefix's rotated
  keys and values of that layer (E:361), its queries count positions from 0 on (E:373), and actions do not see each other;
- the state is the prefix's last token and a block of its own, and every action token is one more: actions are causal (M:630, 682);
- images and text are both scaled by sqrt(width), the state is not (M:585, 611, 619);
- its own rotary embedding: halves, wavelength 10000, whatever rope_theta the checkpoint names (E:41);
- masked scores are the least float32 and not -inf (E:549): a padded position gets a uniform softmax and not NaN; positions
  are cumsum(mask) - 1 (M:711), -1 before the first valid token: sample 2 lacks its first camera;
- scores are float32 whatever the dtype (E:539); a residual is added in place, so that it takes the projection's dtype (E:485);
- norms are x w, eps 1e-5; the tower is SigLIP with tanh-GELU, positions by bucket (the identity at full size); the connector shuffles s x s
  patches into one token and has no bias;
- the last layer of the prefix, its norm and lm_head reach no output beyond the last layer's keys and values.
In `bf16.` what lies inside vlm_with_expert is bfloat16 and the five projections are float32: this script's choice; lerobot loads the published
SmolVLM in bfloat16 (E:94) and leaves the rest as it is made.
Second way: the velocity over the prefix's cache against that of the pass over all.
"""
import types

import torch
from lerobot.policies.smolvla import modeling_smolvla as M
from lerobot.policies.smolvla import smolvlm_with_expert as E
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from transformers import SmolVLMConfig

import adapters
import common

made = common.parser(__doc__.splitlines()[0], layers=4, width=64, mlp=96, heads=4, kv_heads=2, head_dim=8, expert_mlp=80, vision_layers=2, vision_width=48,
                  vision_mlp=96, vision_heads=4, image=32, patch=8, shuffle=2, vocabulary=128, views=2, text=6, batch=3, horizon=5, action=7, state=8,
                  steps=3)
made.add_argument("--present", action="store_true", help="no camera and no word is missing in any sample")
adapters.options(made)
a = made.parse_args()


def published(*_):
    return SmolVLMConfig(
        text_config={"model_type": "llama", "vocab_size": a.vocabulary, "hidden_size": a.width, "num_hidden_layers": a.layers + 2, "intermediate_size": a.mlp,
                     "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim, "rms_norm_eps": 1e-5,
                     "rope_theta": 100000.0, "pad_token_id": 2},
        vision_config={"hidden_size": a.vision_width, "num_hidden_layers": a.vision_layers, "num_attention_heads": a.vision_heads,
                       "intermediate_size": a.vision_mlp, "image_size": a.image, "patch_size": a.patch},
        scale_factor=a.shuffle, pad_token_id=2, image_token_id=a.vocabulary - 1)


# What the constructor would ask a hub for, and a size that it rounds up to 256.
E.AutoConfig = types.SimpleNamespace(from_pretrained=published)
E.AutoProcessor = types.SimpleNamespace(
    from_pretrained=lambda *_: types.SimpleNamespace(tokenizer=types.SimpleNamespace(fake_image_token_id=1, global_image_token_id=2)))
E.get_intermediate_size = lambda *_: a.expert_mlp


def make():
    model = M.VLAFlowMatching(SmolVLAConfig(
        device="cpu", load_vlm_weights=False, chunk_size=a.horizon, n_action_steps=a.horizon, num_vlm_layers=a.layers, num_steps=a.steps,
        max_state_dim=a.state, max_action_dim=a.action, train_expert_only=False, freeze_vision_encoder=False)).eval()
    return model.requires_grad_(True)  # it freezes what the loss does not reach, and more


def chain(model, prefix_inputs, noise):
    points, velocities, times = [], [], []
    step = model.denoise_step

    def kept_step(**words):
        points.append(words["x_t"].clone())
        times.append(words["timestep"][0].clone())
        velocities.append(step(**words))
        return velocities[-1]

    model.denoise_step = kept_step
    actions = model.sample_actions(*prefix_inputs, noise=noise)
    model.denoise_step = step
    return {"output.chain": torch.stack([*points, actions]), "output.chain_velocity": torch.stack(velocities), "output.chain_time": torch.stack(times),
            "output.actions": actions}


common.begin(a.seed)
draw = common.Draw(a.seed)
model = make()
common.fill(model, draw)
inner = model.vlm_with_expert
whole = inner.vlm.model

image = draw.uniform("image", -1, 1, a.views, a.batch, 3, a.image, a.image)
image_mask = torch.ones(a.batch, a.views, dtype=torch.bool)
token_mask = torch.ones(a.batch, a.text, dtype=torch.bool)
if a.batch > 1 and not a.present:
    image_mask[1, -1] = False
    token_mask[1, a.text - a.text // 3:] = False
if a.batch > 2 and not a.present:
    image_mask[2, 0] = False
    token_mask[2, 1:] = False
for view in range(a.views):
    image[view, ~image_mask[:, view]] = -1.0
i = {"image_mask": image_mask, "token": draw.integers("token", 3, a.vocabulary - 1, a.batch, a.text).where(token_mask, 2), "token_mask": token_mask,
     "state": draw.normal("state", a.batch, a.state), "noise": draw.normal("noise", a.batch, a.horizon, a.action),
     "action": draw.normal("action", a.batch, a.horizon, a.action), "time": torch.tensor([0.3, 0.71, 0.999, 0.05]).repeat(a.batch)[:a.batch]}
i |= {f"image.{view}": image[view] for view in range(a.views)}
prefix_inputs = ([image[view] for view in range(a.views)], [image_mask[:, view] for view in range(a.views)], i["token"], token_mask, i["state"])
record = {"input." + name: value for name, value in i.items()}

kept = common.Kept()
kept.module("vision.embedding", whole.vision_model.embeddings)
for at, layer in enumerate(whole.vision_model.encoder.layers):
    kept.module(f"vision.layer.{at}", layer)
kept.module("vision.output", whole.vision_model, lambda output: output.last_hidden_state)
kept.module("connector", whole.connector)
kept.module("velocity", model.action_out_proj)
for name, of in (("prefix", whole.text_model), ("suffix", inner.lm_expert)):
    kept.module(f"{name}.norm", of.norm)
    for at, norm in enumerate([*(layer.input_layernorm for layer in of.layers), of.norm]):  # layers are not called; what they put out is read by the next norm
        key = f"{name}.embedding" if at == 0 else f"{name}.layer.{at - 1}"
        kept.handles.append(norm.register_forward_pre_hook(lambda _module, inputs, key=key: kept.add(key, inputs[0])))
loss = model.forward(*prefix_inputs, i["action"], i["noise"], i["time"]).mean()
loss.backward()
for view in range(a.views):
    record[f"activation.vision.{view}.output"] = kept.calls["vision.output"][view]
    record[f"activation.connector.{view}"] = kept.calls["connector"][view]
for name, calls in kept.calls.items():
    if name.startswith(("vision.embedding", "vision.layer")):
        record["activation.vision.0" + name.removeprefix("vision")] = calls[0]
    elif name.startswith(("prefix", "suffix")):
        record["activation." + name] = calls[0]
record["output.velocity"], record["output.loss"] = kept.last("velocity"), loss.detach()
kept.remove()
gradient_names, gradient_record = common.gradients([("model." + name, parameter) for name, parameter in model.named_parameters()], draw)
record |= gradient_record

with torch.no_grad():
    x = i["time"][:, None, None] * i["noise"] + (1 - i["time"][:, None, None]) * i["action"]
    record["input.x"] = x
    embedding, pad, attend = model.embed_prefix(*prefix_inputs)
    position = torch.cumsum(pad, 1) - 1
    record["activation.prefix.pad"], record["activation.prefix.position"] = pad, position
    _, cache = inner.forward(attention_mask=M.make_att_2d_masks(pad, attend), position_ids=position, inputs_embeds=[embedding, None], use_cache=True)
    for at in (0, 1, a.layers - 1):
        record[f"cache.key.{at}"], record[f"cache.value.{at}"] = cache.layers[at].keys.clone(), cache.layers[at].values.clone()
    velocity = model.denoise_step(x_t=x, prefix_pad_masks=pad, past_key_values=cache, timestep=i["time"])
    common.agree("velocity with the prefix's cache, and in one pass", velocity, record["output.velocity"], 5e-6)
    record |= chain(model, prefix_inputs, i["noise"])

    half = make()
    half.load_state_dict(model.state_dict())
    half.vlm_with_expert.to(torch.bfloat16)
    hook = common.Kept()
    hook.module("velocity", half.action_out_proj)
    record["bf16.output.loss"] = half.forward(*prefix_inputs, i["action"], i["noise"], i["time"]).mean()
    record["bf16.output.velocity"] = hook.last("velocity")
    hook.remove()
    record |= {"bf16." + name: value for name, value in chain(half, prefix_inputs, i["noise"]).items()}
common.bf16_report(record)

language = {"layers": a.layers, "heads": a.heads, "kv_heads": a.kv_heads, "head_dim": a.head_dim, "rms_norm_eps": 1e-5}
config = {
    "type": "smolvla",
    "vision": {"width": a.vision_width, "layers": a.vision_layers, "heads": a.vision_heads, "mlp": a.vision_mlp, "image": a.image, "patch": a.patch},
    "shuffle": a.shuffle, "language": {"width": a.width, "mlp": a.mlp, "vocabulary": a.vocabulary, **language},
    "expert": {"width": inner.expert_hidden_size, "mlp": a.expert_mlp, **language}, "self_attention_every": 2, "views": a.views, "text": a.text,
    "horizon": a.horizon, "action": a.action, "state": a.state, "steps": a.steps, "min_period": 4e-3, "max_period": 4.0}
common.write(a.folder, config, {"model." + name: value for name, value in model.state_dict().items()}, {}, record, gradient_names,
             ("lerobot", "transformers"), a.store)


def training(of):
    of.zero_grad()
    of.forward(*prefix_inputs, i["action"], i["noise"], i["time"]).mean().backward()


def inference(of):
    with torch.no_grad():
        of.sample_actions(*prefix_inputs, noise=i["noise"])


half.requires_grad_(True)
seen = a.batch * a.views * (a.image // a.patch) ** 2
common.beside(a, {dtype: {"training": lambda of=of: training(of), "inference": lambda of=of: inference(of)}
                  for dtype, of in (("float32", model), ("bfloat16", half))},
              [(seen, a.vision_width, a.vision_mlp), (seen // a.shuffle ** 2 + a.batch * a.text, a.width, a.mlp), (a.batch * a.horizon, inner.expert_hidden_size, a.expert_mlp)])


def adapted():
    hook = common.Kept()
    hook.module("velocity", model.action_out_proj)
    loss = model.forward(*prefix_inputs, i["action"], i["noise"], i["time"]).mean()
    hook.remove()
    with torch.no_grad():
        return {"output.velocity": hook.last("velocity"), "output.chain": chain(model, prefix_inputs, i["noise"])["output.chain"]} | {"output.loss": loss}


adapters.play(a, adapters.Inside(model), ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj",
                                          "modality_projection.proj", "state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in",
                                          "action_time_mlp_out"), adapted, draw)
