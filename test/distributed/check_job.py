"""check_job.py PROGRAM PART: examples/distributed as a job of processes on this machine, over loopback.

plain, mpirun, torchrun   every placement once, started that way (77: the launcher is not here): exit codes, report, trace,
                          checkpoint
adaptive                  ranks change their roles in the midst of a job: all is counted, the checkpoint is whole
resume                    a job that is stopped in the middle by SIGTERM goes on with other numbers of ranks and actors
requests                  warm start, evaluations by cases, before and after, and pictures are the rollouts' work: every case once,
                          with one process's figures; one that dies in the last evaluation is named, and missed by nobody
refusals                  what cannot be is refused on every rank by one sentence, with exit code 1, and nobody hangs
"""

import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

LIMIT = 60  # seconds a job may take; none comes near it
TINY = {
    "environments": 32, "width": 32, "blocks": 1, "micro-batch": 32, "global-batch": 128, "iterations": 3,
    "demonstrations": 0, "evaluation-episodes": 0, "animation": "false", "deadline-s": 30,
    "dense-reward": "true", "filter-lower": 0, "filter-upper": 0,  # every group teaches something
}
EPISODES = 32  # of a batch
LANES = {"sample": "sampling", "train": "training", "distribute": "distribution", "receive": "reception"}


class Fault(Exception):
    pass


def require(holds, what):
    if not holds:
        raise Fault(what)


# ---- Jobs


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more):
    launchers = ("OMPI_", "PMIX_", "PMI_", "MPI_", "SLURM_", "TORCHELASTIC_", "MASTER_", "DVLA_", "GLOO_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers) and name not in names}
    return {**clean, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in more.items()}}


