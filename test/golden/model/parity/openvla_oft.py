"""OpenVLA-OFT: timm's towers and Transformers' Llama under a mask that lets all positions see all, recorded for C++ to agree with.

    .venv-parity/bin/python test/golden/model/parity/openvla_oft.py --seed 7 --layers 3 --width 80 OUT_FOLDER

Two forms of the same weights are recorded: as RLinf runs them (batches, prompts padded, STOP dropped) and, as `official.`, as their authors do
(no padding, STOP kept, proprioception, L1 head).

Quirks that the record exercises (M = prismatic/extern/hf/modeling_prismatic.py of moojink/openvla-oft at 213c5ff, R = rlinf 0.3.0,
models/embodiment/openvla_oft/rlinf/openvla_oft_action_model.py, T = timm 1.0.31's models/vision_transformer.py):
- attention is bidirectional: the published Llama copies the causal mask's last row to every query, which leaves the padding of keys alone;
- a view has six channels, three for each tower (M:216); views are concatenated along the patches (M:227), the towers along the width (M:223);
- a tower's output is that of its last block but one, without a norm (M:137): the last block and the norm are never read; neither is SigLIP's
  attn_pool; DINOv2 adds positions to patches before its five tokens join (no_embed_class, T:4237), and those five are dropped at the end;
- GELU is exact in both towers and in the projector (T:4402 names no other activation; M:248);
- the patches stand between BOS and the rest (M:475), proprioception as one more token behind them (M:458);
- RLinf: padding between the patches and the words, positions cumsum(mask) - 1 (R:318), STOP dropped (R:85); official: positions from 0 up,
  STOP kept (M:744): it is seen by all, so the two differ in all logits;
- embeddings of actions are zeros (R:100, M:891), not those of a token;
- logits are read from the last word on, one position early (R:340, M:931, 985): NUM_PROMPT_TOKENS leaves BOS out;
- only 256 of the vocabulary count: the 64 behind them fill up, id = vocabulary - 64 - 1 - bin (R:350, R:394); 255 centres for 256 ids, so
  that the last two share one (M:729);
- Llama's norms are x w, eps from the configuration (1e-6 unless it says so), RoPE rotates halves, theta 10000; lm_head is not tied.
Second ways: eager attention; with --checkout=OPENVLA_OFT,TRANSFORMERS the published code itself (openvla_oracle.py).
"""
import sys

import torch
from torch import nn

import adapters
import common
import openvla_family as family

made = family.parser(__doc__.splitlines()[0], views=2, horizon=2, state=5)
adapters.options(made)
a = made.parse_args()
slots = a.horizon * a.action


class Head(nn.Module):
    """The L1 head (prismatic/models/action_heads.py:82): over the actions' hidden states of one step side by side."""

    def __init__(self):
        super().__init__()
        wide = a.action * a.width
        self.layer_norm1, self.fc1, self.layer_norm2, self.fc2 = nn.LayerNorm(wide), nn.Linear(wide, a.width), nn.LayerNorm(a.width), nn.Linear(a.width, a.action)
        self.mlp_resnet_blocks = nn.ModuleList(
            nn.ModuleDict({"ffn": nn.Sequential(nn.LayerNorm(a.width), nn.Linear(a.width, a.width), nn.ReLU())}) for _ in range(2))

    def forward(self, hidden):
        x = self.fc1(self.layer_norm1(hidden.reshape(-1, a.horizon, a.action * a.width))).relu()
        for block in self.mlp_resnet_blocks:
            x = x + block["ffn"](x)
        return self.fc2(self.layer_norm2(x))


def additive(mask, dtype):
    """[B, S] of keys that count -> [B, 1, S, S]."""
    zero = torch.zeros(mask.shape[0], 1, mask.shape[1], mask.shape[1], dtype=dtype)
    return zero.masked_fill(~mask[:, None, None, :], torch.finfo(dtype).min)


def run(model, i, official, extra=None):
    """Logits [B, slots, vocabulary] and hidden states of the positions that actions are read from."""
    dtype = model.language_model.lm_head.weight.dtype
    patches = model.patches(i["pixels"].to(dtype))
    projected = model.project(patches)
    words = model.embed(i["token"])
    parts = [words[:, :1], projected]
    if extra is not None:
        parts.append(extra)
    parts += [words[:, 1:], torch.zeros(words.shape[0], slots, words.shape[2], dtype=dtype)]
    if official:
        parts.append(model.embed(torch.full((words.shape[0], 1), family.STOP)))
    embedding = torch.cat(parts, 1)
    before = embedding.shape[1] - words.shape[1] - slots - official
    ones = torch.ones(words.shape[0], before, dtype=torch.bool)
    mask = torch.cat([i["token_mask"][:, :1], ones, i["token_mask"][:, 1:], torch.ones(words.shape[0], slots + official, dtype=torch.bool)], 1)
    position = torch.arange(mask.shape[1])[None].expand_as(mask) if official else mask.long().cumsum(1) - 1
    output = model.language_model(inputs_embeds=embedding, attention_mask=additive(mask, dtype), position_ids=position, output_hidden_states=True,
                                  use_cache=True)
    first = before + words.shape[1] - 1
    return {"patches": patches, "projector": projected, "embedding": embedding, "mask": mask, "position": position, "hidden": output.hidden_states,
            "cache": output.past_key_values, "logits": output.logits[:, first:first + slots], "read": output.hidden_states[-1][:, first:first + slots]}


