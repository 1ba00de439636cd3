// SPDX-License-Identifier: GPL-2.0
/*
 * vnet-standby: virtio-net's own netdev is the one that the guest sees; a directly attached NIC
 * with the same MAC address, its primary, becomes its slave.
 *
 * Transmit prefers the primary from the moment it is activated, and falls back to virtio-net's
 * queues (the standby) at once. Unicast is received on both paths at all times, group frames on
 * the active one. Every switch is announced to the network out of the visible netdev.
 *
 * virtio_net calls vnet_standby_create() before it registers its netdev and vnet_standby_destroy()
 * after it has unregistered it. Everything between is done through a copy of the netdev's
 * operations and from notifiers. What configures the primary runs from a work item: a notifier may
 * run under a lock of the very device that it is about.
 */

#include <linux/etherdevice.h>
#include <linux/ethtool.h>
#include <linux/if_arp.h>
#include <linux/if_vlan.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter_netdev.h>
#include <linux/netpoll.h>
#include <linux/pci.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <linux/u64_stats_sync.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <net/failover.h>
#include <net/sch_generic.h>

#include "vnet_standby.h"

/* A frame can be lost, and so can its answer: announce each switch more than once. */
#define VS_ANNOUNCEMENTS	3
#define VS_ANNOUNCE_INTERVAL	msecs_to_jiffies(100)

/* udev may hold the NIC while it renames it, and firmware may take its time: 20 attempts, 5 s. */
#define VS_OPEN_ATTEMPTS	20
#define VS_OPEN_INTERVAL	msecs_to_jiffies(250)

/* How long a primary that is going down may finish what it sends and receives. */
#define VS_DRAIN_MS		50
#define VS_DRAIN_STEP_MS	5

struct vs_cpu_stats {
	u64_stats_t rx_packets;
	u64_stats_t rx_bytes;
	u64_stats_t rx_dropped;
	u64_stats_t tx_packets;
	u64_stats_t tx_bytes;
	u64_stats_t tx_dropped;
	u64_stats_t tx_queued;
	u64_stats_t standby_group_dropped;
	struct u64_stats_sync syncp;

	/* the group frame that the primary has just handed over here; compared, never followed */
	const struct sk_buff *from_primary;
};

struct vs_pair {
	/* what a packet touches */
	struct net_device *dev;
	struct net_device __rcu *tx_dev;	/* the primary while it carries the traffic */
	struct vs_cpu_stats __percpu *stats;
	bool xdp;				/* the master has a native XDP program */
	const struct net_device_ops *standby_ops;
	const struct vnet_standby_ops *driver;	/* NULL: a virtio_net that knows only net_failover */
	struct net_device_ops ops;

	/* under RTNL */
	struct net_device __rcu *primary;
	const struct ethtool_ops *standby_ethtool_ops;
	struct ethtool_ops ethtool_ops;
	struct list_head list;
	bool registered;
	bool look;				/* a NIC has come that may be the primary */
	bool open;				/* the primary is to be opened */
	bool filter_forced;			/* virtio-net itself filters no VLANs */
	bool filter_hooked;
	bool announcing;
	unsigned int announcements;		/* still to be made */
	unsigned int open_attempts;		/* still to be made */
	u64 failovers;
	u64 failbacks;
	u64 announced;

	struct delayed_work setup_work;
	struct delayed_work announce_work;
#ifdef CONFIG_NETFILTER_INGRESS
	struct nf_hook_ops filter;
#endif
	struct failover failover;		/* all that virtio_net sees of the pair */
};

/* All pairs; under RTNL. */
static LIST_HEAD(vs_pairs);

static netdev_tx_t vs_start_xmit(struct sk_buff *skb, struct net_device *dev);

static bool vs_is_master(const struct net_device *dev)
{
	return dev->netdev_ops->ndo_start_xmit == vs_start_xmit;
}

static struct vs_pair *vs_pair_of(const struct net_device *master)
{
	return container_of(master->netdev_ops, struct vs_pair, ops);
}

/* The pair whose primary a netdev is, or NULL. */
static struct vs_pair *vs_pair_of_primary(struct net_device *dev)
{
	struct net_device *master = netdev_master_upper_dev_get(dev);

	return master && vs_is_master(master) ? vs_pair_of(master) : NULL;
}

/* Transmit */

/*
 * The events that end the primary's part come late: a lost carrier takes up to a second to be
 * told, a detached device is never. So look at each packet; one load answers all three questions.
 */
static bool vs_can_send(const struct net_device *primary)
{
	const unsigned long wanted = BIT(__LINK_STATE_START) | BIT(__LINK_STATE_PRESENT);

	return (READ_ONCE(primary->state) & (wanted | BIT(__LINK_STATE_NOCARRIER))) == wanted;
}

/*
 * Whether a frame that fits the master's features fits the primary's as it is. Only what is sure
 * without asking the driver: everything else takes the way through the primary's qdisc, where the
 * stack adapts it.
 */
static bool vs_fits(const struct sk_buff *skb, const struct net_device *primary)
{
	const struct net_device_ops *ops = primary->netdev_ops;

	if (skb_is_gso(skb) || skb_vlan_tag_present(skb) || skb->encapsulation ||
	    eth_type_vlan(skb->protocol))
		return false;
	if (skb_is_nonlinear(skb) && (!(primary->features & NETIF_F_SG) || skb_has_frag_list(skb)))
		return false;
	if (skb->ip_summed != CHECKSUM_PARTIAL)
		return true;
	return (primary->features & NETIF_F_HW_CSUM) && !skb_csum_is_sctp((struct sk_buff *)skb) &&
	       (!ops->ndo_features_check || ops->ndo_features_check == passthru_features_check);
}

