"""Real jobs on a real SLURM of two nodes (``tests/system/start_slurm.sh``): what is stopped goes on, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from genlab.config import shipped_root
from genlab.files import read_csv
from tests.system.programs import environment, run
from tests.system.test_resume import assert_same, load


def why_not() -> str | None:
    """Why there is no test cluster here; ``None`` where there is one, or ought to be: in jobs of a real cluster nothing is to be broken."""
    file = Path(os.environ.get("SLURM_CONF", ""))
    if file.is_file() and "ClusterName=genlab-tests" in file.read_text():
        return None
    return "SLURM_CONF names no test cluster; tests/system/start_slurm.sh starts one"


REASON = why_not()
pytestmark = [pytest.mark.slurm, pytest.mark.system, pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

STEPS_AN_EPOCH, EPOCHS = 6, 4
CPU = ("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.sync_batchnorm=false")
PATIENCE = 1800.0  # seconds for what takes one or two minutes on a quiet machine
TWO_NODES = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1")
ONE_NODE = ("--nodes=1", "--gpus-per-node=0", "--cpus-per-task=1")


class Work:
    """A working folder on the cluster, and what is asked of SLURM there.

    Args:
        folder: Where jobs are submitted.
        data: A tiny GenVideo.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.marks, self.jobs = folder, folder / "marks", list[str]()
        self.options = [
            f"--data.root={data}", "--data.batch_size=4", "--data.eval_batch_size=2", "--data.val_fraction=0.2", "--data.num_workers=1",
            f"--trainer.limit_train_batches={STEPS_AN_EPOCH}", "--trainer.enable_progress_bar=false", "--run.checkpoint_steps=1",
        ]  # fmt: skip

    def submit(self, *more: str) -> str:
        """``genlab submit`` of the tiny experiment; the job's id."""
        # The jobs inherit the path, on which the accidents of these tests are to be found.
        output = run(
            "submit", "-c", "tiny/demamba", *self.options, *more, cwd=self.folder, timeout=PATIENCE, PYTHONPATH=str(shipped_root())
        )
        found = re.search(r"^job (\d+), logs in", output, re.MULTILINE)
        assert found, output
        self.jobs.append(found[1])
        return found[1]

    def by_hand(self, *more: str) -> str:
        """``sbatch slurm/ddp.sbatch``, as the template says; the job's id."""
        template = shipped_root() / "slurm/ddp.sbatch"
        command = ["sbatch", "--parsable", *TWO_NODES, "--ntasks-per-node=1", "--time=60", str(template), "experiments/tiny/demamba.yaml"]
        asked = subprocess.run([*command, *CPU, *self.options, *more], cwd=self.folder, env=environment(), capture_output=True, text=True)
        assert asked.returncode == 0, asked.stderr
        self.jobs.append(asked.stdout.strip())
        return self.jobs[-1]

    def accidents(self, *accidents: tuple[str, int, bool]) -> list[str]:
        """Options that let accidents happen, once each: what, at which step, and whether in the validation after it."""
        self.marks.mkdir(exist_ok=True)
        given = [
            {
                "class_path": "tests.system.accidents.Accident",
                "init_args": {"what": what, "at": at, "marks": str(self.marks), "validating": validating},
            }
            for what, at, validating in accidents
        ]
        overlay = self.folder / f"accidents{len([*self.folder.glob('accidents*')])}.yaml"
        overlay.write_text(json.dumps({"trainer": {"callbacks+": given}}))
        return ["-c", str(overlay)]

    def run_folder(self, name: str) -> Path:
        return self.folder / "runs/tiny/demamba" / name

    def record(self, name: str) -> dict[str, object]:
        return json.loads((self.run_folder(name) / "run.json").read_text())

    def logs(self) -> str:
        """The ends of all there are, for the message of a test that failed."""
        found = [*self.folder.glob("*.log"), *self.folder.glob("runs/tiny/demamba/jobs/*/*.log")]
        return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in found)


def shown(job: str) -> dict[str, str]:
    """What SLURM says of a job."""
    asked = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S+)", asked.stdout))


def wait(work: Work, until: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}\n{work.logs()}"
        time.sleep(1)


