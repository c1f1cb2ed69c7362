"""``genlab submit``: the script it fills, the runs it plans, and what it refuses before there is a job."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from genlab.config import compose, shipped_experiments, shipped_root
from genlab.errors import UserError
from genlab.files import write_json
from genlab.verbs.submit import fill, main, split_values

TEMPLATES = sorted((shipped_root() / "slurm").glob("*.sbatch"))


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, on a machine without a SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return tmp_path


def dry(*more: str) -> list[str]:
    return ["-c", "tiny/demamba", "--dry-run", "--skip-check", *more]


def script_of(output: str) -> str:
    return output[output.index("#!/bin/bash") : output.index("\ndry run:")]  # a blank line sets it off


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_are_bash_and_say_how_they_are_used(template: Path) -> None:
    assert subprocess.run(["/bin/bash", "-n", str(template)], capture_output=True).returncode == 0
    text = template.read_text()
    assert f"sbatch slurm/{template.name} experiments/" in text and "--requeue" in text and "--open-mode=append" in text


def test_the_script_is_the_template_filled_in(capsys: pytest.CaptureFixture[str], work: Path) -> None:
    options = ["--nodes", "2", "--gpus-per-node", "8", "--time", "12:00:00", "--partition", "gpu", "--account", "a b", "--qos", "long"]
    assert main(dry(*options, "--sbatch", "exclusive", "--model.lr", "1e-4")) == 0
    output = capsys.readouterr().out
    script = script_of(output)
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True).returncode == 0
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    expected = {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8", "time": "12:00:00", "partition": "gpu", "account": '"a b"'}
    expected |= {"qos": "long", "exclusive": "", "requeue": "", "signal": "USR1@300", "job-name": "genlab-tiny-demamba"}
    assert expected.items() <= directives.items()
    assert f"python={sys.executable}" in script and "runs/tiny/demamba/seed1" in output
    body = script.split("# what to run: end")[1]
    assert body == (shipped_root() / "slurm/ddp.sbatch").read_text().split("# what to run: end")[1], "the logic is the template's own"
    assert not list(work.iterdir()), "a dry run writes nothing"


WHOLE = [name for name in shipped_experiments() if compose([name]).get("model.class_path") and compose([name]).get("data.class_path")]


@pytest.mark.parametrize("name", WHOLE)
def test_every_experiment_can_be_submitted(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = ["--nodes", "2", "--gpus-per-node", "4"]
    assert main(["-c", name, "--dry-run", "--skip-check", *nodes]) == 0
    output = capsys.readouterr().out
    assert (
        f"runs/{name.removesuffix('.yaml')}/seed" in output
        and f"#SBATCH --job-name=genlab-{name.removesuffix('.yaml').replace('/', '-')}" in output
    )


def test_seeds_and_a_grid_are_an_array_of_runs_in_folders_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(dry("--seeds", "1,2", "--grid", "model.lr=1e-4,1e-5", "--grid", "data.batch_size=8,16", "--at-once", "3")) == 0
    output = capsys.readouterr().out
    folders = re.findall(r"^(runs/\S+)$", output, re.MULTILINE)
    assert len(set(folders)) == len(folders) == 8 and folders[0] == "runs/tiny/demamba/seed1-lr=1e-4-batch_size=8"
    script = script_of(output)
    assert "#SBATCH --array=0-7%3" in script
    for task, folder in enumerate(folders):
        selected = script.split("# what to run: begin\n")[1].split("# what to run: end")[0] + '\nprintf "%s\\n" "${arguments[@]}"'
        ran = subprocess.run(["/bin/bash"], input=selected, text=True, capture_output=True, env={"SLURM_ARRAY_TASK_ID": str(task)})
        words = ran.stdout.splitlines()
        assert f"--run.name={Path(folder).name}" in words and f"--seed_everything={1 + task // 4}" in words


def test_what_bash_and_names_would_trip_over_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(dry("--grid", "model.milestones=[1,2],[3]", "--run.name", "it's")) == 0
    output = capsys.readouterr().out
    assert "runs/tiny/demamba/it_s-milestones=_1_2_" in output
    assert shlex.quote("--model.milestones=[1,2]") in script_of(output)
    assert split_values("1e-5,[1,2],{a: b, c: d},'x,y'") == ["1e-5", "[1,2]", "{a: b, c: d}", "'x,y'"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lrr=1"], "has no 'lrr'; did you mean 'lr'?"),
        (["--grid", "model.lrr=1,2"], "has no 'lrr'; did you mean 'lr'?"),
        (["--grid", "model.lr"], "write KEY=VALUE1,VALUE2"),
        (["--seeds", "one"], "'one' is no seed"),
        (["--seeds", "1,1"], "two runs would share the folder"),
        (["--nodes", "0"], "--nodes 0 is too few"),
        (["--trainer.strategy=fsdp", "--gpus-per-node=0"], "FSDP needs GPUs"),
        (["--run.root=/proc/nowhere"], "run.root: /proc"),
        (["extra"], "'extra' stands alone"),
    ],
)
def test_refused_before_anything_is_written(work: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        main(dry(*arguments))
    assert not list(work.iterdir())


def test_a_run_that_is_there_is_refused_continued_or_left_out(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, state in ((1, "preempted"), (2, "finished")):
        folder = work / f"runs/tiny/demamba/seed{seed}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/last.ckpt").write_bytes(b"")
        write_json(folder / "run.json", {"state": state})
        (folder / "config.yaml").write_text(json.dumps({"trainer": {"max_epochs": 6}}))
    with pytest.raises(UserError, match="already holds a run"):
        main(dry())
    assert main(dry("--seeds", "1,2,3", "--ckpt_path", "last")) == 0
    output = capsys.readouterr().out
    assert "seed2: finished already, left out" in output
    assert "--seed_everything=1" in output and "--seed_everything=2" not in output
    assert main(dry("--seeds", "2", "--ckpt_path", "last")) == 0
    assert "nothing to submit" in capsys.readouterr().out


def test_without_a_slurm_it_says_so(work: Path) -> None:
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        main(["-c", "tiny/demamba", "--skip-check"])
    assert not list(work.iterdir())


def test_options_that_the_template_lacks_are_added_and_none_removes() -> None:
    script = fill("#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --gpus=1\n# what to run: begin\nx\n# what to run: end\ny\n",
                  {"nodes": "3", "gpus": None, "qos": "q"}, "z\n")  # fmt: skip
    assert script == "#!/bin/bash\n#SBATCH --nodes=3\n#SBATCH --qos=q\n# what to run: begin\nz\n# what to run: end\ny\n"


@pytest.mark.slow
def test_data_and_weights_are_looked_at_first(work: Path, tiny_genvideo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["-c", "tiny/demamba", "--dry-run", f"--data.root={tiny_genvideo}"]
    assert main(arguments) == 0
    for more, message in (
        (["--data.root=nowhere"], "nowhere is not a folder"),
        (["--model.zone_size=5"], "does not divide the token grid"),
        (["-c", "demamba", f"--data.root={tiny_genvideo}"], "microsoft/xclip-base-patch16 is not on this machine"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            main([*arguments, *more])
    assert not list(work.iterdir())
