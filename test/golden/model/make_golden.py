"""Numbers that test/model/test_token_head.cpp, test_flow_head.cpp and test_vla_values.cpp compare against, computed
independently in NumPy float64 from the papers' formulas: OpenVLA-OFT's tempered log-softmax; the flow_sde transition in the
two algebraically equal forms of pi_RL (x0/x1 weights) and Flow-GRPO (drift), which must agree here first; flow_cps; whole
chains under flow_noise, whose gradients are steps along the imaginary axis; the value heads of RLinf.

    python3 test/golden/model/make_golden.py > test/golden/model/golden.json
"""
import json
import math

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


def times(steps):
    return np.append(np.linspace(1, 1 / steps, steps), 0.0)


def normal(x, mean, std):
    return -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)


def along_imaginary(f, at, i):
    """The derivative of f in its i-th argument."""
    moved = np.array(at, dtype=complex)
    moved[i] += 1e-30j
    return float(np.imag(f(moved)) / 1e-30)


def cps_cases():
    cases = []
    for steps in (2, 3, 4, 10):
        t = times(steps)
        for noise in (0.3, 0.5, 1.0):
            for i in range(steps):
                x, v, z = rng.normal(size=3)
                left = t[i + 1]  # t - d

                def mean(v):
                    return (x - v * t[i]) * (1 - left) + (x + v * (1 - t[i])) * left * np.cos(np.pi * noise / 2)

                std = left * np.sin(np.pi * noise / 2)
                case = {"steps": steps, "index": i, "noise": noise, "x": x, "v": v, "t": t[i], "mean": mean(v), "std": std}
                if i + 1 < steps:
                    after = mean(v) + std * z
                    case |= {"after": after, "log_prob": normal(after, mean(v), std),
                             "d_log_prob": along_imaginary(lambda a: normal(after, mean(a[0]), std), [v], 0)}
                cases.append(case)
    return cases


def noise_cases():
    """One element of a decision: its chain, and what the network says of each step, which float32 holds exactly."""
    cases = []
    lowest, highest = np.log(0.08**2), np.log(0.16**2)
    for steps in (1, 3, 4, 10):
        t = times(steps)
        chain, v = (np.float32(rng.normal(size=n)).astype(float) for n in (steps + 1, steps))
        z = np.float32(rng.normal(0, 1.5, steps)).astype(float)
        for i in range(steps):  # a chain that these steps could have made
            chain[i + 1] = np.float32(chain[i] - (t[i] - t[i + 1]) * v[i] + 0.12 * rng.normal())

        def std(z):
            return np.exp((lowest + (highest - lowest) * (np.tanh(z) + 1) / 2) / 2)

        def log_prob(vz):
            v, z = vz[:steps], vz[steps:]
            mean = chain[:-1] - (t[:-1] - t[1:]) * v
            return (normal(chain[0], 0, 1) + normal(chain[1:], mean, std(z)).sum()) / (steps + 1)

        def entropy(vz):
            widths = np.append(std(vz[steps:]), 1.0)
            return (0.5 * np.log(2 * np.pi * np.e * widths**2)).mean()

        both = np.append(v, z)
        gradient = {name: [along_imaginary(f, both, i) for i in range(2 * steps)]
                    for name, f in (("d_log_prob", log_prob), ("d_entropy", entropy))}
        cases.append({"steps": steps, "chain": chain.tolist(), "v": v.tolist(), "z": z.tolist(), "std": std(z).tolist(),
                      "log_prob": float(log_prob(both)), "entropy": float(entropy(both))} | gradient)
    return cases


def value_cases():
    """A row's tokens, which of them count, and a head: pi0.5's (relu, a bias at the end), OpenVLA-OFT's (gelu, none)."""
    cases = []
    erf = np.vectorize(math.erf)
    for activation, last_bias, apply in (("relu", True, lambda x: np.maximum(x, 0)),
                                         ("gelu", False, lambda x: x * (1 + erf(x / np.sqrt(2))) / 2),
                                         ("tanh", True, np.tanh)):
        widths = [6, 5, 4, 2]
        tokens = np.float32(rng.normal(size=(7, widths[0])))
        counted = rng.integers(0, 2, 7).astype(bool)
        counted[0] = True
        x = tokens.astype(float)[counted].mean(0)
        layers = []
        for i, (inside, out) in enumerate(zip(widths[:-1], widths[1:])):
            last = i + 2 == len(widths)
            weight, bias = np.float32(rng.normal(size=(out, inside))), np.float32(rng.normal(size=out))
            if last and not last_bias:
                bias[:] = 0
            layers.append({"weight": weight.flatten().tolist(), "bias": bias.tolist()})
            x = weight.astype(float) @ x + bias
            x = x if last else apply(x)
        cases.append({"activation": activation, "last_bias": last_bias, "widths": widths, "tokens": tokens.flatten().tolist(),
                      "counted": counted.tolist(), "layers": layers, "value": x.tolist()})
    return cases


print(json.dumps({"token": token_cases(), "flow": flow_cases(), "flow_cps": cps_cases(), "flow_noise": noise_cases(),
                  "value": value_cases()}, indent=1))
