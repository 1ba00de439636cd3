/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What differs between the kernels that this driver was tried with. The sources are written for
 * the newest of them; here is what the others lack. Kbuild looks into the kernel's headers and
 * defines VS_HAS_*: a point release may have got what its series did not begin with.
 */
#ifndef _VNET_STANDBY_COMPAT_H
#define _VNET_STANDBY_COMPAT_H

#include <linux/netdevice.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#include <net/sch_generic.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0) || LINUX_VERSION_CODE >= KERNEL_VERSION(7, 4, 0)
#error "vnet-standby was not tried with this kernel"
#endif

#ifdef VS_HAS_NETDEV_LOCK
#include <net/netdev_lock.h>		/* netdev_lockdep_set_classes(), netdev_lock_ops() */
#else
/* no netdev has a lock of its own */
static inline void netdev_lock_ops(struct net_device *dev)
{
}

static inline void netdev_unlock_ops(struct net_device *dev)
{
}
#endif

#ifndef VS_HAS_NO_ADDRCONF
/* IPv6 leaves each slave alone; not a macro, so that it can't hide a flag that there is */
enum { IFF_NO_ADDRCONF = 0 };
#endif

#ifndef VS_HAS_BH_WQ
/* no work in softirq; a thread of the same CPU runs after its softirqs, too, but later */
#define system_bh_wq		system_highpri_wq
#endif

/*
 * Whether frames wait before a qdisc, or are just on their way into it: where it has a lock, only
 * one CPU at a time takes them in, for all.
 */
static inline bool vs_qdisc_defers(struct Qdisc *qdisc)
{
#ifdef VS_HAS_DEFER_LIST
	if (!llist_empty(&qdisc->defer_list))
		return true;
	/* who has taken them from the list holds the lock until they are in the qdisc */
	smp_rmb();
	return spin_is_locked(qdisc_lock(qdisc));
#else
	return false;
#endif
}

#endif
