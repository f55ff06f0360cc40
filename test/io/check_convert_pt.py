#!/usr/bin/env python3
"""scripts/convert_pt turns what OpenVLA-OFT's authors pickle into safetensors of the same numbers, and refuses pickles of anything else.
Run: check_convert_pt.py CONVERT_PT, by a Python with torch and safetensors; another one says so and ends with 77 (skipped)."""
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    from safetensors.torch import load_file
except ImportError as why:
    print(f"skipped: {why}")
    sys.exit(77)


def run(folder):
    return subprocess.run([sys.executable, sys.argv[1], str(folder)], capture_output=True, text=True, timeout=300)


def require(fits, what):
    if not fits:
        sys.exit(f"convert_pt: {what}")


with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    empty = run(folder)
    require(empty.returncode == 1 and "has no action_head--*.pt" in empty.stderr, f"an empty folder gives {empty}")

    wide = torch.randn(6, 4, dtype=torch.bfloat16)
    head = {"module.model.fc1.weight": wide.T, "module.model.fc1.bias": torch.randn(3)}  # not contiguous
    projector = {"module.fc1.weight": torch.randn(2, 5)}
    torch.save(head, folder / "action_head--150000_checkpoint.pt")
    torch.save(projector, folder / "proprio_projector--150000_checkpoint.pt")
    done = run(folder)
    require(done.returncode == 0, f"it fails: {done}")
    for name, source in (("action_head", head), ("proprio_projector", projector)):
        read = load_file(folder / f"{name}.safetensors")
        require({"module." + key for key in read} == set(source), f"{name} has the names {list(read)}")
        for key, value in read.items():
            before = source["module." + key]
            require(value.dtype == before.dtype and torch.equal(value, before), f"{name}: {key} is another tensor")

    torch.save(head, folder / "action_head--5000_checkpoint.pt")
    two = run(folder)
    require(two.returncode == 1 and "has 2 files action_head--*.pt" in two.stderr, f"two heads give {two}")
    (folder / "action_head--5000_checkpoint.pt").unlink()

    (folder / "proprio_projector--150000_checkpoint.pt").unlink()
    torch.save({"module.a": torch.ones(1), "epoch": 3}, folder / "action_head--150000_checkpoint.pt")
    other = run(folder)
    require(other.returncode == 1 and "has epoch, which is no tensor" in other.stderr, f"a number gives {other}")
    torch.save({"module.a": pathlib.PurePosixPath("x")}, folder / "action_head--150000_checkpoint.pt")
    code = run(folder)
    require(code.returncode == 1 and "is no file of tensors" in code.stderr and len(code.stderr.splitlines()) == 1,
            f"a pickle of something else gives {code}")
