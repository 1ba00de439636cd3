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
 * run under a lock of the very device that it is about. Such work is freezable: a suspended
 * virtio_net has no queues, not even to read their statistics.
 *
 * With VIRTIO_NET_F_STANDBY_DATAPATH the device and the driver agree on each switch. Four things
 * move, each at its own time: what the driver has told the device (told), where the fabric delivers
 * (fabric_on_primary), where the driver transmits (tx_dev), and where group frames are accepted
 * (group_on_primary). Without the feature all follow tx_dev.
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

#include "compat.h"
#include "vnet_standby.h"

/* A frame can be lost, and so can its answer: announce each switch more than once. */
#define VS_ANNOUNCEMENTS	3
#define VS_ANNOUNCE_INTERVAL	msecs_to_jiffies(100)

/* udev may hold the NIC while it renames it, and firmware may take its time: 20 attempts, 5 s. */
#define VS_OPEN_ATTEMPTS	20
#define VS_OPEN_INTERVAL	msecs_to_jiffies(250)

/* How long a path that is left may take for what it was given, and to receive what is under way. */
#define VS_DRAIN_MS		50
/* The same before a primary goes down: drivers that are being removed have stopped receiving by
 * then, and the fabric still sends there.
 */
#define VS_LEAVE_MS		10
#define VS_DRAIN_STEP_MS	5

/* How long what the new path receives waits for what is under way on the old one. The protocol
 * allows 100 ms and 1024 frames; one poll may go on beyond a bound.
 */
#define VS_HOLD_MS		90
#define VS_HOLD_FRAMES		(1024 - NAPI_POLL_WEIGHT)
#define VS_RELEASE_ROUNDS	8

/* How long the fabric may take until the primary is used without it; and until a refused command
 * is tried again.
 */
#define VS_FABRIC_WAIT		HZ

enum {
	VS_STANDBY = VIRTIO_NET_STANDBY_DATAPATH_STANDBY,
	VS_PRIMARY = VIRTIO_NET_STANDBY_DATAPATH_PRIMARY,
};

/* bits of vs_pair.rx_state: what keeps a received frame from the stack */
enum {
	VS_RX_HOLD_STANDBY,			/* the standby is the new path of a switch */
	VS_RX_HOLD_PRIMARY,			/* the primary is */
	VS_RX_XDP,				/* the master has a native XDP program */
	VS_RX_DOWN,				/* the master is down */
};

#define VS_RX_HOLD(path)	((path) == VS_PRIMARY ? VS_RX_HOLD_PRIMARY : VS_RX_HOLD_STANDBY)
#define VS_RX_HOLDS		(BIT(VS_RX_HOLD_STANDBY) | BIT(VS_RX_HOLD_PRIMARY))

/* The fabric's last frame on a path that it leaves, behind the Ethernet header. */
struct vs_marker {
	u8 magic[4];
	u8 left;
	u8 zeros[41];
};

static const u8 vs_magic[4] = { 'V', 'N', 'S', 'M' };

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
	unsigned long rx_state;
	bool tx_hold;				/* nothing is transmitted */
	bool group_on_primary;			/* where group frames are accepted */
	bool protocol;				/* VIRTIO_NET_F_STANDBY_DATAPATH is negotiated */
	const struct net_device_ops *standby_ops;
	const struct vnet_standby_ops *driver;	/* NULL: a virtio_net without the patches */
	struct net_device_ops ops;

	/* under RTNL */
	struct net_device __rcu *primary;
	struct net_device *follower;		/* to be moved to the master's network namespace */
	const struct ethtool_ops *standby_ethtool_ops;
	struct ethtool_ops ethtool_ops;
	struct list_head list;
	bool registered;
	bool look;				/* a NIC has come that may be the primary */
	bool open;				/* the primary is to be opened */
	bool filter_forced;			/* virtio-net itself filters no VLANs */
	bool filter_hooked;
	bool announcing;
	bool frozen;				/* there is no device to talk to */
	bool standby_wanted;			/* the device's status, as last read ... */
	bool fabric_on_primary;
	bool fabric_marks;
	bool fabric_moved;			/* ... and has to be announced */
	u8 told;				/* the datapath of the last DATAPATH_SET */
	u8 primary_mac[ETH_ALEN];		/* that the primary is known by; or zeros */
	unsigned long told_at;			/* jiffies */
	unsigned int announcements;		/* still to be made */
	unsigned int open_attempts;		/* still to be made */
	unsigned long *held_queues;		/* of the master, stopped by a hold */
	ktime_t hold_start;
	u64 failovers;
	u64 failbacks;
	u64 announced;
	u64 tx_drained;
	u64 tx_forced;
	u64 tx_hold_last_us;
	u64 datapath_set_sent;
	u64 datapath_set_refused;

	/* received on the new path of a switch; under its own lock, in softirq */
	spinlock_t hold_lock;			/* protects all that follows, and the hold bits */
	struct sk_buff_head held;
	bool marked;				/* the end marker has come */
	u64 rx_held;
	u64 rx_hold_forced;
	u64 markers;
	struct delayed_work release_work;

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
static void vs_schedule_setup(struct vs_pair *pair);

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

/* What the primary can do for a frame; most drivers need not be asked. */
static netdev_features_t vs_features(struct sk_buff *skb, const struct net_device *primary)
{
	const struct net_device_ops *ops = primary->netdev_ops;

	if (!ops->ndo_features_check || ops->ndo_features_check == passthru_features_check)
		return primary->features;
	return netif_skb_features(skb);
}

/*
 * Whether a frame that fits the master's features fits the primary's as it is, and nothing about it
 * is unusual: everything else takes the way through the primary's qdisc, where the stack adapts it.
 */