static u16 vs_pick_queue(struct sk_buff *skb, struct net_device *primary)
{
	const struct net_device_ops *ops = primary->netdev_ops;

	if (primary->real_num_tx_queues == 1)
		return 0;
	if (ops->ndo_select_queue)
		return netdev_cap_txqueue(primary, ops->ndo_select_queue(primary, skb, NULL));
	return netdev_cap_txqueue(primary, netdev_pick_tx(primary, skb, NULL));
}

/*
 * Whether nothing waits before the driver that a frame sent now would overtake: the qdisc is
 * empty, and nobody is about to send what was taken out of it. All frames of one queue of the
 * master come here one after the other.
 */
static bool vs_nothing_waits(struct Qdisc *qdisc)
{
	if (!(qdisc->flags & TCQ_F_CAN_BYPASS) || !qdisc_is_empty(qdisc))
		return false;
	/* a frame leaves the qdisc while that counts as running: in this order, none is missed */
	smp_rmb();
	return !qdisc_is_running(qdisc);
}

/*
 * Hand a frame to the primary's driver without a second trip through a qdisc: it has waited in the
 * master's. Returns false if the primary's own queue has to take it.
 */
static bool vs_xmit_direct(struct sk_buff *skb, struct net_device *primary)
{
	struct netdev_queue *txq;
	int rc = NETDEV_TX_BUSY;
	u16 queue;

	if (!vs_fits(skb, primary) || dev_nit_active(primary))
		return false;
	queue = vs_pick_queue(skb, primary);
	txq = netdev_get_tx_queue(primary, queue);
	if (!vs_nothing_waits(rcu_dereference_bh(txq->qdisc)))
		return false;

	skb_set_queue_mapping(skb, queue);
	HARD_TX_LOCK(primary, txq, smp_processor_id());
	if (likely(!netif_xmit_frozen_or_stopped(txq)))
		/* never "more to come": the next frame may go elsewhere, and none rings the bell */
		rc = netdev_start_xmit(skb, primary, txq, false);
	HARD_TX_UNLOCK(primary, txq);
	return dev_xmit_complete(rc);
}

static netdev_tx_t vs_xmit_primary(struct vs_pair *pair, struct net_device *primary,
				   struct sk_buff *skb)
{
	struct vs_cpu_stats *stats = this_cpu_ptr(pair->stats);
	unsigned int len = skb->len;
	bool direct;
	int rc = NET_XMIT_SUCCESS;

	skb->dev = primary;
	direct = vs_xmit_direct(skb, primary);
	if (unlikely(!direct))
		rc = dev_queue_xmit(skb);

	u64_stats_update_begin(&stats->syncp);
	if (likely(rc == NET_XMIT_SUCCESS || rc == NET_XMIT_CN)) {
		u64_stats_inc(&stats->tx_packets);
		u64_stats_add(&stats->tx_bytes, len);
	} else {
		u64_stats_inc(&stats->tx_dropped);
	}
	if (!direct)
		u64_stats_inc(&stats->tx_queued);
	u64_stats_update_end(&stats->syncp);
	return NETDEV_TX_OK;
}

static netdev_tx_t vs_start_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary = rcu_dereference_bh(pair->tx_dev);

	if (primary && !netpoll_tx_running(dev)) {
		if (likely(vs_can_send(primary)))
			return vs_xmit_primary(pair, primary, skb);
		mod_delayed_work(system_wq, &pair->setup_work, 0);
	}
	return pair->standby_ops->ndo_start_xmit(skb, dev);
}

/* Receive */

static bool vs_is_group(const struct sk_buff *skb)
{
	return skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST;
}

/*
 * Group frames reach the guest on both paths: only the active one's are taken. The guest's own
 * come back where the fabric connects the two paths, or from a NIC's embedded switch.
 */
static bool vs_accepts_group(struct vs_pair *pair, const struct sk_buff *skb)
{
	if (rcu_access_pointer(pair->tx_dev) != skb->dev)
		return false;
	if (ether_addr_equal(eth_hdr(skb)->h_source, pair->dev->dev_addr))
		return false;
	if (!pair->driver)
		this_cpu_ptr(pair->stats)->from_primary = skb;
	return true;
}

static rx_handler_result_t vs_drop_received(struct vs_pair *pair, struct sk_buff *skb)
{
	struct vs_cpu_stats *stats = this_cpu_ptr(pair->stats);

	u64_stats_update_begin(&stats->syncp);
	u64_stats_inc(&stats->rx_dropped);
	u64_stats_update_end(&stats->syncp);
	kfree_skb(skb);
	return RX_HANDLER_CONSUMED;
}

/* What the primary receives enters the stack as the master's. Runs in softirq, under RCU. */
static rx_handler_result_t vs_handle_frame(struct sk_buff **pskb)
{
	struct vs_pair *pair = rcu_dereference((*pskb)->dev->rx_handler_data);
	struct vs_cpu_stats *stats;
	struct sk_buff *skb;

	if (unlikely((*pskb)->pkt_type == PACKET_LOOPBACK))
		return RX_HANDLER_PASS;
	skb = skb_share_check(*pskb, GFP_ATOMIC);
	if (unlikely(!skb))
		return RX_HANDLER_CONSUMED;
	*pskb = skb;

	/* a frame that a native XDP program of the master can't see must not pass it by */
	if (unlikely(READ_ONCE(pair->xdp) || !netif_running(pair->dev)))
		return vs_drop_received(pair, skb);
	if (unlikely(skb->pkt_type != PACKET_HOST)) {
		if (vs_is_group(skb) && !vs_accepts_group(pair, skb))
			return vs_drop_received(pair, skb);
		if (skb->pkt_type == PACKET_OTHERHOST &&
		    ether_addr_equal_64bits(eth_hdr(skb)->h_dest, pair->dev->dev_addr))
			skb->pkt_type = PACKET_HOST;
	}

	skb->dev = pair->dev;
	stats = this_cpu_ptr(pair->stats);
	u64_stats_update_begin(&stats->syncp);
	u64_stats_inc(&stats->rx_packets);
	u64_stats_add(&stats->rx_bytes, skb->len);
	u64_stats_update_end(&stats->syncp);
	return RX_HANDLER_ANOTHER;
}

