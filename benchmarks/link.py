"""A child that is a link of 1 Gbit/s and 10 ms between two network namespaces.

It prints one JSON line: the two `places`, each an address and its namespace's path, or
why the link is `refused`. A namespace lasts as long as the processes in it and this
one, which holds both; its device lasts as long as this one.
"""

import fcntl
import json
import math
import os
import select
import struct
import subprocess
import time
from collections import deque

from benchmarks import namespaces

RATE = 1e9 / 8  # Bytes a second, each way.
DELAY_S = 0.005  # One way, after a packet's last byte has left.

# What a full queue takes to send: twice what is under way. The usual once is too little
# where what is lost is 64 KB at a time: for seconds after it TCP would use four fifths
# of the link, or all, as chance has it.
_QUEUE_S = 4 * DELAY_S

DEVICE = "link"
_ADDRESSES = "10.0.0.1", "10.0.0.2"
_MAX_PACKET = 2**16

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02

# The kernel hands over up to 64 KB at once, after a header that says into pieces of how
# many bytes a network card would cut them. So TCP reckons with a device's usual 1,500,
# and Python reads few enough.
_OFFLOAD = struct.Struct("<BBHHHH")
_FRAME_NBYTES = 8 + 14 + 4 + 12  # Preamble, Ethernet's header and checksum, the gap.
_HEADERS_NBYTES = 20 + 32  # IP's and TCP's, with timestamps.


class _Way:
    """One direction: a rate, a delay, and a queue that drops what is too much."""

    def __init__(self, source: int, target: int) -> None:
        self.source = source
        self._target = target
        self._free_at = 0.0  # When what has been queued will have left.
        self._under_way: deque[tuple[float, bytes]] = deque()

    @property
    def due_at(self) -> float:
        """When the next packet arrives."""
        return self._under_way[0][0] if self._under_way else math.inf

    def take(self, now: float) -> None:
        """Queue the next packet that waits at the source."""
        packet = os.read(self.source, _OFFLOAD.size + _MAX_PACKET)
        leaves_at = max(now, self._free_at)
        if leaves_at - now <= _QUEUE_S:
            self._free_at = leaves_at + _wire_nbytes(packet) / RATE
            self._under_way.append((self._free_at + DELAY_S, packet))

    def deliver(self, now: float) -> None:
        """Hand over what has arrived."""
        while self.due_at <= now:
            os.write(self._target, self._under_way.popleft()[1])


def main() -> None:
    """Build the link, say where it is, and carry packets until the end."""
    try:
        # Before all other processes: no link is late because a worker computes.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        ends = [_make_end(*_ADDRESSES), _make_end(*reversed(_ADDRESSES))]
    except OSError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
        return
    places = [
        (address, f"/proc/{os.getpid()}/fd/{namespace}")
        for (namespace, _), address in zip(ends, _ADDRESSES, strict=True)
    ]
    print(json.dumps({"places": places}), flush=True)
    (_, one), (_, other) = ends
    _carry(_Way(one, other), _Way(other, one))


def _make_end(address: str, other: str) -> tuple[int, int]:
    """Return descriptors of a new namespace, and of the device in it."""
    namespace = namespaces.create()
    device = os.open("/dev/net/tun", os.O_RDWR)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), flags))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    for command in (
        f"address add {address} dev {DEVICE}",
        f"link set dev {DEVICE} up",
        # What Linux does by default, whatever this machine is set to.
        f"route add {other} dev {DEVICE} congctl cubic",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    return namespace, device


def _carry(*ways: _Way) -> None:
    sources = [way.source for way in ways]
    while True:
        next_at = min(way.due_at for way in ways)
        wait_s = max(0.0, next_at - time.monotonic())
        ready, _, _ = select.select(
            sources, [], [], None if math.isinf(wait_s) else wait_s
        )
        now = time.monotonic()
        for way in ways:
            way.deliver(now)
            if way.source in ready:
                way.take(now)


def _wire_nbytes(packet: bytes) -> int:
    """Return how many bytes a packet takes on the wire, with all that frames it."""
    _, _, _, piece_nbytes, _, _ = _OFFLOAD.unpack_from(packet)
    nbytes = len(packet) - _OFFLOAD.size
    # The first piece's headers are there; every other one gets the same.
    pieces = math.ceil((nbytes - _HEADERS_NBYTES) / piece_nbytes) if piece_nbytes else 1
    return nbytes + (pieces - 1) * _HEADERS_NBYTES + pieces * _FRAME_NBYTES


if __name__ == "__main__":
    main()
