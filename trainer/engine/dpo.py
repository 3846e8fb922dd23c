"""Direct preference optimisation (Rafailov et al. 2023). S sequences, the chosen and the rejected one of each pair in
turn; P pairs."""

from torch import Tensor
from torch.nn import functional


def dpo_loss(log_probabilities_S: Tensor, reference_S: Tensor, beta: float) -> Tensor:
    """The loss [P] of each pair, equation 7, from the log-probabilities of the model and of its reference."""
    gain_S = log_probabilities_S - reference_S
    return -functional.logsigmoid(beta * (gain_S[::2] - gain_S[1::2]))