static void vs_count_standby_drop(struct vs_pair *pair)
{
	struct vs_cpu_stats *stats = this_cpu_ptr(pair->stats);

	u64_stats_update_begin(&stats->syncp);
	u64_stats_inc(&stats->standby_group_dropped);
	u64_stats_update_end(&stats->syncp);
}

#ifdef CONFIG_NETFILTER_INGRESS
/*
 * The standby's group frames, while the primary is the active path, where virtio_net does not call
 * vnet_standby_receive(). This hook sees the primary's, too: those were marked by
 * vs_accepts_group() just before, on the same CPU.
 */
static unsigned int vs_filter_standby(void *priv, struct sk_buff *skb,
				      const struct nf_hook_state *state)
{
	struct vs_pair *pair = priv;
	struct vs_cpu_stats *stats;

	if (likely(!vs_is_group(skb)))
		return NF_ACCEPT;
	stats = this_cpu_ptr(pair->stats);
	if (stats->from_primary == skb) {
		stats->from_primary = NULL;
		return NF_ACCEPT;
	}
	if (!rcu_access_pointer(pair->tx_dev))
		return NF_ACCEPT;
	vs_count_standby_drop(pair);
	return NF_DROP;
}

static void vs_hook_filter(struct vs_pair *pair)
{
	int err;

	if (pair->driver)
		return;
	pair->filter = (struct nf_hook_ops){
		.hook = vs_filter_standby,
		.dev = pair->dev,
		.priv = pair,
		.pf = NFPROTO_NETDEV,
		.hooknum = NF_NETDEV_INGRESS,
		.priority = INT_MIN,
	};
	err = nf_register_net_hook(dev_net(pair->dev), &pair->filter);
	pair->filter_hooked = !err;
	if (err)
		netdev_warn(pair->dev, "group frames may come twice: no ingress hook (%d)\n", err);
}

static void vs_unhook_filter(struct vs_pair *pair)
{
	if (pair->filter_hooked)
		nf_unregister_net_hook(dev_net(pair->dev), &pair->filter);
	pair->filter_hooked = false;
}
#else
static void vs_hook_filter(struct vs_pair *pair)
{
	if (!pair->driver)
		netdev_warn(pair->dev,
			    "group frames may come twice: this kernel has no ingress hook\n");
}

static void vs_unhook_filter(struct vs_pair *pair)
{
}
#endif

/* Which path carries the traffic; all under RTNL */

/* Why the primary can't carry the master's traffic, or NULL if it can. */
static const char *vs_obstacle(const struct vs_pair *pair, const struct net_device *primary)
{
	const struct net_device *dev = pair->dev;

	if (!netif_running(dev))
		return "is not needed, the master is down";
	if (!netif_running(primary))
		return "is down";
	if (!netif_device_present(primary))
		return "is detached";
	if (!netif_carrier_ok(primary))
		return "has no carrier";
	/* between carrier and activation its qdisc drops whatever it is given */
	if (qdisc_tx_is_noop(primary))
		return "is not activated yet";
	if (primary->mtu < dev->mtu)
		return "has a smaller MTU";
	if (!ether_addr_equal(primary->dev_addr, dev->dev_addr))
		return "has another MAC address";
	if (dev->flags & IFF_PROMISC)
		return "can't receive for a promiscuous master";
	if (pair->xdp)
		return "would pass by the master's XDP program";
	return NULL;
}

static bool vs_standby_has_link(const struct vs_pair *pair)
{
	struct virtio_device *vdev = dev_to_virtio(pair->dev->dev.parent);
	u16 status = VIRTIO_NET_S_LINK_UP;

	/* without the feature it stays as it is: such a device is always up */
	virtio_cread_feature(vdev, VIRTIO_NET_F_STATUS, struct virtio_net_config, status, &status);
	return status & VIRTIO_NET_S_LINK_UP;
}

/* The master has carrier while either path has; virtio_net knows only of its own. */
static void vs_update_carrier(struct vs_pair *pair)
{
	struct net_device *dev = pair->dev;

	if (!netif_running(dev))
		return;
	if (rtnl_dereference(pair->tx_dev) || vs_standby_has_link(pair)) {
		if (netif_carrier_ok(dev))
			return;
		netif_carrier_on(dev);
		netif_tx_wake_all_queues(dev);
	} else {
		netif_carrier_off(dev);
	}
}

static void vs_announce_once(struct vs_pair *pair)
{
	pair->announcements--;
	if (!netif_running(pair->dev))
		return;
	pair->announced++;
	pair->announcing = true;
	__netdev_notify_peers(pair->dev);
	pair->announcing = false;
}

static void vs_announce_later(struct vs_pair *pair)
{
	if (pair->announcements)
		mod_delayed_work(system_wq, &pair->announce_work, VS_ANNOUNCE_INTERVAL);
}

