"""check_faults.py PROGRAM PART [MOMENTS]: examples/distributed whose processes are killed and stopped by the system's signals.

rollouts   SIGKILL of rollouts at MOMENTS seeded random moments, each started again: training goes on, the counts are proved
stopped    SIGSTOP of a rollout: noticed within two heartbeats, training goes on without it
replaced   SIGSTOP of a rollout, which is started again before anybody has noticed: the new process is let in
twice      the same command again while the job runs, on its port: refused rank by rank, and the first job goes on whole
actor      SIGKILL and SIGSTOP of an actor: every rank ends with exit code 1 and names it, and no other one, long before the
           deadline
ending     all rollouts of two actors are killed: what both have trained is saved, and gone on from; an actor is killed: nothing
           is, and the sentence says so
folder     a second job in the folder of one that lives is refused on every rank, and a rollout of the first is let in again
early      SIGKILL and SIGSTOP of a rollout and SIGKILL of an actor while the leader clones the expert: the same; and a SIGTERM to
           the leader alone then, of which the others are told
signals    what schedulers and terminals send before they kill, to a run of one process: a checkpoint, a report that names it; a
           run that is started to ignore SIGHUP goes on
memory     a pool's bound beyond a cgroup's limit is no matter, and a run that needs more than that is refused (77: no mounts here)
torchrun   SIGKILL of the leader under torchrun --max-restarts: the job goes on from its own newest complete checkpoint, begins
           anew where it has none, and leaves another run's folder alone (77: skipped)
"""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "distributed"))
from check_job import EPISODES, Fault, environment, free_port, main, require, torchrun  # noqa: E402

HEARTBEAT = 1.0
LIMIT = 240  # seconds that a part may take


class Job:
    """A process a rank, which may be started again in the same place."""

    def __init__(self, check, world, name, placement, heartbeat=HEARTBEAT, **settings):
        self.check, self.world, self.port = check, world, free_port()
        self.command = check.command(name, placement, heartbeat_s=heartbeat, **settings)
        self.name, self.lives = name, {rank: [] for rank in range(world)}
        for rank in range(world):
            self.start(rank)

    def start(self, rank):
        env = environment(RANK=rank, WORLD_SIZE=self.world, MASTER_ADDR="127.0.0.1", MASTER_PORT=self.port)
        path = self.check.folder / f"{self.name}.{rank}.{len(self.lives[rank])}"
        with open(path, "w") as out:
            process = subprocess.Popen(self.command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       cwd=self.check.folder)  # fmt: skip
        self.lives[rank].append((process, path))

    def process(self, rank):
        return self.lives[rank][-1][0]

    def text(self, rank):
        return self.lives[rank][-1][1].read_text(errors="replace")

    def trained(self):
        return self.check.trained(self.name)

    def wait_for(self, batches):
        until = time.monotonic() + LIMIT
        while self.trained() < batches:
            require(time.monotonic() < until, f"no {batches} batches within {LIMIT} s:\n{self.text(0)}")
            require(self.process(0).poll() is None, f"the leader has ended:\n{self.text(0)}")
            time.sleep(0.02)

    def wait(self, rank, limit=LIMIT):
        until = time.monotonic() + limit
        while self.process(rank).poll() is None:
            require(time.monotonic() < until, f"rank {rank} had not ended after {limit} s:\n{self.text(rank)}")
            time.sleep(0.02)
        return self.process(rank).returncode

    def kill(self):
        for lives in self.lives.values():
            for process, _ in lives:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def report(self):
        return self.check.report(self.name)


