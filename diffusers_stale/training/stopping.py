"""How a run ends before its end: by a signal, or because training on would change nothing."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class DivergedError(FloatingPointError):
    """Gradients have not been finite for many steps: training on would change nothing."""


class StoppedError(SystemExit):
    """The run was told to stop by a signal, and has saved; the exit status is the shell's for that signal."""


class GivenUp(BaseException):
    """What was going on was left for a signal; no `Exception`, which those who compute it might catch."""


class StopRequest:
    """Within it, SIGTERM and SIGINT do not end the process but set `signal`; a second one does what it did before."""

    def __init__(self) -> None:
        self.signal, self._at_once = 0, False

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it, a signal raises `GivenUp` wherever the main thread is, and so does one that came before."""
        self._at_once = True
        try:
            if self.signal:
                raise GivenUp
            yield
        finally:
            self._at_once = False

    def _note(self, kind: int, frame: object) -> None:
        self.signal = kind
        self.__exit__()
        if self._at_once:
            raise GivenUp
