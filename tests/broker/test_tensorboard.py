"""The event file of a run's losses is what TensorBoard reads."""

from broker.publishing import tensorboard
from broker.runs.series import Measured

# What tensorboardX 2.6.5 writes of the same points.
EXPECTED = bytes.fromhex(
    "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc985129"
    "1500000000000000d6ab6b2b2a130a110a0a6c6f73732f747261696e150000f040dd3c3b81"
    "1b000000000000001a0d9e1310ac022a160a140a0d6c6f73732f68656c645f6f7574150000404087994eb2"
    "1800000000000000a37f4b2210ac022a130a110a0a6c6f73732f747261696e1500001040edca7614"
)


def test_the_bytes_are_those_of_a_known_writer() -> None:
    losses = [Measured("loss", 0, 0, 7.5), Measured("loss", 300, 3000, 2.25)]
    held_out = [Measured("held_out", 300, 3000, 3.0)]
    assert tensorboard.encode({"loss/train": losses, "loss/held_out": held_out}) == EXPECTED
