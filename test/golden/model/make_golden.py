"""Numbers that test/model/test_token_head.cpp and test_flow_head.cpp compare against, computed independently in
NumPy float64 from the papers' formulas: OpenVLA-OFT's tempered log-softmax, and the flow_sde transition in the
two algebraically equal forms of pi_RL (x0/x1 weights) and Flow-GRPO (drift), which must agree here first.

    python3 test/golden/model/make_golden.py > test/golden/model/golden.json
"""
import json

import numpy as np

rng = np.random.default_rng(20)


def token_cases():
    cases = []
    for bins, temperature, spread in [(2, 1.0, 1.0), (5, 0.6, 3.0), (32, 1.0, 2.0), (32, 1.6, 20.0), (256, 1.6, 1.0)]:
        logits = np.float32(rng.normal(0, spread, bins))
        z = logits.astype(np.float64) / temperature
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        p = np.exp(log_p)
        entropy = -(p * log_p).sum()
        token = int(rng.integers(bins))
        one = np.eye(bins)[token]
        edges = np.linspace(-1, 1, bins + 1)
        cases.append({
            "bins": bins, "temperature": temperature, "logits": logits.tolist(), "token": token,
            "log_prob": log_p.tolist(), "entropy": float(entropy),
            "d_log_prob": ((one - p) / temperature).tolist(),
            "d_entropy": (-p * (log_p + entropy) / temperature).tolist(),
            "centre": float((edges[token] + edges[token + 1]) / 2),
        })
    return cases


def flow_cases():
    cases = []
    for steps in (1, 3, 4, 10):
        t = np.append(np.linspace(1, 1 / steps, steps), 0.0)
        for noise in (0.3, 0.5, 0.7):
            for i in range(steps):
                delta = t[i] - t[i + 1]
                below = 1 - t[1] if i == 0 else 1 - t[i]
                sigma = noise * np.sqrt(t[i] / below)
                x, v, z = rng.normal(size=3)
                x0, x1 = x - v * t[i], x + v * (1 - t[i])
                w0, w1 = 1 - (t[i] - delta), t[i] - delta - sigma**2 * delta / (2 * t[i])
                mean = x0 * w0 + x1 * w1
                drift = x - delta * v - sigma**2 * delta / (2 * t[i]) * (x + (1 - t[i]) * v)
                assert abs(mean - drift) < 1e-12
                std = sigma * np.sqrt(delta)
                after = mean + std * z
                log_prob = -0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi)
                # d mean / d v, by the linearity of the mean in v.
                x0u, x1u = x - (v + 1) * t[i], x + (v + 1) * (1 - t[i])
                slope = x0u * w0 + x1u * w1 - mean
                cases.append({
                    "steps": steps, "index": i, "noise": noise, "t": t[i], "x": x, "v": v, "after": after,
                    "mean": mean, "std": std, "ode_mean": x - delta * v, "log_prob": log_prob,
                    "d_log_prob": (after - mean) / std**2 * slope,
                })
    return cases


print(json.dumps({"token": token_cases(), "flow": flow_cases()}, indent=1))