static bool vs_fits(struct sk_buff *skb, const struct net_device *primary)
{
	if (skb_is_gso(skb) || skb_vlan_tag_present(skb) || skb->encapsulation ||
	    eth_type_vlan(skb->protocol))
		return false;
	if (skb_is_nonlinear(skb) && (!(primary->features & NETIF_F_SG) || skb_has_frag_list(skb)))
		return false;
	if (skb->ip_summed != CHECKSUM_PARTIAL)
		return true;
	return !skb_csum_is_sctp(skb) && (vs_features(skb, primary) & NETIF_F_HW_CSUM);
}

/* A queue of the master, or one that was full; the stack would take it for that of the receiver. */
static void vs_forget_queue(struct sk_buff *skb)
{
	skb_set_queue_mapping(skb, 0);
}

static u16 vs_pick_queue(struct sk_buff *skb, struct net_device *primary)
{
	const struct net_device_ops *ops = primary->netdev_ops;

	if (primary->real_num_tx_queues == 1)
		return 0;
	vs_forget_queue(skb);
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
	if (vs_qdisc_defers(qdisc))
		return false;
	/* a frame is in the next place before it leaves one: in this order, none is missed */
	smp_rmb();
	if (!qdisc_is_empty(qdisc))
		return false;
	/* the same */
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
	struct Qdisc *qdisc;
	u16 queue;

	if (!vs_fits(skb, primary) || dev_nit_active(primary))
		return false;
	queue = vs_pick_queue(skb, primary);
	txq = netdev_get_tx_queue(primary, queue);
	qdisc = rcu_dereference_bh(txq->qdisc);
	if (!(qdisc->flags & TCQ_F_CAN_BYPASS) || !vs_nothing_waits(qdisc))
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
	if (unlikely(!direct)) {
		vs_forget_queue(skb);
		rc = dev_queue_xmit(skb);
	}

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

/* The queue goes on as soon as the hold has ended: vs_end_tx_hold() wakes what was stopped here. */
static netdev_tx_t vs_hold_xmit(struct vs_pair *pair, struct sk_buff *skb)
{
	u16 queue = skb_get_queue_mapping(skb);
	struct netdev_queue *txq = netdev_get_tx_queue(pair->dev, queue);

	netif_tx_stop_queue(txq);
	set_bit(queue, pair->held_queues);
	/* either vs_end_tx_hold() sees the bit, or this sees the end of the hold */
	smp_mb__after_atomic();
	if (!READ_ONCE(pair->tx_hold) && test_and_clear_bit(queue, pair->held_queues))
		netif_tx_start_queue(txq);
	return NETDEV_TX_BUSY;
}

static netdev_tx_t vs_start_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct vs_pair *pair = vs_pair_of(dev);
	struct net_device *primary;

	/* a stopped queue alone holds nothing: virtio_net wakes it when buffers are used */
	if (unlikely(READ_ONCE(pair->tx_hold)) && !netpoll_tx_running(dev))
		return vs_hold_xmit(pair, skb);
	primary = rcu_dereference_bh(pair->tx_dev);
	if (primary && !netpoll_tx_running(dev)) {
		if (likely(vs_can_send(primary)))
			return vs_xmit_primary(pair, primary, skb);
		vs_schedule_setup(pair);
	}
	return pair->standby_ops->ndo_start_xmit(skb, dev);
}

/* Receive */

static bool vs_is_group(const struct sk_buff *skb)
{
	return skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST;
}

/*
 * A switch of the fabric keeps the order of frames if what the new path receives waits until the
 * last frame of the old one, the end marker, has come.
 */

static void vs_release_later(struct vs_pair *pair)
{
	/* runs already, or is to run anyway: the first frame's time counts */
	queue_delayed_work(system_bh_wq, &pair->release_work, msecs_to_jiffies(VS_HOLD_MS));
}

/*
 * Not at once: BH work runs after the poll that goes on here, which may have frames in GRO that
 * came before the marker.
 */
static void vs_release_soon(struct vs_pair *pair)
{
	mod_delayed_work(system_bh_wq, &pair->release_work, 0);
}

/*
 * The marker ends the queue that it came on. What came before it on others waits for other CPUs to
 * poll it, and nothing tells when they have: give them time.
 */
static void vs_release_marked(struct vs_pair *pair, const struct net_device *left)
{
	if (left->real_num_rx_queues == 1)
		vs_release_soon(pair);
	else
		mod_delayed_work(system_bh_wq, &pair->release_work,
				 msecs_to_jiffies(VS_DRAIN_STEP_MS));
}

/* Give the stack what was held, the oldest first. In softirq, or with softirqs off. */
static void vs_release_held(struct vs_pair *pair)
{
	struct sk_buff_head batch;
	struct sk_buff *skb;
	bool more = true;
	int round;

	__skb_queue_head_init(&batch);
	for (round = 1; more; round++) {
		spin_lock(&pair->hold_lock);
		skb_queue_splice_tail_init(&pair->held, &batch);
		/* a CPU that receives faster than this one delivers must not go on for ever */
		more = !skb_queue_empty(&batch) && round < VS_RELEASE_ROUNDS;
		if (!more) {
			clear_bit(VS_RX_HOLD_STANDBY, &pair->rx_state);
			clear_bit(VS_RX_HOLD_PRIMARY, &pair->rx_state);
		}
		spin_unlock(&pair->hold_lock);
		while ((skb = __skb_dequeue(&batch)))
			netif_receive_skb(skb);
	}
}

static void vs_release_work(struct work_struct *work)
{
	struct vs_pair *pair = container_of(work, struct vs_pair, release_work.work);
	unsigned long holds;

	/* not every kernel runs this in softirq */
	local_bh_disable();
	spin_lock(&pair->hold_lock);
	holds = READ_ONCE(pair->rx_state) & VS_RX_HOLDS;
	if (holds) {
		WRITE_ONCE(pair->group_on_primary, holds & BIT(VS_RX_HOLD_PRIMARY));
		if (!pair->marked)
			pair->rx_hold_forced++;
	}
	spin_unlock(&pair->hold_lock);
	if (holds)
		vs_release_held(pair);
	local_bh_enable();
}

