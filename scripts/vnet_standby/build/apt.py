# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages of Debian suites, whatever the machine runs, without touching the machine's apt.

The archive's address comes from the machine's own sources, so a mirror or a proxy in use there is used here. Lists,
caches and settings of ours are apart, below one folder, and nothing of it needs root.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.build.cache import fresh_folder, write_atomically
from vnet_standby.build.commands import environment, output
from vnet_standby.build.progress import full_disk_named, require_space, run_logged
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, LOGS

SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KERNEL_META_PACKAGE = "linux-image-amd64"

KERNEL_SUITES = {"6.1": "bookworm", "6.12": SUITE, "7.3": "trixie-backports"}
"""Each kernel series that the guest driver is built for, and the suite that has it."""

_CODENAMES = ("bookworm", "trixie", "forky", "duke", "sid")
_SUITES = frozenset({*_CODENAMES, "oldoldstable", "oldstable", "stable", "testing", "unstable"})
_LISTS_MAX_AGE_S = 3600
_FETCH_TIMEOUT_S = 1800
_SPACE_MIB = 400  # for the lists, and the largest package beside them

# What the machine says about reaching archives (proxies, certificates, retries) holds for ours too; which indexes it
# wants does not, and neither do its hooks, which would touch its own caches.
_MACHINE_SETTING = re.compile(
    r"^Acquire::(?!IndexTargets|Changelogs|Languages|CompressionTypes|GzipIndexes|cdrom)\S+ "
)


@dataclass(frozen=True)
class IndexTarget:
    """One package index that the machine's apt knows of; `origin` is empty where apt doesn't know it."""

    uri: str
    suite: str
    component: str
    origin: str


def parse_targets(text: str) -> list[IndexTarget]:
    """Read lines of `uri|suite|component|origin`, as `archive_uri` asks apt-get for them."""
    # apt repeats a field that it has no value for as it was asked
    lines = [line.replace("$(ORIGIN)", "").split("|") for line in text.splitlines()]
    return [IndexTarget(*fields) for fields in lines if len(fields) == 4]


def choose_archive(targets: Iterable[IndexTarget]) -> str | None:
    """Return the address of the Debian archive among the machine's sources, if there is one.

    An index that was fetched names its origin. Of those that weren't, an archive whose path says "debian" is likelier
    to be Debian's than another that also calls its suite by Debian's name.
    """
    candidates = [
        target
        for target in targets
        if target.component == "main" and target.suite in _SUITES
        if target.origin in {"Debian", ""}
    ]
    candidates.sort(key=lambda t: (t.origin != "Debian", not t.uri.rstrip("/").endswith("debian")))
    return candidates[0].uri if candidates else None


def choose_security_archive(targets: Iterable[IndexTarget]) -> str | None:
    """Return the address of Debian's security updates among the machine's sources, if they were fetched from there."""
    for target in targets:
        if target.suite.endswith("-security") and target.origin == "Debian":
            return target.uri
    return None


def parse_plan(text: str) -> list[str]:
    """Return the names of the packages that a simulated `apt-get install` would unpack, in that order."""
    lines = [line.split() for line in text.splitlines()]
    return [words[1] for words in lines if words[:1] == ["Inst"]]


def archive_uri() -> str | None:
    """Return the Debian archive that this machine uses; None where there is no apt or no such entry."""
    if shutil.which("apt-get") is None:
        return None
    # the plain list has only what was fetched; a machine whose lists never were knows no origins either
    return choose_archive(_targets()) or choose_archive(_targets("--no-release-info"))


def _targets(*options: str) -> list[IndexTarget]:
    fields = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    listing = output(
        ["apt-get", "indextargets", *options, "--format", fields, "Created-By: Packages"],
        what="asking apt for its sources",
    )
    return parse_targets(listing)


