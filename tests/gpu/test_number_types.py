"""The sweep of tests/unit/test_number_types.py on a GPU: `pytest -m gpu`. There latent steps are really recorded."""

import pytest
import torch

from lrkit.model.build import Trainable
from tests.unit.test_number_types import CASES, OFFS, agree

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("case", CASES)
def test_every_option_trains_and_answers_in_every_type(case: str, trainable: Trainable) -> None:
    if case in OFFS and trainable == "full":
        pytest.skip("whole models without a part are those of the rows")
    agree(case, trainable, "cuda")
