"""lrkit sends nothing anywhere, nor do the libraries below it: those that report how they are used are told not to.

Place in the pipeline: `import lrkit` calls `turn_off` before it loads any of them; each decides when it is loaded.
"""

import os

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime from 1.29 on reports each session, with an identifier of the device
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # what the hub's client says of itself beside a request
}
"""Environment variable -> its value for "report nothing". Processes that lrkit starts inherit them."""


def turn_off() -> None:
    """Sets the variables; one that is set already stays as its user wants it.

    An app that has loaded ONNX Runtime before lrkit sets its variable itself: the library asks once.
    """
    for name, value in OFF.items():
        os.environ.setdefault(name, value)
