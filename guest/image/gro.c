/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Generic receive offload, as ethtool -k and -K have it.
 *
 *   gro NETDEV [on|off]    print whether NETDEV merges what it receives; or set it
 */
#include <err.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static struct ethtool_value ask(const char *netdev, struct ethtool_value value)
{
	struct ifreq request = { .ifr_data = (void *)&value };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (strlen(netdev) >= sizeof(request.ifr_name))
		errx(2, "%s is no netdev's name", netdev);
	strcpy(request.ifr_name, netdev);
	if (fd < 0 || ioctl(fd, SIOCETHTOOL, &request) < 0)
		err(1, "%s", netdev);
	return value;
}

int main(int argc, char **argv)
{
	struct ethtool_value value = { .cmd = ETHTOOL_GGRO };

	if (argc < 2 || argc > 3 || (argc == 3 && strcmp(argv[2], "on") && strcmp(argv[2], "off")))
		errx(2, "usage: gro NETDEV [on|off]");
	if (argc == 3) {
		value.cmd = ETHTOOL_SGRO;
		value.data = !strcmp(argv[2], "on");
		ask(argv[1], value);
	} else {
		puts(ask(argv[1], value).data ? "on" : "off");
	}
	return 0;
}
