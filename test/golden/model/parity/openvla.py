"""OpenVLA: the weights' family of OpenVLA-OFT with a causal Llama that writes an action's tokens one after the other.

    .venv-parity/bin/python test/golden/model/parity/openvla.py --seed 7 --layers 3 --width 80 OUT_FOLDER

Quirks that the record exercises beside those of openvla_oft.py (R = rlinf 0.3.0, models/embodiment/openvla/openvla_action_model.py):
- attention is causal over all, patches among it; padding lies between the patches and the words and its keys are masked;
- positions are cumsum(mask) - 1 (R:133, R:230), in a pass over all and in each step over the cache;
- tokens are drawn among the 256 action ids (R:166), each after the ones before it; the last one drawn is never read again;
- one view; no proprioception; no STOP.
Second ways: each step over the cache against the pass over all, for tokens that were chosen greedily; eager attention; with
--checkout=OPENVLA_OFT,TRANSFORMERS the published code (openvla_oracle.py).
"""
import sys

import torch

import common
import openvla_family as family

a = family.parser(__doc__.splitlines()[0]).parse_args()


def begin(model, i):
    patches = model.patches(i["pixels"].to(model.language_model.lm_head.weight.dtype))
    projected = model.project(patches)
    words = model.embed(i["token"])
    mask = torch.cat([i["token_mask"][:, :1], torch.ones(projected.shape[:2], dtype=torch.bool), i["token_mask"][:, 1:]], 1)
    return patches, projected, torch.cat([words[:, :1], projected, words[:, 1:]], 1), mask.long()


def run(model, i, token):
    """All at once: logits [B, action, vocabulary] of given tokens."""
    patches, projected, embedding, mask = begin(model, i)
    embedding, mask = torch.cat([embedding, model.embed(token)], 1), torch.cat([mask, torch.ones_like(token)], 1)
    position = mask.cumsum(1) - 1
    output = model.language_model(inputs_embeds=embedding, attention_mask=mask, position_ids=position, output_hidden_states=True, use_cache=True)
    return {"patches": patches, "projector": projected, "embedding": embedding, "mask": mask.bool(), "position": position, "hidden": output.hidden_states,
            "cache": output.past_key_values, "logits": output.logits[:, -token.shape[1] - 1:-1]}


def greedy(model, i):
    """One after the other over the cache."""
    _, _, embedding, mask = begin(model, i)
    words, cache, tokens, logits = {"inputs_embeds": embedding}, None, [], []
    for _ in range(a.action):
        position = (mask.cumsum(1) - 1)[:, -next(iter(words.values())).shape[1]:]
        output = model.language_model(**words, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits[:, -1, a.words:a.words + family.BINS])
        tokens.append(logits[-1].argmax(-1) + a.words)
        words, mask = {"input_ids": tokens[-1][:, None]}, torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(tokens, 1), torch.stack(logits, 1)


def outputs(found, token):
    log_prob, entropy = family.log_probs(found["logits"], token, a.words)
    return {"output.logits": found["logits"][..., a.words:a.words + family.BINS], "output.log_prob": log_prob, "output.entropy": entropy,
            "output.loss": -log_prob.mean()}


common.begin(a.seed)
draw = common.Draw(a.seed)
model = family.Reference(a).eval()
common.fill(model, draw)
with torch.no_grad():
    model.language_model.lm_head.weight.mul_(4)  # or all 256 ids would be about as likely
i = family.inputs(a, draw, 1)
i["action_token"] = draw.integers("action", a.words, a.words + family.BINS, a.batch, a.action)
record = {"input." + name: value for name, value in i.items()}

kept = common.Kept()
family.keep_vision(model, kept)
found = run(model, i, i["action_token"])
kept.remove()
family.vision_record(a, kept, record)
record |= outputs(found, i["action_token"])
record["output.loss"].backward()
for name in ("patches", "projector", "embedding", "mask", "position"):
    record["activation." + name] = found[name]
for at in range(a.layers - 1):
    record[f"activation.layer.{at}"] = found["hidden"][at + 1]
record["activation.norm"] = found["hidden"][a.layers]
layer = next(iter(found["cache"]))
record["cache.key.0"], record["cache.value.0"] = layer[0], layer[1]
gradient_names, gradient_record = common.gradients([(family.public(name), parameter) for name, parameter in model.named_parameters()], draw)
record |= gradient_record

with torch.no_grad():
    record["output.greedy"], record["output.greedy_logits"] = greedy(model, i)
    again = run(model, i, record["output.greedy"])["logits"][..., a.words:a.words + family.BINS]
    common.agree("logits over the cache, and in one pass", record["output.greedy_logits"], again, 5e-6)
    eager = family.Reference(a, "eager").eval()
    eager.load_state_dict(model.state_dict())
    common.agree("eager attention's logits", run(eager, i, i["action_token"])["logits"], found["logits"].detach(), 5e-6)
    half = family.Reference(a).eval().to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    record |= {"bf16." + name: value for name, value in outputs(run(half, i, i["action_token"]), i["action_token"]).items()}
common.bf16_report(record)

weights = {family.public(name): value for name, value in model.state_dict().items()}
common.write(a.folder, family.extents("openvla", a, 1, model), weights, {}, record, gradient_names, ("transformers", "timm"), a.store)
if a.checkout:
    sys.exit(family.checkout(a))
