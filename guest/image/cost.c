/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a packet costs inside the guest, in instructions.
 *
 *   cost send NETDEV PEER-ADDRESS             UDP datagrams out of NETDEV
 *   cost receive NETDEV ADDRESS INJECTOR      UDP datagrams to ADDRESS, which INJECTOR puts on NETDEV's wire in bursts
 *   cost ignore NETDEV ADDRESS INJECTOR       the same, addressed to nobody: what injecting costs
 *
 * Runs as the guest's only process under QEMU's instruction counter, where the time stamp counter counts instructions
 * (docs/devel/tcg-icount.rst), and also the nanoseconds in which nothing runs: those are taken off. Prints to standard
 * output, and powers the guest off:
 *
 *   calibration TICKS            what a loop of two million instructions takes
 *   run PACKETS TICKS IRQS DIRECT    one line for each number of packets: what is constant drops out of the difference;
 *                                    DIRECT is how many of them e1000e, the primary's driver, sent or received
 *   error TEXT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <glob.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT 47001
#define PAYLOAD 64
#define BURST 32
#define SETTLE_MS 10000 /* of the guest's time: links, announcements, address detection are over then */
#define BURST_MS 2
#define CALIBRATIONS 20
#define CALIBRATION_ROUNDS 1000000UL /* of two instructions each */

struct counters {
	uint64_t ticks;
	uint64_t irqs;
};

struct frame {
	struct ether_header ethernet;
	struct iphdr ip;
	struct udphdr udp;
	uint8_t payload[PAYLOAD];
} __attribute__((packed));

static const uint8_t PEER_MAC[ETH_ALEN] = { 0x02, 0, 0, 0, 0, 1 };
/* not 52:54:00...: the hash filters of emulated NICs must not take it for the guest's */
static const uint8_t NOBODYS_MAC[ETH_ALEN] = { 0x02, 0, 0, 0, 0x55, 0x7a };

static void __attribute__((noreturn)) finish(void)
{
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
	exit(1); /* not reached by the first process */
}

static void __attribute__((noreturn)) fail(const char *what)
{
	printf("error %s: %s\n", what, strerror(errno));
	finish();
}

static void pause_ms(long ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&time, NULL);
}

static uint64_t timestamp(void)
{
	return __builtin_ia32_rdtsc();
}

/* The sum of the numbers that follow a word in a file of /proc. */
static uint64_t sum_of(const char *path, const char *format)
{
	FILE *file = fopen(path, "r");
	unsigned long long number;
	uint64_t sum = 0;
	char line[4096];

	if (!file)
		fail(path);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, format, &number) == 1)
			sum += number;
	fclose(file);
	return sum;
}

/* A counter of all of e1000e's netdevs. */
static uint64_t direct_packets(const char *counter)
{
	uint64_t packets = 0;
	glob_t found;

	if (glob("/sys/bus/pci/drivers/e1000e/*/net/*/statistics", 0, NULL, &found))
		fail("no e1000e");
	for (size_t i = 0; i < found.gl_pathc; i++) {
		char path[512];

		snprintf(path, sizeof(path), "%s/%s", found.gl_pathv[i], counter);
		packets += sum_of(path, "%llu");
	}
	globfree(&found);
	return packets;
}

static struct counters count(void)
{
	struct counters counters = { .irqs = sum_of("/proc/stat", "intr %llu") };
	uint64_t idle = sum_of("/proc/timer_list", " .idle_sleeptime : %llu");

	counters.ticks = timestamp() - idle;
	return counters;
}

/* The fastest of some loops: no interrupt came while it ran. */
static void calibrate(void)
{
	uint64_t fastest = UINT64_MAX;

	for (int i = 0; i < CALIBRATIONS; i++) {
		unsigned long rounds = CALIBRATION_ROUNDS;
		uint64_t before = timestamp(), took;

		__asm__ volatile("1: dec %0\n\tjnz 1b" : "+r"(rounds) : : "cc");
		took = timestamp() - before;
		if (took < fastest)
			fastest = took;
	}
	printf("calibration %llu\n", (unsigned long long)fastest);
}

static int udp_socket(void)
{
	struct sockaddr_in any = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof(any)))
		fail("UDP socket");
	return fd;
}

/* Nobody answers on this wire: the neighbour is told, not asked for. */
static void know_neighbour(int fd, const char *netdev, struct sockaddr_in peer)
{
	struct arpreq request = { .arp_flags = ATF_COM | ATF_PERM };

	memcpy(&request.arp_pa, &peer, sizeof(peer));
	request.arp_ha.sa_family = ARPHRD_ETHER;
	memcpy(request.arp_ha.sa_data, PEER_MAC, ETH_ALEN);
	snprintf(request.arp_dev, sizeof(request.arp_dev), "%s", netdev);
	if (ioctl(fd, SIOCSARP, &request))
		fail("neighbour");
}

