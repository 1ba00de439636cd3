# SPDX-License-Identifier: GPL-2.0-or-later
"""What a packet costs inside the guest, in instructions: the same on every machine, unlike seconds.

QEMU counts instructions (docs/devel/tcg-icount.rst): the guest's time stamp counter advances by one with each, and with
the nanoseconds in which nothing runs, which the guest's kernel knows. guest/image/cost.c sends or receives few packets
and many, in turn. What the kernel does besides now and then only adds to a run: the slope between the cheapest run of
each kind is the cost of a packet. The same image gives the same figure, to an instruction, whatever else the machine
does, so that boots run side by side; with another RAM size, seed or command line it moves by up to four.
"""

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from vnet_standby.build.driver import driver_image
from vnet_standby.build.image import GuestImage, guest_image
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.command import PRIMARY_ID, STANDBY_ID, QemuBinary, tap_netdev
from vnet_standby.lab.namespace import enter_private_network
from vnet_standby.lab.network import PREFIX_LENGTH, create_tap
from vnet_standby.lab.scenario import MAC
from vnet_standby.traffic.probe import GUEST_ADDRESS, PEER_ADDRESS

CostGuest = Literal["bare", "bond", "net-failover", "drop-in", "patched"]
COST_GUESTS: tuple[CostGuest, ...] = get_args(CostGuest)
"""Who unites the NICs; bare: nobody, there is only the primary, with which the others are compared; drop-in, patched:
this project's driver, of that kind."""

_Mode = Literal["send", "receive", "ignore"]
_MODES: tuple[_Mode, ...] = get_args(_Mode)

_RAM_MIB = 512  # such slabs take more of it than the packets do
_TIMEOUT_S = 240
_INJECTOR_MAC = "52:54:00:76:6e:99"
_NO_IPV6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
_CALIBRATION_INSTRUCTIONS = 2_000_000
_CALIBRATION_ERROR = 1e-3

# String instructions count as one a byte under -icount: without these features the kernel's copies don't use them.
_CPU = "max,-erms,-fsrm,-fsrs,-fzrm"
# Slabs larger than what is under way: with small ones a packet costs up to 90 more or less in one boot than in another,
# for as long as that runs, by where in its slabs the kernel happens to be.
_KERNEL = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable "
    "slab_min_objects=512 slab_max_order=7"
)


@dataclass(frozen=True)
class Cost:
    """Guest instructions and interrupts that one packet takes."""

    instructions: float
    interrupts: float

    def over(self, other: "Cost") -> "Cost":
        """What is more than another's."""
        return Cost(self.instructions - other.instructions, self.interrupts - other.interrupts)


@dataclass(frozen=True)
class GuestCost:
    """What a packet of 64 bytes of UDP payload costs in each direction."""

    send: Cost
    receive: Cost


async def measure_cost(guest: CostGuest, qemu: QemuBinary, kernel: str | None = None) -> GuestCost:
    """Boot a kind of guest three times, in a network namespace of its own, and count; `kernel` as for `guest_image`.

    Receiving is what the same frames cost when they are the guest's less what they cost when they are nobody's.
    Raises `VnetStandbyError` if the guest can't count.
    """
    ours = booted_as(guest) == "vnet-standby"
    image = driver_image(kernel) if ours else guest_image(kernel)
    enter_private_network()
    if _NO_IPV6.exists():
        _NO_IPV6.write_text("1")  # what the host says by itself comes at another moment in each run
    for mode in _MODES:
        await create_tap(_tap(mode))
    turns = asyncio.Semaphore(len(os.sched_getaffinity(0)))  # each boot keeps one processor busy

    async def count(mode: _Mode) -> Cost:
        async with turns:
            return await _count(guest, mode, qemu, image)

    try:
        async with asyncio.TaskGroup() as counting:
            counts = {mode: counting.create_task(count(mode)) for mode in _MODES}
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return GuestCost(
        counts["send"].result(), counts["receive"].result().over(counts["ignore"].result())
    )


