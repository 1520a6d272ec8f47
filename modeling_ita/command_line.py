"""How every command ends: with its exit status, and with one line if something is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from .plain_text import one_line, plain_text

DEBUG = "ITA_DEBUG"  # set this environment variable to see the traceback
DONE, FINDINGS, MISUSE, INTERRUPTED = 0, 1, 2, 130


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Makes a function of arguments a command: what it raises becomes one line on stderr and an exit status.

    The status is 0 (done), 1 (finished with findings: what the function returns), 2 (misuse, or an input that cannot
    be read: whatever it raises) or 130 (interrupted).

    ```python
    @command
    def main(arguments=None):
        print(read(arguments))


    if __name__ == "__main__":
        sys.exit(main())
    ```
    """

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            status = main(arguments) or DONE
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as interrupt:
            print(one_line("; ".join(["interrupted", *getattr(interrupt, "__notes__", [])])), file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:  # whoever read has enough: `… | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        except Exception as error:
            if os.environ.get(DEBUG):
                raise
            print(error_line(error), file=sys.stderr)
            return MISUSE

    return run


def program(module: str) -> str:
    """How a command was called, for its usage: `ita-mner WORD`, or `python -m MODULE`."""
    return sys.argv[0] if sys.argv[0].startswith("ita-mner") else f"python -m {module}"


def error_line(error: BaseException) -> str:
    """What went wrong, as one line: `error: …`, with the notes that were added on the way."""
    said = str(error)
    if not isinstance(error, (OSError, ValueError, ImportError, FloatingPointError)) or not said:
        # Not foreseen: a fault of this package, or of a library below it.
        said = f"{type(error).__name__}: {said} ({DEBUG}=1 shows where)"
    return one_line("; ".join([f"error: {said}", *getattr(error, "__notes__", [])]))


def print_text(text: Any, **options: Any) -> None:
    """Prints text that may hold strangers' words, line breaks kept and everything else that a terminal obeys gone."""
    print(plain_text(text), **options)
