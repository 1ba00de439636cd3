# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench on real VMs: interrupted and resumed it gives one result, and measures nothing twice."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any

from labtest import LabTest

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Bench(LabTest):
    """
    :avocado: tags=bench,parallel
    """

    async def test_interrupted_and_resumed(self) -> None:
        """A run of the control: Ctrl-C in it, then all of it, then nothing more to do."""
        out = Path(self.outputdir) / "bench"
        matrix = ["--guest", "virtio", "--traffic", "both", "--ram", "256", "--repeats", "1"]
        binary = f"stock={self.qemu().path}"
        begun = await self.bench(*matrix, "--bandwidth", "80", "--binary", binary, "--out", out)
        await self.said(begun, "[1/1]")
        begun.send_signal(signal.SIGINT)
        self.assertEqual(await begun.wait(), _INTERRUPTED)
        run = out / "runs/flat-virtio-stock-acpi-both-256mib/1"
        self.assertFalse((run / "bench.json").exists(), "an interrupted run has a record")
        self.assertFalse(self.result(out)["complete"])

        await self.resume(out)
        result, measured = self.result(out), self.record(run)
        self.assertTrue(result["complete"])
        (cell,) = result["cells"]
        self.assertEqual([run["status"] for run in cell["runs"]], ["measured"])
        self.assertEqual(cell["figures"]["duplicated_to_guest"]["max"], 0)

        await self.resume(out)
        self.assertEqual(self.record(run), measured, "a finished run was run again")
        self.assertEqual(self.result(out), result)

    async def resume(self, out: Path) -> None:
        """Go on to the end."""
        resumed = await self.bench("--resume", out)
        await self.said(resumed, "page:")
        self.assertEqual(await resumed.wait(), 0)

    async def bench(self, *arguments: str | Path) -> Process:
        """Start the command."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "vnet_standby", "bench", *arguments,
            stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
        )  # fmt: skip

    async def said(self, bench: Process, start: str) -> None:
        """Wait until it says a line that begins like this; the test's timeout bounds that."""
        assert bench.stderr is not None
        async for line in bench.stderr:
            self.log.info("%s", line.decode().rstrip())
            if line.decode().startswith(start):
                return
        self.fail(f"the bench has ended without saying {start}")

    def result(self, out: Path) -> dict[str, Any]:
        """What the bench says until now."""
        return dict(json.loads((out / "bench-result.json").read_text()))

    def record(self, folder: Path) -> dict[str, Any]:
        """How a run ended, as the bench has recorded it."""
        return dict(json.loads((folder / "bench.json").read_text()))