class Ended:
    """A process that has ended: code, out, err."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def errors(self):
        return [line for line in self.err.splitlines() if "error" in line]


class Processes:
    """Processes that run at once. `wait` ends what is left after LIMIT, and is then a Fault."""

    def __init__(self, folder):
        self.folder, self.running = folder, []

    def start(self, command, env):
        place = len(self.running)
        with open(self.folder / f"out.{place}", "w") as out, open(self.folder / f"err.{place}", "w") as err:
            process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=self.folder,
                                       start_new_session=True)
        self.running.append(process)

    def alive(self):
        return all(process.poll() is None for process in self.running)

    def signal(self, number):
        for process in self.running:
            process.send_signal(number)

    def text(self, place):
        return (self.folder / f"err.{place}").read_text(errors="replace")

    def wait(self):
        until = time.monotonic() + LIMIT
        late = []
        for place, process in enumerate(self.running):
            try:
                process.wait(max(0.01, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(place)
        self.kill()
        ended = [
            Ended(process.returncode, (self.folder / f"out.{place}").read_text(errors="replace"), self.text(place))
            for place, process in enumerate(self.running)
        ]
        if late:
            for place, each in enumerate(ended):
                print(f"---- process {place}: exit code {each.code}\n{each.out}{each.err}")
            raise Fault(f"processes {late} had not ended after {LIMIT} s")
        return ended

    def kill(self):
        for process in self.running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # its own session's: a launcher's ranks too
                process.wait()


class Checker:
    def __init__(self, program, folder):
        self.program, self.folder = program, pathlib.Path(folder)
        self.runs = self.folder / "runs"

    def command(self, name, placement, **settings):
        words = [self.program, "--placement", placement, "--name", name, "--folder", str(self.runs)]
        for key, value in {**TINY, **{key.replace("_", "-"): value for key, value in settings.items()}}.items():
            words += [f"--{key}", str(value)]
        return words

    def plain(self, world, name, placement, absent=(), port=None, address="127.0.0.1", own=None, machines=1, **settings):
        """Starts a process a rank; `own`: settings of some ranks. They are dealt to the machines round robin."""
        port = port or free_port()
        job = Processes(self.folder)
        for rank in range(world):
            if rank in absent:
                continue
            env = environment(RANK=rank, WORLD_SIZE=world, MASTER_ADDR=address, MASTER_PORT=port)
            env["DVLA_HOST_ID"] = f"machine {rank % machines}"
            job.start(self.command(name, placement, **{**settings, **(own or {}).get(rank, {})}), env)
        return job

    def launched(self, launcher, world, name, placement, **settings):
        """The same by a launcher: one process here, which starts the ranks."""
        job, port, program = Processes(self.folder), str(free_port()), self.command(name, placement, **settings)
        if launcher == "mpirun":
            allow = {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1}
            more = ["--oversubscribe"] if "Open MPI" in run_text("mpirun", "--version") else []
            job.start(["mpirun", *more, "-n", str(world), *program], environment(MASTER_PORT=port, **allow))
        else:
            numbers = ["--nproc-per-node", str(world), "--master-port", port]
            job.start([torchrun(), "--no-python", *numbers, *program], environment())
        return job

    # ---- What a job leaves

    def check_success(self, ended):
        for place, each in enumerate(ended):
            faults = [f"process {place}: {line}" for line in each.errors()]
            require(each.code == 0 and not faults, f"process {place}: exit code {each.code}: {faults or each.err}")

    def check_leader_text(self, text, rollouts, actors, world):
        roles = f"rollouts {', '.join(map(str, rollouts))}; actors {', '.join(map(str, actors))} (the first leads)"
        for line in (f"job of {world} ranks: {roles}", "staleness:", "between ranks: trajectories", "in flight"):
            require(line in text, f"the leader does not print '{line}':\n{text}")

    def report(self, name):
        return json.loads((self.runs / name / "report.json").read_text())

    def trained(self, name):
        """Batches, as far as the leader has saved a checkpoint of them."""
        files = (self.runs / name / "checkpoint").glob("step-*.safetensors")
        return max((int(file.stem.split("-")[1]) for file in files if "actor" not in file.name), default=0)

    def check_report(self, name, rollouts, actors, batches, versions):
        report = self.report(name)
        ranks, world = report["ranks"], max(rollouts + actors) + 1
        require([each["rank"] for each in ranks] == list(range(world)), f"ranks of the report: {ranks}")
        require("silent_ranks" not in report, f"silent: {report.get('silent_ranks')}")
        require(report["batches"] == batches, f"{report['batches']} batches instead of {batches}")
        for each in ranks:
            rank, trains, rolls = each["rank"], each["rank"] in actors, each["rank"] in rollouts
            roles = [("actor", actors), ("rollout", rollouts)]
            role = " and ".join(f"{word} {ranks_of.index(rank)}" for word, ranks_of in roles if rank in ranks_of)
            require(each["name"] == f"rank {rank} ({role})", f"rank {rank} is called {each['name']}")
            for figure in ("sent", "env_steps", "chunk_steps", "rollout_time_s"):
                require((each[figure] > 0) == rolls, f"{figure} of {each['name']} is {each[figure]}")
            for figure in ("trained", "actor_time_s"):
                require((each[figure] > 0) == trains, f"{figure} of {each['name']} is {each[figure]}")
            gives = trains and len(actors) > 1
            require((each["gradient_bytes_sent"] > 0) == gives, f"gradient bytes of {each}")
        total = {key: sum(each[key] for each in ranks) for key, value in ranks[0].items() if isinstance(value, int)}
        parts = ("trained", "dropped", "in_flight", "unacknowledged")
        require(total["sent"] == sum(total[part] for part in parts), f"episodes do not add up: {total}")
        require(total["in_flight"] == total["unacknowledged"] == total["lost"] == 0, f"{total}")
        require(total["trained"] == batches * EPISODES, f"{total['trained']} episodes trained in {batches} batches")
        for key in ("env_steps", "chunk_steps"):
            require(report[key] == total[key], f"{key} is {report[key]}, of all ranks {total[key]}")
        for key in ("rollout_time_s", "actor_time_s", "sync_time_s"):
            most = max(each[key] for each in ranks)
            require(report[key] == most, f"{key} is {report[key]}, the largest rank's {most}")
        lags = report["staleness_histogram"]
        require(sum(lags) == batches and len(lags) == 2, f"staleness of {batches} batches: {lags}")
        require(report["max_staleness"] == max(lag for lag in range(2) if lags[lag]), f"{report['max_staleness']}, {lags}")
        self.check_bytes(name, ranks, total, rollouts, actors, versions)
        return report

    def check_bytes(self, name, ranks, total, rollouts, actors, versions):
        for plane in ("data", "weight"):
            sent, received = total[f"{plane}_bytes_sent"], total[f"{plane}_bytes_received"]
            require(sent == received, f"{plane} plane: {sent} bytes sent, {received} received")
        if rollouts == actors:  # replicas: nothing but gradients
            require(total["data_bytes_sent"] == total["weight_bytes_sent"] == 0, f"replicas sent {total}")
            return
        for each in ranks:
            rank = each["rank"]
            if rank in rollouts:  # each version once, but what comes from the own rank
                most = versions * self.model_bytes(name)
                own = rank in actors
                got = each["weight_bytes_received"]
                require(0 < got < most if own else got == most, f"{each['name']} received {got} of {most} bytes of weights")
        if set(rollouts) & set(actors):
            require(total["data_bytes_sent"] > 0, "no trajectory was sent")
            return
        sizes = {each["data_bytes_sent"] / each["sent"] for each in ranks if each["sent"]}
        require(len(sizes) == 1 and sizes.pop() > 0, f"bytes of an episode differ between rollouts: {sizes}")

    def check_trace(self, name, rollouts, actors, batches):
        trace = json.loads((self.runs / name / "trace.json").read_text())
        require(trace["dropped"] == 0, f"{trace['dropped']} spans are missing")
        processes, rows, spans = {}, {}, {}
        for event in trace["traceEvents"]:
            process, row = event["pid"], event.get("tid")
            if event["ph"] == "M" and event["name"] == "process_name":
                processes[process] = event["args"]["name"]
            elif event["ph"] == "M" and event["name"] == "thread_name":
                rows[process, row] = event["args"]["name"]
            elif event["ph"] == "X" and event["cat"] == "lane":
                lane, batch = event["name"], event["args"]["batch"]
                require(rows[process, row] == LANES[lane], f"{lane} lies in the row {rows[process, row]}")
                require((process, lane, batch) not in spans, f"{lane} of batch {batch} is there twice")
                spans[process, lane, batch] = event
        world = max(rollouts + actors) + 1
        ranks = {name.split()[1]: process for process, name in processes.items()}
        require(sorted(ranks) == sorted(map(str, range(world))), f"processes of the trace: {processes}")
        for rank in range(world):
            lanes = ["sample", "receive"] * (rank in rollouts) + ["train", "distribute"] * (rank in actors)
            process = ranks[str(rank)]
            have = {lane: sorted(b for p, each, b in spans if p == process and each == lane) for lane in LANES}
            want = {lane: list(range(batches)) if lane in lanes else [] for lane in LANES}
            require(have == want, f"lane spans of rank {rank}: {have} instead of {want}")
        for batch in range(batches):  # one axis of time
            sampled = max(spans[ranks[str(rank)], "sample", batch]["ts"] for rank in rollouts)
            trained = min(spans[ranks[str(rank)], "train", batch]["ts"] for rank in actors)
            require(sampled < trained, f"batch {batch} began to be trained before it began to be sampled")

    def tensors(self, file):
        """Name -> bytes, and the metadata, of a safetensors file."""
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        metadata = header.pop("__metadata__", {})
        cut = {name: data[8 + size + each["data_offsets"][0] : 8 + size + each["data_offsets"][1]] for name, each in header.items()}
        require(all(cut.values()), f"{file.name} is cut")
        return cut, metadata

    def weights(self, name, step):
        tensors, _ = self.tensors(self.runs / name / "checkpoint" / f"step-{step}.safetensors")
        return {key: value for key, value in tensors.items() if key.startswith("model.")}

    def model_bytes(self, name):
        steps = [int(file.name.split("-")[1].split(".")[0]) for file in (self.runs / name / "checkpoint").iterdir()]
        return sum(map(len, self.weights(name, max(steps)).values()))

    def check_checkpoint(self, name, step, shards):
        """`shards`: files that hold the optimiser's state: one where every actor has the whole of it."""
        folder = self.runs / name / "checkpoint"
        tensors, metadata = self.tensors(folder / f"step-{step}.safetensors")
        require(len(self.weights(name, step)) > 0, f"step-{step} has no weights")
        require(metadata.get("shards", "0") == str(shards), f"step-{step} has {metadata.get('shards')} shards")
        require(not any("exp_avg" in name for name in tensors), f"step-{step} has {sorted(tensors)}")
        (counted,) = struct.unpack("<q", tensors["run.counters"][:8])
        require(counted == step, f"step-{step} counts {counted} batches")
        have = sorted(file.name for file in folder.glob(f"step-{step}.actor-*"))
        want = [f"step-{step}.actor-{i}-of-{shards}.safetensors" for i in range(shards)]
        require(have == want, f"parts of step-{step}: {have} instead of {want}")
        for part in have:
            require("shard.exp_avg" in self.tensors(folder / part)[0], f"{part} has no optimiser's state")


    def check_evaluation(self, name):
        """One process plays the weights of any job, however they were sharded: evaluate lies beside the program."""
        command = [os.path.join(os.path.dirname(self.program), "evaluate"), "--checkpoint", str(self.runs / name)]
        played = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
        require(played.returncode == 0, f"evaluate of {name}: {played.stderr}")
        success = float(played.stdout.split("success ")[1].split()[0])
        there = self.report(name)["success_rate"]
        require(abs(success - there) < 1e-5, f"evaluate of {name} says {success}, and its report {there}")


