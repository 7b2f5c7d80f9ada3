"""The command line; in the process whose rank is FAILING, the third sum of a training fails. For test_processes.py."""

import os

from reticent import cli
from reticent.errors import ModelError
from reticent.training.distributed import Team

sums = 0
before = Team.unit_sum


def unit_sum(*arguments):
    global sums
    sums += 1
    if sums == 3:
        raise ModelError("this process cannot go on")
    return before(*arguments)


if os.environ["RANK"] == os.environ["FAILING"]:
    Team.unit_sum = unit_sum
cli.app()
