# SPDX-License-Identifier: GPL-2.0-or-later
"""What `vnet-standby series` does: put the patches on a tree, write them from one, check them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnet_standby.build import packages
from vnet_standby.build.cache import Stamp, build_lock, digest
from vnet_standby.build.commands import environment, run
from vnet_standby.build.patches import Series, apply, read_series, refresh
from vnet_standby.build.progress import full_disk_named, run_logged, say
from vnet_standby.build.qemu import BINARY, NO_SERIES, QemuBuild, patched_commits, refuse_spaces
from vnet_standby.build.source import qemu_source
from vnet_standby.errors import VnetStandbyError
from vnet_standby.paths import BUILD, LOGS

__all__ = ["apply", "check", "check_sanitized", "refresh"]

_QTEST_TIMEOUT_S = 600
_SANITIZERS_SLOW_DOWN = 5
# Leaks are left out: stock QEMU has some (qmp_query_migrate, a failed device_add), and each would end the test.
_SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
_TOTAL = re.compile(r"^total: (\d+) errors, (\d+) warnings", re.MULTILINE)
_WARNING = re.compile(r"^\S+:\d+(?::\d+)?: warning: .*$", re.MULTILINE)


@dataclass(frozen=True)
class QTest:
    """A QEMU device test; `only` is what a test's path must contain to be run, for programs that test many devices."""

    name: str
    only: str = ""
    own: bool = False
    """Whether the series adds it."""

    @property
    def target(self) -> str:
        """The test program, which is also ninja's name for it."""
        return f"tests/qtest/{self.name}"


# The tests of the devices that the series touches. One that the source doesn't have (yet) is passed over, and said.
QTESTS = (
    QTest("virtio-net-standby", own=True),
    QTest("virtio-net-standby-datapath", own=True),
    QTest("virtio-net-standby-gate", own=True),
    QTest("virtio-net-failover"),
    QTest("virtio-net-failover-keep", own=True),
    QTest("virtio-net-failover-safety", own=True),
    QTest("virtio-net-failover-conceal", own=True),
    QTest("virtio-net-failover-sriov", own=True),
    QTest("igb-switch-test", own=True),
    QTest("qos-test", "virtio-net"),
    QTest("qos-test", "igb"),
    QTest("qos-test", "e1000e"),
)


def check(source: str | None = None) -> None:
    """Check the series on a source (as for `qemu_source`); the first fault is the error.

    It applies cleanly; checkpatch finds no error but the missing sign-off; what each patch changes compiles without
    warnings, and all of QEMU at the end; the qtests of the touched devices pass then. The patches are compiled one
    after the other in the patched build's own folder, so that what is left there is the patched QEMU.
    """
    refuse_spaces()
    with build_lock(), full_disk_named(BUILD):
        series = read_series()
        origin = qemu_source(source)
        build = QemuBuild("patched", origin)
        stamp = Stamp(BUILD / "series-checked")
        key = digest(build.key(series), Path(__file__).read_bytes())
        if stamp.matches(key):
            say(
                f"the series of {len(series.names)} patches was checked on this source before: fine"
            )
            return
        commits = patched_commits(origin, series)
        say(f"{len(series.names)} patches apply to QEMU {origin.version} from {origin.origin}")
        packages.require("qemu")
        for patch in series.paths():
            _check_style(origin.tree, patch)
        _compile_each(build, QemuBuild("stock", origin), series, commits)
        _run_qtests(build, QTESTS)
        stamp.write(key)


def check_sanitized(source: str | None = None) -> None:
    """Run the qtests that the series adds on a QEMU with AddressSanitizer and UndefinedBehaviorSanitizer.

    The first report of either is the error. Source as for `qemu_source`; the build is kept.
    """
    refuse_spaces()
    with build_lock(), full_disk_named(BUILD):
        series = read_series()
        origin = qemu_source(source)
        build = QemuBuild("sanitized", origin)
        if not build.is_built(series):
            build.check_out(patched_commits(origin, series)[-1])
            _compile(build, "compiling QEMU with sanitizers")
            build.mark_built(series)
        own = [test for test in QTESTS if test.own]
        _run_qtests(build, own, _SANITIZER_OPTIONS, _QTEST_TIMEOUT_S * _SANITIZERS_SLOW_DOWN)


