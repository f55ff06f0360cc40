#!/usr/bin/env python3
"""Golden numbers for dvla's policy gradients: NumPy, float64, from the formulas, not from the C++.

Run: python3 make_golden.py   (rewrites golden.json beside this file; seeded, so it writes the same again)
Inputs are rounded to float32, so that a C++ test in float starts from the very same numbers. Which branch of the loss
holds is found by a central difference of the loss itself; the slope on that branch is then written in closed form.
"""
import itertools
import json
import pathlib

import numpy as np

rng = np.random.default_rng(20261121)


def f32(values):
    return np.asarray(values, np.float32).astype(np.float64)


def plain(value):
    """JSON-ready, 10 significant digits."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return [plain(v) for v in value.ravel().tolist()]
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.10g}")
    if isinstance(value, np.integer):
        return int(value)
    return value


# --- masks, returns, advantages --------------------------------------------------------------------------------------
def masks(done):
    T, B, C = done.shape
    flat = done.transpose(1, 0, 2).reshape(B, T * C)  # [B, steps]
    before = np.cumsum(flat, axis=1) - flat  # dones strictly before this step
    action = (before == 0).reshape(B, T, C).transpose(1, 0, 2)
    chunk_done = done.max(axis=2)
    chunk = (np.cumsum(chunk_done, axis=0) - chunk_done) == 0
    return action.astype(int), chunk.astype(int)


def advantages(ret, valid, G):
    out = np.zeros_like(ret)
    for g in range(0, len(ret), G):
        members = [b for b in range(g, g + G) if valid[b]]
        if len(members) < 2:
            continue
        r = ret[members]
        out[members] = 0.0 if np.all(r == r[0]) else (r - r.mean()) / (r.std(ddof=1) + 1e-6)
    return out


def keep_flags(ret, valid, G, lower, upper):
    keep = np.zeros(len(ret), int)
    for g in range(0, len(ret), G):
        members = [b for b in range(g, g + G) if valid[b]]
        if members and lower <= ret[members].mean() <= upper:
            keep[members] = 1
    return keep


def weights(mask, aggregation):  # mask [T, B] or [T, B, C]
    if aggregation == "masked_mean":
        return mask.astype(float)
    axes = tuple(a for a in range(mask.ndim) if a != 1)
    length = mask.sum(axis=axes, keepdims=True)
    whole = mask.size / mask.shape[1]
    return np.where(mask > 0, whole / np.maximum(length, 1), 0.0)


T, B, C, G = 4, 20, 3, 4
done = np.zeros((T, B, C), int)
for b, (t, c) in {0: (0, 0), 1: (0, 2), 2: (1, 1), 3: (3, 2), 5: (2, 0), 6: (0, 1), 9: (1, 2), 13: (2, 2)}.items():
    done[t, b, c] = 1
done[2, 0, 1] = 1  # a second done, of a later episode, must change nothing
done[3, 6, :] = 1
reward = f32(rng.normal(size=(T, B, C)))
reward[:, 8:12] = 0  # group 2: sparse rewards
reward[1, 9, 2] = 1.0
reward[2, 9, 0] = 50.0  # after the done: nobody's
reward[:, 12:16] = 0  # group 3: everybody earns the same, in numbers that do not sum without rounding
reward[0, 12:16, 0] = f32(0.1)
valid = np.ones(B, int)
valid[6] = 0  # a masked member in group 1
valid[[16, 17, 19]] = 0  # one valid member in group 4
action_mask, chunk_mask = masks(done)
returns = (reward * action_mask).sum(axis=(0, 2))
adv = advantages(f32(returns), valid, G)
borders = f32([1, 0, 0, 0] + [1, 1, 1, 0] + [1, 1, 1, 1] + [0, 0, 0, 0] + [1, 0, 1, 0])  # means .25 .75 1 0 .5|masked
border_valid = np.ones(B, int)
border_valid[16] = 0
rollout = {
    "T": T, "B": B, "C": C, "G": G, "done": done, "reward": reward, "valid": valid,
    "mask_action": action_mask, "mask_chunk": chunk_mask, "returns": returns, "advantage": adv,
    "chunk_reward": (reward * action_mask).sum(axis=2),
    "advantage_action": adv[None, :, None] * action_mask, "advantage_chunk": adv[None, :] * chunk_mask,
    "filter": {"returns": borders, "valid": border_valid, "lower": 0.25, "upper": 0.75,
               "keep": keep_flags(borders, border_valid, G, 0.25, 0.75)},
    "filter_real": {"lower": -1.0, "upper": 1.0, "keep": keep_flags(f32(returns), valid, G, -1.0, 1.0)},
    "weight_action_equal": weights(action_mask, "trajectory_equal"),
    "weight_chunk_equal": weights(chunk_mask, "trajectory_equal"),
}

# --- clipped loss ----------------------------------------------------------------------------------------------------
A = 2
LT, LB = 3, 4  # a rollout of 3 decisions and 4 episodes, all 12 rows in one batch
N = LT * LB
loss_done = np.zeros((LT, LB, C), int)
loss_done[0, 1, 1] = loss_done[1, 2, 0] = 1
behaviour = f32(-rng.exponential(1.5, size=(N, C, A)))
current = f32(behaviour + rng.normal(0, 0.35, size=(N, C, A)))
current[0] = behaviour[0]  # ratio exactly 1
current[3, 0] = f32(behaviour[3, 0] + [2.5, 2.0])  # far outside every clip and clamp
current[4, 1] = f32(behaviour[4, 1] - [3.0, 1.0])
proximal = f32(behaviour + 0.6 * (current - behaviour) + rng.normal(0, 0.1, size=(N, C, A)))
entropy = f32(rng.uniform(0.1, 3, size=(N, C, A)))
episode_adv = f32([1.25, -0.75, 0.5, -1.5])
version = np.array([5, 5, 4, 3, 5, 2, 4, 5, 3, 1, 4, 5])
trained_version = 5


def reduce_level(x, level):
    return {"token": x, "action": x.sum(2, keepdims=True), "chunk": x.sum((1, 2), keepdims=True)}[level]


def loss_case(level, reward_level, aggregation, correction, dual, clamp, bonus, limit):
    mask_a, mask_c = masks(loss_done)
    mask = mask_a if reward_level == "action" else mask_c
    w = f32(weights(mask, aggregation)).reshape(N, -1, 1)  # [N, R, 1]
    m = mask.reshape(N, -1, 1)
    a = np.broadcast_to(episode_adv[None, :], (LT, LB)).reshape(N, 1, 1) * m
    x, old = reduce_level(current, level), reduce_level(behaviour, level)
    ones = np.ones_like(x)
    w, m, a = w * ones, m * ones, a * ones  # one weight for every unit
    denominator = float(m.sum() if aggregation == "masked_mean" else m.size)
    if correction == "uncorrected":
        prox = old
    elif correction == "recomputed":
        prox = reduce_level(proximal, level)
    else:
        gap = (trained_version - version).astype(float)
        alpha = np.where(gap > 0, np.clip((gap - 1) / np.maximum(gap, 1), 0, 1), 0)
        prox = old + alpha[:, None, None] * (x - old)
    bw = np.exp(prox - old) if correction != "uncorrected" else ones
    survive = ((bw <= limit) if correction != "uncorrected" else ones > 0) & (m > 0)
    low, high = 0.2, 0.28
    lo, hi = clamp if clamp else (-np.inf, np.inf)

    def element(log_prob):
        r = np.exp(np.clip(log_prob - prox, lo, hi))
        L = np.maximum(-a * r, -a * np.clip(r, 1 - low, 1 + high))
        if dual:
            L = np.minimum(L, dual * a * np.sign(a))
        return L

    def total(log_prob, ent):
        policy = (element(log_prob) * bw * w * survive).sum() / denominator
        return policy - bonus * (ent * w * m).sum() / denominator

    # A unit's gradient, by a central difference in extended precision. The inputs are random, so none lies on a kink.
    h = np.longdouble(1e-6)
    xl = x.astype(np.longdouble)
    slope = ((element(xl + h) - element(xl - h)) / (2 * h)).astype(float)  # error ~ h^2
    exact = np.where(np.abs(slope) > 1e-9, -a * np.exp(np.clip(x - prox, lo, hi)), 0.0)
    assert np.allclose(slope, exact, rtol=1e-7, atol=1e-9), "branch gradient disagrees with the difference quotient"
    tokens = np.ones((N, C, A))
    grad = exact * bw * w * survive / denominator * tokens
    grad_entropy = -bonus * w * m / denominator * tokens

    ent = reduce_level(entropy, level)
    r = np.exp(np.clip(x - prox, lo, hi))
    valid_units = m > 0
    units = valid_units.sum()
    l1, l2 = -a * r, -a * np.clip(r, 1 - low, 1 + high)
    clipped = (l2 > l1) & survive
    d = x - old
    return {
        "level": level, "reward_level": reward_level, "aggregation": aggregation, "correction": correction,
        "dual_clip": dual or 0.0, "log_ratio_max": clamp[1] if clamp else None,
        "log_ratio_min": clamp[0] if clamp else None, "entropy_bonus": bonus, "weight_limit": limit,
        "weight": w[:, :: (1 if reward_level == "action" else w.shape[1]), 0],
        "advantage": a[:, :: (1 if reward_level == "action" else a.shape[1]), 0],
        "denominator": denominator, "loss": total(x, ent), "grad": grad, "grad_entropy": grad_entropy,
        "units": units, "dropped": (valid_units & ~survive).sum(),
        "clipped_low": (clipped & (r < 1)).sum(), "clipped_high": (clipped & (r > 1)).sum(),
        "dual_clipped": ((dual * np.abs(a) < np.maximum(l1, l2)) & survive).sum() if dual else 0,
        "ratio_mean": r[valid_units].mean(), "max_ratio_deviation": np.abs(r - 1)[valid_units].max(),
        "approx_kl": (np.exp(d) - 1 - d)[valid_units].mean(), "anchor_weight_mean": np.where(survive, bw, 0)[valid_units].mean(),
        "entropy": (ent * w * m).sum() / denominator,
    }


cases = []
levels = [("token", "action"), ("token", "chunk"), ("action", "action"), ("action", "chunk"), ("chunk", "chunk")]
for (level, reward_level), aggregation in itertools.product(levels, ["masked_mean", "trajectory_equal"]):
    cases.append(loss_case(level, reward_level, aggregation, "uncorrected", None, None, 0.0, 2.0))
    cases.append(loss_case(level, reward_level, aggregation, "recomputed", 3.0, None, 0.005, 2.0))
for level, reward_level in levels:
    cases.append(loss_case(level, reward_level, "masked_mean", "uncorrected", 1.5, None, 0.0, 2.0))
    cases.append(loss_case(level, reward_level, "masked_mean", "uncorrected", None, (-0.5, 0.75), 0.01, 2.0))
    cases.append(loss_case(level, reward_level, "trajectory_equal", "interpolated", 3.0, None, 0.0, 2.0))
    cases.append(loss_case(level, reward_level, "masked_mean", "interpolated", None, None, 0.0, 1.2))
loss = {"T": LT, "B": LB, "C": C, "A": A, "done": loss_done, "current": current, "behaviour": behaviour,
        "proximal": proximal, "entropy": entropy, "version": version, "trained_version": trained_version,
        "cases": cases}

# --- AdamW, 10 steps, float64 ----------------------------------------------------------------------------------------
count = 37  # one whole block and a tail
p = f32(rng.normal(size=count))
first, second, history = np.zeros(count), np.zeros(count), []
gradients = f32(rng.normal(size=(10, count)) * np.logspace(-4, 0.5, count))
gradients[:, 5] = 0.0
knobs = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1, "max_grad_norm": 4.0}
adamw = {"knobs": knobs, "parameter": p.copy(), "gradients": gradients, "norms": [], "steps": history}
for step, g in enumerate(gradients, 1):
    norm = np.sqrt((g**2).sum())
    g = g * min(1.0, knobs["max_grad_norm"] / (norm + 1e-6))
    p = p * (1 - knobs["learning_rate"] * knobs["weight_decay"])
    first = knobs["beta1"] * first + (1 - knobs["beta1"]) * g
    second = knobs["beta2"] * second + (1 - knobs["beta2"]) * g * g
    m_hat = first / (1 - knobs["beta1"] ** step)
    v_hat = second / (1 - knobs["beta2"] ** step)
    p = p - knobs["learning_rate"] * m_hat / (np.sqrt(v_hat) + knobs["epsilon"])
    adamw["norms"].append(norm)
    history.append(p.copy())
adamw["first_moment"], adamw["second_moment"] = first, second
assert min(adamw["norms"]) < 4.0 < max(adamw["norms"]), "both sides of the norm clip must be covered"

# --- values: GAE, V-trace, the value loss; leave-one-out; GIPO; a ratio of means (GSPO) --------------------------------
T, B, R = 6, 5, 2
K = T * R
value_rng = np.random.default_rng(20261129)  # of its own: what stands above does not depend on it


def f32v(values):
    return np.asarray(values, np.float32).astype(np.float64)


v_reward = f32v(value_rng.normal(size=(T, B, R)))
v_value = f32v(value_rng.normal(size=(T, B, R)))
v_log_ratio = f32v(value_rng.normal(0, 0.5, size=(T, B, R)))
# (row, begin, end, truncated, final value): elements in time order; several a row, with gaps between them
episodes = [(0, 0, 12, 1, 0.7), (1, 0, 3, 0, 9.0), (1, 4, 9, 1, -0.4), (1, 10, 12, 1, 1.3), (2, 0, 1, 0, 5.0),
            (3, 0, 6, 1, 0.25), (3, 6, 12, 0, 7.0)]
episodes = [(b, k, e, cut, float(np.float32(v))) for b, k, e, cut, v in episodes]
gamma, lam = 0.97, 0.9
gae_adv, gae_target, trace = np.zeros((T, B, R)), np.zeros((T, B, R)), np.zeros((T, B, R))
counts = np.zeros((T, B, R), int)
for b, begin, end, cut, final in episodes:
    at = [(k // R, b, k % R) for k in range(begin, end)]
    r, v, lr = (np.array([x[i] for i in at]) for x in (v_reward, v_value, v_log_ratio))
    following = np.append(v[1:], final if cut else 0.0)
    delta = r + gamma * following - v
    rho = np.minimum(1.0, np.exp(lr))
    for i, place in enumerate(at):  # by the definitions, not by recursion
        gae_adv[place] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(at)))
        gae_target[place] = gae_adv[place] + v[i]
        trace[place] = v[i] + sum(gamma ** (j - i) * np.prod(lam * rho[i:j]) * rho[j] * delta[j] for j in range(i, len(at)))
        counts[place] = 1
valid = counts == 1
normal = np.where(valid, (gae_adv - gae_adv[valid].mean()) / (gae_adv[valid].std(ddof=1) + 1e-5), 0.0)

count = 24
loss_value = f32v(value_rng.normal(size=count))
loss_old = f32v(loss_value + value_rng.normal(0, 0.3, size=count))
loss_target = f32v(loss_value + value_rng.normal(0, 2.0, size=count))
loss_weight = f32v(value_rng.uniform(0.5, 2, size=count))
loss_weight[[3, 11]] = 0
value_cases = []
for clip, delta, coefficient in itertools.product([0.2, 0.0], [10.0, 0.8], [1.0, 0.5]):
    def one(x):
        def huber(e):
            return np.where(np.abs(e) < delta, 0.5 * e * e, delta * (np.abs(e) - 0.5 * delta))
        plain_loss = huber(loss_target - x)
        if clip == 0:
            return plain_loss
        return np.maximum(plain_loss, huber(loss_target - loss_old - np.clip(x - loss_old, -clip, clip)))
    h = np.longdouble(1e-6)
    x = loss_value.astype(np.longdouble)
    slope = ((one(x + h) - one(x - h)) / (2 * h)).astype(float)
    value_cases.append({"clip": clip, "huber_delta": delta, "coefficient": coefficient,
                        "loss": coefficient * (one(loss_value) * loss_weight).sum() / 7.5,
                        "slope": coefficient * slope * loss_weight / 7.5,
                        "clipped": int(((np.abs(slope) < 1e-9) & (loss_weight > 0)).sum())})
assert any(c["clipped"] > 0 for c in value_cases)

loo_return = f32v(value_rng.normal(size=12))
loo_return[8:] = f32v(0.3)
loo_valid = np.ones(12, int)
loo_valid[[1, 4, 5, 6]] = 0
loo = np.zeros(12)
for g in range(0, 12, 4):
    members = [b for b in range(g, g + 4) if loo_valid[b]]
    for b in members:
        others = [loo_return[o] for o in members if o != b]
        loo[b] = loo_return[b] - np.mean(others) if others else 0.0

gipo_current, gipo_behaviour = f32v(value_rng.normal(-1, 0.6, size=(6, 2, 2))), f32v(value_rng.normal(-1, 0.6, size=(6, 2, 2)))
gipo_adv = f32v(value_rng.normal(size=6))
gipo_cases = []
for level, sigma in itertools.product(["token", "action", "chunk", "sequence"], [0.5, 1.5]):
    axes = {"token": None, "action": (2,), "chunk": (1, 2), "sequence": (1, 2)}[level]
    unit = (gipo_current - gipo_behaviour) if axes is None else (gipo_current - gipo_behaviour).sum(axis=axes, keepdims=True)
    if level == "sequence":
        unit = unit / 4
    units = unit.size
    factor = np.exp(-0.5 * (unit / sigma) ** 2)
    each = -np.exp(unit) * gipo_adv[:, None, None] * factor  # the factor is a constant to the gradient
    token = np.broadcast_to(each / units * (0.25 if level == "sequence" else 1), (6, 2, 2))
    gipo_cases.append({"level": level, "sigma": sigma, "loss": each.sum() / units, "grad": token, "units": units})
values = {"T": T, "B": B, "R": R, "gamma": gamma, "lambda": lam, "reward": v_reward, "value": v_value,
          "log_ratio": v_log_ratio, "episodes": [list(e) for e in episodes], "advantage": gae_adv,
          "target": gae_target, "v_trace": trace, "mask": counts, "normalised": normal,
          "loss": {"value": loss_value, "old": loss_old, "target": loss_target, "weight": loss_weight,
                   "denominator": 7.5, "cases": value_cases},
          "leave_one_out": {"G": 4, "returns": loo_return, "valid": loo_valid, "advantage": loo},
          "gipo": {"current": gipo_current, "behaviour": gipo_behaviour, "advantage": gipo_adv, "cases": gipo_cases}}

for name in ["clipped_low", "clipped_high", "dual_clipped", "dropped"]:
    assert any(c[name] > 0 for c in cases), f"no case covers {name}"
path = pathlib.Path(__file__).with_name("golden.json")
sections = {"rollout": rollout, "loss": loss, "adamw": adamw, "values": values}
path.write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(plain(v), separators=(",", ":"))}' for k, v in sections.items())
                .replace('},{"level"', '},\n{"level"') + "\n}\n")
print(f"{path.name}: {path.stat().st_size} bytes, {len(cases)} loss cases, norms {min(adamw['norms']):.2f}..{max(adamw['norms']):.2f}")