def counts_sent(report, episodes):
    """All episodes of a job that has ended are accounted for."""
    ranks, batches = report["ranks"], report["batches"]
    trained, lost = (sum(each[key] for each in ranks) for key in ("trained", "lost"))
    require(trained + lost == batches * episodes, f"{trained} trained + {lost} lost are not {batches} x {episodes}")
    require(sum(each["in_flight"] for each in ranks) == 0, "something is in flight at the end")
    sent, known = (sum(each[key] for each in ranks for key in keys)
                   for keys in (("sent", "unreported"), ("trained", "dropped", "in_flight", "unacknowledged")))  # fmt: skip
    require(sent == known, f"{sent} episodes were sent, and {known} are accounted for: {ranks}")
    for each in ranks:
        require(each["unacknowledged"] == 0, f"{each['name']} has unacknowledged episodes at the end: {each}")
        if each["sent"]:
            require(each["sent"] >= each["dropped"], f"{each}")
    require(report["max_staleness"] <= 1, f"staleness {report['max_staleness']}")
    return trained, lost


def counts(report, batches):
    require(report["batches"] == batches, f"{report['batches']} batches instead of {batches}")
    return counts_sent(report, EPISODES)


def check_rollouts(check, moments):
    chance = random.Random(4)
    job = Job(check, 4, "killed", "separated:3:1", iterations=1000000, checkpoint_every=1, deadline_s=60)
    try:
        job.wait_for(2)
        for _ in range(moments):
            time.sleep(chance.random() * 0.8)
            rank = chance.choice([1, 2, 3])
            job.process(rank).send_signal(signal.SIGKILL)
            job.process(rank).wait()
            time.sleep(chance.random() * 0.5)
            job.start(rank)
            time.sleep(0.5)
            require(job.process(0).poll() is None, f"the leader has ended:\n{job.text(0)}")
        for process in (job.process(rank) for rank in range(4)):
            process.send_signal(signal.SIGTERM)
        code = job.wait(0)
        require(code == 0, f"exit code of the leader is {code}:\n{job.text(0)}")
        for rank in (1, 2, 3):
            job.wait(rank)
        report = job.report()
        trained, lost = counts(report, report["batches"])
        print(f"{moments} moments, {report['batches']} batches: {trained} episodes trained, {lost} lost")
        again = sum(each["sent"] > 0 for each in report["ranks"])
        require(again >= 1, "no rollout was there at the end")
    finally:
        job.kill()


