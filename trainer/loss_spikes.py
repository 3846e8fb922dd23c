"""Jumps of the loss above its running mean."""

import math

SPAN = 50
"""Losses that the running mean looks back on."""


class LossSpikes:
    """Exponentially weighted mean and variance of the losses (West 1979)."""

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def above(self, loss: float) -> float | None:
        """The usual loss, if this one is that many standard deviations above it. A spike does not move the mean."""
        mean, threshold = self._mean, self._deviations * math.sqrt(self._variance)
        if self._seen >= SPAN and loss - mean > threshold:
            return mean
        self._seen += 1
        # A plain mean until there are SPAN of them.
        share = max(1 / self._seen, 2 / (SPAN + 1))
        self._mean += share * (loss - mean)
        self._variance = (1 - share) * (self._variance + share * (loss - mean) ** 2)
        return None
