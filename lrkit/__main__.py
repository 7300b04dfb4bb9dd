"""The command line of the process: the script `lrkit`, and `python -m lrkit`.

It imports little, so that a Ctrl-C or a SIGTERM during the imports ends in a sentence too.
"""

import os
import signal
from contextlib import suppress


def main() -> None:
    """Run the command line with the arguments of the process; leaves by SystemExit."""
    with suppress(ValueError):  # not the main thread: there signals are another's
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
    try:
        from lrkit.cli.main import main as run

        run()
    except KeyboardInterrupt as stop:  # while the modules were read; later ones are lrkit.cli.main's
        first = os.environ.get("RANK", "0") == "0"  # of those that a launcher started; it speaks for all
        with suppress(OSError):
            os.write(2, f"\n{str(stop) or 'interrupted; nothing more was written'}\n".encode() if first else b"")
        os._exit(130)


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt("terminated; nothing more was written")


if __name__ == "__main__":
    main()