def check_stopped(check):
    batches = 400
    job = Job(check, 3, "stopped", "separated:2:1", iterations=batches, checkpoint_every=1, deadline_s=60)
    try:
        job.wait_for(2)
        job.process(2).send_signal(signal.SIGSTOP)
        code = job.wait(0)
        require(code == 0, f"exit code of the leader is {code}:\n{job.text(0)}")
        require(job.wait(1) == 0, job.text(1))
        job.process(2).send_signal(signal.SIGCONT)
        require(job.wait(2) == 1, f"the stopped rank ends with {job.process(2).returncode}")
        require("error: rank 2: " in job.text(2), job.text(2))
        report = job.report()
        require(report.get("silent_ranks") == [2], f"silent: {report.get('silent_ranks')}")
        trained, lost = counts(report, batches)
        require(lost >= (batches - 10) // 2 * EPISODES // 2, f"{lost} episodes lost")
        print(f"{trained} episodes trained, {lost} lost")
    finally:
        job.kill()


def end(job, *ranks):
    """Of a job whose `ranks` are all there, by a SIGTERM to its leader; its report."""
    job.process(0).send_signal(signal.SIGTERM)
    for rank in ranks:
        code = job.wait(rank)
        require(code == 0, f"exit code of rank {rank} is {code}:\n{job.text(rank)}")
    return job.report()


def check_replaced(check):
    job = Job(check, 3, "replaced", "separated:2:1", heartbeat=3.0, iterations=1000000, checkpoint_every=1, deadline_s=60)
    try:
        job.wait_for(2)
        stopped, path = job.lives[2][0]
        stopped.send_signal(signal.SIGSTOP)
        job.start(2)
        time.sleep(4 * 3.0)  # two heartbeats until it is known, and time to be let in, or thrown out
        require(job.process(2).poll() is None, f"the new process has ended:\n{job.text(2)}")
        job.wait_for(job.trained() + 20)
        require(job.process(2).poll() is None, f"the new process has ended:\n{job.text(2)}")
        stopped.send_signal(signal.SIGCONT)
        require(stopped.wait(LIMIT) == 1, f"the stopped process ends with {stopped.returncode}:\n{path.read_text()}")
        report = end(job, 0, 1, 2)
        trained, lost = counts(report, report["batches"])
        again = next(each for each in report["ranks"] if each["name"].startswith("rank 2"))
        require(not report.get("silent_ranks") and again["sent"] > 0, f"the new process sent nothing: {report['ranks']}")
        print(f"{trained} episodes trained, {lost} lost; the new process sent {again['sent']}")
    finally:
        job.kill()


def check_twice(check):
    job = Job(check, 4, "twice", "separated:1:1", iterations=1000000, checkpoint_every=1, deadline_s=60)
    firsts = [job.process(rank) for rank in range(4)]
    try:
        job.wait_for(2)
        for rank in range(4):
            job.start(rank)
        reasons = ["cannot host the job's store", "comes when training has begun", "is there already", "is there already"]
        for rank, reason in enumerate(reasons):
            code = job.wait(rank)
            lines = [line for line in job.text(rank).splitlines() if line.startswith(f"error: rank {rank}")]
            require(code == 1 and len(lines) == 1 and reason in lines[0], f"rank {rank} ends with {code}:\n{job.text(rank)}")
            print(lines[0])
            require(all(first.poll() is None for first in firsts), "the first job did not outlive it")
        for rank in range(4):
            job.lives[rank].pop()
        job.wait_for(job.trained() + 10)
        report = end(job, 0, 1, 2, 3)
        trained, lost = counts(report, report["batches"])
        require(lost == 0, f"{lost} episodes are lost")
        print(f"{trained} episodes trained, {lost} lost")
    finally:
        job.kill()
        for first in firsts:
            if first.poll() is None:
                first.kill()


def all_name(job, victim):
    """Every other rank ends with an error whose first loss is the victim, or the job's store where the victim hosts it: a rank
    that saw only the other actor end finds nobody there to ask."""
    for rank in (rank for rank in job.lives if rank != victim):
        require(job.wait(rank, LIMIT / 4) == 1, f"rank {rank} ends with {job.process(rank).returncode}:\n{job.text(rank)}")
        lines = [line for line in job.text(rank).splitlines() if line.startswith("error: ")]
        require(len(lines) == 1 and lines[0].startswith(f"error: rank {rank}: "), f"rank {rank} says:\n{job.text(rank)}")
        lost = re.search(r"lost rank (\d+)|the job's store at \S+, which rank (\d+) hosts", lines[0])
        require(lost and int(lost[1] or lost[2]) == victim, f"rank {rank} does not name rank {victim}:\n{lines[0]}")
        print(lines[0])


def check_early(check):
    for name, victim, number in (("rollout-killed", 3, signal.SIGKILL), ("rollout-stopped", 3, signal.SIGSTOP),
                                 ("actor-killed", 1, signal.SIGKILL), ("leader-asked", 0, signal.SIGTERM)):  # fmt: skip
        job = Job(check, 4, name, "separated:1:1", iterations=3, deadline_s=LIMIT, demonstrations=256, imitation_target=1,
                  imitation_steps=1000000)  # fmt: skip
        try:
            until = time.monotonic() + LIMIT
            while "self-test" not in job.text(0):
                require(time.monotonic() < until and job.process(0).poll() is None, f"no self-test:\n{job.text(0)}")
                time.sleep(0.02)
            time.sleep(0.5)
            job.process(victim).send_signal(number)
            began = time.monotonic()
            if victim == 0:
                require(job.wait(0) == 0, f"the leader ends with {job.process(0).returncode}:\n{job.text(0)}")
                for rank in (1, 2, 3):
                    ended = job.wait(rank, LIMIT / 4) == 1 and "rank 0 (actor 0), which leads the job, ended before training" in job.text(rank)
                    require(ended, f"rank {rank} ends with {job.process(rank).returncode}:\n{job.text(rank)}")
            else:
                all_name(job, victim)
            print(f"{name}: all others had ended after {time.monotonic() - began:.1f} s (heartbeat {HEARTBEAT} s)")
        finally:
            job.process(victim).send_signal(signal.SIGCONT)
            job.kill()


def check_actor(check):
    for stops in (False, True):
        for victim in (0, 1):
            name = f"actor-{victim}-{'stopped' if stops else 'killed'}"
            job = Job(check, 4, name, "separated:1:1", iterations=1000000, checkpoint_every=1, deadline_s=LIMIT)
            try:
                job.wait_for(2)
                job.process(victim).send_signal(signal.SIGSTOP if stops else signal.SIGKILL)
                began = time.monotonic()
                all_name(job, victim)
                print(f"{name}: all others had ended after {time.monotonic() - began:.1f} s (heartbeat {HEARTBEAT} s)")
            finally:
                if stops:
                    job.process(victim).send_signal(signal.SIGCONT)
                job.kill()


def error_of(job, rank):
    require(job.wait(rank, LIMIT / 4) == 1, f"rank {rank} ends with {job.process(rank).returncode}:\n{job.text(rank)}")
    lines = [line for line in job.text(rank).splitlines() if line.startswith(f"error: rank {rank}: ")]
    require(len(lines) == 1, f"rank {rank} says:\n{job.text(rank)}")
    return lines[0]


def check_ending(check):
    job = Job(check, 4, "ending", "separated:1:1", iterations=1000000, checkpoint_every=50, deadline_s=8)
    try:
        job.wait_for(50)
        for victim in (2, 3):
            job.process(victim).send_signal(signal.SIGKILL)
        line = error_of(job, 0)
        print(line)
        saved = re.search(r"; saved '.*/step-(\d+)\.safetensors'$", line)
        require(saved and int(saved[1]) == job.trained(), f"{job.trained()} batches are saved: {line}")
        require("for a rollout to come again" in error_of(job, 1), job.text(1))
        check.check_checkpoint("ending", job.trained(), 2)
    finally:
        job.kill()
    begun = set((check.runs / "ending").glob("events.*"))
    job = Job(check, 4, "ending", "separated:1:1", iterations=1000000, checkpoint_every=1000000, resume=check.runs / "ending", deadline_s=LIMIT)
    try:
        until = time.monotonic() + LIMIT
        while not any(file.stat().st_size > 2000 for file in set((check.runs / "ending").glob("events.*")) - begun):
            require(time.monotonic() < until and job.process(0).poll() is None, f"it does not go on:\n{job.text(0)}")
            time.sleep(0.02)
        job.process(1).send_signal(signal.SIGKILL)
        line = error_of(job, 0)
        print(line)
        unsaved = re.search(r"; nothing was saved now: rank \d \(actor \d\): it is (gone|in the midst of an update); the newest", line)
        require(unsaved and f"/step-{saved[1]}.safetensors'" in line and job.trained() == int(saved[1]), line)
    finally:
        job.kill()


def check_folder(check):
    job = Job(check, 2, "folder", "separated:1:1", iterations=1000000, checkpoint_every=1, deadline_s=60)
    try:
        job.wait_for(2)
        for rank, ended in enumerate(check.plain(2, "folder", "separated:1:1", iterations=1000000, overwrite="true").wait()):
            refused = ended.code == 1 and len(ended.errors()) == 1 and "another run is at work in '" in ended.err
            require(refused, f"rank {rank} ends with {ended.code}:\n{ended.err}")
            print(ended.errors()[0])
        job.process(1).send_signal(signal.SIGKILL)
        job.process(1).wait()
        job.start(1)
        job.wait_for(job.trained() + 20)
        report = end(job, 0, 1)
        again = next(each for each in report["ranks"] if each["name"].startswith("rank 1"))
        require(again["sent"] > 0, f"the rollout that came again sent nothing: {report['ranks']}")
        counts(report, report["batches"])
        require(not (check.runs / "folder/.dvla-lock").exists(), "the lock is left")
    finally:
        job.kill()


def check_signals(check):
    names = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGTERM", "SIGINT")
    for name, ignored in (*((name, ()) for name in names), ("SIGUSR1", ("SIGHUP",))):
        run = f"signal-{name}-{len(ignored)}"

        def start(how={each: signal.SIG_IGN if each in ignored else signal.SIG_DFL for each in names}):
            for each, action in how.items():
                signal.signal(signal.Signals[each], action)

        path = check.folder / run
        with open(path, "w") as out:
            process = subprocess.Popen(check.command(run, "colocated", iterations=1000000, checkpoint_every=1), env=environment(),
                                       stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=check.folder, preexec_fn=start)  # fmt: skip

        def wait_for(batches):
            until = time.monotonic() + LIMIT
            while check.trained(run) < batches:
                require(time.monotonic() < until and process.poll() is None, f"no {batches} batches:\n{path.read_text()}")
                time.sleep(0.02)

        try:
            wait_for(2)
            for each in ignored:
                process.send_signal(signal.Signals[each])
                wait_for(check.trained(run) + 5)
            process.send_signal(signal.Signals[name])
            code = process.wait(LIMIT)
            text, report = path.read_text(), check.report(run)
            require(code == 0 and f"stopped by request ({name})" in text, f"{name}: exit code {code}:\n{text}")
            require(report["signal_name"] == name and report["stopped"], f"{name}: the report says {report.get('signal_name')}")
            require(check.trained(run) == report["batches"] >= 2, f"{name}: no checkpoint of the last batch, {report['batches']}")
            print(f"{name}: stopped after {report['batches']} batches")
        finally:
            if process.poll() is None:
                process.kill()


def check_memory(check):
    fake = check.folder / "cgroup"
    (fake / "memory").mkdir(parents=True)
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        (fake / file).write_text(f"{600 << 20}\n")

    def run(name, **settings):
        mount = f"mount --bind {fake} /sys/fs/cgroup && exec \"$@\""
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *check.command(name, "colocated", **settings)]
        return subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=check.folder,
                              timeout=LIMIT)  # fmt: skip

    if subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "mount", "--bind", fake, "/sys/fs/cgroup"]).returncode:
        print("SKIPPED: nobody may mount here")
        raise SystemExit(77)
    fits = run("fits", environment_pool_mib=1024)
    require(fits.returncode == 0, f"exit code {fits.returncode}:\n{fits.stdout}{fits.stderr}")
    planned = check.report("fits")["memory_plan"]
    require(sum(planned.values()) < 600 << 20, f"planned: {planned}")
    more = run("more", environment_pool_mib=1024, environments=4096)
    lines = [line for line in more.stderr.splitlines() if line.startswith("error: ")]
    refused = len(lines) == 1 and "the run would take" in lines[0] and "can be had here" in lines[0]
    require(more.returncode == 1 and refused, f"exit code {more.returncode}:\n{more.stdout}{more.stderr}")
    require(not (check.runs / "more").exists(), "a folder is left")
    print(lines[0])


