"""What pi05.py and pi0.py share: both references are the same two transformers (PaliGemma and an action expert) over one attention."""

import pathlib
import subprocess
import sys

import torch

import adapters
import common

HEADS = 8  # the joint pass reshapes to 8 heads whatever the configuration says (modeling_pi05.py:121, modeling_pi0.py:124)


def parser(description):
    made = common.parser(
        description, layers=2, width=64, mlp=128, head_dim=16, expert_width=32, expert_mlp=64, vision_layers=2, vision_width=48, vision_mlp=96,
        vision_heads=4, image=28, patch=14, vocabulary=128, views=2, text=6, batch=3, horizon=4, action=7, steps=3)
    made.add_argument("--present", action="store_true", help="no camera and no word is missing in any sample")
    made.add_argument("--layout", choices=("openpi", "lerobot"), default="openpi",
                      help="openpi: embedding only as an alias in the metadata; lerobot: a leading `model.`, embedding and lm_head both")
    adapters.options(made)
    made.add_argument("--openpi", metavar="CHECKOUT", help="--openpi=CHECKOUT: also compare with openpi's own code in that checkout")
    return made


def shrunk(M, a):
    """The reference's constructor with what it hard-codes (vocabulary, vision extents) made small: the Transformers classes that it
    calls see the changed configuration."""
    variants = {"gemma_2b": M.GemmaConfig(a.width, a.layers, a.mlp, HEADS, 1, a.head_dim),
                "gemma_300m": M.GemmaConfig(a.expert_width, a.layers, a.expert_mlp, HEADS, 1, a.head_dim)}
    M.get_gemma_config = variants.__getitem__
    whole, expert = M.PaliGemmaForConditionalGenerationWithPiGemma, M.PiGemmaForCausalLM

    def small_whole(config):
        config.image_token_index = a.vocabulary
        config.text_config.vocab_size = a.vocabulary
        config.projection_dim = a.width
        vision = config.vision_config
        vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = a.vision_width, a.vision_mlp, a.vision_layers
        vision.num_attention_heads, vision.patch_size, vision.projection_dim = a.vision_heads, a.patch, a.width
        return whole(config)

    def small_expert(config):
        config.vocab_size = a.vocabulary
        return expert(config)

    M.PaliGemmaForConditionalGenerationWithPiGemma, M.PiGemmaForCausalLM = small_whole, small_expert


