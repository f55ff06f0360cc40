"""What the parity scripts share: arguments, weights that are nowhere zero, hooks that keep what modules put out, and the files.

A record is a folder with
  config.json          every extent that a loader needs
  model.safetensors    weights under the public names; aliases in __metadata__
  record.safetensors   inputs, activations, outputs, loss and gradients of the float32 reference; `bf16.` of the same in bfloat16
Floats are float32, token ids int64, masks bool. README.md lists the tensors.
"""
import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from safetensors.torch import load_file

SAMPLES = 64  # entries of each gradient that are kept


def parser(description, **sizes):
    """Sizes as options: `width=64` is --width 64."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("folder", metavar="OUT_FOLDER", type=pathlib.Path)
    made.add_argument("--seed", type=int, default=7)
    made.add_argument("--store", choices=("float32", "bfloat16"), default="float32", help="dtype of the weights' file")
    made.add_argument("--beside", metavar="PARITY", help="also time the reference against this build/release/examples/parity, in turn")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--threads", type=int, default=1)
    for name, value in sizes.items():
        made.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    return made


def begin(seed):
    """One thread, so that sums are the same ones on any machine."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


class Draw:
    """Numbers that depend on the seed and on a name, and not on what was drawn before."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, name):
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:8], "little")))

    def normal(self, name, *shape, std=1.0):
        return torch.from_numpy(self(name).normal(0, std, shape).astype(np.float32))

    def uniform(self, name, low, high, *shape):
        return torch.from_numpy(self(name).uniform(low, high, shape).astype(np.float32))

    def integers(self, name, low, high, *shape):
        return torch.from_numpy(self(name).integers(low, high, shape))


def fill(model, draw):
    """Every parameter anew: matrices N(0, 0.1), vectors N(0, 0.2), scales of norms and layers about 1/2, so that neither a scale
    that is forgotten nor one that is taken as 1 + w can hide. Values are those of bfloat16, so that a model in bfloat16 has the
    same weights and not rounded ones."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.ndim == 1 and name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma", "scale_factor"))
            value = draw.normal(name, *parameter.shape, std=0.2 if parameter.ndim == 1 else 0.1) + (0.5 if scale else 0.0)
            parameter.copy_(value.to(torch.bfloat16))


class Kept:
    """What modules and functions put out, by name; a module that is called several times leaves a list."""

    def __init__(self):
        self.calls = {}
        self.handles = []

    def module(self, name, module, take=lambda output: output[0] if isinstance(output, tuple) else output):
        self.handles.append(module.register_forward_hook(lambda _module, _inputs, output: self.add(name, take(output))))

    def add(self, name, tensor):
        self.calls.setdefault(name, []).append(tensor.detach().clone())

    def last(self, name):
        return self.calls[name][-1]

    def clear(self):
        self.calls.clear()

    def remove(self):
        for each in self.handles:
            each.remove()


def gradients(named, draw, samples=SAMPLES):
    """Of [(public name, parameter)]: names, L2 norms, and entries at recorded flat indices (drawn with repetition). A parameter that
    the loss does not reach has gradient 0."""
    names, norms, indices, values = [], [], [], []
    for name, parameter in sorted(named):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient = gradient.detach().float().contiguous().flatten()
        at = draw.integers("gradient of " + name, 0, gradient.numel(), samples)
        names.append(name)
        norms.append(gradient.double().norm().float())
        indices.append(at)
        values.append(gradient[at])
    record = {"gradient.norm": torch.stack(norms), "gradient.index": torch.stack(indices).to(torch.int32), "gradient.value": torch.stack(values)}
    return names, record


def relative(a, b):
    """Largest difference by the largest magnitude."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def agree(what, a, b, tolerance):
    """A second way to the same numbers: prints how far apart the two are, and stops where that is too far."""
    difference = relative(a, b)
    print(f"  {what}: {difference:.1e} of {b.abs().max().item():.3g}")
    if not difference <= tolerance:
        sys.exit(f"stopped: {what} differ by {difference:.1e}, more than {tolerance:.0e}")


def bf16_report(record):
    for name in sorted(record):
        if name.startswith("bf16.") and name.removeprefix("bf16.") in record:
            print(f"  {name}: {relative(record[name].float(), record[name.removeprefix('bf16.')].float()):.1e} from float32")


def save(path, tensors, metadata):
    """A safetensors file whose bytes depend on what is in it and nothing else: the package's own writer shuffles the metadata."""
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}
    header, at, parts = {"__metadata__": dict(sorted(metadata.items()))}, 0, []
    for name, value in sorted(tensors.items(), key=lambda each: (-each[1].element_size(), each[0])):
        value = value.detach().contiguous()
        parts.append(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        header[name] = {"dtype": kinds[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + len(parts[-1])]}
        at += len(parts[-1])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    assert load_file(path).keys() == tensors.keys()


def write(folder, config, weights, aliases, record, gradient_names, packages, store="float32"):
    import importlib.metadata

    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", {name: value.to(getattr(torch, store)) for name, value in weights.items()}, {"format": "pt", **aliases})
    versions = {package: importlib.metadata.version(package) for package in ("torch", *packages)}
    record = {name: value.float() if value.is_floating_point() else value for name, value in record.items()}
    for name, value in record.items():
        assert torch.isfinite(value).all(), name
    # What makes no difference to the record stays out of it.
    words = [pathlib.Path(sys.argv[0]).name, *(folder.name if argument == str(folder) else argument for argument in sys.argv[1:]
             if not argument.startswith(("--openpi=", "--checkout=", "--adapter=", "--exported=", "--beside=", "--rounds=", "--threads=")))]
    save(folder / "record.safetensors", record,
         {"gradients": json.dumps(gradient_names), "versions": json.dumps(versions), "command": " ".join(words)})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    count = sum(value.numel() for value in weights.values())
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"  {folder.name}: {count:,} numbers in {len(weights)} weights, {len(record)} tensors recorded, {size / 1e6:.2f} MB")