class Torchrun:
    """A job that torchrun starts again where it fails, at most twice."""

    def __init__(self, check, name, **settings):
        self.folder, self.path = check.runs / name, check.folder / f"torchrun.{name}"
        command = check.command(name, "separated:2:1", checkpoint_every=1, deadline_s=60, **settings)
        numbers = ["--nproc-per-node", "3", "--max-restarts", "2", "--master-port", str(free_port())]
        with open(self.path, "w") as out:
            self.process = subprocess.Popen([torchrun(), "--no-python", *numbers, *command], env=environment(), stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=out, cwd=check.folder, start_new_session=True)  # fmt: skip

    def text(self):
        return self.path.read_text(errors="replace")

    def wait_for(self, pattern):
        until = time.monotonic() + LIMIT
        while not any("actor" not in file.name for file in self.folder.glob(pattern)):  # a part of a checkpoint is none
            require(time.monotonic() < until and self.process.poll() is None, f"there is no {pattern}:\n{self.text()}")
            time.sleep(0.02)

    def without_leader(self, pattern):
        """Kills the leader once there is such a file; all that is said until the job has ended well."""
        try:
            self.wait_for(pattern)
            os.kill(leader_of(self.process.pid), signal.SIGKILL)
            code, text = self.wait(), self.text()
            require(code == 0, f"exit code of torchrun is {code}:\n{text}")
            return text
        finally:
            self.kill()

    def wait(self):
        return self.process.wait(LIMIT)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


