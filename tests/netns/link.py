"""Carries frames between two interfaces: late, out of order by chance, or not at all, as told.

    link.py FIRST SECOND DELAY_MS JITTER_MS LOSS SEED QUEUE

Every frame waits DELAY_MS and up to JITTER_MS more (so that jitter reorders, as netem does); LOSS (0 to 1) is the share that
is dropped. Chance comes from SEED. At most QUEUE frames wait; what comes on top is dropped. Address resolution (ARP) passes at
once: between the ends of a real long link there is none. Says `ready` when frames pass.
For tests in network namespaces, on kernels without netem.
"""

import heapq
import random
import select
import socket
import sys
import time

SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
ETH_P_ALL = 3
# The header before a frame (virtio_net_hdr), then two Ethernet addresses, then what kind of frame it is.
KIND = slice(10 + 12, 10 + 14)
ARP = b"\x08\x06"
# A frame can be a whole batch, not yet cut to packets, with a header before it.
LARGEST = 65536 + 256
BUFFER = 8 << 20
# So many frames are read before due ones are looked after again.
AT_ONCE = 64


def tap(interface):
    """Frames as the kernel has them: checksums that are still to be filled in stay marked as such by the header."""
    tapped = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tapped.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    tapped.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    tapped.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    tapped.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    tapped.setblocking(False)
    tapped.bind((interface, ETH_P_ALL))
    return tapped


def frames(tapped):
    for _ in range(AT_ONCE):
        try:
            yield tapped.recv(LARGEST)
        except BlockingIOError:
            return
        except OSError:
            # The interface is down: the link is cut, and comes back.
            return


def forward(tapped, frame):
    try:
        tapped.send(frame)
    except OSError:
        # A full queue or a cut link loses frames; that is what links do.
        pass


def main():
    first, second = tap(sys.argv[1]), tap(sys.argv[2])
    delay, jitter, loss = (float(word) for word in sys.argv[3:6])
    chance = random.Random(int(sys.argv[6]))
    queue = int(sys.argv[7])
    other = {first: second, second: first}
    waiting = []
    number = 0
    print("ready", flush=True)
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([first, second], [], [], patience)
        for source in readable:
            for frame in frames(source):
                if frame[KIND] == ARP:
                    forward(other[source], frame)
                    continue
                if len(waiting) >= queue or (loss and chance.random() < loss):
                    continue
                late = delay + (chance.random() * jitter if jitter else 0.0)
                number += 1
                heapq.heappush(waiting, (time.monotonic() + late / 1000, number, other[source], frame))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, target, frame = heapq.heappop(waiting)
            forward(target, frame)


main()
