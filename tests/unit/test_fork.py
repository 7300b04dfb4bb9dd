"""A checkpoint in a process that was forked after torch ran (gunicorn --preload, multiprocessing's fork).

OpenMP's threads do not exist after a fork. The first answer in the child once waited for them and never came.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
import torch
torch.set_num_threads(2)
from lrkit import Reasoner
from lrkit.data.trail import trail_set
from lrkit.errors import UserError

device = sys.argv[1]
samples = trail_set("main", "test", 2)
reasoner = Reasoner.from_checkpoint("tiny", device)
ask = lambda asked: [asked.ask(one.images, one.question, "latent").text for one in samples]
said = ask(reasoner)
torch.randn(400, 400) @ torch.randn(400, 400)  # large enough to be shared out to threads

def in_a_child(work):
    child = os.fork()
    if child == 0:
        code = 9
        try:
            code = 0 if work() else 5
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

def refused():
    try:
        ask(reasoner)
    except UserError as error:
        return "forked" in str(error)

if device == "cpu":
    in_a_child(lambda: ask(reasoner) == said and torch.get_num_threads() == 1)
    in_a_child(lambda: ask(Reasoner.from_checkpoint("tiny")) == said)
    in_a_child(lambda: in_a_child(lambda: ask(reasoner) == said) is None)  # a child's child
    assert torch.get_num_threads() == 2 and ask(reasoner) == said
else:
    in_a_child(refused)
print("all answered")
"""


def run(device: str) -> None:
    """The time-out is there to end a hang, not to measure."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, device]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "all answered\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_answers() -> None:
    run("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_forked_child_cannot_use_the_gpu_and_says_so() -> None:
    run("cuda")
