"""Detecting jumps of the loss above its running mean."""

import math

SPAN = 50
"""Losses in the window of the running mean."""


class LossSpikes:
    """The exponentially weighted mean and variance of the losses (West 1979), and the losses far above the mean.

    `deviations` is the number of standard deviations above the mean that makes a spike.
    """

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def above(self, loss: float) -> float | None:
        """The mean, if this loss is a spike, else None. A spike does not move the mean; the first SPAN losses are
        none."""
        mean, threshold = self._mean, self._deviations * math.sqrt(self._variance)
        if self._seen >= SPAN and loss - mean > threshold:
            return mean
        self._seen += 1
        # The plain mean of the first losses, which then becomes the weighted one.
        share = max(1 / self._seen, 2 / (SPAN + 1))
        self._mean += share * (loss - mean)
        self._variance = (1 - share) * (self._variance + share * (loss - mean) ** 2)
        return None