def inputs(a, draw, state):
    """Sample 0 has all; 1 lacks its last camera and a third of the prompt; 2 lacks its first camera, so that its first positions are
    cumsum - 1 = -1, and has one token. With three views the second one is absent throughout."""
    image = draw.uniform("image", -1, 1, a.views, a.batch, 3, a.image, a.image)
    image_mask = torch.ones(a.batch, a.views, dtype=torch.bool)
    token_mask = torch.ones(a.batch, a.text, dtype=torch.bool)
    if a.batch > 1 and not a.present:
        image_mask[1, -1] = False
        token_mask[1, a.text - a.text // 3:] = False
    if a.batch > 2 and not a.present:
        image_mask[2, 0] = False
        token_mask[2, 1:] = False
    if a.views > 2 and not a.present:
        image_mask[:, 1] = False
    for view in range(a.views):
        image[view, ~image_mask[:, view]] = -1.0
    token = draw.integers("token", 1, a.vocabulary, a.batch, a.text) * token_mask
    made = {"image_mask": image_mask, "token": token, "token_mask": token_mask,
            "noise": draw.normal("noise", a.batch, a.horizon, a.action), "action": draw.normal("action", a.batch, a.horizon, a.action),
            "time": torch.tensor([0.3, 0.71, 0.999, 0.05]).repeat(a.batch)[:a.batch]}
    made.update({f"image.{view}": image[view] for view in range(a.views)})
    if state:
        made["state"] = draw.normal("state", a.batch, a.action)
    return made


def run(M, make, a, state):
    """`make(dtype)` builds the reference; `state` says whether it takes the proprioceptive state."""
    common.begin(a.seed)
    draw = common.Draw(a.seed)
    shrunk(M, a)
    model = make("float32").eval()
    common.fill(model, draw)
    inner = model.paligemma_with_expert
    language, expert, vision = inner.paligemma.model.language_model, inner.gemma_expert.model, inner.paligemma.model.vision_tower
    with torch.no_grad():
        inner.paligemma.lm_head.weight.copy_(language.embed_tokens.weight)

    i = inputs(a, draw, state)
    images, image_masks = [i[f"image.{view}"] for view in range(a.views)], [i["image_mask"][:, view] for view in range(a.views)]
    prefix_inputs = (images, image_masks, i["token"], i["token_mask"])
    states = (i["state"],) if state else ()
    record = {"input." + name: value for name, value in i.items()}

    # The training pass: both transformers over one attention.
    kept = common.Kept()
    kept.module("vision.embedding", vision.vision_model.embeddings)
    for at, layer in enumerate(vision.vision_model.encoder.layers):
        kept.module(f"vision.layer.{at}", layer)
    kept.module("vision.output", vision, lambda output: output.last_hidden_state)
    kept.module("projector", inner.paligemma.model.multi_modal_projector)
    kept.module("velocity", model.action_out_proj)
    kept.module("prefix.norm", language.norm)
    kept.module("suffix.norm", expert.norm)
    layer_of_both = M.compute_layer_complete

    def kept_layer(*arguments, **words):
        both = layer_of_both(*arguments, **words)
        at = len(kept.calls.get("prefix.layers", []))
        kept.add("prefix.layers", both[0])
        kept.add("suffix.layers", both[1])
        record.setdefault("activation.prefix.embedding", arguments[0][0].detach()) if at == 0 else None
        record.setdefault("activation.suffix.embedding", arguments[0][1].detach()) if at == 0 else None
        return both

    M.compute_layer_complete = kept_layer
    elements = model.forward(*prefix_inputs, *states, i["action"], i["noise"], i["time"])
    loss = elements.mean()
    loss.backward()
    M.compute_layer_complete = layer_of_both
    for view in range(a.views):
        record[f"activation.vision.{view}.output"] = kept.calls["vision.output"][view]
        record[f"activation.projector.{view}"] = kept.calls["projector"][view]
    record["activation.vision.0.embedding"] = kept.calls["vision.embedding"][0]
    for at in range(a.vision_layers):
        record[f"activation.vision.0.layer.{at}"] = kept.calls[f"vision.layer.{at}"][0]
    for at in range(a.layers):
        record[f"activation.prefix.layer.{at}"] = kept.calls["prefix.layers"][at]
        record[f"activation.suffix.layer.{at}"] = kept.calls["suffix.layers"][at]
    record["activation.prefix.norm"], record["activation.suffix.norm"] = kept.last("prefix.norm"), kept.last("suffix.norm")
    record["output.velocity"], record["output.loss"] = kept.last("velocity"), loss.detach()
    named = [(name, parameter) for name, parameter in model.named_parameters() if not name.endswith("lm_head.weight")]
    gradient_names, gradient_record = common.gradients(named, draw)
    record.update(gradient_record)

    with torch.no_grad():
        # The prefix alone, its cache, and one step over it at the same time and point.
        x = i["time"][:, None, None] * i["noise"] + (1 - i["time"][:, None, None]) * i["action"]
        record["input.x"] = x
        embedding, pad, attend = model.embed_prefix(*prefix_inputs)
        mask = M.prepare_attention_masks_4d(M.make_att_2d_masks(pad, attend))
        record["activation.prefix.pad"], record["activation.prefix.position"] = pad, torch.cumsum(pad, 1) - 1
        language.config._attn_implementation = "eager"
        (prefix, _), cache = inner.forward(attention_mask=mask, position_ids=torch.cumsum(pad, 1) - 1, inputs_embeds=[embedding, None], use_cache=True)
        for at, (keys, values, *_) in enumerate(cache):
            if at in (0, a.layers - 1):
                record[f"cache.key.{at}"], record[f"cache.value.{at}"] = keys.clone(), values.clone()
        if not state:
            record["activation.time_condition"] = model.embed_suffix(x, i["time"])[3]
        velocity = model.denoise_step(*((i["state"],) if state else ()), pad, cache, x, i["time"])
        common.agree("velocity with the prefix's cache, and in one pass", velocity, record["output.velocity"], 5e-6)
        common.agree("prefix alone, and in one pass", prefix[pad], record["activation.prefix.norm"][pad], 5e-6)
        record.update(chain(model, prefix_inputs, states, i["noise"], a.steps))

    half = make("bfloat16").eval()
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        hook = common.Kept()
        hook.module("velocity", half.action_out_proj)
        record["bf16.output.loss"] = half.forward(*prefix_inputs, *states, i["action"], i["noise"], i["time"]).mean()
        record["bf16.output.velocity"] = hook.last("velocity")
        hook.remove()
        record.update({"bf16." + name: value for name, value in chain(half, prefix_inputs, states, i["noise"], a.steps).items()})
    common.bf16_report(record)

    weights, aliases = dict(model.state_dict()), {}
    stem = "paligemma_with_expert.paligemma."
    if a.layout == "openpi":
        del weights[stem + "model.language_model.embed_tokens.weight"]
        aliases = {stem + "model.language_model.embed_tokens.weight": stem + "lm_head.weight"}
    else:
        weights = {"model." + name: value for name, value in weights.items()}

    def training(of):
        of.zero_grad()
        of.forward(*prefix_inputs, *states, i["action"], i["noise"], i["time"]).mean().backward()

    def inference(of):
        with torch.no_grad():
            of.sample_actions(*prefix_inputs, *states, noise=i["noise"], num_steps=a.steps)

    seen = a.batch * (a.views * (a.image // a.patch) ** 2 + a.text)
    shapes = [(seen, a.width, a.mlp), (seen, a.mlp, a.width), (a.batch * a.horizon, a.expert_width, a.expert_mlp)]
    passes = {dtype: {"training": lambda of=of: training(of), "inference": lambda of=of: inference(of)}
              for dtype, of in (("float32", model), ("bfloat16", half))}

    def adapted():
        hook = common.Kept()
        hook.module("velocity", model.action_out_proj)
        found = {"output.loss": model.forward(*prefix_inputs, *states, i["action"], i["noise"], i["time"]).mean()}
        hook.remove()
        with torch.no_grad():
            return found | {"output.velocity": hook.last("velocity"), "output.chain": chain(model, prefix_inputs, states, i["noise"], a.steps)["output.chain"]}

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj", "multi_modal_projector.linear",
               "action_in_proj", "action_out_proj"]
    targets += ["state_proj", "action_time_mlp_in", "action_time_mlp_out"] if state else ["dense", "time_mlp_in", "time_mlp_out"]
    weights = {name: value.clone() for name, value in weights.items()}
    adapters.play(a, adapters.Inside(model) if a.layout == "lerobot" else model, targets, adapted, draw)
    return record, weights, aliases, gradient_names, lambda: common.beside(a, passes, shapes)


def chain(model, prefix_inputs, states, noise, steps):
    """All points and velocities of the Euler integration."""
    points, velocities, times = [], [], []
    step = model.denoise_step

    def kept_step(*arguments, **words):
        velocity = step(*arguments, **words)
        points.append(words["x_t"].clone())
        times.append(words["timestep"][0].clone())
        velocities.append(velocity.clone())
        return velocity

    model.denoise_step = kept_step
    actions = model.sample_actions(*prefix_inputs, *states, noise=noise, num_steps=steps)
    model.denoise_step = step
    return {"output.chain": torch.stack([*points, actions]), "output.chain_velocity": torch.stack(velocities), "output.chain_time": torch.stack(times),
            "output.actions": actions}


def extents(kind, a):
    """config.json."""
    return {
        "type": kind, "layout": a.layout,
        "vision": {"width": a.vision_width, "layers": a.vision_layers, "heads": a.vision_heads, "mlp": a.vision_mlp, "image": a.image, "patch": a.patch},
        "language": {"width": a.width, "layers": a.layers, "heads": HEADS, "kv_heads": 1, "head_dim": a.head_dim, "mlp": a.mlp, "vocabulary": a.vocabulary},
        "expert": {"width": a.expert_width, "layers": a.layers, "heads": HEADS, "kv_heads": 1, "head_dim": a.head_dim, "mlp": a.expert_mlp},
        "views": a.views, "text": a.text, "horizon": a.horizon, "action": a.action, "state": a.action, "steps": a.steps,
        "min_period": 4e-3, "max_period": 4.0}


def openpi(a):
    """In a process of its own, as openpi needs another Transformers."""
    return subprocess.run([sys.executable, pathlib.Path(__file__).with_name("openpi_oracle.py"), a.folder, a.openpi]).returncode
