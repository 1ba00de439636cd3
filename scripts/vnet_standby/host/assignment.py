# SPDX-License-Identifier: GPL-2.0-or-later
"""Giving a VF, or a whole NIC, to a VM, and taking it back."""

from dataclasses import dataclass

from vnet_standby.errors import VnetStandbyError
from vnet_standby.host import binding
from vnet_standby.host.changes import Change, Transaction
from vnet_standby.host.drivers import DRIVERS
from vnet_standby.host.host import Host, VfPlace
from vnet_standby.host.mac import ZERO, alias, is_for
from vnet_standby.host.network import Link
from vnet_standby.host.pci import PciFunction


@dataclass(frozen=True)
class Assignment:
    """What a VM gets, or gave back."""

    address: str
    """What QEMU's `-device vfio-pci,host=` takes."""
    pf: str = ""
    """The netdev of its PF, for a VF."""
    vf: int | None = None
    mac: str = ""
    """The VF's administrative MAC; a whole NIC keeps its own."""
    identity: str = ""
    """What QEMU's `x-standby-primary-mac` takes, so that the host agent can move the VF's filter while the VM has it;
    empty where nothing is moved in the embedded switch."""


def assign(
    host: Host,
    change: Transaction,
    target: str,
    mac: str,
    trust: bool | None = None,
    vfs: int | None = None,
) -> Assignment:
    """Give a VF (or, for a PF, its first free one) a MAC and trust and bind it to vfio-pci; a whole NIC is only bound.

    `target` is a netdev or PCI address. `vfs` is how many VFs a PF gets that has none yet; `trust` None leaves it as it
    is. What is so already is not done again. Raises `VnetStandbyError` if it can't be done.
    """
    function = host.pci.find(target)
    if not function.pf and not function.total_vfs:
        return _assign_nic(host, change, function, mac, trust, vfs)
    if function.total_vfs:
        _require_up(host.pf_link(function), mac)
        planned = _create_vfs(host, change, function, vfs)
        if planned:
            return _foretell(host, change, function, mac)
        function = _pick(host, host.pci.function(function.address), mac).function
    elif vfs is not None:
        raise VnetStandbyError(f"{target} is a VF; VFs are created on a PF: give its netdev")
    return _assign_vf(host, change, host.place(function), mac, trust)


def release(host: Host, change: Transaction, target: str) -> Assignment:
    """Give a VF or NIC back to its host driver; a VF loses its MAC and the trust that it had in the VM.

    What is so already is not done again. Raises `VnetStandbyError` if a VM still has it, or it is a PF.
    """
    function = host.pci.find(target)
    if function.total_vfs and not function.is_on_vfio:
        raise VnetStandbyError(f"{target} is a PF; name the VF to release, `list` shows them")
    if function.pf:
        return _release_vf(host, change, host.place(function))
    steps = binding.from_vfio(host, function)
    if steps:
        host.require_unused(function)
        change.apply(*steps, binding.to_host(host, function))
        _note_driver(host, change, function)
    return Assignment(function.address)


def _assign_nic(
    host: Host,
    change: Transaction,
    function: PciFunction,
    mac: str,
    trust: bool | None,
    vfs: int | None,
) -> Assignment:
    if trust is not None or vfs is not None:
        raise VnetStandbyError(f"{function.name} has no SR-IOV: no VFs and no trust to set")
    if not function.is_on_vfio:
        host.require_unused(function)
        own = host.network.link(function.netdev).mac if function.netdev else ""
        if own and own != mac:
            raise VnetStandbyError(
                f"{function.name} is a whole NIC and keeps its own MAC {own}, not {mac}; "
                f"give the pair {own}, or assign a VF"
            )
        if not own:
            change.note(
                f"{function.address} has no netdev here: whether its MAC is {mac} is unknown"
            )
        binding.require_vfio(host, function)
        change.apply(*binding.to_vfio(host, function))
    return Assignment(function.address)


def _assign_vf(
    host: Host, change: Transaction, place: VfPlace, mac: str, trust: bool | None
) -> Assignment:
    _require_up(place.pf, mac)
    _require_mac_free(host, place, mac)
    binding.require_vfio(host, place.function)
    steps = binding.to_vfio(host, place.function)
    if not is_for(place.settings.mac, mac):
        # before vfio-pci resets the VF: an administrative MAC survives that, one of the VF's own does not
        steps.insert(0, _set_mac(host, place, mac))
    if steps:
        host.require_unused(place.function)
    if trust is not None and trust != place.settings.trust:
        steps.insert(0, _set_trust(host, place, trust))
    if steps:
        change.apply(*steps)
        _note_link_state(change, place)
    return _assignment(place.function.address, place.pf_function, place.pf.name, place.index, mac)


def _assignment(address: str, pf: PciFunction, netdev: str, vf: int, mac: str) -> Assignment:
    driver = DRIVERS.get(pf.driver)
    return Assignment(address, netdev, vf, mac, alias(mac) if driver and driver.flips else "")