static void send_packets(int fd, struct sockaddr_in peer, int packets)
{
	static const char payload[PAYLOAD];

	for (int i = 0; i < packets; i++)
		if (sendto(fd, payload, PAYLOAD, 0, (struct sockaddr *)&peer, sizeof(peer)) != PAYLOAD)
			fail("sendto");
	pause_ms(BURST_MS);
}

static uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *words = data;
	uint32_t sum = 0;

	for (size_t i = 0; i < size / 2; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

static struct frame frame_for(const uint8_t *mac, in_addr_t address)
{
	struct frame frame = {
		.ethernet.ether_type = htons(ETHERTYPE_IP),
		.ip = { .version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP,
			.tot_len = htons(sizeof(frame) - sizeof(frame.ethernet)),
			.saddr = address ^ htonl(3), .daddr = address },
		.udp = { .source = htons(PORT), .dest = htons(PORT),
			 .len = htons(sizeof(frame.udp) + PAYLOAD) },
	};
	struct iphdr ip = frame.ip;

	memcpy(frame.ethernet.ether_dhost, mac, ETH_ALEN);
	memcpy(frame.ethernet.ether_shost, PEER_MAC, ETH_ALEN);
	frame.ip.check = checksum(&ip, sizeof(ip));
	return frame;
}

static int packet_socket(const char *netdev)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(netdev) };
	int fd = socket(AF_PACKET, SOCK_RAW, 0); /* protocol 0: it only sends */

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
		fail("packet socket");
	return fd;
}

static void mac_of(int fd, const char *netdev, uint8_t *mac)
{
	struct ifreq request = { 0 };

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", netdev);
	if (ioctl(fd, SIOCGIFHWADDR, &request))
		fail("hardware address");
	memcpy(mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
}

/* Returns how many arrived. */
static int receive_packets(int fd, int injector, const struct frame *frame, int packets)
{
	char payload[PAYLOAD];
	int arrived = 0;

	for (int sent = 0; sent < packets; sent += BURST) {
		for (int i = 0; i < BURST; i++)
			if (send(injector, frame, sizeof(*frame), 0) != sizeof(*frame))
				fail("injecting");
		pause_ms(BURST_MS);
		while (recv(fd, payload, sizeof(payload), MSG_DONTWAIT) == PAYLOAD)
			arrived++;
	}
	return arrived;
}

int main(int argc, char **argv)
{
	static const int RUNS[] = { 320, 10240, 30720 }; /* the first one fills caches */
	bool sends = argc == 4 && !strcmp(argv[1], "send");
	bool listens = argc == 5 && !strcmp(argv[1], "receive");
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	uint8_t mac[ETH_ALEN];
	struct frame frame;
	int fd, injector = -1;

	if (!sends && !listens && !(argc == 5 && !strcmp(argv[1], "ignore"))) {
		errno = EINVAL;
		fail("usage: see cost.c");
	}
	if (inet_pton(AF_INET, argv[3], &address.sin_addr) != 1)
		fail(argv[3]);
	pause_ms(SETTLE_MS);
	calibrate();
	fd = udp_socket();
	if (sends) {
		know_neighbour(fd, argv[2], address);
	} else {
		mac_of(fd, argv[2], mac);
		frame = frame_for(listens ? mac : NOBODYS_MAC, address.sin_addr.s_addr);
		injector = packet_socket(argv[4]);
	}

	for (size_t i = 0; i < sizeof(RUNS) / sizeof(RUNS[0]); i++) {
		const char *counter = sends ? "tx_packets" : "rx_packets";
		uint64_t direct = direct_packets(counter);
		struct counters before = count(), after;
		int arrived = 0;

		if (sends)
			send_packets(fd, address, RUNS[i]);
		else
			arrived = receive_packets(fd, injector, &frame, RUNS[i]);
		after = count();
		if (!sends && arrived != (listens ? RUNS[i] : 0)) {
			errno = EIO;
			fail("packets are missing or in excess");
		}
		printf("run %d %llu %llu %llu\n", RUNS[i], (unsigned long long)(after.ticks - before.ticks),
		       (unsigned long long)(after.irqs - before.irqs),
		       (unsigned long long)(direct_packets(counter) - direct));
	}
	finish();
}
