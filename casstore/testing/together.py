"""Have several threads commit in one group: not by chance, but always."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from casstore.engine import Engine


def together(engine: Engine, works: Sequence[Callable[[], object]]) -> list[object]:
    """Do each work in a thread of its own; what they commit comes before the log at once, in their order.

    Returns what each returned or raised. A work that commits nothing may be among them.
    """
    outcomes: list[object] = [None] * len(works)

    def run(number: int) -> None:
        try:
            outcomes[number] = works[number]()
        except BaseException as error:  # noqa: BLE001 - it is what this work came to
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    gathering = engine._gathering  # noqa: SLF001
    with gathering.lock:  # as if another group were being committed
        for thread in threads:
            waiting = len(gathering.waiting)
            thread.start()
            while thread.is_alive() and len(gathering.waiting) == waiting:
                thread.join(0.001)
    gathering.wake(gathering.waiting[:1])
    for thread in threads:
        thread.join()
    return outcomes
