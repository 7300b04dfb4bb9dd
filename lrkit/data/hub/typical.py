"""What samples of the published data sets are assumed to be like, for plans of training where these are not on this
machine.

All of it is assumed: numbers of samples, shares and sizes of pictures, lengths of questions, chains and answers.
Nothing was counted, and nothing was compared with what the makers of the data sets state. For M3CoT and ScienceQA the
assumption goes by the autoregressive steps that arXiv 2604.10500 reports for chains of thought, 106 and 84.

Place in the pipeline: `HubData.expected` -> lrkit/train/plan; `lrkit train --plan --assume data.samples=...` replaces a
value.
"""

from collections.abc import Mapping

from lrkit.data.expected import Expected

TYPICAL: Mapping[str, Expected] = {
    "m3cot": Expected(samples=7_863, picture=(640, 480), question_tokens=90, steps=5, step_tokens=20, answer_tokens=8),
    "scienceqa": Expected(
        samples=12_726, pictures=0.49, picture=(480, 360), question_tokens=80, steps=4, step_tokens=20, answer_tokens=8
    ),
    "gqa": Expected(samples=943_000, picture=(500, 400), question_tokens=35, steps=4, step_tokens=17, answer_tokens=6),
    "onethinker": Expected(
        samples=340_000, picture=(800, 600), question_tokens=100, steps=8, step_tokens=30, answer_tokens=10
    ),
    "tabmwp": Expected(samples=23_059, picture=(400, 250), question_tokens=60, steps=3, step_tokens=20),
}
"""Schema -> a sample, as assumed."""