def _note_link_state(change: Transaction, place: VfPlace) -> None:
    driver = DRIVERS.get(place.pf_function.driver)
    if driver and not driver.link_state:
        change.note(
            f"{driver.name} can't take the link of one VF down: only unplugging moves a guest off {place.name}"
        )


def _release_vf(host: Host, change: Transaction, place: VfPlace) -> Assignment:
    function = place.function
    assigned = function.is_on_vfio or function.override
    steps = binding.from_vfio(host, function)
    # a VF whose host driver has it may have chosen the MAC itself
    if place.settings.mac != ZERO and (assigned or not function.driver):
        steps.append(_set_mac(host, place, ZERO))
    if place.settings.trust and assigned:
        steps.append(_set_trust(host, place, False))
    if steps:
        host.require_unused(function)
        change.apply(*steps, binding.to_host(host, function))
        _note_driver(host, change, function)
    return Assignment(function.address, place.pf.name, place.index)


def _require_up(pf: Link, mac: str) -> None:
    if not pf.up:
        raise VnetStandbyError(f"the PF {pf.name} is down; ip link set {pf.name} up")
    if pf.mac == mac:
        raise VnetStandbyError(f"{mac} is taken: it is the PF {pf.name}'s own; choose another")


def _create_vfs(host: Host, change: Transaction, pf: PciFunction, count: int | None) -> bool:
    """Create the VFs of a PF that has none; return whether they are planned only (dry run)."""
    have = len(pf.vfs)
    if count is None and not have:
        raise VnetStandbyError(f"{pf.name} has no VFs; --vfs N creates them (up to {pf.total_vfs})")
    if count is None or count == have:
        return False
    if have:
        raise VnetStandbyError(
            f"{pf.name} has {have} VFs, not {count}: the kernel can only remove all of them first; "
            "leave --vfs away to use one of these"
        )
    if count > pf.total_vfs:
        raise VnetStandbyError(f"{pf.name} can have {pf.total_vfs} VFs, not {count}")
    change.apply(
        Change(
            f"create {count} VFs of {pf.name}",
            do=lambda: host.pci.set_vf_count(pf.address, count),
            undo=lambda: host.pci.set_vf_count(pf.address, 0),
        )
    )
    host.network.reread()
    return change.dry_run


def _foretell(host: Host, change: Transaction, pf: PciFunction, mac: str) -> Assignment:
    """What assigning would give where even the VFs are yet to be created."""
    address = host.pci.vf_address(pf.address, 0)
    change.note(f"then VF 0 of {pf.name}, which will be {address}, gets {mac} and vfio-pci")
    return _assignment(address, pf, pf.name, 0, mac)


def _pick(host: Host, pf: PciFunction, mac: str) -> VfPlace:
    """Return the VF that has the MAC already, else the first free one."""
    places = host.places(pf)
    for place in places:
        if is_for(place.settings.mac, mac):
            return place
    uses = {place.index: _taken_by(host, place) for place in places}
    for place in places:
        if not uses[place.index]:
            return place
    listed = "; ".join(f"VF {index}: {use}" for index, use in uses.items())
    raise VnetStandbyError(f"no VF of {pf.name} is free ({listed}); release one")


def _taken_by(host: Host, place: VfPlace) -> str:
    if place.function.is_on_vfio and place.settings.mac != ZERO:
        return f"assigned with {place.settings.mac}"
    return host.use_of(place.function)


def _require_mac_free(host: Host, place: VfPlace, mac: str) -> None:
    for other in host.places(place.pf_function):
        if other.index != place.index and is_for(other.settings.mac, mac):
            raise VnetStandbyError(
                f"{mac} is taken by {other.name} ({other.function.address}); release it or choose another MAC"
            )
    bridge, _ = host.bridge_of(place.pf)
    links = host.network.links()
    for entry in host.network.bridge_entries(mac):
        port = links.get(entry.port)
        if port and bridge and entry.kind == "local" and bridge.index in {port.master, port.index}:
            raise VnetStandbyError(
                f"{mac} is taken: it is the own address of {port.name} in {bridge.name}; choose another MAC"
            )


def _set_mac(host: Host, place: VfPlace, mac: str) -> Change:
    old = place.settings.mac
    return Change(
        f"set the MAC of {place.name} to {mac} (was {old})"
        if mac != ZERO
        else f"clear the MAC of {place.name} (was {old})",
        do=lambda: host.network.set_vf_mac(place.pf, place.index, mac),
        undo=lambda: host.network.set_vf_mac(place.pf, place.index, old),
    )


def _set_trust(host: Host, place: VfPlace, trust: bool) -> Change:
    return Change(
        f"switch trust of {place.name} {'on' if trust else 'off'}",
        do=lambda: host.network.set_vf_trust(place.pf, place.index, trust),
        undo=lambda: host.network.set_vf_trust(place.pf, place.index, not trust),
    )


def _note_driver(host: Host, change: Transaction, function: PciFunction) -> None:
    if not change.dry_run and not host.pci.function(function.address).driver:
        change.note(f"no driver of this host took {function.address}; is its module loaded?")