static void vs_announce(struct vs_pair *pair)
{
	pair->announcements = VS_ANNOUNCEMENTS;
	vs_announce_once(pair);
	vs_announce_later(pair);
}

static void vs_announce_work(struct work_struct *work)
{
	struct vs_pair *pair = container_of(work, struct vs_pair, announce_work.work);

	rtnl_lock();
	if (pair->registered && pair->announcements) {
		vs_announce_once(pair);
		vs_announce_later(pair);
	}
	rtnl_unlock();
}

static void vs_use_primary(struct vs_pair *pair, struct net_device *primary)
{
	if (rtnl_dereference(pair->tx_dev) == primary)
		return;
	rcu_assign_pointer(pair->tx_dev, primary);
	pair->failbacks++;
	netdev_info(pair->dev, "primary %s carries the traffic\n", primary->name);
	vs_update_carrier(pair);
	vs_announce(pair);
}

static void vs_use_standby(struct vs_pair *pair, const char *reason)
{
	struct net_device *primary = rtnl_dereference(pair->tx_dev);

	if (!primary)
		return;
	RCU_INIT_POINTER(pair->tx_dev, NULL);
	pair->failovers++;
	netdev_info(pair->dev, "standby carries the traffic: primary %s %s\n",
		    primary->name, reason);
	vs_update_carrier(pair);
	vs_announce(pair);
}

static void vs_update(struct vs_pair *pair)
{
	struct net_device *primary = rtnl_dereference(pair->primary);
	const char *obstacle;

	if (primary) {
		obstacle = vs_obstacle(pair, primary);
		if (obstacle)
			vs_use_standby(pair, obstacle);
		else
			vs_use_primary(pair, primary);
	}
	vs_update_carrier(pair);
}

static bool vs_is_sending(const struct net_device *primary)
{
	bool sending = !qdisc_all_tx_empty(primary);
#ifdef CONFIG_BQL
	unsigned int i;

	for (i = 0; i < primary->real_num_tx_queues; i++) {
		const struct dql *dql = &netdev_get_tx_queue(primary, i)->dql;

		sending |= READ_ONCE(dql->num_queued) != READ_ONCE(dql->num_completed);
	}
#endif
	return sending;
}

static u64 vs_received(const struct vs_pair *pair)
{
	u64 total = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		total += u64_stats_read(&per_cpu_ptr(pair->stats, cpu)->rx_packets);
	return total;
}

/*
 * The traffic has moved, and that was announced: while the primary still works, let it finish what
 * it was given, and take what the fabric still sends there.
 */
static void vs_drain(const struct vs_pair *pair, const struct net_device *primary)
{
	unsigned long end = jiffies + msecs_to_jiffies(VS_DRAIN_MS);
	u64 before;

	synchronize_net();
	do {
		before = vs_received(pair);
		msleep(VS_DRAIN_STEP_MS);
	} while (time_before(jiffies, end) && vs_can_send(primary) &&
		 (vs_is_sending(primary) || vs_received(pair) != before));
}

/* The primary's life; all under RTNL */

static bool vs_has_address_of(const struct vs_pair *pair, const struct net_device *nic)
{
	const u8 *address = is_zero_ether_addr(nic->perm_addr) ? nic->dev_addr : nic->perm_addr;

	return ether_addr_equal(address, pair->dev->perm_addr);
}

/*
 * Only a NIC on PCI: VLANs, bonds, bridges and macvlans, which may have the address as well, have
 * no parent device, and virtio-net's is on the virtio bus.
 */
static bool vs_is_nic(const struct net_device *dev)
{
	return dev->type == ARPHRD_ETHER && dev->addr_len == ETH_ALEN &&
	       dev->dev.parent && dev_is_pci(dev->dev.parent);
}

/* The registered pair that a NIC belongs to by its address, or NULL. */
static struct vs_pair *vs_pair_for(const struct net_device *nic)
{
	struct vs_pair *pair;

	if (!vs_is_nic(nic))
		return NULL;
	list_for_each_entry(pair, &vs_pairs, list)
		if (pair->registered && net_eq(dev_net(pair->dev), dev_net(nic)) &&
		    vs_has_address_of(pair, nic))
			return pair;
	return NULL;
}

/*
 * From here on no one configures the NIC: network managers leave slaves alone, and the kernel's
 * IPv6 those with IFF_NO_ADDRCONF.
 */
static void vs_mark(struct net_device *nic)
{
	nic->flags |= IFF_SLAVE;
	nic->priv_flags |= IFF_NO_ADDRCONF;
}

static void vs_unmark(struct net_device *nic)
{
	nic->flags &= ~IFF_SLAVE;
	nic->priv_flags &= ~IFF_NO_ADDRCONF;
}

static void vs_set_mtu(struct vs_pair *pair, struct net_device *primary, int mtu)
{
	int err = dev_set_mtu(primary, mtu);

	if (err)
		netdev_warn(pair->dev, "primary %s can't have an MTU of %d (%d): the standby is used\n",
			    primary->name, mtu, err);
}

static void vs_sync_addresses(struct net_device *primary, struct net_device *dev)
{
	dev_uc_sync(primary, dev);
	dev_mc_sync(primary, dev);
}

/* Let the NIC receive what the master receives; vs_enslave() adds the addresses. */
static int vs_copy_filters(struct net_device *dev, struct net_device *nic)
{
	int err = vlan_vids_add_by_dev(nic, dev);

	if (err)
		return err;
	if (dev->flags & IFF_ALLMULTI)
		err = dev_set_allmulti(nic, 1);
	if (err)
		vlan_vids_del_by_dev(nic, dev);
	return err;
}

