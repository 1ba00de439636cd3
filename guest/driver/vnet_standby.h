/* SPDX-License-Identifier: GPL-2.0 */
/* No includes here: they would change the symbol CRCs that drop_in.c is there to keep. */
#ifndef _VNET_STANDBY_H
#define _VNET_STANDBY_H

struct failover;
struct net_device;
struct sk_buff;

/*
 * The standby datapath protocol: qemu-patches/spec/virtio-net-standby-datapath.md. All numbers are
 * experimental.
 */
#define VIRTIO_NET_F_STANDBY_DATAPATH	58

#define VIRTIO_NET_S_STANDBY_WANTED	0x10	/* move to the standby and stay there */
#define VIRTIO_NET_S_FABRIC_PRIMARY	0x20	/* the fabric delivers to the primary */
#define VIRTIO_NET_S_FABRIC_MARKS	0x40	/* it ends each path that it leaves with a marker */

/* of the configuration, behind the fields of all other features: u8[6], zeros for that of mac */
#define VIRTIO_NET_CONFIG_STANDBY_PRIMARY_MAC	28

#define VIRTIO_NET_CTRL_STANDBY			58
#define VIRTIO_NET_CTRL_STANDBY_DATAPATH_SET	0

#define VIRTIO_NET_STANDBY_DATAPATH_STANDBY	0
#define VIRTIO_NET_STANDBY_DATAPATH_PRIMARY	1
#define VIRTIO_NET_STANDBY_DATAPATH_F_FORCED	1	/* the old path was not empty yet */

struct virtio_net_ctrl_standby_datapath {
	u8 datapath;
	u8 flags;
};

/**
 * struct vnet_standby_ops - what only virtio_net can do for a pair
 * @datapath_set: tell the device which datapath is used; only with
 *	VIRTIO_NET_F_STANDBY_DATAPATH negotiated. Returns false if the device refuses.
 * @tx_is_empty: take back used TX buffers, return whether there are no others. May sleep. Nobody
 *	may be transmitting.
 */
struct vnet_standby_ops {
	bool (*datapath_set)(struct net_device *dev, u8 datapath, u8 flags);
	bool (*tx_is_empty)(struct net_device *dev);
};

struct failover *vnet_standby_create(struct net_device *dev, const struct vnet_standby_ops *ops);
void vnet_standby_destroy(struct failover *failover);
bool vnet_standby_receive(struct failover *failover, struct sk_buff *skb);
void vnet_standby_config_changed(struct failover *failover);
void vnet_standby_freeze(struct failover *failover);
void vnet_standby_restore(struct failover *failover);

#endif
