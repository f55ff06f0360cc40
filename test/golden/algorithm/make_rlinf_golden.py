#!/usr/bin/env python3
"""Golden numbers from RLinf 0.3.0's own functions, on a CPU, float64 but for the actor's loss, which insists on float32: what its users would get for the same batch.

Run: python3 make_rlinf_golden.py   (rewrites rlinf.json beside this file; seeded)
Needs torch and the unpacked wheel of rlinf 0.3.0 (`pip download --no-deps rlinf==0.3.0`) on PYTHONPATH. Only
rlinf/algorithms/{advantages,losses,utils}.py are run; what else they import is stood in for.
RLinf adds gamma V(final) to the reward of a truncated step before it computes advantages (its environment worker); so do
the inputs here.
"""
import importlib
import json
import pathlib
import sys
import types

import torch

torch.set_default_dtype(torch.float64)


def masked_mean(values, mask=None, axis=None):
    return values.mean() if mask is None else (values * mask).sum() / mask.sum()


def masked_mean_ratio(values, mask, ratio):
    return (values / ratio * mask).mean()


stand_ins = types.ModuleType("rlinf.utils.utils")
stand_ins.masked_mean, stand_ins.masked_mean_ratio = masked_mean, masked_mean_ratio
for name in ["rlinf", "rlinf.algorithms", "rlinf.utils"]:
    module = types.ModuleType(name)
    module.__path__ = [str(pathlib.Path(p) / name.replace(".", "/")) for p in sys.path]
    sys.modules[name] = module
sys.modules["rlinf.utils.utils"] = stand_ins
advantages = importlib.import_module("rlinf.algorithms.advantages")
losses = importlib.import_module("rlinf.algorithms.losses")
utils = importlib.import_module("rlinf.algorithms.utils")

generator = torch.Generator().manual_seed(20261129)


def normal(*shape, scale=1.0):
    return (scale * torch.randn(*shape, generator=generator)).float().double()


def plain(tensor):
    return [float(f"{x:.10g}") for x in tensor.double().flatten().tolist()]


T, B, gamma, lam = 6, 5, 0.97, 0.9
rewards, values, final = normal(T, B), normal(T + 1, B), normal(T, B)
# Ends of episodes: [t][b] 0 none, 1 terminated, 2 truncated. Every row ends in its last step.
ends = torch.zeros(T, B, dtype=torch.long)
ends[1, 1], ends[3, 1], ends[0, 2], ends[2, 3] = 1, 2, 2, 1
ends[T - 1, :] = torch.tensor([2, 1, 2, 2, 1])
done = torch.zeros(T + 1, B, dtype=torch.bool)
done[1:] = ends > 0
bootstrapped = rewards + gamma * final * (ends == 2)
mask = torch.ones(T, B, dtype=torch.bool)
mask[:, 4] = False
results = {}
for normalise in [False, True]:
    adv, ret = advantages.compute_gae_advantages_and_returns(
        rewards=bootstrapped, gamma=gamma, gae_lambda=lam, values=values, normalize_advantages=normalise,
        loss_mask=mask, dones=done)
    results["normalised" if normalise else "advantage"] = plain(adv)
    results["target"] = plain(ret)
gae = {"T": T, "B": B, "gamma": gamma, "lambda": lam, "reward": plain(rewards), "value": plain(values[:-1]),
       "final": plain(final), "end": ends.flatten().tolist(), "mask": mask.long().flatten().tolist(), **results}

N, C, A = 8, 2, 3
value, old, target = normal(N), normal(N), normal(N, scale=3.0)
value = (old + 0.3 * normal(N)).float().double()
behaviour, advantage = normal(N, C, A) - 1, normal(N)
current = (behaviour + 0.4 * normal(N, C, A)).float().double()
loss_mask = torch.ones(N, dtype=torch.bool)
loss_mask[2] = False
critic, actor_critic = [], []
for clip, delta in [(0.2, 10.0), (0.2, 0.8), (1e9, 0.8)]:
    v = value.clone().requires_grad_()
    loss, _ = losses.compute_ppo_critic_loss(values=v, returns=target, prev_values=old, value_clip=clip,
                                             huber_delta=delta, loss_mask=loss_mask)
    loss.backward()
    critic.append({"clip": clip, "huber_delta": delta, "loss": loss.item(), "slope": plain(v.grad)})
for level in ["token_level", "action_level", "chunk_level"]:
    x, v = current.float().requires_grad_(), value.float().requires_grad_()
    inputs = utils.preprocess_loss_inputs(
        logprobs=x, old_logprobs=behaviour.float(), advantages=advantage.float(), logprob_type=level, single_action_dim=A,
        loss_mask=loss_mask, values=v, prev_values=old.float(), returns=target.float(), reward_type="chunk_level",
        clip_ratio_low=0.2, clip_ratio_high=0.28, value_clip=0.2, huber_delta=10.0, clip_ratio_c=None)
    loss, _ = losses.compute_ppo_actor_critic_loss(**inputs)
    loss.backward()
    actor_critic.append({"level": level, "loss": loss.item(), "grad": plain(x.grad), "slope": plain(v.grad)})

G, episodes, L = 4, 8, 5
returns = normal(episodes)
lengths = torch.tensor([5, 3, 4, 5, 1, 2, 5, 4])
seen = torch.arange(L)[:, None] < lengths[None, :]
reinforce = []
for baseline in [False, True]:  # with a group's mean as baseline RLinf changes its argument, and wants it flat
    rewards = returns.float().clone().reshape(1, -1)
    if baseline:
        rewards = rewards - rewards.view(-1, G).mean(dim=1, keepdims=True).expand(-1, G).reshape(1, -1)
    adv, _ = advantages.compute_reinpp_advantages(rewards=rewards, loss_mask=seen, group_size=G)
    reinforce.append({"baseline": baseline, "advantage": plain(adv * seen)})
kl = {name: plain(utils.kl_penalty(current, behaviour, name)) for name in ["k1", "k2", "k3"]}

path = pathlib.Path(__file__).with_name("rlinf.json")
path.write_text(json.dumps({
    "gae": gae,
    "critic": {"value": plain(value), "old": plain(old), "target": plain(target),
               "mask": loss_mask.long().tolist(), "cases": critic},
    "actor_critic": {"N": N, "C": C, "A": A, "current": plain(current), "behaviour": plain(behaviour),
                     "advantage": plain(advantage), "cases": actor_critic},
    "reinforce_plus_plus": {"G": G, "returns": plain(returns), "lengths": lengths.tolist(), "cases": reinforce},
    "kl": kl,
}, separators=(",", ":")) + "\n")
print(f"{path.name}: {path.stat().st_size} bytes")
