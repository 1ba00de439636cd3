# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench from its beginning, or from where it was interrupted, to its result."""

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vnet_standby.bench import plan as plans
from vnet_standby.bench.markdown import markdown
from vnet_standby.bench.matrix import Cell
from vnet_standby.bench.page import page
from vnet_standby.bench.plan import Plan
from vnet_standby.bench.results import FILE, collect, failures
from vnet_standby.bench.run import run_all
from vnet_standby.build.cache import file_sha256, write_atomically
from vnet_standby.build.packages import require
from vnet_standby.errors import VnetStandbyError
from vnet_standby.lab.binaries import image_under_test, qemu_under_test
from vnet_standby.lab.command import QemuBinary
from vnet_standby.lab.demo import jobs_of
from vnet_standby.lab.scenario import PRIMARY_MODELS, GuestKind, Scenario

PAGE = "bench.html"
TABLES = "bench.md"

_OURS: GuestKind = "vnet-standby"
_DIGITS = 12  # of a hash, to tell builds apart


def find_qemus(
    cells: Sequence[Cell], binaries: Mapping[str, str], source: str | None
) -> dict[str, QemuBinary]:
    """Return the QEMUs that the cells name, built if they are ours and missing; `binaries` are the user's, by name."""
    names = {cell.qemu: None for cell in cells}
    for name in names:
        if name not in {"patched", "stock", *binaries}:
            raise VnetStandbyError(f"which QEMU is {name}? say it: --binary {name}=PATH")
    require(*dict.fromkeys(job for cell in cells for job in _jobs(cell, binaries)))
    return {name: qemu_under_test(binaries.get(name, name), source) for name in names}


def _jobs(cell: Cell, binaries: Mapping[str, str]) -> list[str]:
    scenario = Scenario(cell.topology, cell.guest, primary=PRIMARY_MODELS[cell.topology][0])
    return jobs_of(scenario, binaries.get(cell.qemu, cell.qemu))


def ground(
    cells: Sequence[Cell], qemus: Mapping[str, QemuBinary], kernel: str | None
) -> dict[str, str]:
    """What a result stands on: the machine, and the builds that run on it."""
    found = plans.machine()
    for name, qemu in qemus.items():
        digest = file_sha256(qemu.path)[:_DIGITS]
        found[f"{name} QEMU"] = f"{qemu.version.removeprefix('QEMU emulator version ')} ({digest})"
    guests = {cell.guest for cell in cells}
    if guests - {_OURS}:
        found |= _image("guest image", (guests - {_OURS}).pop(), kernel)
    if _OURS in guests:
        found |= _image("guest image with our driver", _OURS, kernel)
    return found


def _image(name: str, guest: GuestKind, kernel: str | None) -> dict[str, str]:
    image = image_under_test(guest, kernel)
    return {"guest kernel": image.version, name: file_sha256(image.initramfs)[:_DIGITS]}


def run(plan: Plan, out: Path, say: Callable[[str], None]) -> None:
    """Run what has not run yet; however that ends, the result of what has is written."""
    with alone(out):
        try:
            run_all(list(plans.jobs(plan, out)), out, say)
        except KeyboardInterrupt:
            say(f"interrupted; go on with: scripts/bench --resume {out}")
            raise
        finally:
            write(plan, out)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other processes from the bench in a folder; raises `VnetStandbyError` if one is at it."""
    with (out / plans.FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VnetStandbyError(
                f"another process runs the bench in {out}; wait, or end it"
            ) from None
        yield


def write(plan: Plan, out: Path) -> None:
    """Write the result as JSON, page and tables."""
    result = collect(plan, out)
    write_atomically(out / FILE, json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_atomically(out / PAGE, page(result, out))
    write_atomically(out / TABLES, markdown(result, "."))


def require_measured(result: Mapping[str, object]) -> None:
    """Raise `VnetStandbyError` if a run failed."""
    failed = failures(result)
    if failed:
        raise VnetStandbyError(
            f"{len(failed)} runs were not measured, the result says which ({failed[0]}); "
            "to try one again remove its folder and resume the bench"
        )
