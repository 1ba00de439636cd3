/* SPDX-License-Identifier: GPL-2.0 */
/* No includes here: they would change the symbol CRCs that drop_in.c is there to keep. */
#ifndef _VNET_STANDBY_H
#define _VNET_STANDBY_H

struct failover;
struct net_device;

struct failover *vnet_standby_create(struct net_device *dev);
void vnet_standby_destroy(struct failover *failover);

#endif