def check_torchrun(check):
    goes_on(check)
    begins_anew(check)
    stays_refused(check)


def goes_on(check):
    """From its own newest checkpoint, not from that of another run that it was told to begin with."""
    for name, iterations, more, begins in (("again", 60, {}, ["again"]),
                                           ("from-again", 120, {"resume": check.runs / "again"}, ["again", "from-again"])):  # fmt: skip
        job = Torchrun(check, name, iterations=iterations, **more)
        text = job.without_leader("checkpoint/step-*.safetensors")
        said = [line for line in text.splitlines() if "resumed from" in line]
        fits = [f"'{check.runs}/{begin}/checkpoint/step-" in line for begin, line in zip(begins, said)]
        require(len(said) == len(begins) and all(fits), f"it goes on from {said} instead of {begins}:\n{text}")
        require((job.folder / f"checkpoint/step-{iterations}.safetensors").exists(), "it did not reach its last batch")
        print(said[-1])


def begins_anew(check):
    """Killed in the warm start, before the first checkpoint."""
    job = Torchrun(check, "early", iterations=3, demonstrations=256, imitation_target=1, imitation_steps=100)
    text = job.without_leader("job.txt")
    require("resumed from" not in text and "is not empty" not in text, f"it did not begin anew:\n{text}")
    require((job.folder / "checkpoint/step-3.safetensors").exists(), "it did not reach its last batch")
    print("begun anew")