def outputs(found, token):
    log_prob, entropy = family.log_probs(found["logits"], token, a.words)
    warm, _ = family.log_probs(found["logits"], token, a.words, 1.6)
    return {"output.logits": found["logits"][..., a.words:a.words + family.BINS], "output.log_prob": log_prob, "output.entropy": entropy,
            "output.log_prob_1.6": warm, "output.loss": -log_prob.mean()}


common.begin(a.seed)
draw = common.Draw(a.seed)
model, head = family.Reference(a).eval(), Head().eval()
proprio = nn.Sequential(nn.Linear(a.state, a.width), nn.GELU(), nn.Linear(a.width, a.width)).eval()
common.fill(model, draw)
with torch.no_grad():
    model.language_model.lm_head.weight.mul_(4)  # or all 256 ids would be about as likely
common.fill(head, draw)
common.fill(proprio, draw)
i = family.inputs(a, draw, a.views)
i["action_token"] = draw.integers("action", a.words, a.words + family.BINS, a.batch, slots)
record = {"input." + name: value for name, value in i.items()}

kept = common.Kept()
family.keep_vision(model, kept)
found = run(model, i, official=False)
kept.remove()
family.vision_record(a, kept, record)
record |= outputs(found, i["action_token"])
record["output.loss"].backward()
record["output.greedy"] = found["logits"][..., a.words:a.words + family.BINS].argmax(-1) + a.words
record["output.hidden"] = found["read"]
for name in ("patches", "projector", "embedding", "mask", "position"):
    record["activation." + name] = found[name]
for at in range(a.layers):  # what a block puts out, without the last norm
    if at + 1 < a.layers:
        record[f"activation.layer.{at}"] = found["hidden"][at + 1]
record["activation.norm"] = found["hidden"][a.layers]
layer = next(iter(found["cache"]))
record["cache.key.0"], record["cache.value.0"] = layer[0], layer[1]
named = [(family.public(name), parameter) for name, parameter in model.named_parameters()]
gradient_names, gradient_record = common.gradients(named, draw)
record |= gradient_record

with torch.no_grad():
    eager = family.Reference(a, "eager").eval()
    eager.load_state_dict(model.state_dict())
    other = run(eager, i, official=False)
    common.agree("eager attention's logits", other["logits"], found["logits"].detach(), 5e-6)
    changed = {**i, "token": i["token"].clone()}
    changed["token"][:, -1] = 3  # the last word; nothing before it would see that under a causal mask
    assert (run(model, changed, official=False)["hidden"][-1][:, 0] - found["hidden"][-1][:, 0]).abs().max() > 1e-3

    whole = {"token": draw.integers("official token", 3, a.words - 1, a.batch, a.text + 1), "token_mask": torch.ones(a.batch, a.text + 1, dtype=torch.bool),
             "pixels": i["pixels"]}
    whole["token"][:, 0], whole["token"][:, -1] = family.BOS, a.words - 1
    state = draw.normal("state", a.batch, a.state)
    record["official.input.token"], record["official.input.state"] = whole["token"], state
    official = run(model, whole, official=True)
    record["official.output.logits"] = official["logits"][..., a.words:a.words + family.BINS]
    record["official.output.token"] = official["logits"].argmax(-1)  # over the whole vocabulary, as M:933
    with_state = run(model, whole, official=True, extra=proprio(state)[:, None])
    record["official.output.hidden"], record["official.output.actions"] = with_state["read"], head(with_state["read"])

    half = family.Reference(a).eval().to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    record |= {"bf16." + name: value for name, value in outputs(run(half, i, official=False), i["action_token"]).items()}
    half_state = run(half, whole, official=True, extra=proprio.to(torch.bfloat16)(state.to(torch.bfloat16))[:, None])
    record["bf16.official.output.actions"] = head.to(torch.bfloat16)(half_state["read"])
common.bf16_report(record)

weights = {family.public(name): value for name, value in model.state_dict().items()}
config = family.extents("openvla_oft", a, a.views, model) | {"horizon": a.horizon, "state": a.state}
a.folder.mkdir(parents=True, exist_ok=True)
common.save(a.folder / "action_head.safetensors", {"model." + name: value.float() for name, value in head.state_dict().items()}, {"format": "pt"})
common.save(a.folder / "proprio_projector.safetensors", {name.replace("0.", "fc1.").replace("2.", "fc2."): value.float() for name, value in
                                                         proprio.state_dict().items()}, {"format": "pt"})
common.write(a.folder, config, weights, {}, record, gradient_names, ("transformers", "timm"), a.store)


def training(of):
    of.zero_grad()
    outputs(run(of, i, official=False), i["action_token"])["output.loss"].backward()


def inference(of):
    with torch.no_grad():
        run(of, i, official=False)


half.requires_grad_(True)
seen = a.batch * (a.views * (a.image // 14) ** 2 + a.text + slots)
common.beside(a, {dtype: {"training": lambda of=of: training(of), "inference": lambda of=of: inference(of)}
                  for dtype, of in (("float32", model), ("bfloat16", half))},
              [(seen, a.width, a.mlp), (seen, a.mlp, a.width), (a.batch * a.views * (a.image // 14) ** 2, a.dino_width, 4 * a.dino_width)])
adapters.play(a, model, family.TARGETS, lambda: outputs(run(model, i, official=False), i["action_token"]), draw, family.public)
if a.checkout:
    sys.exit(family.checkout(a))
