"""The script for Slurm, with stand-ins for Slurm's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'slurm_train.sbatch'


@pytest.fixture
def slurm(tmp_path):
    """Starts the script; ``srun`` ends with a status, or waits for a signal as a run would."""

    def command(name: str, text: str) -> None:
        path = tmp_path / 'bin' / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $@" >> {tmp_path}/calls\n{text}\n')
        path.chmod(0o755)

    def start(run: str, *arguments: str) -> subprocess.Popen:
        command('srun', run)
        command('scontrol', '[ "$1" != show ] || echo node1')
        command('scancel', f'kill -TERM "$(cat {tmp_path}/pid)"')
        return subprocess.Popen(
            ['bash', SCRIPT, *arguments],
            env=os.environ
            | dict(
                PATH=f'{tmp_path}/bin:{os.environ["PATH"]}',
                SLURM_JOB_ID='7',
                SLURM_JOB_NODELIST='node[1-2]',
            ),
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def calls(tmp_path) -> str:
    return (tmp_path / 'calls').read_text()


@pytest.mark.parametrize('status, requeued', [(0, False), (1, False), (2, False), (143, True)])
def test_only_a_run_that_was_stopped_is_requeued(slurm, tmp_path, status, requeued):
    assert slurm(f'exit {status}', 'my.py', '--amp', 'bf16').wait(30) == status
    assert ('scontrol requeue 7' in calls(tmp_path)) is requeued
    assert 'focal_mm train my.py --amp bf16 --launcher slurm --resume auto' in calls(tmp_path)


@pytest.mark.parametrize('status, requeued', [(143, True), (0, False), (2, False)])
def test_end_of_the_time_stops_the_run_and_requeues_it(slurm, tmp_path, status, requeued):
    wait = f'echo $$ > {tmp_path}/pid; trap "exit {status}" TERM; touch {tmp_path}/up; '
    job = slurm(wait + 'while :; do sleep 0.05; done', 'my.py')
    while not (tmp_path / 'up').exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == status
    assert 'scancel --signal=TERM 7.0' in calls(tmp_path)
    assert ('scontrol requeue 7' in calls(tmp_path)) is requeued


def test_config_is_asked_for(slurm):
    job = slurm('exit 0')
    assert job.wait(30) == 2 and 'usage: sbatch' in job.stderr.read()
