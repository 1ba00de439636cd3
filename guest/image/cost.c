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
 *   run PACKETS TICKS IRQS DIRECT    few packets and many, in turn: what is constant drops out of the difference;
 *                                    DIRECT is how many of them e1000e, the primary's driver, sent or received
 *   error TEXT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <glob.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
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
#define PAUSE_MS 2
#define BURST_MS 4   /* from one to the next: the kernel's tick, so that each burst has the same share of it */
#define BURST_AT_MS 1 /* after the tick */
#define MODERATION_US 1000 /* longer than a burst: one interrupt for its first frame, one for all others */
#define ROUNDS 7
#define FEW (20 * BURST)
#define MANY (100 * BURST)
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

/*
 * A NIC that adapts its interrupts to the traffic has more of them when a packet costs more, at one cost and not at
 * another: the same number a burst, whatever it costs.
 */
static void moderate(int fd, const char *netdev)
{
	struct ethtool_coalesce coalesce = { .cmd = ETHTOOL_GCOALESCE };
	struct ifreq request = { .ifr_data = (void *)&coalesce };

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", netdev);
	if (ioctl(fd, SIOCETHTOOL, &request))
		fail("interrupt moderation");
	coalesce.cmd = ETHTOOL_SCOALESCE;
	coalesce.rx_coalesce_usecs = MODERATION_US;
	if (ioctl(fd, SIOCETHTOOL, &request))
		fail("interrupt moderation");
}

/* The netdev of e1000e, the primary's driver. */
static const char *primary(void)
{
	static char name[IFNAMSIZ];
	glob_t found;

	if (glob("/sys/bus/pci/drivers/e1000e/*/net/*", 0, NULL, &found))
		fail("no e1000e");
	snprintf(name, sizeof(name), "%s", basename(found.gl_pathv[0]));
	globfree(&found);
	return name;
}

static uint64_t packets_of(const char *netdev, const char *counter)
{
	char path[512];

	snprintf(path, sizeof(path), "/sys/class/net/%s/statistics/%s", netdev, counter);
	return sum_of(path, "%llu");
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
	pause_ms(PAUSE_MS);
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

static void wait_for_burst(void)
{
	struct timespec time;
	long long ms;

	clock_gettime(CLOCK_MONOTONIC, &time);
	ms = time.tv_sec * 1000LL + time.tv_nsec / 1000000;
	ms += BURST_MS + BURST_AT_MS - ms % BURST_MS;
	time.tv_sec = ms / 1000;
	time.tv_nsec = ms % 1000 * 1000000;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

struct job {
	bool sends, listens;
	int fd, injector;
	struct sockaddr_in address;
	struct frame frame;
};

static void receive_packets(const struct job *job, int packets)
{
	int expected = job->listens ? packets : 0, arrived = 0;
	char payload[PAYLOAD];

	wait_for_burst();
	for (int sent = 0; sent < packets; sent += BURST) {
		for (int i = 0; i < BURST; i++)
			if (send(job->injector, &job->frame, sizeof(job->frame), 0) != sizeof(job->frame))
				fail("injecting");
		wait_for_burst();
		while (recv(job->fd, payload, sizeof(payload), MSG_DONTWAIT) == PAYLOAD)
			arrived++;
	}
	if (arrived != expected) {
		errno = EIO;
		fail("packets are missing or in excess");
	}
}

static void run(const struct job *job, int packets)
{
	const char *counter = job->sends ? "tx_packets" : "rx_packets";
	uint64_t direct = packets_of(primary(), counter);
	struct counters before = count(), after;

	if (job->sends)
		send_packets(job->fd, job->address, packets);
	else
		receive_packets(job, packets);
	after = count();
	printf("run %d %llu %llu %llu\n", packets, (unsigned long long)(after.ticks - before.ticks),
	       (unsigned long long)(after.irqs - before.irqs),
	       (unsigned long long)(packets_of(primary(), counter) - direct));
}

int main(int argc, char **argv)
{
	struct job job = { .address = { .sin_family = AF_INET, .sin_port = htons(PORT) } };
	uint8_t mac[ETH_ALEN];

	job.sends = argc == 4 && !strcmp(argv[1], "send");
	job.listens = argc == 5 && !strcmp(argv[1], "receive");
	if (!job.sends && !job.listens && !(argc == 5 && !strcmp(argv[1], "ignore"))) {
		errno = EINVAL;
		fail("usage: see cost.c");
	}
	if (inet_pton(AF_INET, argv[3], &job.address.sin_addr) != 1)
		fail(argv[3]);
	pause_ms(SETTLE_MS);
	calibrate();
	job.fd = udp_socket();
	if (job.sends) {
		know_neighbour(job.fd, argv[2], job.address);
	} else {
		mac_of(job.fd, argv[2], mac);
		job.frame = frame_for(job.listens ? mac : NOBODYS_MAC, job.address.sin_addr.s_addr);
		job.injector = packet_socket(argv[4]);
		moderate(job.fd, primary());
		moderate(job.fd, argv[4]);
	}

	run(&job, FEW); /* fills caches */
	for (int i = 0; i < ROUNDS; i++) {
		run(&job, FEW);
		run(&job, MANY);
	}
	finish();
}
