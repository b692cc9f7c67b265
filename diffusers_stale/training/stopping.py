"""How a run ends before its end: by a signal, or because training on would change nothing."""

import signal
import threading


class DivergedError(FloatingPointError):
    """Gradients have not been finite for many steps: training on would change nothing."""


class StoppedError(SystemExit):
    """The run was told to stop by a signal, and has saved; the exit status is the shell's for that signal."""


class StopRequest:
    """Within it, SIGTERM and SIGINT do not end the process but set `signal`; a second one does what it did before."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _note(self, kind: int, frame: object) -> None:
        self.signal = kind
        self.__exit__()