def stays_refused(check):
    """The folder is another job's, which torchrun's restarts must not take for their own."""
    folder = check.runs / "again"

    def files():
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}

    before = files()
    job = Torchrun(check, "again", iterations=200)
    try:
        code, text = job.wait(), job.text()
        require(code != 0, f"what was refused has ended with exit code 0:\n{text}")
        refusals = text.count("error: rank 0: run name 'again'")
        require(refusals == 3, f"{refusals} of 3 attempts were refused:\n{text}")
        require(files() == before, "the other job's files have changed")
        print("refused three times, nothing touched")
    finally:
        job.kill()


def leader_of(launcher):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == launcher:
                    if b"RANK=0" in (entry / "environ").read_bytes().split(b"\0"):
                        return int(entry.name)
            except OSError:
                continue
        time.sleep(0.02)
    raise Fault("torchrun has no process of rank 0")


if __name__ == "__main__":
    moments = int(sys.argv[3]) if len(sys.argv) > 3 else 30
    sys.exit(main({"rollouts": lambda check: check_rollouts(check, moments), "stopped": check_stopped, "replaced": check_replaced,
                   "twice": check_twice, "actor": check_actor, "ending": check_ending, "folder": check_folder, "early": check_early, "signals": check_signals, "memory": check_memory, "torchrun": check_torchrun}))  # fmt: skip