/* Returns whether the frame, of the path that it has come on, waits for the other path's marker. */
static bool vs_hold_frame(struct vs_pair *pair, struct sk_buff *skb, u8 path)
{
	bool hold;

	spin_lock(&pair->hold_lock);
	hold = test_bit(VS_RX_HOLD(path), &pair->rx_state);
	if (hold) {
		__skb_queue_tail(&pair->held, skb);
		pair->rx_held++;
		if (skb_queue_len(&pair->held) < VS_HOLD_FRAMES)
			vs_release_later(pair);
		else
			vs_release_soon(pair);
	}
	spin_unlock(&pair->hold_lock);
	return hold;
}

static bool vs_maybe_marker(const struct sk_buff *skb)
{
	return skb->protocol == htons(ETH_P_802_EX1);
}

/* The fabric may know the primary by the MAC address that the device has named. */
static bool vs_is_to_pair(const struct vs_pair *pair, const u8 *dest, u8 path)
{
	return ether_addr_equal(dest, pair->dev->dev_addr) ||
	       (path == VS_PRIMARY && ether_addr_equal(dest, pair->primary_mac));
}

/* Returns whether the frame was an end marker; it is gone then. */
static bool vs_take_marker(struct vs_pair *pair, struct sk_buff *skb, u8 path)
{
	const struct vs_marker *marker;
	struct vs_marker copy;

	marker = skb_header_pointer(skb, 0, sizeof(copy), &copy);
	if (!pair->protocol || !marker || memcmp(marker->magic, vs_magic, sizeof(vs_magic)) ||
	    !vs_is_to_pair(pair, eth_hdr(skb)->h_dest, path))
		return false;

	spin_lock(&pair->hold_lock);
	pair->markers++;
	if (marker->left == path && test_bit(VS_RX_HOLD(!path), &pair->rx_state)) {
		pair->marked = true;
		vs_release_marked(pair, skb->dev);
	}
	spin_unlock(&pair->hold_lock);
	consume_skb(skb);
	return true;
}

/* What an earlier switch holds waits no longer. Process context. */
static void vs_end_rx_hold(struct vs_pair *pair)
{
	cancel_delayed_work_sync(&pair->release_work);
	local_bh_disable();
	vs_release_held(pair);
	local_bh_enable();
}

static void vs_start_rx_hold(struct vs_pair *pair, u8 path)
{
	vs_end_rx_hold(pair);
	spin_lock_bh(&pair->hold_lock);
	pair->marked = false;
	set_bit(VS_RX_HOLD(path), &pair->rx_state);
	spin_unlock_bh(&pair->hold_lock);
}

static bool vs_holds_received(const struct vs_pair *pair)
{
	return READ_ONCE(pair->rx_state) & VS_RX_HOLDS;
}

/*
 * Group frames reach the guest on both paths, and are taken on one of them. The guest's own come
 * back where the fabric connects the two paths, or from a NIC's embedded switch.
 */
