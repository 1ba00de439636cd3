# SPDX-License-Identifier: GPL-2.0-or-later
"""Changes of the host that are reported, and undone as a whole if one of them fails."""

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType

from vnet_standby.errors import VnetStandbyError


@dataclass(frozen=True)
class Change:
    """One step: all of it happens or none, and it can be taken back."""

    what: str
    """For people, beginning with a verb: "set VF 0 of eth0 to ..."."""
    do: Callable[[], object]
    undo: Callable[[], object]


class Transaction:
    """A context for changes that belong together.

    If its body raises, or SIGINT or SIGTERM arrives, what was done is undone, last change first. A signal takes effect
    between two changes, never inside one; then the context raises `KeyboardInterrupt`. (Signals are caught in the main
    thread only: that is where Python delivers them.) A dry run changes nothing, but reports the same.
    """

    def __init__(self, *, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.notes: list[str] = []
        """What could not be done, or has to be known, beside the changes."""
        self._done: list[Change] = []
        self._interrupted = False
        self._handlers: dict[int, object] = {}

    @property
    def changed(self) -> list[str]:
        """What was changed so far, or would have been in a dry run."""
        return [change.what for change in self._done]

    @property
    def done(self) -> tuple[Change, ...]:
        """The changes, so that they can be undone later, by `undo_all`."""
        return tuple(self._done)

    def apply(self, *changes: Change) -> None:
        """Make the changes, in their order."""
        for change in changes:
            self._stop_if_interrupted()
            if not self.dry_run:
                change.do()
            self._done.append(change)

    def note(self, text: str) -> None:
        """Tell the operator something that is no change."""
        self.notes.append(text)

    def __enter__(self) -> "Transaction":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._undo(str(error) or "interrupted")
            elif self._interrupted:
                self._undo("interrupted")
                raise KeyboardInterrupt
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupted = True

    def _stop_if_interrupted(self) -> None:
        if self._interrupted:
            raise KeyboardInterrupt

    def _undo(self, reason: str) -> None:
        done, self._done = self._done, []
        if not self.dry_run:
            failed = undo_all(done)
            if failed:
                raise VnetStandbyError(
                    f"{reason}; not all could be undone, look at: {'; '.join(failed)}"
                )


def undo_all(changes: Sequence[Change]) -> list[str]:
    """Undo what can be undone, last change first; return what could not, and why."""
    failed = []
    for change in reversed(changes):
        try:
            change.undo()
        except (VnetStandbyError, OSError) as error:
            failed.append(f"{change.what} ({error})")
    return failed
