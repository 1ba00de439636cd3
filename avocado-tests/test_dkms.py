# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver as a DKMS package, built by Debian's own dkms against Debian's headers. No VM, nothing is installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from avocado import Test

from vnet_standby.build import packages
from vnet_standby.build.apt import archive_uri, private_apt
from vnet_standby.build.driver import MODULES, kernel_headers
from vnet_standby.build.image import guest_image
from vnet_standby.build.source import DOWNLOADS
from vnet_standby.paths import GUEST_DRIVER_SOURCE

BUILD_S = 240

EXCLUDED = 77
"""dkms's exit status for a kernel that the package does not want to be built for."""

ANOTHER_COMPILER = "CC=cc CONFIG_DEBUG_INFO_BTF_MODULES= CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT="
"""The machine's may be older than the one that the kernel was built with, see `build.driver`."""


class Dkms(Test):  # type: ignore[misc]  # avocado has no type information
    """
    :avocado: tags=driver,dkms,parallel
    """

    timeout = 300

    def setUp(self) -> None:
        """Lay the package out as in /usr/src, in a folder of the test's own."""
        if archive_uri() is None:
            self.cancel(
                "no Debian archive among this machine's apt sources, so no dkms and no headers"
            )
        packages.require("driver")
        self.release = guest_image(self.params.get("kernel", default=None)).version
        self.headers = kernel_headers(self.release)
        self.root = Path(self.workdir)
        (deb,) = private_apt().download(["dkms"], DOWNLOADS)
        subprocess.run(["dpkg-deb", "-x", deb, self.root / "dkms"], check=True, timeout=60)
        settings = (GUEST_DRIVER_SOURCE / "dkms.conf").read_text()
        self.package, self.version = re.findall(
            r'^PACKAGE_(?:NAME|VERSION)="(.*)"$', settings, re.M
        )
        source = self.root / "src" / f"{self.package}-{self.version}"
        shutil.copytree(GUEST_DRIVER_SOURCE, source)
        (self.root / "tree").mkdir()
        self.assertEqual(self.dkms("add"), 0)

    def dkms(self, *action: str) -> int:
        """Run dkms on the test's folders, return its exit status."""
        folders = {"dkmstree": "tree", "sourcetree": "src", "installtree": "lib"}
        command: list[str | Path] = ["bash", self.root / "dkms/usr/sbin/dkms", *action]
        command += ["-m", self.package, "-v", self.version]
        command += [w for k, folder in folders.items() for w in (f"--{k}", self.root / folder)]
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        environment = {**os.environ, "PATH": path, "MAKEFLAGS": ANOTHER_COMPILER}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=BUILD_S
        )
        self.log.info("%s: %s\n%s%s", action, done.returncode, done.stdout, done.stderr)
        return done.returncode

    def build(self, release: str) -> int:
        """Build for a kernel; the headers are always the same ones."""
        return self.dkms(
            "build", "-k", release, "--kernelsourcedir", str(self.headers), "--arch", "x86_64"
        )

    def test_build(self) -> None:
        """The module is built, and its symbols are the ones that the kernel's virtio_net looks for."""
        self.assertEqual(self.build(self.release), 0)
        built = self.root / "tree" / self.package / self.version / self.release / "x86_64/module"
        self.assertTrue(all((built / name).is_file() for name in MODULES["drop-in"]))

    def test_other_kernel(self) -> None:
        """A kernel that the driver was never tried with is left out without an attempt."""
        self.assertEqual(self.build("6.6.0-40-amd64"), EXCLUDED)
