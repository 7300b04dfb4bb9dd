"""A short load of `lrkit serve`: clients at once, some rude, a queue that is full at times."""

from pathlib import Path

import pytest

from tests.stress.serve_load import run


@pytest.mark.slow
def test_every_answer_is_that_of_one_client_alone(tmp_path: Path) -> None:
    found = run("tiny", clients=8, seconds=12, seed=3, options=["--queue", "4"])
    statuses = found["statuses"]
    assert statuses["question 200"] > 20 and statuses["question 429"] > 0
    assert statuses["no JSON 400"] > 0 and statuses["too large 413"] > 0 and statuses["no picture 400"] > 0