static void vs_remove_filters(struct net_device *dev, struct net_device *nic)
{
	dev_uc_unsync(nic, dev);
	dev_mc_unsync(nic, dev);
	if (dev->flags & IFF_ALLMULTI)
		dev_set_allmulti(nic, -1);
	vlan_vids_del_by_dev(nic, dev);
}

static int vs_link(struct vs_pair *pair, struct net_device *nic)
{
	int err;

	err = netdev_rx_handler_register(nic, vs_handle_frame, pair);
	if (err)
		return err;
	err = netdev_master_upper_dev_link(nic, pair->dev, NULL, NULL, NULL);
	if (err)
		goto unregister;
	err = vs_copy_filters(pair->dev, nic);
	if (err)
		goto unlink;
	return 0;

unlink:
	netdev_upper_dev_unlink(nic, pair->dev);
unregister:
	netdev_rx_handler_unregister(nic);
	return err;
}

static void vs_enslave(struct vs_pair *pair, struct net_device *nic)
{
	int err;

	/* up already: it was there first. Closing it takes the addresses away that IPv6 gave it. */
	dev_close(nic);
	vs_mark(nic);
	vs_set_mtu(pair, nic, pair->dev->mtu);
	/* the master may forward, and that is not told to a slave that joins later */
	dev_disable_lro(nic);
	err = vs_link(pair, nic);
	if (err) {
		netdev_err(pair->dev, "%s can't become the primary (%d)\n", nic->name, err);
		vs_unmark(nic);
		return;
	}
	if (pair->dev->needed_headroom < nic->needed_headroom)
		pair->dev->needed_headroom = nic->needed_headroom;
	rcu_assign_pointer(pair->primary, nic);
	/* from here on vs_set_rx_mode() follows the addresses, so none is missed in between */
	netif_addr_lock_bh(pair->dev);
	vs_sync_addresses(nic, pair->dev);
	netif_addr_unlock_bh(pair->dev);
	vs_hook_filter(pair);
	pair->open = true;
	pair->open_attempts = VS_OPEN_ATTEMPTS;
	netdev_info(pair->dev, "%s is the primary\n", nic->name);
	call_netdevice_notifiers(NETDEV_JOIN, nic);
}

static void vs_release(struct vs_pair *pair, struct net_device *primary)
{
	vs_use_standby(pair, "is leaving");
	RCU_INIT_POINTER(pair->primary, NULL);
	pair->open = false;
	vs_unhook_filter(pair);
	dev_close(primary);
	netdev_rx_handler_unregister(primary);
	netdev_upper_dev_unlink(primary, pair->dev);
	vs_remove_filters(pair->dev, primary);
	vs_unmark(primary);
	netdev_info(pair->dev, "%s is no longer the primary\n", primary->name);
}

static void vs_leave_alone(const struct vs_pair *pair, struct net_device *nic)
{
	vs_unmark(nic);
	netdev_warn(pair->dev, "%s has the same MAC address, too, and is left alone\n", nic->name);
}

static void vs_look_for_primary(struct vs_pair *pair)
{
	struct net_device *nic;

	for_each_netdev(dev_net(pair->dev), nic) {
		if (vs_pair_for(nic) != pair || netdev_is_rx_handler_busy(nic) ||
		    netdev_master_upper_dev_get(nic))
			continue;
		if (!rtnl_dereference(pair->primary))
			vs_enslave(pair, nic);
		else if (nic->flags & IFF_SLAVE)
			vs_leave_alone(pair, nic);
	}
}

static void vs_open_primary(struct vs_pair *pair, struct net_device *primary)
{
	int err = dev_open(primary, NULL);

	pair->open = err;
	if (!err)
		return;
	if (--pair->open_attempts) {
		mod_delayed_work(system_wq, &pair->setup_work, VS_OPEN_INTERVAL);
		return;
	}
	pair->open = false;
	netdev_err(pair->dev, "primary %s can't be opened (%d): the standby is used\n",
		   primary->name, err);
}

static void vs_setup(struct vs_pair *pair)
{
	struct net_device *primary;

	if (pair->look)
		vs_look_for_primary(pair);
	pair->look = false;
	primary = rtnl_dereference(pair->primary);
	if (primary && !netif_running(pair->dev))
		dev_close(primary);
	else if (primary && pair->open)
		vs_open_primary(pair, primary);
	vs_update(pair);
}

static void vs_setup_work(struct work_struct *work)
{
	struct vs_pair *pair = container_of(work, struct vs_pair, setup_work.work);

	/* never waited for under RTNL: virtio_net calls vnet_standby_destroy() without it */
	rtnl_lock();
	if (pair->registered)
		vs_setup(pair);
	rtnl_unlock();
}

static void vs_schedule_setup(struct vs_pair *pair)
{
	mod_delayed_work(system_wq, &pair->setup_work, 0);
}

/* The master's operations: what virtio_net does, and the same for the primary */

static void vs_set_rx_mode(struct net_device *dev)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary;

	pair->standby_ops->ndo_set_rx_mode(dev);
	rcu_read_lock();
	primary = rcu_dereference(pair->primary);
	if (primary)
		vs_sync_addresses(primary, dev);
	rcu_read_unlock();
}

static void vs_change_rx_flags(struct net_device *dev, int changed)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary = rtnl_dereference(pair->primary);

	if (!primary)
		return;
	if (changed & IFF_ALLMULTI)
		dev_set_allmulti(primary, dev->flags & IFF_ALLMULTI ? 1 : -1);
	if (changed & IFF_PROMISC)
		vs_schedule_setup(pair);
}

