"""A wire between two network namespaces that delays or drops packets: `wire.py NS_A ADDRESS_A NS_B ADDRESS_B CONTROL`.

For kernels without netem: a TUN device in each namespace, and this process between them. CONTROL is a JSON file that is
reread when it changes: {"delay_ms": one way, "loss": share of packets, "kbit": rate, "cut": true to drop all packets}.
"""

import ctypes
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# linux/sched.h and linux/if_tun.h
_CLONE_NEWNET, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x40000000, 0x400454CA, 0x0001, 0x1000

# Packets that would wait longer than this are dropped.
_QUEUE_S = 0.4


def open_end(namespace: str, address: str, peer: str) -> int:
    """Open a TUN device in a namespace; its descriptor works outside the namespace too."""
    setns = ctypes.CDLL(None, use_errno=True).setns
    own, other = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if setns(other, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"wire", _IFF_TUN | _IFF_NO_PI))
    for command in (f"addr add {address}/32 peer {peer} dev wire", "link set lo up", "link set wire up"):
        subprocess.run(["ip", *command.split()], check=True)
    setns(own, _CLONE_NEWNET)
    os.close(own)
    os.close(other)
    return end


def main() -> None:
    """Carry packets until killed."""
    namespace_a, address_a, namespace_b, address_b, control = sys.argv[1:]
    a, b = open_end(namespace_a, address_a, address_b), open_end(namespace_b, address_b, address_a)
    settings: dict[str, Any] = {}
    changed, number, generator = 0, itertools.count(), random.Random(0)
    on_the_way: list[tuple[float, int, int, bytes]] = []
    free = {a: 0.0, b: 0.0}
    print("up", flush=True)
    while True:
        if (stamp := Path(control).stat().st_mtime_ns) != changed:
            settings, changed = json.loads(Path(control).read_text() or "{}"), stamp
        wait = min(0.05, max(0.0, on_the_way[0][0] - time.monotonic())) if on_the_way else 0.05
        for source in select.select([a, b], [], [], wait)[0]:
            packet, now = os.read(source, 65536), time.monotonic()
            if settings.get("cut") or generator.random() < settings.get("loss", 0):
                continue
            due = now
            if rate := settings.get("kbit"):
                due = max(now, free[source])
                if due - now > _QUEUE_S:
                    continue
                due += len(packet) * 8 / (rate * 1000)
                free[source] = due
            due += settings.get("delay_ms", 0) / 1000
            heapq.heappush(on_the_way, (due, next(number), b if source == a else a, packet))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(on_the_way)
            try:
                os.write(target, packet)
            except OSError:  # the other end's queue is full: lost, as on any wire
                continue


if __name__ == "__main__":
    main()