def gemm_rate(dtype, shapes, threads):
    """Products of the model's own shapes [(rows, inner, columns)], each long enough to time: operations a second, of all together, each at
    the best of five."""
    torch.set_num_threads(threads)
    done = spent = 0
    for rows, inner, columns in shapes:
        x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        times = max(1, int(4e8 / (2 * rows * inner * columns)))
        best = float("inf")
        for _ in range(6):  # the first warms up
            begin = time.perf_counter()
            for _ in range(times):
                torch.nn.functional.linear(x, w)
            best = min(best, time.perf_counter() - begin)
        spent += best
        done += 2 * rows * inner * columns * times
    return done / spent


def read_rate(threads):
    """Bytes a second that a sum over 512 MiB of float32, far more than lies in caches, reads; the best of seven."""
    torch.set_num_threads(threads)
    x = torch.ones(1 << 27)
    best = float("inf")
    for _ in range(8):  # the first warms up, and is seldom the best
        begin = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - begin)
    return x.nbytes / best


def least_work(function):
    """(operations, bytes) of a pass: what its products compute, and what they must move where each reads its operands, weights and activations,
    once and writes its result once. What stands between products comes on top."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    class Moved(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, operation, types, arguments=(), named=None):
            result = operation(*arguments, **(named or {}))
            if operation._overloadpacket in flop_registry:
                self.bytes += sum(each.nbytes for each in tree_leaves((arguments, named, result)) if isinstance(each, torch.Tensor))
            return result

    with FlopCounterMode(display=False) as counter:
        function()
    with Moved() as moved:
        function()
    return counter.get_total_flops(), moved.bytes


def beside(a, passes, shapes):
    """The reference's passes, {dtype: {pass: function}}, and dvla's of the same record, in turn; prints medians, spreads, ratios within the
    rounds, and the shares of the machine's limits that were measured in the same run: of the rate of products of these shapes alone, and of the
    rate of reading memory, by what the reference's products compute and move (least_work). The larger share is the limit that holds.
    `whole`: dvla computes what nobody reads as well, as the reference does."""
    if not a.beside:
        return
    torch.use_deterministic_algorithms(False)
    reads = read_rate(a.threads)
    print(f"  beside {a.beside}: torch {torch.__version__}, {a.threads} threads, {a.rounds} rounds, load {os.getloadavg()[0]:.1f}, memory is read at {reads / 1e9:.1f} GB/s")

    def timed(function):
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin

    for dtype, functions in passes.items():
        torch.set_num_threads(a.threads)
        limit = gemm_rate(getattr(torch, dtype), shapes, a.threads)
        work = {name: least_work(function) for name, function in functions.items()}
        with subprocess.Popen([a.beside, a.folder, "--serve", {"float32": "f32", "bfloat16": "bf16"}[dtype], str(a.threads)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as ours:
            def asked(what):
                ours.stdin.write(what + "\n")
                ours.stdin.flush()
                return float(ours.stdout.readline())

            for name, function in functions.items():
                operations, moved = work[name]
                print(f"    {dtype} {name}: {operations / 1e9:.1f} GFLOP at {limit / 1e9:.0f} GFLOP/s and {moved / 1e6:.0f} MB at {reads / 1e9:.1f} GB/s would take "
                      f"{1e3 * operations / limit:.1f} and {1e3 * moved / reads:.1f} ms: {'products' if operations / limit > moved / reads else 'memory'} bound it")
                times = {"reference": [], "whole": [], "dvla": []}
                turns = [("reference", lambda: timed(function)), ("whole", lambda: asked(name + " whole")), ("dvla", lambda: asked(name))]
                for at in range(a.rounds + 1):
                    for way, run in turns[at % 3:] + turns[:at % 3]:
                        spent = run()
                        if at > 0:  # the first warms up
                            times[way].append(spent)
                for way, of in times.items():
                    ratio = [theirs / mine for theirs, mine in zip(times["reference"], of)]
                    median = statistics.median(of)
                    print(f"    {dtype} {name:9} {way:9} {1e3 * median:9.2f} ms [{1e3 * min(of):.2f}, {1e3 * max(of):.2f}]  reference / this "
                          f"{statistics.median(ratio):.3f}  {operations / median / limit:5.1%} of products, {moved / median / reads:5.1%} of memory")
            ours.stdin.close()