def ended(work: Work, *jobs: str) -> list[str]:
    """Waits for the end of jobs, and returns their states. One that is back in the queue need not wait its two minutes."""

    def over() -> bool:
        now = {job: shown(job) for job in jobs}
        for job, known in now.items():
            # Within the same second SLURM would take the next start for the one that it has just revoked.
            since = datetime.now() - datetime.fromisoformat(known["SubmitTime"])
            if known["JobState"] == "PENDING" and since.total_seconds() > 3:
                subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True)
        return {known["JobState"] for known in now.values()} <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}

    wait(work, over, f"the end of {jobs}")
    return [shown(job)["JobState"] for job in jobs]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_genvideo: Path) -> Iterator[Work]:
    work = Work(tmp_path_factory.mktemp("cluster"), tiny_genvideo)
    yield work
    subprocess.run(["scancel", *work.jobs])  # what a failed test left


@pytest.fixture(scope="module")
def long(work: Work) -> str:
    """A run that goes on until something stops it."""
    return work.submit(*TWO_NODES, "--run.name=long", "--trainer.max_epochs=100000", "--warn-seconds=60", "--skip-check")


@pytest.fixture(scope="module")
def whole(work: Work) -> str:
    return work.by_hand("--run.name=whole", f"--trainer.max_epochs={EPOCHS}")


@pytest.fixture(scope="module")
def array(work: Work) -> str:
    """Seeds and a grid on one node each."""
    grid = ("--seeds=1,2", "--grid=model.lr=0.004,0.002", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2")
    return work.submit(*ONE_NODE, *grid, *work.accidents(("requeue", 1, False)), "--skip-check")


def test_a_second_job_in_the_same_folder_refuses(work: Work, long: str) -> None:
    wait(work, lambda: (work.run_folder("long") / "checkpoints/last.ckpt").exists(), "the long run to start")
    table = run("status", "runs/tiny/demamba/long", cwd=work.folder)
    assert re.search(rf" running .* {long} +0 +\d+ s ago", table), table
    second = work.by_hand("--run.name=long")
    refused = run("submit", "-c", "tiny/demamba", *work.options, *TWO_NODES, "--run.name=long", cwd=work.folder, expect=2)
    assert "another process is at work in this run folder" in refused
    assert ended(work, second) == ["FAILED"], work.logs()
    assert shown(second)["ExitCode"] == "2:0" and shown(second)["Restarts"] == "0", "not tried again"
    assert work.record("long")["job"] == long


def test_the_time_limit_stops_a_run_that_then_waits_to_continue(work: Work, long: str, whole: str, array: str) -> None:
    minutes = sum(int(part) * factor for part, factor in zip(shown(long)["RunTime"].split(":"), (60, 1, 0)))
    subprocess.run(["scontrol", "update", f"jobid={long}", f"TimeLimit={minutes + 2}"], check=True)  # the signal comes within a minute

    def waits() -> bool:
        now = shown(long)
        return int(now["Restarts"]) > 0 and now["JobState"] == "PENDING"

    wait(work, waits, "the time limit")
    subprocess.run(["scontrol", "hold", long], check=True)  # else it would go on in two minutes
    record = work.record("long")
    step = load(work.run_folder("long"))["global_step"]
    # Within a validation the state is the one of the step before it, which validates again.
    assert record["state"] == "preempted" and 0 < record["step"] - 1 <= step <= record["step"], work.logs()
    table = run("status", "runs/tiny/demamba/long", cwd=work.folder)
    assert "preempted, waiting to continue" in table and long in table and f"{record['step']} " in table
    subprocess.run(["scancel", long], check=True)
    assert ended(work, long) == ["CANCELLED"], "what its user cancels does not come back"
    assert "preempted, not in the queue" in run("status", "runs/tiny/demamba/long", cwd=work.folder)


def test_two_nodes_train_by_hand(work: Work, whole: str) -> None:
    assert ended(work, whole) == ["COMPLETED"], work.logs()
    record = work.record("whole")
    assert record["state"] == "finished" and record["requeues"] == 0 and record["job"] == whole
    assert load(work.run_folder("whole"))["global_step"] == STEPS_AN_EPOCH * EPOCHS
    rows = read_csv(work.run_folder("whole") / "predictions.csv")
    assert len({row["id"] for row in rows}) == len(rows) > 0, "each clip once, though two nodes shared them"
    assert shown(whole)["NodeList"] == "n[1-2]"


def test_an_array_over_seeds_and_a_grid(work: Work, array: str) -> None:
    """One of its tasks is put back into the queue, and goes on alone."""
    names = ["seed1-lr=0.004", "seed1-lr=0.002", "seed2-lr=0.004", "seed2-lr=0.002"]
    tasks = [f"{array}_{number}" for number in range(4)]
    assert ended(work, *tasks) == ["COMPLETED"] * 4, work.logs()
    assert sorted(shown(task)["Restarts"] for task in tasks) == ["0", "0", "0", "1"]
    for task, name in zip(tasks, names):
        record = work.record(name)
        assert record["state"] == "finished" and record["job_name"] == task and str(record["requeues"]) == shown(task)["Restarts"]
        results = json.loads((work.run_folder(name) / "results.json").read_text())
        assert f"seed{results['seed']}" == name.split("-")[0]
        held = load(work.run_folder(name))
        assert held["hyper_parameters"]["lr"] == float(name.split("=")[1]) and held["global_step"] == 2


def test_a_dry_run_asks_slurm_and_refuses_what_is_wrong(work: Work) -> None:
    arguments = ["submit", "-c", "tiny/demamba", *work.options, *TWO_NODES, "--run.name=dry", "--dry-run", "--skip-check"]
    last = newest_job()
    assert "has no 'lrr'; did you mean 'lr'?" in run(*arguments, "--model.lrr=1", cwd=work.folder, expect=2)
    assert newest_job() == last, "SLURM was not even asked"
    assert "SLURM says: Job" in run(*arguments, cwd=work.folder)
    assert "would not take the job" in run(*arguments, "--partition=nowhere", cwd=work.folder, expect=2)
    assert not work.run_folder("dry").exists()
    queue = subprocess.run(["squeue", "--noheader", "--format=%j %T"], capture_output=True, text=True, check=True)
    assert not queue.stdout, f"there is nothing else: {queue.stdout}"


def newest_job() -> int:
    """SLURM also counts the jobs that it is only asked about."""
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=True)
    found = re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", asked.stdout)
    assert found
    return int(found[1])