static bool vs_accepts_group(struct vs_pair *pair, const struct sk_buff *skb)
{
	if (!READ_ONCE(pair->group_on_primary))
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

static rx_handler_result_t vs_pass_received(struct vs_pair *pair, struct sk_buff *skb)
{
	struct vs_cpu_stats *stats = this_cpu_ptr(pair->stats);

	skb->dev = pair->dev;
	u64_stats_update_begin(&stats->syncp);
	u64_stats_inc(&stats->rx_packets);
	u64_stats_add(&stats->rx_bytes, skb->len);
	u64_stats_update_end(&stats->syncp);
	return RX_HANDLER_ANOTHER;
}

/* Not inlined: the registers that it saves would cost each frame more than the call costs these. */
static noinline rx_handler_result_t vs_handle_unusual(struct sk_buff **pskb, struct vs_pair *pair)
{
	rx_handler_result_t result;
	unsigned long state;
	struct sk_buff *skb;

	if (unlikely((*pskb)->pkt_type == PACKET_LOOPBACK))
		return RX_HANDLER_PASS;
	skb = skb_share_check(*pskb, GFP_ATOMIC);
	if (unlikely(!skb))
		return RX_HANDLER_CONSUMED;
	*pskb = skb;

	/* a frame that a native XDP program of the master can't see must not pass it by */
	state = READ_ONCE(pair->rx_state);
	if (state & (BIT(VS_RX_XDP) | BIT(VS_RX_DOWN)))
		return vs_drop_received(pair, skb);
	if (vs_is_group(skb) && !vs_accepts_group(pair, skb))
		return vs_drop_received(pair, skb);
	if (skb->pkt_type == PACKET_OTHERHOST &&
	    ether_addr_equal_64bits(eth_hdr(skb)->h_dest, pair->dev->dev_addr))
		skb->pkt_type = PACKET_HOST;
	if (vs_maybe_marker(skb) && vs_take_marker(pair, skb, VS_PRIMARY))
		return RX_HANDLER_CONSUMED;

	result = vs_pass_received(pair, skb);
	if (state & BIT(VS_RX_HOLD_PRIMARY) && vs_hold_frame(pair, skb, VS_PRIMARY))
		return RX_HANDLER_CONSUMED;
	return result;
}

/* What the primary receives enters the stack as the master's. Runs in softirq, under RCU. */
static rx_handler_result_t vs_handle_frame(struct sk_buff **pskb)
{
	struct sk_buff *skb = *pskb;
	struct vs_pair *pair = rcu_dereference(skb->dev->rx_handler_data);

	if (unlikely(skb->pkt_type != PACKET_HOST || skb_shared(skb) || vs_maybe_marker(skb) ||
		     /* a frame beside the setting of a bit is one that came before it */
		     data_race(pair->rx_state)))
		return vs_handle_unusual(pskb, pair);
	return vs_pass_received(pair, skb);
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
	if (!READ_ONCE(pair->group_on_primary))
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

/* What the device says, and is told; all under RTNL */

static void vs_read_device(struct vs_pair *pair)
{
	struct virtio_device *vdev = dev_to_virtio(pair->dev->dev.parent);
	u8 mac[ETH_ALEN];
	bool fabric;
	u16 status;

	if (!pair->protocol || pair->frozen)
		return;
	virtio_cread(vdev, struct virtio_net_config, status, &status);
	virtio_cread_bytes(vdev, VIRTIO_NET_CONFIG_STANDBY_PRIMARY_MAC, mac, ETH_ALEN);

	pair->standby_wanted = status & VIRTIO_NET_S_STANDBY_WANTED;
	pair->fabric_marks = status & VIRTIO_NET_S_FABRIC_MARKS;
	fabric = status & VIRTIO_NET_S_FABRIC_PRIMARY;
	if (fabric != pair->fabric_on_primary)
		pair->fabric_moved = true;
	pair->fabric_on_primary = fabric;
	if (!ether_addr_equal(mac, pair->primary_mac)) {
		ether_addr_copy(pair->primary_mac, mac);
		pair->look = true;
	}
}

/* Whether the fabric can end a path with a marker that arrives. */
static bool vs_can_be_marked(const struct vs_pair *pair, u8 path)
{
	const struct net_device *primary = rtnl_dereference(pair->primary);

	if (!pair->fabric_marks)
		return false;
	return path == VS_PRIMARY ? primary && vs_can_send(primary) : netif_running(pair->dev);
}

/* From here on the fabric moves. Returns whether the device knows the datapath. */
static bool vs_tell(struct vs_pair *pair, u8 datapath, u8 flags)
{
	if (!pair->protocol || pair->frozen || pair->told == datapath)
		return true;
	if (vs_can_be_marked(pair, pair->told))
		vs_start_rx_hold(pair, datapath);
	if (!pair->driver->datapath_set(pair->dev, datapath, flags)) {
		pair->datapath_set_refused++;
		vs_end_rx_hold(pair);
		/* STANDBY_WANTED, perhaps, and a change of it is told; if not, try again */
		queue_delayed_work(system_freezable_wq, &pair->setup_work, VS_FABRIC_WAIT);
		return false;
	}
	pair->datapath_set_sent++;
	pair->told = datapath;
	pair->told_at = jiffies;
	/* without a fabric that answers it has moved already */
	vs_read_device(pair);
	return true;
}

/* Whether the primary may transmit: the fabric delivers there, or has had its time. */
static bool vs_fabric_agrees(struct vs_pair *pair, const struct net_device *primary)
{
	unsigned long end;

	if (!pair->protocol)
		return true;
	/* two moves of the fabric at once keep no order, and a failback can wait */
	if (pair->told == VS_STANDBY && (pair->fabric_on_primary || vs_holds_received(pair)) &&
	    time_before(jiffies, pair->told_at + VS_FABRIC_WAIT)) {
		queue_delayed_work(system_freezable_wq, &pair->setup_work,
				   msecs_to_jiffies(VS_DRAIN_STEP_MS));
		return false;
	}
	if (!vs_tell(pair, VS_PRIMARY, 0))
		return false;
	if (pair->fabric_on_primary)
		return true;
	/* by another address the primary may not send before the fabric lets it */
	if (!ether_addr_equal(primary->dev_addr, pair->dev->dev_addr))
		return false;
	end = pair->told_at + VS_FABRIC_WAIT;
	if (time_after_eq(jiffies, end))
		return true;
	/* the change of the configuration comes earlier, unless the fabric is late */
	queue_delayed_work(system_freezable_wq, &pair->setup_work, end - jiffies);
	return false;
}

/* Group frames are accepted where the fabric delivers; a hold's end moves that by itself. */
static void vs_update_acceptance(struct vs_pair *pair)
{
	bool on_primary = pair->protocol ? pair->fabric_on_primary :
					   !!rtnl_dereference(pair->tx_dev);

	spin_lock_bh(&pair->hold_lock);
	if (!vs_holds_received(pair))
		WRITE_ONCE(pair->group_on_primary, on_primary);
	else if (test_bit(VS_RX_HOLD(on_primary ? VS_PRIMARY : VS_STANDBY), &pair->rx_state))
		vs_release_later(pair);
	spin_unlock_bh(&pair->hold_lock);
}

/* Transmit over a switch: hold, drain, go on; all under RTNL */

static void vs_start_tx_hold(struct vs_pair *pair)
{
	pair->hold_start = ktime_get();
	WRITE_ONCE(pair->tx_hold, true);
	/* who has not seen it has handed its frame over after this */
	synchronize_net();
}

static void vs_end_tx_hold(struct vs_pair *pair)
{
	unsigned int queue;

	if (!pair->tx_hold)
		return;
	WRITE_ONCE(pair->tx_hold, false);
	/* see vs_hold_xmit() */
	smp_mb();
	/* no others: a queue that virtio_net has stopped has no room */
	for_each_set_bit(queue, pair->held_queues, pair->dev->num_tx_queues)
		if (test_and_clear_bit(queue, pair->held_queues))
			netif_tx_wake_queue(netdev_get_tx_queue(pair->dev, queue));
	pair->tx_hold_last_us = ktime_us_delta(ktime_get(), pair->hold_start);
}

/*
 * A frame behind all others of a queue: when the NIC gives it back, it has sent the others. Not
 * every driver can tell otherwise. May outlast its waiter, but not the primary's being open.
 */
struct vs_fence {
	refcount_t refs;
	atomic_t pending;
	struct completion passed;
};

static void vs_put_fence(struct vs_fence *fence)
{
	if (refcount_dec_and_test(&fence->refs))
		kfree(fence);
}

static void vs_pass_fence(struct vs_fence *fence)
{
	if (atomic_dec_and_test(&fence->pending))
		complete(&fence->passed);
}

static void vs_free_fence_frame(struct sk_buff *skb)
{
	struct vs_fence *fence = skb_shinfo(skb)->destructor_arg;

	vs_pass_fence(fence);
	vs_put_fence(fence);
}

/* From the NIC to itself: no one listens, and no switch forwards it. */
static struct sk_buff *vs_fence_frame(struct vs_fence *fence, struct net_device *primary)
{
	unsigned int headroom = LL_RESERVED_SPACE(primary);
	struct sk_buff *skb = alloc_skb(headroom + ETH_ZLEN, GFP_KERNEL);
	struct ethhdr *header;

	if (!skb)
		return NULL;
	skb_reserve(skb, headroom);
	header = skb_put_zero(skb, ETH_ZLEN);
	ether_addr_copy(header->h_dest, primary->dev_addr);
	ether_addr_copy(header->h_source, primary->dev_addr);
	header->h_proto = htons(ETH_P_LOOPBACK);
	skb_reset_mac_header(skb);
	skb_set_network_header(skb, ETH_HLEN);
	skb->protocol = header->h_proto;
	skb->dev = primary;

	refcount_inc(&fence->refs);
	atomic_inc(&fence->pending);
	skb_shinfo(skb)->destructor_arg = fence;
	skb->destructor = vs_free_fence_frame;
	return skb;
}

static bool vs_send_fence(struct vs_fence *fence, struct net_device *primary, u16 queue,
			  unsigned long end)
{
	struct sk_buff *skb = vs_fence_frame(fence, primary);
	int rc;

	if (!skb)
		return false;
	for (;;) {
		rc = __dev_direct_xmit(skb, queue);
		if (rc != NETDEV_TX_BUSY)
			return rc == NETDEV_TX_OK;
		if (time_after_eq(jiffies, end)) {
			kfree_skb(skb);
			return false;
		}
		usleep_range(100, 200);
	}
}

static bool vs_fence_primary(struct net_device *primary, unsigned long end)
{
	struct vs_fence *fence = kzalloc(sizeof(*fence), GFP_KERNEL);
	bool passed = true;
	u16 queue;

	if (!fence)
		return false;
	refcount_set(&fence->refs, 1);
	atomic_set(&fence->pending, 1);
	init_completion(&fence->passed);
	for (queue = 0; passed && queue < primary->real_num_tx_queues; queue++)
		passed = vs_send_fence(fence, primary, queue, end);
	vs_pass_fence(fence);
	if (passed)
		passed = wait_for_completion_timeout(&fence->passed,
						     max_t(long, end - jiffies, 1));
	vs_put_fence(fence);
	return passed;
}

/* Whether nothing waits in the primary's qdiscs, nor between them and the driver. */
static bool vs_qdiscs_are_empty(struct net_device *primary)
{
	bool empty = true;
	unsigned int i;

	rcu_read_lock();
	for (i = 0; i < primary->real_num_tx_queues; i++) {
		if (!vs_nothing_waits(rcu_dereference(netdev_get_tx_queue(primary, i)->qdisc)))
			empty = false;
	}
	rcu_read_unlock();
	return empty;
}

static bool vs_drain_primary(struct net_device *primary, unsigned long end)
{
	while (!vs_qdiscs_are_empty(primary)) {
		if (time_after_eq(jiffies, end) || !vs_can_send(primary))
			return false;
		usleep_range(100, 200);
	}
	return vs_fence_primary(primary, end);
}

static bool vs_drain_standby(struct vs_pair *pair, unsigned long end)
{
	while (!pair->driver->tx_is_empty(pair->dev)) {
		if (time_after_eq(jiffies, end))
			return false;
		usleep_range(100, 200);
	}
	return true;
}

/* Hold what is to be transmitted until the path used so far is empty, or its time is up. */
static bool vs_hold_and_drain(struct vs_pair *pair, struct net_device *primary, unsigned int ms)
{
	unsigned long end;
	bool drained;

	vs_start_tx_hold(pair);
	end = jiffies + msecs_to_jiffies(ms);
	drained = primary ? vs_drain_primary(primary, end) : vs_drain_standby(pair, end);
	if (drained)
		pair->tx_drained++;
	else
		pair->tx_forced++;
	return drained;
}

/* Which path carries the traffic; all under RTNL */

static const u8 *vs_address(const struct net_device *nic)
{
	return is_zero_ether_addr(nic->perm_addr) ? nic->dev_addr : nic->perm_addr;
}

/* Whether the device has named the NIC as its primary by a MAC address other than the master's. */
static bool vs_is_named(const struct vs_pair *pair, const struct net_device *nic)
{
	return !is_zero_ether_addr(pair->primary_mac) &&
	       ether_addr_equal(vs_address(nic), pair->primary_mac);
}

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
	if (!ether_addr_equal(primary->dev_addr, dev->dev_addr) && !vs_is_named(pair, primary))
		return "has another MAC address";
	if (dev->flags & IFF_PROMISC)
		return "can't receive for a promiscuous master";
	if (test_bit(VS_RX_XDP, &pair->rx_state))
		return "would pass by the master's XDP program";
	if (pair->standby_wanted)
		return "is not wanted by the device";
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

	if (!netif_running(dev) || pair->frozen)
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
		mod_delayed_work(system_freezable_wq, &pair->announce_work, VS_ANNOUNCE_INTERVAL);
}

static void vs_announce(struct vs_pair *pair)
{
	pair->fabric_moved = false;
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
	/* a virtio_net that can't tell when it is done keeps no order here */
	if (pair->driver)
		vs_hold_and_drain(pair, NULL, VS_DRAIN_MS);
	rcu_assign_pointer(pair->tx_dev, primary);
	vs_end_tx_hold(pair);
	pair->failbacks++;
	netdev_info(pair->dev, "primary %s carries the traffic\n", primary->name);
	vs_update_carrier(pair);
	vs_announce(pair);
}

static void vs_leave_primary(struct vs_pair *pair, const char *reason, unsigned int drain_ms)
{
	struct net_device *primary = rtnl_dereference(pair->tx_dev);
	bool forced = false;

	if (primary) {
		if (vs_can_send(primary) && !qdisc_tx_is_noop(primary)) {
			forced = !vs_hold_and_drain(pair, primary, drain_ms);
		} else {
			forced = true;
			pair->tx_forced++;
		}
		RCU_INIT_POINTER(pair->tx_dev, NULL);
		vs_end_tx_hold(pair);
	}
	vs_tell(pair, VS_STANDBY, forced ? VIRTIO_NET_STANDBY_DATAPATH_F_FORCED : 0);
	vs_update_acceptance(pair);
	if (!primary)
		return;
	pair->failovers++;
	netdev_info(pair->dev, "standby carries the traffic: primary %s %s\n",
		    primary->name, reason);
	vs_update_carrier(pair);
	vs_announce(pair);
}

static void vs_use_standby(struct vs_pair *pair, const char *reason)
{
	vs_leave_primary(pair, reason, VS_DRAIN_MS);
}

static void vs_update(struct vs_pair *pair)
{
	struct net_device *primary = rtnl_dereference(pair->primary);
	const char *obstacle;

	if (primary) {
		obstacle = vs_obstacle(pair, primary);
		if (obstacle)
			vs_use_standby(pair, obstacle);
		else if (vs_fabric_agrees(pair, primary))
			vs_use_primary(pair, primary);
	}
	vs_update_acceptance(pair);
	vs_update_carrier(pair);
	/* what was announced before reached a fabric that delivered elsewhere */
	if (pair->fabric_moved)
		vs_announce(pair);
}

/* Something about the primary has changed: leave it at once if need be; all else can wait. */
static void vs_check(struct vs_pair *pair)
{
	struct net_device *primary = rtnl_dereference(pair->tx_dev);
	const char *obstacle = primary ? vs_obstacle(pair, primary) : NULL;

	if (obstacle)
		vs_use_standby(pair, obstacle);
	vs_update_carrier(pair);
	vs_schedule_setup(pair);
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
 * The traffic has moved, and that was announced: while the primary still works, take what the
 * fabric still sends there, until it says that it has moved and there is silence.
 */
static void vs_drain_received(struct vs_pair *pair, const struct net_device *primary)
{
	unsigned long end = jiffies + msecs_to_jiffies(VS_DRAIN_MS);
	bool more;
	u64 before;

	do {
		before = vs_received(pair);
		msleep(VS_DRAIN_STEP_MS);
		vs_read_device(pair);
		more = vs_received(pair) != before || pair->fabric_on_primary ||
		       vs_holds_received(pair);
	} while (more && time_before(jiffies, end) && vs_can_send(primary));
}

/* The primary's life; all under RTNL */

static bool vs_has_address_of(const struct vs_pair *pair, const struct net_device *nic)
{
	return vs_is_named(pair, nic) || ether_addr_equal(vs_address(nic), pair->dev->perm_addr);
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

static bool vs_is_beside(const struct vs_pair *pair, const struct net_device *nic)
{
	return net_eq(dev_net(pair->dev), dev_net(nic));
}

/*
 * The registered pair that a NIC belongs to by its address, or NULL. One in the NIC's own network
 * namespace goes first.
 */
static struct vs_pair *vs_pair_for(const struct net_device *nic)
{
	struct vs_pair *pair, *elsewhere = NULL;

	if (!vs_is_nic(nic))
		return NULL;
	list_for_each_entry(pair, &vs_pairs, list) {
		if (!pair->registered)
			continue;
		/* another host's primary may come before the news of its address */
		vs_read_device(pair);
		if (!vs_has_address_of(pair, nic))
			continue;
		if (vs_is_beside(pair, nic))
			return pair;
		elsewhere = pair;
	}
	return elsewhere;
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

/* udev's rules go by the mark, and may have looked at the NIC before: let them look again. */
static void vs_tell_udev(struct net_device *nic)
{
	if (nic->reg_state == NETREG_REGISTERED)
		kobject_uevent(&nic->dev.kobj, KOBJ_CHANGE);
}

static void vs_let_go(struct net_device *nic)
{
	vs_unmark(nic);
	vs_tell_udev(nic);
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

	if (pair->follower == nic)
		pair->follower = NULL;
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
	vs_tell_udev(nic);
	netdev_info(pair->dev, "%s is the primary\n", nic->name);
	call_netdevice_notifiers(NETDEV_JOIN, nic);
}

/* The primary stays marked: vs_let_go() is the caller's, or it follows its master. */
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
	netdev_info(pair->dev, "%s is no longer the primary\n", primary->name);
}

static void vs_leave_alone(const struct vs_pair *pair, struct net_device *nic)
{
	vs_let_go(nic);
	netdev_warn(pair->dev, "%s has the same MAC address, too, and is left alone\n", nic->name);
}

static bool vs_is_free(struct net_device *nic)
{
	return !netdev_is_rx_handler_busy(nic) && !netdev_master_upper_dev_get(nic);
}

static void vs_look_for_primary(struct vs_pair *pair)
{
	struct net_device *nic;

	for_each_netdev(dev_net(pair->dev), nic) {
		if (vs_pair_for(nic) != pair || !vs_is_free(nic))
			continue;
		if (!rtnl_dereference(pair->primary))
			vs_enslave(pair, nic);
		else if (nic->flags & IFF_SLAVE)
			vs_leave_alone(pair, nic);
	}
}

/*
 * Two kinds of NIC follow the master into its network namespace: what was its primary when it was
 * moved, and what is plugged while it is not in init_net, where the kernel puts each new NIC.
 * Where somebody has moved a NIC to, it stays.
 */
static void vs_move_follower(struct vs_pair *pair)
{
	struct net_device *nic = pair->follower;
	struct net *net = dev_net(pair->dev);
	int err;

	/* the kernel is about to move the master on from a namespace that dies */
	if (!check_net(net))
		return;
	pair->follower = NULL;
	/* somebody else's by now, and so is the mark */
	if (!vs_is_free(nic))
		return;
	if (rtnl_dereference(pair->primary)) {
		vs_leave_alone(pair, nic);
		return;
	}
	/* the event of its arrival makes the pair look for it there */
	err = dev_change_net_namespace(nic, net, "eth%d");
	if (!err)
		return;
	vs_let_go(nic);
	netdev_err(pair->dev, "%s can't follow into this network namespace (%d): the standby is used\n",
		   nic->name, err);
}

static void vs_open_primary(struct vs_pair *pair, struct net_device *primary)
{
	int err = dev_open(primary, NULL);

	pair->open = err;
	if (!err)
		return;
	if (--pair->open_attempts) {
		queue_delayed_work(system_freezable_wq, &pair->setup_work, VS_OPEN_INTERVAL);
		return;
	}
	pair->open = false;
	netdev_err(pair->dev, "primary %s can't be opened (%d): the standby is used\n",
		   primary->name, err);
}

/*
 * What is sent has passed the master's features; what is received only the primary's. Of those GRO
 * is the one that both have, and that the user sets for the stack's sake, not the NIC's.
 */
static void vs_sync_gro(const struct vs_pair *pair, struct net_device *primary)
{
	netdev_features_t wanted = primary->wanted_features & ~NETIF_F_GRO;

	wanted |= pair->dev->features & NETIF_F_GRO;
	if (wanted == primary->wanted_features)
		return;
	netdev_lock_ops(primary);
	primary->wanted_features = wanted;
	netdev_update_features(primary);
	netdev_unlock_ops(primary);
}

static void vs_setup(struct vs_pair *pair)
{
	struct net_device *primary;

	vs_read_device(pair);
	if (pair->look)
		vs_look_for_primary(pair);
	pair->look = false;
	if (pair->follower)
		vs_move_follower(pair);
	primary = rtnl_dereference(pair->primary);
	if (primary)
		vs_sync_gro(pair, primary);
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
	if (pair->registered && !pair->frozen)
		vs_setup(pair);
	rtnl_unlock();
}

static void vs_schedule_setup(struct vs_pair *pair)
{
	mod_delayed_work(system_freezable_wq, &pair->setup_work, 0);
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
	bool before = test_bit(VS_RX_XDP, &pair->rx_state);
	int err;

	if (bpf->command != XDP_SETUP_PROG)
		return pair->standby_ops->ndo_bpf(dev, bpf);
	if (bpf->prog)
		set_bit(VS_RX_XDP, &pair->rx_state);
	err = pair->standby_ops->ndo_bpf(dev, bpf);
	assign_bit(VS_RX_XDP, &pair->rx_state, err ? before : !!bpf->prog);
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
	"fabric_is_primary",
	"tx_drained",
	"tx_forced",
	"tx_hold_last_us",
	"rx_held",
	"rx_hold_forced",
	"markers",
	"datapath_set_sent",
	"datapath_set_refused",
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
	*data++ = pair->fabric_on_primary;
	*data++ = pair->tx_drained;
	*data++ = pair->tx_forced;
	*data++ = pair->tx_hold_last_us;
	*data++ = READ_ONCE(pair->rx_held);
	*data++ = READ_ONCE(pair->rx_hold_forced);
	*data++ = READ_ONCE(pair->markers);
	*data++ = pair->datapath_set_sent;
	*data++ = pair->datapath_set_refused;
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
	if (rtnl_dereference(pair->tx_dev) != primary && pair->told != VS_PRIMARY)
		return;
	vs_leave_primary(pair, "goes down", VS_LEAVE_MS);
	vs_drain_received(pair, primary);
	vs_end_rx_hold(pair);
}

static void vs_primary_event(struct vs_pair *pair, struct net_device *primary, unsigned long event)
{
	switch (event) {
	case NETDEV_UP:
	case NETDEV_DOWN:
	case NETDEV_CHANGE:
	case NETDEV_CHANGEMTU:
	case NETDEV_CHANGEADDR:
		vs_check(pair);
		break;
	case NETDEV_GOING_DOWN:
		vs_primary_goes_down(pair, primary);
		break;
	case NETDEV_UNREGISTER:
		/* or somebody moves it to another namespace */
		vs_release(pair, primary);
		vs_let_go(primary);
		break;
	}
}

static void vs_master_leaves(struct vs_pair *pair)
{
	struct net_device *primary = rtnl_dereference(pair->primary);

	pair->registered = false;
	if (primary) {
		vs_release(pair, primary);
		pair->follower = primary;
	}
	/* one that is only moved to another namespace stays registered; REGISTER is next */
	if (pair->dev->reg_state != NETREG_REGISTERED && pair->follower) {
		vs_let_go(pair->follower);
		pair->follower = NULL;
	}
}

static void vs_master_event(struct vs_pair *pair, unsigned long event)
{
	switch (event) {
	case NETDEV_REGISTER:
		pair->registered = true;
		pair->look = true;
		vs_schedule_setup(pair);
		break;
	case NETDEV_UNREGISTER:
		vs_master_leaves(pair);
		break;
	case NETDEV_UP:
		clear_bit(VS_RX_DOWN, &pair->rx_state);
		pair->open = true;
		pair->open_attempts = VS_OPEN_ATTEMPTS;
		vs_schedule_setup(pair);
		break;
	case NETDEV_GOING_DOWN:
		vs_use_standby(pair, "is not needed, the master goes down");
		vs_end_rx_hold(pair);
		set_bit(VS_RX_DOWN, &pair->rx_state);
		break;
	case NETDEV_DOWN:
	case NETDEV_FEAT_CHANGE:
		vs_schedule_setup(pair);
		break;
	case NETDEV_CHANGE:
	case NETDEV_CHANGEMTU:
	case NETDEV_CHANGEADDR:
		if (pair->registered)
			vs_check(pair);
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

/* Neither udev nor IPv6 has seen it yet. */
static void vs_nic_is_new(struct net_device *nic)
{
	struct vs_pair *pair = vs_pair_for(nic);

	if (!pair || rtnl_dereference(pair->primary))
		return;
	/* devlink can make a NIC appear in a namespace that somebody has chosen */
	if (vs_is_beside(pair, nic) || net_eq(dev_net(nic), &init_net))
		vs_mark(nic);
}

static void vs_nic_appears(struct net_device *nic)
{
	struct vs_pair *pair = vs_pair_for(nic);
	bool beside = pair && vs_is_beside(pair, nic);

	/* without the mark it is not new, but was moved there */
	if (!pair || (!beside && !(nic->flags & IFF_SLAVE)))
		return;
	if (rtnl_dereference(pair->primary) || (!beside && pair->follower)) {
		vs_leave_alone(pair, nic);
		return;
	}
	if (beside)
		pair->look = true;
	else
		pair->follower = nic;
	vs_schedule_setup(pair);
}

/* It goes, or somebody moves it to another namespace, and then it is not to be taken from there. */
static void vs_nic_leaves(struct net_device *nic)
{
	struct vs_pair *pair;

	list_for_each_entry(pair, &vs_pairs, list) {
		if (pair->follower == nic) {
			pair->follower = NULL;
			vs_let_go(nic);
		}
	}
}

static void vs_nic_event(struct net_device *nic, unsigned long event)
{
	switch (event) {
	case NETDEV_POST_INIT:
		vs_nic_is_new(nic);
		break;
	case NETDEV_REGISTER:
		vs_nic_appears(nic);
		break;
	case NETDEV_UNREGISTER:
		vs_nic_leaves(nic);
		break;
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

static bool vs_has_protocol(const struct vs_pair *pair)
{
	struct virtio_device *vdev = dev_to_virtio(pair->dev->dev.parent);

	return pair->driver && virtio_has_feature(vdev, VIRTIO_NET_F_STANDBY_DATAPATH);
}

static void vs_force_vlan_filter(struct vs_pair *pair)
{
	/* else the primary would never be told of a VLAN */
	pair->filter_forced = !(pair->dev->features & NETIF_F_HW_VLAN_CTAG_FILTER);
	pair->dev->features |= NETIF_F_HW_VLAN_CTAG_FILTER;
}

static void vs_free(struct vs_pair *pair)
{
	bitmap_free(pair->held_queues);
	free_percpu(pair->stats);
	kfree(pair);
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
	pair->held_queues = bitmap_zalloc(dev->num_tx_queues, GFP_KERNEL);
	if (!pair->stats || !pair->held_queues) {
		vs_free(pair);
		return ERR_PTR(-ENOMEM);
	}
	pair->dev = dev;
	pair->rx_state = BIT(VS_RX_DOWN);
	pair->driver = driver;
	pair->protocol = vs_has_protocol(pair);
	spin_lock_init(&pair->hold_lock);
	__skb_queue_head_init(&pair->held);
	INIT_DELAYED_WORK(&pair->release_work, vs_release_work);
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
	cancel_delayed_work_sync(&pair->release_work);
	__skb_queue_purge(&pair->held);

	rtnl_lock();
	list_del(&pair->list);
	pair->dev->netdev_ops = pair->standby_ops;
	pair->dev->ethtool_ops = pair->standby_ethtool_ops;
	rtnl_unlock();

	vs_free(pair);
}
EXPORT_SYMBOL_GPL(vnet_standby_destroy);

static bool vs_drop_standby_group(struct vs_pair *pair, struct sk_buff *skb)
{
	/* the guest's own, sent by the primary, before the fabric has moved there */
	bool own = rcu_access_pointer(pair->tx_dev) &&
		   ether_addr_equal(eth_hdr(skb)->h_source, pair->dev->dev_addr);

	if (!READ_ONCE(pair->group_on_primary) && !own)
		return false;
	vs_count_standby_drop(pair);
	kfree_skb(skb);
	return true;
}

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

	if (unlikely(vs_is_group(skb)) && vs_drop_standby_group(pair, skb))
		return true;
	if (unlikely(vs_maybe_marker(skb)) && vs_take_marker(pair, skb, VS_STANDBY))
		return true;
	return unlikely(READ_ONCE(pair->rx_state) & BIT(VS_RX_HOLD_STANDBY)) &&
	       vs_hold_frame(pair, skb, VS_STANDBY);
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
	struct vs_pair *pair;

	if (!failover)
		return;
	pair = container_of(failover, struct vs_pair, failover);
	rtnl_lock();
	vs_use_standby(pair, "is left, the device is suspended");
	vs_end_rx_hold(pair);
	pair->frozen = true;
	rtnl_unlock();
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
	struct vs_pair *pair;

	if (!failover)
		return;
	pair = container_of(failover, struct vs_pair, failover);
	rtnl_lock();
	pair->frozen = false;
	/* after a reset it knows of nothing */
	pair->told = VS_STANDBY;
	rtnl_unlock();
	vs_schedule_setup(pair);
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