def run_text(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


@functools.cache
def torchrun():
    """The repository's, which needs no NVIDIA library; None where .venv has not what it needs."""
    program = str(pathlib.Path(__file__).resolve().parents[2] / "scripts/torchrun")
    return program if "--nproc-per-node" in run_text(program, "--help") else None


# ---- Parts

PLACEMENTS = [  # placement, rollouts, actors, shards of the checkpoint
    ("separated:3:1", [1, 2, 3], [0], 1),
    ("colocated", [0, 1], [0, 1], 1),
    ("hybrid:2", [0, 1, 2, 3], [0, 1], 2),
]


def check_placements(check, launcher):
    for placement, rollouts, actors, shards in PLACEMENTS:
        began, world, name = time.monotonic(), max(rollouts + actors) + 1, placement.replace(":", "-")
        if launcher == "plain":
            job = check.plain(world, name, placement, machines=2, evaluation_episodes=32)
        else:
            job = check.launched(launcher, world, name, placement)
        ended = job.wait()
        check.check_success(ended)
        check.check_leader_text(ended[0].out, rollouts, actors, world)
        if launcher == "plain":
            silent = all(not each.out for each in ended[1:])
            require(silent, f"ranks that do not lead print: {[each.out for each in ended[1:]]}")
            check.check_evaluation(name)
        batches = TINY["iterations"]
        check.check_checkpoint(name, batches, shards)
        check.check_report(name, rollouts, actors, batches, versions=batches + 1)
        check.check_trace(name, rollouts, actors, batches)
        print(f"{placement} of {world} ranks: {time.monotonic() - began:.1f} s")
    if launcher != "plain":
        (ended,) = check.launched(launcher, 3, "refused", "separated:3:1").wait()
        sentence = "placement.rollouts:actors is 3:1 and the job has 3 ranks"
        require(ended.code != 0 and sentence in ended.out + ended.err, f"a refusal under {launcher}: {ended.code}, {ended.err}")


def check_resume(check):
    name = "stopped"
    folder = check.runs / name / "checkpoint"
    job = check.plain(3, name, "separated:1:2", iterations=1000000, checkpoint_every=2)
    until = time.monotonic() + LIMIT
    while job.alive() and not (folder / "step-2.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    job.signal(signal.SIGTERM)
    ended = job.wait()
    check.check_success(ended)
    report = check.report(name)
    step = report["batches"]
    require(report["stopped"] is True, "the report does not say that the run was stopped")
    check.check_report(name, [2], [0, 1], step, versions=step + 1)
    check.check_checkpoint(name, step, 2)
    print(f"stopped after {step} batches")
    # A newer checkpoint without its parts, as a death between two files leaves it, is not the newest complete one.
    torn = step + 1000
    for part in ("", ".actor-0-of-2"):
        shutil.copy(folder / f"step-{step}{part}.safetensors", folder / f"step-{torn}{part}.safetensors")
    # With a learning rate of 0 nothing changes but the counters, so the weights must be those that were saved. The
    # last four are other placements than the one that wrote the checkpoint before.
    for world, placement, rollouts, actors, shards in (
        (3, "separated:2:1", [1, 2], [0], 1),
        (4, "separated:1:1", [2, 3], [0, 1], 2),
        (2, "colocated", [0, 1], [0, 1], 1),
        (3, "hybrid:2", [0, 1, 2], [0, 1], 2),
        (2, "adaptive:1:1", [1], [0], 1),
        (2, "separated:1:1", [1], [0], 1),
    ):
        before = check.weights(name, step)
        resumed = check.plain(world, name, placement, resume=check.runs / name, iterations=step + 2, learning_rate=0)
        ended = resumed.wait()
        check.check_success(ended)
        require(f"{step} batches are done" in ended[0].out, f"it does not say that it goes on:\n{ended[0].out}")
        changed = "since the checkpoint algorithm.learning_rate is 0.0, and was " in ended[0].out
        require(changed == (world == 3 and placement == "separated:2:1"), f"the first resume alone changes the rate:\n{ended[0].out}")
        said = f"passed over a checkpoint: '{folder}/step-{torn}.safetensors' lacks its part 'step-{torn}.actor-1-of-2" in ended[0].err
        require(said, f"no word of the checkpoint that lacks a part:\n{ended[0].err}")
        step += 2
        check.check_report(name, rollouts, actors, 2, versions=3)
        check.check_checkpoint(name, step, shards)
        require(check.weights(name, step) == before, f"the weights changed on the way to {placement}")
        print(f"resumed by {world} ranks, {placement}")


def check_adaptive(check):
    # Training takes several times as long as three ranks need to sample: too few actors.
    name, batches, episodes = "adaptive", 12, 64
    settings = {"environments": episodes, "global_batch": 192, "micro_batch": 32, "look_every": 3, "epochs": 8}
    ended = check.plain(4, name, "adaptive:3:1", machines=2, iterations=batches, checkpoint_every=4, **settings).wait()
    check.check_success(ended)
    require("shares of the work (sampling:training), before batch 3:" in ended[0].out, f"no word of what moved:\n{ended[0].out}")
    report = check.report(name)
    looks, ranks = report["looks"], report["ranks"]
    require(looks[0]["shares"]["rollouts"] == 3 and looks[0]["next"]["rollouts"] < 3, f"nothing moved: {looks}")
    for one, other in zip(looks, looks[1:]):
        require(one["next"] == other["shares"], f"what follows a look is not what the next one finds: {one}, {other}")
    require("silent_ranks" not in report and len(ranks) == 4 and report["batches"] == batches, f"{report}")
    total = {key: sum(each[key] for each in ranks) for key, value in ranks[0].items() if isinstance(value, int)}
    require(total["sent"] == total["trained"] == batches * episodes, f"episodes do not add up: {total}")
    require(total["dropped"] == total["in_flight"] == total["unacknowledged"] == total["lost"] == 0, f"{total}")
    for plane in ("data", "weight"):
        require(total[f"{plane}_bytes_sent"] == total[f"{plane}_bytes_received"] > 0, f"{plane} plane: {total}")
    actors = looks[-1]["next"]["actors"]
    check.check_checkpoint(name, batches, actors)
    print(f"{batches} batches, {looks[0]['shares']['rollouts']}:{looks[0]['shares']['actors']} became "
          f"{looks[-1]['next']['rollouts']}:{actors}")
    more = check.plain(2, name, "adaptive:1:1", resume=check.runs / name, iterations=batches + 1, **settings)
    check.check_success(more.wait())
    print("resumed by 2 ranks")


def check_requests(check):
    settings = {"evaluation_cases": "0-149", "demonstrations": 24, "imitation_steps": 10, "animation": "true"}

    def evaluation(name, key):
        found = check.report(name)[key]
        cases = [each["case"] for each in found["cases"]]
        require(cases == list(range(150)) and found["episodes"] == 150, f"{key} of {name} has the cases {cases}")
        tasks = {each["task"]: each["episodes"] for each in found["tasks"]}
        require(list(tasks.values()) == [75, 75], f"{key} of {name} has the tasks {tasks}")
        return [each["success"] for each in found["cases"]]

    for name, world, placement in (("one", 1, "colocated"), ("apart", 3, "separated:2:1"), ("all", 2, "hybrid:2")):
        check.check_success(check.plain(world, name, placement, **settings).wait())
        for key in ("evaluation_before", "evaluation"):
            evaluation(name, key)
        started = check.report(name)["warm_start"]
        require(started["steps"] == 10 and started["expert_success"] > 0.5, f"warm start of {name}: {started}")
        for picture in ("before.gif", "after.gif"):
            require((check.runs / name / picture).read_bytes()[:6] == b"GIF89a", f"{name} has no {picture}")
        print(f"{placement}: {sum(evaluation(name, 'evaluation_before'))} and {sum(evaluation(name, 'evaluation'))} of 150 cases")
    same = [check.report(name)["warm_start"]["expert_success"] for name in ("one", "apart", "all")]
    require(len(set(same)) == 1, f"the expert's success differs: {same}")
    # The third case is long enough that a rollout can be killed in it.
    name, job = "dies", check.plain(3, "dies", "separated:2:1", evaluation_episodes=3000)
    folder, until = check.runs / name, time.monotonic() + LIMIT
    while job.alive() and check.trained(name) < TINY["iterations"] and time.monotonic() < until:
        time.sleep(0.005)
    job.running[2].send_signal(signal.SIGKILL)
    ended = job.wait()
    require([each.code for each in ended[:2]] == [0, 0], f"exit codes beside a dead rollout: {[each.code for each in ended]}")
    require("rank 2 (rollout 1)" in ended[0].err, f"nobody names the rollout that died: {ended[0].err}")
    require(sum(each["episodes"] for each in check.report(name)["evaluation"]["tasks"]) == 3000, "episodes are missing")
    print("a rollout that died in the last evaluation was named, and the others played its episodes")


def check_refusals(check):
    def refuses(what, job, sentences, ranks=None, leaves=False):
        """`sentences`: what the error of each rank, or of all, must say."""
        began = time.monotonic()
        ended = job.wait()
        ranks = ranks or range(len(ended))
        for rank, each in zip(ranks, ended):
            want = sentences.get(rank, sentences.get("others"))
            require(each.code == 1, f"{what}: exit code of rank {rank} is {each.code}\n{each.out}{each.err}")
            require(len(each.err.splitlines()) == 1, f"{what}: rank {rank} says not one sentence:\n{each.err}")
            fits = each.err.startswith(f"error: rank {rank}: ") and re.search(want, each.err)
            require(fits, f"{what}: rank {rank} does not say '{want}':\n{each.err}")
            # The leader may have said what memory it is about to take.
            out = re.sub(r"^memory that is about to be taken:\n(  .*\n)+", "", each.out) if rank == 0 else each.out
            require(not out, f"{what}: rank {rank} prints\n{out}")
        require(leaves or not (check.runs / "refused").exists(), f"{what}: something was written")
        print(f"{what}: {time.monotonic() - began:.1f} s")

    def job(world, placement, **more):
        return check.plain(world, "refused", placement, **more)

    refuses("ratio", job(3, "separated:3:1"), {"others": r"rollouts:actors is 3:1 and the job has 3 ranks"})
    refuses("groups", job(4, "separated:3:1", environments=16), {"others": r"has 3 rollouts and 2 groups"})
    refuses("mini-batches", job(3, "separated:1:2", global_batch=96),
            {"others": r"global_batch is 96, micro_batch 32 and there are 2 trainers"})
    refuses("another seed", job(3, "separated:2:1", own={2: {"seed": 7}}),
            {"others": r"run.seed is 1 on rank 0 and 7 on rank 2"})
    refuses("a rank that never comes", job(3, "separated:2:1", absent=[2], deadline_s=3),
            {"others": r"waited 3 s for rank 2 of 3 to join the job"})
    refuses("a leader that never comes", job(3, "separated:2:1", absent=[0], deadline_s=3),
            {"others": r"waited 3 s for the job's store at .*, which rank 0 hosts"}, ranks=[1, 2])
    refuses("an address that is nobody's", job(2, "separated:1:1", address="no.such.host.invalid", deadline_s=3),
            {0: r"does not resolve on rank 0's machine", "others": r"does not resolve on rank 1's machine"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refuses("a port that is taken", job(3, "separated:2:1", port=port, deadline_s=3),
                {0: rf"cannot host the job's store at 127.0.0.1:{port}", "others": r"waited 3 s for the job's store"})
    (check.runs / "refused").mkdir(parents=True)
    (check.runs / "refused" / "report.json").write_text("precious")
    refuses("a run that is there", job(3, "separated:2:1"),
            {"others": r"run name 'refused': '.*' is not empty; choose another name"}, leaves=True)
    kept = [file.name for file in (check.runs / "refused").iterdir()]
    require(kept == ["report.json"], f"the run that was there has now {kept}")


def main(parts):
    """`parts`: of a Checker, by name."""
    program, part = os.path.realpath(sys.argv[1]), sys.argv[2]
    if part == "mpirun" and not shutil.which("mpirun"):
        print("SKIPPED: there is no mpirun on PATH (Debian: openmpi-bin)")
        return 77
    if part == "torchrun" and not torchrun():
        print("SKIPPED: scripts/torchrun does not run; scripts/setup installs what it needs")
        return 77
    with tempfile.TemporaryDirectory(prefix="dvla-job-") as folder:
        try:
            require(part in parts, f"the part is '{part}'; it must be one of {', '.join(parts)}")
            parts[part](Checker(program, folder))
        except Fault as fault:
            print(f"FAULT: {fault}")
            return 1
    return 0


if __name__ == "__main__":
    launchers = {name: functools.partial(check_placements, launcher=name) for name in ("plain", "mpirun", "torchrun")}
    sys.exit(main({**launchers, "adaptive": check_adaptive, "resume": check_resume, "requests": check_requests,
                   "refusals": check_refusals}))