class Apt:
    """A private apt below `root`, for the Debian archive that the machine uses and some suites of it."""

    def __init__(self, root: Path, suites: Sequence[str] = (SUITE,)) -> None:
        self._root = root
        self._suites = suites

    def update(self, *, sources: bool = False) -> None:
        """Fetch the package lists, with `sources` those of source packages too, unless done within the last hour."""
        stamp = self._root / ("updated-sources" if sources else "updated")
        if stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_MAX_AGE_S:
            return
        require_space(self._root.parent, _SPACE_MIB)
        # a mirror without sources must not stand in the way of what it has
        self._configure(["deb", "deb-src"] if sources else ["deb"])
        self._apt_get(["update", "--error-on=any"], "fetching Debian's package lists")
        (self._root / "updated").touch()
        stamp.touch()

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        """Return the packages' .deb files in folder `into`; the network is used only for those not there yet."""
        absent = [name for name in packages if not self.downloaded(name, into)]
        if absent:
            self.update()
            self._fetch(["download", *absent], f"downloading {' '.join(absent)}", into)
        return [self.downloaded(name, into)[-1] for name in packages]

    def download_version(self, package: str, version: str, into: Path) -> Path:
        """Return the .deb of exactly this version, fetched into folder `into`; raises where the archive lacks it."""
        self.update()
        listing = output(
            ["apt-cache", "madison", package],
            what=f"asking for the versions of {package}",
            env=self._environment(),
        )
        there = [line.split("|")[1].strip() for line in listing.splitlines() if "|" in line]
        if version not in there:
            raise VnetStandbyError(
                f"Debian's archive has {package} {', '.join(there) or 'in no version'}, not {version}, which is needed"
            )
        self._fetch(["download", f"{package}={version}"], f"downloading {package} {version}", into)
        return self.downloaded(package, into)[-1]

    def with_dependencies(self, packages: Sequence[str]) -> list[str]:
        """Return the names of the packages and of all that they depend on, as apt would install them anew."""
        self.update()
        plan = output(
            ["apt-get", "install", "--simulate", "--no-install-recommends", "-qq", *packages],
            what=f"asking apt what {' '.join(packages)} depend on",
            env=self._environment(),
        )
        return parse_plan(plan)

    def source(self, package: str, into: Path) -> Path:
        """Return the package's source tree, Debian's patches applied, unpacked anew as `into`/`package`."""
        if not list(into.glob(f"{package}_*.dsc")):
            self.update(sources=True)
            self._fetch(
                ["source", "--download-only", package], f"downloading {package}'s source", into
            )
        tree = into / package
        shutil.rmtree(tree, ignore_errors=True)
        # when several versions lie there, the names' order is good enough to prefer the newer one of a stable suite
        description = sorted(into.glob(f"{package}_*.dsc"))[-1]
        run_logged(
            ["dpkg-source", "-x", description, tree],
            title=f"unpacking {description.stem}",
            log=LOGS / "unpack.log",
            timeout_s=600,
        )
        return tree

    def kernel_package(self) -> str:
        """Return the name of the suite's current kernel package; it has the kernel's version in it."""
        self.update()
        depends = output(
            ["apt-cache", "depends", "--important", KERNEL_META_PACKAGE],
            what="asking for the kernel's package name",
            env=self._environment(),
        )
        match = re.search(r"Depends: (linux-image-\d\S+-amd64)", depends)
        if not match:
            raise VnetStandbyError(f"{KERNEL_META_PACKAGE} of {SUITE} depends on no kernel package")
        return match[1]

    @staticmethod
    def downloaded(package: str, into: Path) -> list[Path]:
        """Return the .deb files of a package that are there already."""
        return sorted(into.glob(f"{package}_*.deb"))

    def _fetch(self, arguments: list[str], title: str, into: Path) -> None:
        # apt writes a file under its final name from the first byte on: only what is complete is moved to `into`
        with full_disk_named(into):
            into.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=into, prefix=".fetching-") as folder:
                self._apt_get(arguments, title, Path(folder))
                for path in Path(folder).iterdir():
                    path.replace(into / path.name)

    def _apt_get(self, arguments: list[str], title: str, cwd: Path | None = None) -> None:
        run_logged(
            ["apt-get", "-q", *arguments],
            title=title,
            log=LOGS / "apt.log",
            cwd=cwd,
            env=self._environment(),
            timeout_s=_FETCH_TIMEOUT_S,
        )

    def _environment(self) -> dict[str, str]:
        return environment({"APT_CONFIG": str(self._root / "apt.conf")})

    def _configure(self, kinds: Sequence[str]) -> None:
        uri = archive_uri()
        if uri is None:
            raise VnetStandbyError(
                "no Debian archive among this machine's apt sources; add one (main component) and run again"
            )
        if not os.access(KEYRING, os.R_OK):
            raise VnetStandbyError(
                f"{KEYRING} is missing; install the package debian-archive-keyring"
            )
        root = fresh_folder(self._root)
        for folder in ("empty", "state/lists/partial", "cache/archives/partial"):
            (root / folder).mkdir(parents=True)
        # nothing counts as installed: what is downloaded must not depend on the machine
        (root / "status").touch()
        places = [f"{uri} {suite}" for suite in self._suites]
        if "bookworm" in self._suites and (security := choose_security_archive(_targets())):
            # its kernels are made there only, since the last point release
            places.append(f"{security} bookworm-security")
        options = f"[signed-by={KEYRING} arch=amd64]"
        lines = [f"{kind} {options} {place} main\n" for kind in kinds for place in places]
        write_atomically(root / "sources.list", "".join(lines))
        write_atomically(root / "apt.conf", self._settings())

    def _settings(self) -> str:
        root = self._root
        dump = output(["apt-config", "dump"], what="asking apt for its settings")
        machine = [line for line in dump.splitlines() if _MACHINE_SETTING.match(line)]
        ours = {
            "Dir::Etc::main": root / "empty/none",
            "Dir::Etc::parts": root / "empty",
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": root / "empty",
            "Dir::Etc::preferences": root / "empty/none",
            "Dir::Etc::preferencesparts": root / "empty",
            "Dir::State": root / "state",
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            # as root, apt would fetch as a user of its own, who may not be able to reach this folder
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        return "\n".join([*machine, *(f'{name} "{value}";' for name, value in ours.items()), ""])


def private_apt() -> Apt:
    """Return the apt that all parts of a build share."""
    return Apt(BUILD / "apt")


def kernel_apt(series: str) -> Apt:
    """Return the apt that has a kernel series' packages; what they need otherwise is `SUITE`'s in any case."""
    suite = KERNEL_SUITES.get(series)
    if suite is None:
        raise VnetStandbyError(
            f"nothing was tried with Debian's Linux {series}, but with {', '.join(KERNEL_SUITES)}; use one of those"
        )
    if suite == SUITE:
        return private_apt()
    return Apt(BUILD / f"apt-{suite}", (SUITE, suite))