def test_stopped_and_killed_and_resumed_is_never_stopped(work: Work, whole: str) -> None:
    """Preempted, a node's ranks killed, a node lost, at random steps and in random order, and stopped within a validation: the same
    weights, bit for bit."""
    assert ended(work, whole) == ["COMPLETED"]
    chance = random.Random(os.getpid())
    steps = sorted(chance.sample([step for step in range(2, STEPS_AN_EPOCH * EPOCHS) if step % STEPS_AN_EPOCH], 3))
    kinds = chance.sample(["preempt", "kill", "lose"], 3)
    happenings = [*((what, at, False) for what, at in zip(kinds, steps)), ("signal", STEPS_AN_EPOCH * 2, True)]
    job = work.submit(
        *TWO_NODES,
        *work.accidents(*happenings),
        "-c",
        "trainer/wandb",
        "--run.name=broken",
        f"--trainer.max_epochs={EPOCHS}",
        "--skip-check",
    )
    assert ended(work, job) == ["COMPLETED"], work.logs()
    assert int(shown(job)["Restarts"]) == len(happenings), work.logs()

    unbroken, broken = work.run_folder("whole"), work.run_folder("broken")
    for name in ("last", "best"):
        a, b = load(unbroken, name), load(broken, name)
        assert a["global_step"] == b["global_step"]
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "random_states"):
            assert_same(a[part], b[part], f"{name}: {part} after {happenings}")
    assert (unbroken / "predictions.csv").read_bytes() == (broken / "predictions.csv").read_bytes()
    record = work.record("broken")
    assert record["state"] == "finished" and record["requeues"] == len(happenings)
    offline = [path.name for path in (broken / "wandb").glob("offline-run-*")]
    assert len(offline) == len(happenings) + 1 and all(name.endswith(record["wandb"]["id"]) for name in offline), (
        "one run of W&B over all starts"
    )

    before = {path: path.stat().st_mtime_ns for path in broken.rglob("*")}
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait(work, lambda: shown(job)["Restarts"] == str(len(happenings) + 1), "the requeue")
    assert ended(work, job) == ["COMPLETED"]
    assert before == {path: path.stat().st_mtime_ns for path in broken.rglob("*")}, "a finished run is not started again"
