"""A run's losses as a TensorBoard event file, which the Hub draws by itself.

The file is a sequence of TFRecords (https://www.tensorflow.org/tutorials/load_data/tfrecord), each with an `Event`
(tensorboard/compat/proto/event.proto). The protobuf packages that write them would import PyTorch into the worker.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence

import google_crc32c

from broker.runs.series import Measured

FILE_VERSION = b"brain.Event:2"
VARINT, BYTES, FLOAT = 0, 2, 5
"""The wire types of https://protobuf.dev/programming-guides/encoding."""


def encode(series: Mapping[str, Sequence[Measured]]) -> bytes:
    """The bytes of an event file with the points of each series under its tag, over the steps."""
    points = sorted((point.step, tag, point.value) for tag, measured in series.items() for point in measured)
    events = [_event(0, _field(3, FILE_VERSION)), *(_event(step, _scalar(tag, value)) for step, tag, value in points)]
    return b"".join(chunk for event in events for chunk in _record(event))


def _record(data: bytes) -> Iterator[bytes]:
    length = struct.pack("<Q", len(data))
    yield from (length, _masked_crc(length), data, _masked_crc(data))


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _event(step: int, rest: bytes) -> bytes:
    """An `Event` without a time, as the losses that are kept have none. A step of 0 is left out, as protobuf does."""
    return (_key(2, VARINT) + _varint(step) if step else b"") + rest


def _scalar(tag: str, value: float) -> bytes:
    """An event's `summary` with one `Value`."""
    pair = _field(1, tag.encode()) + _key(2, FLOAT) + struct.pack("<f", value)
    return _field(5, _field(1, pair))


def _field(number: int, data: bytes) -> bytes:
    return _key(number, BYTES) + _varint(len(data)) + data


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    """The base-128 digits of a number of 0 or more, the lowest first."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
