"""Dynamic loss scaling, which keeps small gradients within the range of fp16."""

from typing import NamedTuple

from trainer.config import LossScaleConfig

FLOOR, CEILING = 1.0, 2.0**127
MOST_AT_FLOOR = 20
"""Steps in a row that may overflow at the floor before a run ends."""


class LossScale(NamedTuple):
    """The factor of the loss in the backward pass, by the rule of torch.amp.GradScaler (Micikevicius et al. 2018,
    “Mixed Precision Training”, section 3.2): it halves at a step whose gradients overflow, which is skipped, and
    doubles after `growth_interval` steps in a row that do not. As a power of two it rounds no gradient.

    `good_steps` are the steps without an overflow since the scale last changed, `at_floor` the steps in a row that
    overflowed with the scale at FLOOR, below which it does not fall, and `skipped` all steps that overflowed.
    """

    scale: float
    good_steps: int = 0
    at_floor: int = 0
    skipped: int = 0

    def after(self, overflowed: bool, config: LossScaleConfig) -> "LossScale":
        """The state after one more step."""
        if overflowed:
            at_floor = self.at_floor + 1 if self.scale == FLOOR else 0
            return LossScale(max(FLOOR, self.scale / 2), 0, at_floor, self.skipped + 1)
        good_steps = self.good_steps + 1
        if good_steps < config.growth_interval:
            return LossScale(self.scale, good_steps, 0, self.skipped)
        return LossScale(min(CEILING, self.scale * 2), 0, 0, self.skipped)

    @property
    def is_exhausted(self) -> bool:
        """Whether the gradients overflow however small the scale is."""
        return self.at_floor >= MOST_AT_FLOOR