static int vs_change_mtu(struct net_device *dev, int mtu)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary = rtnl_dereference(pair->primary);
	bool lower = mtu < dev->mtu;

	/* at no time may the master's frames be larger than the primary's */
	if (lower)
		WRITE_ONCE(dev->mtu, mtu);
	if (primary)
		vs_set_mtu(pair, primary, mtu);
	if (!lower)
		WRITE_ONCE(dev->mtu, mtu);
	return 0;
}

static int vs_vlan_rx_add_vid(struct net_device *dev, __be16 proto, u16 vid)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary = rtnl_dereference(pair->primary);
	int err;

	if (primary) {
		err = vlan_vid_add(primary, proto, vid);
		if (err)
			return err;
	}
	if (pair->filter_forced)
		return 0;
	err = pair->standby_ops->ndo_vlan_rx_add_vid(dev, proto, vid);
	if (err && primary)
		vlan_vid_del(primary, proto, vid);
	return err;
}

static int vs_vlan_rx_kill_vid(struct net_device *dev, __be16 proto, u16 vid)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary = rtnl_dereference(pair->primary);

	if (primary)
		vlan_vid_del(primary, proto, vid);
	if (pair->filter_forced)
		return 0;
	return pair->standby_ops->ndo_vlan_rx_kill_vid(dev, proto, vid);
}

/* A program sees only what the standby receives: while there is one, the primary is not used. */
static int vs_bpf(struct net_device *dev, struct netdev_bpf *bpf)
{
	struct vs_pair *pair = vs_pair_of(dev);
	bool before = pair->xdp;
	int err;

	if (bpf->command != XDP_SETUP_PROG)
		return pair->standby_ops->ndo_bpf(dev, bpf);
	if (bpf->prog)
		WRITE_ONCE(pair->xdp, true);
	err = pair->standby_ops->ndo_bpf(dev, bpf);
	WRITE_ONCE(pair->xdp, err ? before : !!bpf->prog);
	vs_schedule_setup(pair);
	return err;
}

static void vs_sum_stats(const struct vs_pair *pair, struct vs_cpu_stats *sum)
{
	int cpu;

	memset(sum, 0, sizeof(*sum));
	for_each_possible_cpu(cpu) {
		const struct vs_cpu_stats *stats = per_cpu_ptr(pair->stats, cpu);
		struct vs_cpu_stats copy;
		unsigned int start;

		do {
			start = u64_stats_fetch_begin(&stats->syncp);
			memcpy(&copy, stats, sizeof(copy));
		} while (u64_stats_fetch_retry(&stats->syncp, start));
		u64_stats_add(&sum->rx_packets, u64_stats_read(&copy.rx_packets));
		u64_stats_add(&sum->rx_bytes, u64_stats_read(&copy.rx_bytes));
		u64_stats_add(&sum->rx_dropped, u64_stats_read(&copy.rx_dropped));
		u64_stats_add(&sum->tx_packets, u64_stats_read(&copy.tx_packets));
		u64_stats_add(&sum->tx_bytes, u64_stats_read(&copy.tx_bytes));
		u64_stats_add(&sum->tx_dropped, u64_stats_read(&copy.tx_dropped));
		u64_stats_add(&sum->tx_queued, u64_stats_read(&copy.tx_queued));
		u64_stats_add(&sum->standby_group_dropped,
			      u64_stats_read(&copy.standby_group_dropped));
	}
}

static void vs_get_stats64(struct net_device *dev, struct rtnl_link_stats64 *total)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct vs_cpu_stats primary;

	pair->standby_ops->ndo_get_stats64(dev, total);
	vs_sum_stats(pair, &primary);
	total->rx_packets += u64_stats_read(&primary.rx_packets);
	total->rx_bytes += u64_stats_read(&primary.rx_bytes);
	total->rx_dropped += u64_stats_read(&primary.rx_dropped);
	total->tx_packets += u64_stats_read(&primary.tx_packets);
	total->tx_bytes += u64_stats_read(&primary.tx_bytes);
	total->tx_dropped += u64_stats_read(&primary.tx_dropped);
}

static void vs_replace_ops(struct vs_pair *pair)
{
	struct net_device *dev = pair->dev;

	pair->standby_ops = dev->netdev_ops;
	pair->ops = *dev->netdev_ops;
	pair->ops.ndo_start_xmit = vs_start_xmit;
	pair->ops.ndo_set_rx_mode = vs_set_rx_mode;
	pair->ops.ndo_change_rx_flags = vs_change_rx_flags;
	pair->ops.ndo_change_mtu = vs_change_mtu;
	pair->ops.ndo_vlan_rx_add_vid = vs_vlan_rx_add_vid;
	pair->ops.ndo_vlan_rx_kill_vid = vs_vlan_rx_kill_vid;
	pair->ops.ndo_get_stats64 = vs_get_stats64;
	pair->ops.ndo_bpf = vs_bpf;
	/* virtio_net's is "sby": udev would rename the interface that the user sees */
	pair->ops.ndo_get_phys_port_name = NULL;
	dev->netdev_ops = &pair->ops;
}

/* ethtool */

static const char vs_counter_names[][ETH_GSTRING_LEN] = {
	"primary_rx_packets",
	"primary_rx_bytes",
	"primary_rx_dropped",
	"primary_tx_packets",
	"primary_tx_bytes",
	"primary_tx_dropped",
	"primary_tx_queued",
	"standby_rx_group_dropped",
	"active_path_is_primary",
	"failovers",
	"failbacks",
	"announcements",
};

