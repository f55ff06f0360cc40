"""check_tensorboard.py PROGRAM: what TensorBoard's own reader makes of a run that went back (77: tensorboard is not here).

PROGRAM trains 10 batches, then goes on from the checkpoint after batch 4 with --overwrite, to 8: of the curves of the first run
only batches 1 to 4 may be left."""

import os
import subprocess
import sys
import tempfile

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("SKIPPED: tensorboard is not here")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    for more in (["--iterations", "10"], ["--iterations", "8", "--resume", f"{folder}/toy/checkpoint/step-4.safetensors", "--overwrite", "true"]):
        subprocess.run([sys.argv[1], *more, "--animation", "false", "--quiet", "true"], env={**os.environ, "DVLA_TEST_PROGRAM": folder}, check=True)
    reader = EventAccumulator(f"{folder}/toy", purge_orphaned_data=True)
    reader.Reload()
    curves = {tag: [scalar.step for scalar in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
    wrong = {tag: steps for tag, steps in curves.items() if steps != ([8] if tag.startswith("evaluation/success") else list(range(1, 9)))}
    print(f"{len(curves)} curves, wrong: {wrong}")
    sys.exit(1 if wrong or len(curves) < 10 else 0)
