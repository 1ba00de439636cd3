// SPDX-License-Identifier: GPL-2.0
/*
 * The two symbols by which virtio_net calls the kernel's net_failover, so that an unpatched
 * virtio_net finds this module in its place.
 *
 * A symbol's CRC covers the definitions of all types that its prototype reaches, as far as the
 * file sees them. The list of includes is therefore exactly that of the kernel's
 * drivers/net/net_failover.c, whether used here or not. The build compares the CRCs with the
 * kernel's.
 */

#include <linux/netdevice.h>
#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/netpoll.h>
#include <linux/rtnetlink.h>
#include <linux/if_vlan.h>
#include <linux/pci.h>
#include <net/sch_generic.h>
#include <uapi/linux/if_arp.h>
#include <net/net_failover.h>

#include "vnet_standby.h"

struct failover *net_failover_create(struct net_device *standby_dev)
{
	return vnet_standby_create(standby_dev, NULL);
}
EXPORT_SYMBOL_GPL(net_failover_create);

void net_failover_destroy(struct failover *failover)
{
	vnet_standby_destroy(failover);
}
EXPORT_SYMBOL_GPL(net_failover_destroy);