static int vs_get_sset_count(struct net_device *dev, int set)
{
	struct vs_pair *pair = vs_pair_of(dev);
	int count = pair->standby_ethtool_ops->get_sset_count(dev, set);

	return set == ETH_SS_STATS && count >= 0 ? count + ARRAY_SIZE(vs_counter_names) : count;
}

static void vs_get_strings(struct net_device *dev, u32 set, u8 *data)
{
	struct vs_pair *pair = vs_pair_of(dev);
	int count = pair->standby_ethtool_ops->get_sset_count(dev, set);

	pair->standby_ethtool_ops->get_strings(dev, set, data);
	if (set == ETH_SS_STATS)
		memcpy(data + count * ETH_GSTRING_LEN, vs_counter_names, sizeof(vs_counter_names));
}

static void vs_get_ethtool_stats(struct net_device *dev, struct ethtool_stats *request, u64 *data)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct vs_cpu_stats sum;

	pair->standby_ethtool_ops->get_ethtool_stats(dev, request, data);
	data += pair->standby_ethtool_ops->get_sset_count(dev, ETH_SS_STATS);
	vs_sum_stats(pair, &sum);
	*data++ = u64_stats_read(&sum.rx_packets);
	*data++ = u64_stats_read(&sum.rx_bytes);
	*data++ = u64_stats_read(&sum.rx_dropped);
	*data++ = u64_stats_read(&sum.tx_packets);
	*data++ = u64_stats_read(&sum.tx_bytes);
	*data++ = u64_stats_read(&sum.tx_dropped);
	*data++ = u64_stats_read(&sum.tx_queued);
	*data++ = u64_stats_read(&sum.standby_group_dropped);
	*data++ = !!rtnl_dereference(pair->tx_dev);
	*data++ = pair->failovers;
	*data++ = pair->failbacks;
	*data++ = pair->announced;
}

static int vs_get_link_ksettings(struct net_device *dev, struct ethtool_link_ksettings *settings)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary = rtnl_dereference(pair->tx_dev);

	if (primary)
		return __ethtool_get_link_ksettings(primary, settings);
	return pair->standby_ethtool_ops->get_link_ksettings(dev, settings);
}

static void vs_replace_ethtool_ops(struct vs_pair *pair)
{
	struct net_device *dev = pair->dev;

	pair->standby_ethtool_ops = dev->ethtool_ops;
	pair->ethtool_ops = *dev->ethtool_ops;
	pair->ethtool_ops.get_sset_count = vs_get_sset_count;
	pair->ethtool_ops.get_strings = vs_get_strings;
	pair->ethtool_ops.get_ethtool_stats = vs_get_ethtool_stats;
	pair->ethtool_ops.get_link_ksettings = vs_get_link_ksettings;
	dev->ethtool_ops = &pair->ethtool_ops;
}

/* Notifiers */

static void vs_primary_goes_down(struct vs_pair *pair, struct net_device *primary)
{
	if (rtnl_dereference(pair->tx_dev) != primary)
		return;
	vs_use_standby(pair, "goes down");
	vs_drain(pair, primary);
}

static void vs_primary_event(struct vs_pair *pair, struct net_device *primary, unsigned long event)
{
	switch (event) {
	case NETDEV_UP:
	case NETDEV_DOWN:
	case NETDEV_CHANGE:
	case NETDEV_CHANGEMTU:
	case NETDEV_CHANGEADDR:
		vs_update(pair);
		break;
	case NETDEV_GOING_DOWN:
		vs_primary_goes_down(pair, primary);
		break;
	case NETDEV_UNREGISTER:
		vs_release(pair, primary);
		break;
	}
}

static void vs_master_event(struct vs_pair *pair, unsigned long event)
{
	struct net_device *primary = rtnl_dereference(pair->primary);

	switch (event) {
	case NETDEV_REGISTER:
		pair->registered = true;
		pair->look = true;
		vs_schedule_setup(pair);
		break;
	case NETDEV_UNREGISTER:
		/* or a move to another namespace: REGISTER follows */
		if (primary)
			vs_release(pair, primary);
		pair->registered = false;
		break;
	case NETDEV_UP:
		pair->open = true;
		pair->open_attempts = VS_OPEN_ATTEMPTS;
		vs_schedule_setup(pair);
		break;
	case NETDEV_GOING_DOWN:
		vs_use_standby(pair, "is not needed, the master goes down");
		break;
	case NETDEV_DOWN:
		vs_schedule_setup(pair);
		break;
	case NETDEV_CHANGE:
	case NETDEV_CHANGEMTU:
	case NETDEV_CHANGEADDR:
		if (pair->registered)
			vs_update(pair);
		break;
	case NETDEV_NOTIFY_PEERS:
		/* the host asks for it after a migration, before its switches have settled */
		if (!pair->announcing) {
			pair->announcements = VS_ANNOUNCEMENTS - 1;
			vs_announce_later(pair);
		}
		break;
	}
}

static void vs_nic_event(struct net_device *nic, unsigned long event)
{
	struct vs_pair *pair;

	if (event != NETDEV_POST_INIT && event != NETDEV_REGISTER)
		return;
	pair = vs_pair_for(nic);
	if (!pair)
		return;
	if (rtnl_dereference(pair->primary)) {
		if (event == NETDEV_REGISTER)
			vs_leave_alone(pair, nic);
	} else if (event == NETDEV_POST_INIT) {
		vs_mark(nic);
	} else {
		pair->look = true;
		vs_schedule_setup(pair);
	}
}