async def _count(guest: CostGuest, mode: _Mode, qemu: QemuBinary, image: GuestImage) -> Cost:
    with tempfile.TemporaryDirectory(prefix="vnet-standby-") as folder:
        console = Path(folder) / "console"
        process = await asyncio.create_subprocess_exec(
            "setpriv", "--pdeathsig", "KILL", qemu.path, *_arguments(guest, mode, qemu, image),
            "-serial", f"file:{console}",
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                _, said = await process.communicate()
        except TimeoutError:
            raise VnetStandbyError(
                f"counting what {guest} costs ({mode}): no end after {_TIMEOUT_S} s"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):  # it ended at this moment
                    process.kill()
                await process.wait()
        text = console.read_text(errors="replace") if console.exists() else said.decode()
        return parse(text, f"{guest} ({mode})")


def parse(console: str, what: str) -> Cost:
    """Read what guest/image/cost.c has printed; `what` is for the error if that is no measurement."""
    if error := re.search(r"^error (.*?)\s*$", console, re.MULTILINE):
        raise VnetStandbyError(f"counting what {what} costs: the guest says {error[1]}")
    calibration = re.search(r"^calibration (\d+)", console, re.MULTILINE)
    runs = [
        tuple(map(int, run))
        for run in re.findall(r"^run (\d+) (\d+) (\d+) (\d+)", console, re.MULTILINE)
    ]
    if not calibration or len(runs) < 3:
        last = (console.strip().splitlines() or ["nothing"])[-1]
        raise VnetStandbyError(
            f"counting what {what} costs: no figures; the guest's last words: {last}"
        )
    error_share = int(calibration[1]) / _CALIBRATION_INSTRUCTIONS - 1
    if abs(error_share) > _CALIBRATION_ERROR:
        raise VnetStandbyError(
            f"counting what {what} costs: an instruction is not one tick of the guest's clock ({error_share:+.1%}); "
            "is this a QEMU with -icount?"
        )
    for packets, _, _, direct in runs:
        if direct < packets and not what.endswith("(ignore)"):
            raise VnetStandbyError(
                f"counting what {what} costs: only {direct} of {packets} packets took the primary"
            )
    few, many = (_undisturbed(runs[first::2]) for first in (1, 2))  # the one before fills caches
    packets, ticks, irqs = (last - first for first, last in zip(few, many, strict=True))
    return Cost(ticks / packets, irqs / packets)


def _undisturbed(runs: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Packets, ticks and interrupts of runs of one length, where the kernel did the least besides."""
    return min(run[0] for run in runs), min(run[1] for run in runs), min(run[2] for run in runs)


def _arguments(guest: CostGuest, mode: _Mode, qemu: QemuBinary, image: GuestImage) -> list[str]:
    return [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", qemu.machine, "-m", str(_RAM_MIB), "-smp", "1", "-cpu", _CPU,
        "-accel", "tcg,thread=single", "-icount", "shift=0,align=off,sleep=off",
        "-seed", "1", "-rtc", "base=2026-01-01,clock=vm",
        *(["-L", str(qemu.firmware)] if qemu.firmware else []),
        "-kernel", str(image.kernel), "-initrd", str(image.initramfs),
        "-append", f"{_KERNEL} {_settings(guest, mode)}",
        *_standby(guest, mode),
        *_primary(guest),
        # on the primary's wire: what it sends, the primary gets, with nothing of the host's timing in between
        "-netdev", "hubport,id=injector,hubid=1",
        "-device", f"igb,netdev=injector,mac={_INJECTOR_MAC},romfile=",
    ]  # fmt: skip


def booted_as(guest: CostGuest) -> str:
    """What guest/image/init calls a guest."""
    return "vnet-standby" if guest in {"drop-in", "patched"} else guest


def _settings(guest: CostGuest, mode: _Mode) -> str:
    address = f"{GUEST_ADDRESS}/{PREFIX_LENGTH}"
    return (
        f"vnet.guest={booted_as(guest)} vnet.driver={guest} vnet.address={address} "
        f"vnet.cost={mode} vnet.peer={PEER_ADDRESS}"
    )


def _primary(guest: CostGuest) -> Sequence[str]:
    paired = "" if guest in {"bare", "bond"} else f",failover_pair_id={STANDBY_ID}"
    return [
        "-device", "pcie-root-port,id=rp-primary,bus=pcie.0,chassis=2,slot=2",
        "-netdev", "hubport,id=net-primary,hubid=1",
        "-device", f"e1000e,id={PRIMARY_ID},netdev=net-primary,bus=rp-primary,mac={MAC},romfile={paired}",
    ]  # fmt: skip


def _tap(mode: _Mode) -> str:
    """The standby's; all have names of one length, because a command line of another moves the count."""
    return f"standby-{mode[0]}"


def _standby(guest: CostGuest, mode: _Mode) -> Sequence[str]:
    if guest == "bare":
        return []
    paired = "" if guest == "bond" else ",failover=on"
    # without these two the kicks of the standby's queues are taken by another thread, and when differs from run to run
    steady = "ioeventfd=off,tx=timer"
    nic = f"virtio-net-pci,id={STANDBY_ID},netdev=net-standby,bus=rp-standby,mac={MAC},romfile="
    return [
        "-device", "pcie-root-port,id=rp-standby,bus=pcie.0,chassis=1,slot=1",
        # a tap, because only that can checksum and segment for the guest, as where it is used
        "-netdev", tap_netdev("net-standby", _tap(mode)),
        "-device", f"{nic},{steady}{paired}",
    ]  # fmt: skip