def _check_style(tree: Path, patch: Path) -> None:
    """Run QEMU's checkpatch; a sign-off is for whoever sends the series to give."""
    result = run(
        ["perl", "scripts/checkpatch.pl", "--no-signoff", "--no-color", patch.resolve()],
        what="checkpatch",
        cwd=tree,
    )
    total = _TOTAL.search(result.stdout)
    if not total:
        raise VnetStandbyError(
            f"checkpatch gave no verdict on {patch.name}: {result.stderr.strip()}"
        )
    errors, warnings = int(total[1]), int(total[2])
    if errors:
        first = next(line for line in result.stdout.splitlines() if line.startswith("ERROR:"))
        raise VnetStandbyError(f"checkpatch: {patch.name}: {errors} errors, the first: {first}")
    say(f"checkpatch: {patch.name}: no errors, {warnings} warnings")
    for line in result.stdout.splitlines():
        if line.startswith("WARNING:"):
            say(f"  {line}")


def _compile_each(
    build: QemuBuild, stock: QemuBuild, series: Series, commits: Sequence[str]
) -> None:
    """Compile what each patch touches, and all of it at the end; a warning that comes with a patch is its fault.

    A header that everything includes makes each patch that changes it a whole build. So a patch on its own is held to
    the files that it changes, and only the last one to all that includes them. What is compiled before the first one
    is the stock QEMU.
    """
    if not (build.binary.exists() and _tests(build)):
        # what was never compiled would be compiled with the first patch, and bring the source's own warnings
        build.check_out(commits[0])
        _compile(build, "compiling QEMU before the first patch")
        if not stock.is_built(NO_SERIES):
            stock.adopt(build)
            stock.mark_built(NO_SERIES)
    total = len(series.names)
    for number, patch in enumerate(series.names, start=1):
        build.check_out(commits[number])
        objects = build.objects(build.changed(commits[number - 1], commits[number]))
        if objects:
            said = build.ninja(objects, f"compiling what patch {number} of {total} changes")
            _refuse_warnings(patch, said)
    changed = build.changed(commits[0], commits[-1])
    said = _compile(build, "compiling QEMU with the series")
    # files that only include what changed may bring the source's own warnings
    about_changed = [line for line in said.splitlines() if any(name in line for name in changed)]
    _refuse_warnings("the series", "\n".join(about_changed))
    build.mark_built(series)


def _refuse_warnings(patch: str, said: str) -> None:
    warning = _WARNING.search(said)
    if warning:
        raise VnetStandbyError(f"{patch} brings a compiler warning: {warning[0]}")


def _compile(build: QemuBuild, title: str) -> str:
    """Compile QEMU and the qtests of the touched devices; return the compiler's output."""
    # QEMU first: a patch that adds a test makes ninja read the build description anew before it knows the target
    said = build.ninja([BINARY], title)
    tests = _tests(build)
    return said + (build.ninja(tests, f"{title}, its tests") if tests else "")


def _tests(build: QemuBuild) -> list[str]:
    return [test.target for test in QTESTS if build.has_target(test.target)]


def _run_qtests(
    build: QemuBuild,
    tests: Sequence[QTest],
    settings: Mapping[str, str] | None = None,
    timeout_s: int = _QTEST_TIMEOUT_S,
) -> None:
    ran = 0
    for test in tests:
        if not build.has_target(test.target):
            say(f"qtest {test.name}: this source doesn't have it")
            continue
        _run_qtest(build, test, settings or {}, timeout_s)
        ran += 1
    if not ran:
        raise VnetStandbyError("the source has none of the qtests that the series is checked with")


def _run_qtest(build: QemuBuild, test: QTest, settings: Mapping[str, str], timeout_s: int) -> None:
    program = build.folder / test.target
    env = environment({"QTEST_QEMU_BINARY": f"./{BINARY}", "MALLOC_PERTURB_": "165", **settings})
    selection: list[str] = []
    if test.only:
        listing = run([program, "-l"], what=f"listing {test.name}", cwd=build.folder, env=env)
        paths = [line for line in listing.stdout.splitlines() if test.only in line]
        if not paths:
            raise VnetStandbyError(f"qtest {test.name} has no test of {test.only}")
        selection = [word for path in paths for word in ("-p", path)]
    run_logged(
        [program, "--tap", "-k", *selection],
        title=f"qtest {test.name}",
        log=LOGS / f"qtest-{test.name}.log",
        cwd=build.folder,
        env=env,
        timeout_s=timeout_s,
    )
