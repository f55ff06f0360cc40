"""The table of docs/libero.md: makes its records of the original in Python (scripts/libero_table; those that are there stay) and has the
C++ compared with them and with the committed ones. Argument: the program libero_agreement. Exit code 77: skipped, and why."""
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-libero/bin/python"
FOLDER = pathlib.Path(os.environ.get("DVLA_LIBERO", ROOT / "build/libero-tasks"))
RECORDS = ROOT / "build/libero-records"
COMMITTED = sorted((ROOT / "test/golden/environment/libero").glob("*.safetensors"))


def skip(why):
    print(f"skipped: {why}")
    sys.exit(77)


def agreement(records):
    made = subprocess.run([sys.argv[1], FOLDER, *records], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "MUJOCO_GL": "osmesa"})
    print(made.stdout, flush=True)
    return made


if not PYTHON.exists():
    skip(f"{PYTHON} is not there; scripts/setup libero makes it")
if not (FOLDER / "manifest.json").exists():
    skip(f"{FOLDER} is not there; scripts/convert_libero makes it")
converted = len(json.loads((FOLDER / "manifest.json").read_text())["tasks"])
if converted < 130:
    skip(f"{FOLDER} has {converted} tasks, and the table is of all 130; scripts/convert_libero makes them")
if "was converted with MuJoCo" in agreement(COMMITTED[:1]).stdout:
    skip("this is built with another MuJoCo than LIBERO is played with; the preset libero has that")

subprocess.run([PYTHON, ROOT / "scripts/libero_table", RECORDS], check=True)
made = agreement([*sorted(RECORDS.glob("*.safetensors")), *COMMITTED])
rows = re.findall(r"^\| (spatial|object|goal|10|90)_(\d+)_", made.stdout, re.MULTILINE)
assert made.returncode == 0, f"libero_agreement ended with {made.returncode}"
assert len(set(rows)) >= 20 and len({suite for suite, _ in rows}) == 5, f"the table has the tasks {sorted(set(rows))}"
assert not re.search(r"\| (controller|integrator), step ", made.stdout), "what grew beyond 1e-4 did not begin in contact"
assert "| none |" not in made.stdout, "a record has no images"
assert "seen true and false: close, in, on, open, turnoff, turnon; only one of both: none" in made.stdout
