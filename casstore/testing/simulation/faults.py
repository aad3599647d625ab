"""Which call fails: one countdown and one stream of random numbers for each kind of fault."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping


class Countdown:
    """Fires about once in ``mean`` calls."""

    def __init__(self, seed: str, mean: int) -> None:
        self.rng = random.Random(seed)
        self.mean = mean
        self.left = self._draw()

    def _draw(self) -> int:
        return 1 + int(self.rng.expovariate(1 / self.mean))

    def fires(self) -> bool:
        """Count one call."""
        self.left -= 1
        if self.left:
            return False
        self.left = self._draw()
        return True


class Faults:
    """The faults of one seed. ``injected`` counts them by kind."""

    def __init__(self, seed: int, rates: Mapping[str, int]) -> None:
        self._countdowns = {kind: Countdown(f"{kind} {seed}", rate) for kind, rate in rates.items()}
        self.injected: Counter[str] = Counter()
        self.on = True

    def hits(self, kind: str) -> bool:
        """Whether this call meets a fault of a kind."""
        countdown = self._countdowns.get(kind)
        if countdown is None or not self.on or not countdown.fires():
            return False
        self.injected[kind] += 1
        return True

    def choice(self, kind: str) -> random.Random:
        """Random numbers for the details of a fault."""
        return self._countdowns[kind].rng