static int vs_netdev_event(struct notifier_block *nb, unsigned long event, void *info)
{
	struct net_device *dev = netdev_notifier_info_to_dev(info);
	struct vs_pair *pair;

	if (vs_is_master(dev)) {
		vs_master_event(vs_pair_of(dev), event);
		return NOTIFY_DONE;
	}
	pair = vs_pair_of_primary(dev);
	if (pair)
		vs_primary_event(pair, dev, event);
	else
		vs_nic_event(dev, event);
	return NOTIFY_DONE;
}

static struct notifier_block vs_notifier = {
	.notifier_call = vs_netdev_event,
};

/* What virtio_net calls */

static void vs_force_vlan_filter(struct vs_pair *pair)
{
	/* else the primary would never be told of a VLAN */
	pair->filter_forced = !(pair->dev->features & NETIF_F_HW_VLAN_CTAG_FILTER);
	pair->dev->features |= NETIF_F_HW_VLAN_CTAG_FILTER;
}

/**
 * vnet_standby_create() - make a virtio-net netdev the master of a pair
 * @dev: the netdev, not registered yet
 * @driver: what virtio_net does for the pair beyond that of net_failover's time, or NULL. Given,
 *	virtio_net calls vnet_standby_receive() for each frame.
 *
 * Context: process context, without RTNL.
 * Return: a handle for vnet_standby_destroy(), or an ERR_PTR.
 */
struct failover *vnet_standby_create(struct net_device *dev, const struct vnet_standby_ops *driver)
{
	struct vs_pair *pair = kzalloc(sizeof(*pair), GFP_KERNEL);

	if (!pair)
		return ERR_PTR(-ENOMEM);
	pair->stats = netdev_alloc_pcpu_stats(struct vs_cpu_stats);
	if (!pair->stats) {
		kfree(pair);
		return ERR_PTR(-ENOMEM);
	}
	pair->dev = dev;
	pair->driver = driver;
	INIT_DELAYED_WORK(&pair->setup_work, vs_setup_work);
	INIT_DELAYED_WORK(&pair->announce_work, vs_announce_work);
	/* the primary's queue locks nest in the master's, and both are Ethernet's */
	netdev_lockdep_set_classes(dev);
	/* a frame may wait in the primary's qdisc, and not every driver takes one without a head */
	dev->priv_flags &= ~(IFF_TX_SKB_SHARING | IFF_TX_SKB_NO_LINEAR);
	vs_force_vlan_filter(pair);

	rtnl_lock();
	vs_replace_ops(pair);
	vs_replace_ethtool_ops(pair);
	list_add_tail(&pair->list, &vs_pairs);
	rtnl_unlock();
	return &pair->failover;
}
EXPORT_SYMBOL_GPL(vnet_standby_create);

/**
 * vnet_standby_destroy() - undo vnet_standby_create()
 * @failover: the handle, or NULL
 *
 * Context: process context, without RTNL, after the netdev is unregistered or could not be
 * registered.
 */
void vnet_standby_destroy(struct failover *failover)
{
	struct vs_pair *pair;

	if (!failover)
		return;
	pair = container_of(failover, struct vs_pair, failover);
	cancel_delayed_work_sync(&pair->setup_work);
	cancel_delayed_work_sync(&pair->announce_work);

	rtnl_lock();
	list_del(&pair->list);
	pair->dev->netdev_ops = pair->standby_ops;
	pair->dev->ethtool_ops = pair->standby_ethtool_ops;
	rtnl_unlock();

	free_percpu(pair->stats);
	kfree(pair);
}
EXPORT_SYMBOL_GPL(vnet_standby_destroy);

/**
 * vnet_standby_receive() - look at a frame that the standby has received
 * @failover: the handle
 * @skb: the frame, after eth_type_trans()
 *
 * Context: virtio_net's NAPI.
 * Return: whether the frame is not for the stack; it belongs to the pair then.
 */
bool vnet_standby_receive(struct failover *failover, struct sk_buff *skb)
{
	struct vs_pair *pair = container_of(failover, struct vs_pair, failover);

	if (likely(!vs_is_group(skb)) || !rcu_access_pointer(pair->tx_dev))
		return false;
	vs_count_standby_drop(pair);
	kfree_skb(skb);
	return true;
}
EXPORT_SYMBOL_GPL(vnet_standby_receive);

/**
 * vnet_standby_config_changed() - the device has changed its configuration
 * @failover: the handle, or NULL
 *
 * Context: any.
 */
void vnet_standby_config_changed(struct failover *failover)
{
	if (failover)
		vs_schedule_setup(container_of(failover, struct vs_pair, failover));
}
EXPORT_SYMBOL_GPL(vnet_standby_config_changed);

/**
 * vnet_standby_freeze() - from here on the device is not to be used
 * @failover: the handle, or NULL
 *
 * Context: process context, without RTNL.
 */
void vnet_standby_freeze(struct failover *failover)
{
}
EXPORT_SYMBOL_GPL(vnet_standby_freeze);

/**
 * vnet_standby_restore() - the device can be used again; it was reset
 * @failover: the handle, or NULL
 *
 * Context: process context, without RTNL.
 */
void vnet_standby_restore(struct failover *failover)
{
}
EXPORT_SYMBOL_GPL(vnet_standby_restore);

static int __init vnet_standby_init(void)
{
	return register_netdevice_notifier(&vs_notifier);
}
module_init(vnet_standby_init);

static void __exit vnet_standby_exit(void)
{
	unregister_netdevice_notifier(&vs_notifier);
}
module_exit(vnet_standby_exit);

MODULE_DESCRIPTION("virtio-net as one interface with a directly attached NIC as its primary");
MODULE_LICENSE("GPL");
