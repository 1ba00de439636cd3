/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The lab's agent inside a guest: the one that migrates, and in a nested lab the hosts, which are guests, too.
 *
 * One process, one poll loop. It records every numbered probe that reaches the guest's UDP socket, answers echo
 * requests, sends a numbered stream of its own, and obeys the lab over a virtio-serial port, line by line:
 *
 *   lab:    TAG COMMAND [ARGUMENT...]
 *   agent:  TAG = DATA           any number of these
 *           TAG ok | TAG error TEXT
 *
 *   hello                        kernel release
 *   clock                        the guest's clock
 *   links                        one line a netdev: NAME key=value...
 *   counters NETDEV              its driver's counters, as ethtool -S: "COUNTER VALUE"
 *   stream ADDRESS INTERVAL_US   start the numbered stream to ADDRESS (numbers go on from where they were)
 *   silence                      stop it
 *   received, sent               the records: "SEQ GUEST_NS" and "SEQ GUEST_NS ERRNO"
 *   observe NETDEV               from now on record every numbered probe that NETDEV, a guest's tap, carries: to the
 *                                guest going out, from the guest coming in, not the copies that a bridge floods back;
 *                                asked again, it begins anew
 *   observed NETDEV              these records: "SEQ to_guest|from_guest GUEST_NS", the kernel's time stamp;
 *                                "error ..." after them if they are not complete (frames dropped for want of buffer)
 *   forget                       empty all records, number from 0 again; what is observed stays so
 *   run TEXT                     a shell command; its output, and "error exit N" unless it exits with 0
 *   spawn NAME TEXT              start a simple shell command that goes on for itself, in a session of its own, its
 *                                output in /tmp/NAME.log; a NAME is free again when its process has exited
 *   term NAME, kill NAME         send SIGTERM, SIGKILL to its process group; "! exited" tells when it is over
 *
 * Unasked, it says "! clock GUEST_NS" ten times a second, "! link NAME key=value..." or "! gone NAME" when the kernel
 * reports a change of a netdev, and "! exited NAME status=N pid=PID" when a spawned process has ended: N is what it
 * exited with, 128 + the signal's number if a signal ended it, 127 if there is no such command. Times are
 * CLOCK_REALTIME nanoseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PORT_NAME "org.vnet-standby.agent"
#define PROBE_MAGIC 0x564e5342u /* "VNSB" */
#define PEER_UDP_PORT 47000
#define GUEST_UDP_PORT 47001
#define PROBE_PAYLOAD 46 /* bytes, as the peer's */
#define CLOCK_INTERVAL_NS 100000000L
#define SOCKET_BUFFER (8 << 20) /* bytes: a backlog after the blackout must fit */
#define OBSERVER_BUFFER (32 << 20) /* bytes: a busy host may leave this process waiting for seconds */
#define OBSERVERS_MAX 8
#define NAME_SIZE 32 /* bytes, of the name of a spawned process */

enum probe_kind { NUMBERED = 1, ECHO_REQUEST = 2, ECHO_REPLY = 3 };

/* On the wire, big-endian; scripts/vnet_standby/traffic/probe.py is its twin. */
struct probe {
	uint32_t magic;
	uint8_t kind;
	uint8_t flags;
	uint16_t pad;
	uint32_t seq;
	uint64_t t_ns;
} __attribute__((packed));

struct record {
	uint64_t t_ns;
	uint32_t seq;
	int32_t error;
};

struct log {
	struct record *at;
	size_t used, room;
};

struct text {
	char *at;
	size_t used, room;
};

/* A numbered probe that an observed netdev carried the way its stream goes. */
struct passing {
	uint64_t t_ns;
	uint32_t seq;
	bool to_guest;
};

struct observer {
	char netdev[IFNAMSIZ];
	int socket; /* -1 once a read has failed for good */
	int error; /* errno of a read that failed for good */
	unsigned long dropped;
	struct passing *at;
	size_t used, room;
};

struct process {
	pid_t pid;
	char name[NAME_SIZE];
};

static struct log received, sent;
static struct observer observers[OBSERVERS_MAX];
static size_t observer_count;
static struct {
	struct process *at;
	size_t used, room;
} spawned;
static struct text output; /* waits for the lab to read */
static int port = -1;
static bool host_listens; /* poll() would report POLLHUP again and again while the lab is away */
static int udp, link_events, clock_timer, stream_timer, child_events;
static struct sockaddr_in stream_to;
static uint32_t next_seq;

static struct {
	pid_t pid;
	bool exited;
	int status; /* as wait() tells it, once it has exited */
	int pipe;
	char tag[32];
	struct text line;
} job = { .pipe = -1 };

static void die(const char *what)
{
	fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *grow(void *at, size_t *room, size_t need, size_t size)
{
	if (need <= *room)
		return at;
	*room = need > 2 * *room ? need : 2 * *room;
	at = realloc(at, *room * size);
	if (!at)
		die("out of memory");
	return at;
}

static void text_append(struct text *text, const char *data, size_t length)
{
	text->at = grow(text->at, &text->room, text->used + length, 1);
	memcpy(text->at + text->used, data, length);
	text->used += length;
}

static void log_append(struct log *log, uint32_t seq, uint64_t t_ns, int error)
{
	log->at = grow(log->at, &log->room, log->used + 1, sizeof(*log->at));
	log->at[log->used++] = (struct record){ .t_ns = t_ns, .seq = seq, .error = error };
}

static uint64_t as_ns(struct timespec t)
{
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return as_ns(t);
}

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	va_list args;
	char *line;
	int length;

	va_start(args, format);
	length = vasprintf(&line, format, args);
	va_end(args);
	if (length < 0)
		die("vasprintf");
	text_append(&output, line, length);
	text_append(&output, "\n", 1);
	free(line);
}

/* Whether all is written: the lab may not read while the VM moves, the rest then waits for the next call. */
static bool flush_output(void)
{
	static size_t written;
	ssize_t done;

	while (written < output.used) {
		done = write(port, output.at + written, output.used - written);
		if (done <= 0)
			return false;
		written += done;
	}
	written = output.used = 0;
	return true;
}

/* The first line of a sysfs attribute; empty if it can't be read (a carrier while the netdev is down). */
static void attribute(const char *netdev, const char *name, char *value, size_t size)
{
	char path[256];
	ssize_t length = -1;
	int fd;

	snprintf(path, sizeof(path), "/sys/class/net/%s/%s", netdev, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		length = read(fd, value, size - 1);
		close(fd);
	}
	value[length > 0 ? length : 0] = '\0';
	value[strcspn(value, "\n")] = '\0';
}

static void link_target(const char *netdev, const char *name, char *value, size_t size)
{
	char path[256], target[512];
	const char *base;
	ssize_t length;

	snprintf(path, sizeof(path), "/sys/class/net/%s/%s", netdev, name);
	length = readlink(path, target, sizeof(target) - 1);
	target[length > 0 ? length : 0] = '\0';
	base = strrchr(target, '/');
	base = base ? base + 1 : target;
	length = strnlen(base, size - 1);
	memcpy(value, base, length);
	value[length] = '\0';
}

static void describe_addresses(const char *netdev, char *value, size_t size)
{
	struct ifaddrs *list, *entry;
	size_t used = 0;

	value[0] = '\0';
	if (getifaddrs(&list) < 0)
		return;
	for (entry = list; entry; entry = entry->ifa_next) {
		char address[INET6_ADDRSTRLEN];
		const void *raw;

		if (!entry->ifa_addr || strcmp(entry->ifa_name, netdev))
			continue;
		if (entry->ifa_addr->sa_family == AF_INET)
			raw = &((struct sockaddr_in *)entry->ifa_addr)->sin_addr;
		else if (entry->ifa_addr->sa_family == AF_INET6)
			raw = &((struct sockaddr_in6 *)entry->ifa_addr)->sin6_addr;
		else
			continue;
		inet_ntop(entry->ifa_addr->sa_family, raw, address, sizeof(address));
		if (used + strlen(address) + 2 > size)
			break;
		used += snprintf(value + used, size - used, "%s%s", used ? "," : "", address);
	}
	freeifaddrs(list);
}

static void describe_link(const char *prefix, const char *netdev)
{
	char mac[64], carrier[8], operstate[32], flags[16], mtu[16];
	char driver[64], master[64], addresses[512];

	attribute(netdev, "address", mac, sizeof(mac));
	attribute(netdev, "carrier", carrier, sizeof(carrier));
	attribute(netdev, "operstate", operstate, sizeof(operstate));
	attribute(netdev, "flags", flags, sizeof(flags));
	attribute(netdev, "mtu", mtu, sizeof(mtu));
	link_target(netdev, "device/driver", driver, sizeof(driver));
	link_target(netdev, "master", master, sizeof(master));
	describe_addresses(netdev, addresses, sizeof(addresses));
	say("%s %s mac=%s carrier=%s operstate=%s flags=%s mtu=%s driver=%s master=%s addresses=%s",
	    prefix, netdev, mac, carrier, operstate, flags, mtu, driver, master, addresses);
}

static void list_links(const char *tag)
{
	char prefix[64];
	struct dirent *entry;
	DIR *dir = opendir("/sys/class/net");

	if (!dir) {
		say("%s error cannot list netdevs: %s", tag, strerror(errno));
		return;
	}
	snprintf(prefix, sizeof(prefix), "%s =", tag);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			describe_link(prefix, entry->d_name);
	closedir(dir);
	say("%s ok", tag);
}

static bool ask_ethtool(const char *netdev, void *request)
{
	struct ifreq ifr = { .ifr_data = request };

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", netdev);
	return ioctl(udp, SIOCETHTOOL, &ifr) == 0;
}

static void list_counters(const char *tag, const char *netdev)
{
	struct ethtool_drvinfo driver = { .cmd = ETHTOOL_GDRVINFO };
	struct ethtool_gstrings *names;
	struct ethtool_stats *values;
	uint32_t i;

	if (!ask_ethtool(netdev, &driver)) {
		say("%s error no counters of %s: %s", tag, netdev, strerror(errno));
		return;
	}
	names = calloc(1, sizeof(*names) + driver.n_stats * ETH_GSTRING_LEN);
	values = calloc(1, sizeof(*values) + driver.n_stats * sizeof(values->data[0]));
	if (!names || !values)
		die("out of memory");
	*names = (struct ethtool_gstrings){
		.cmd = ETHTOOL_GSTRINGS, .string_set = ETH_SS_STATS, .len = driver.n_stats,
	};
	*values = (struct ethtool_stats){ .cmd = ETHTOOL_GSTATS, .n_stats = driver.n_stats };
	if (ask_ethtool(netdev, names) && ask_ethtool(netdev, values)) {
		for (i = 0; i < driver.n_stats; i++)
			say("%s = %.*s %llu", tag, ETH_GSTRING_LEN,
			    (const char *)names->data + i * ETH_GSTRING_LEN,
			    (unsigned long long)values->data[i]);
		say("%s ok", tag);
	} else {
		say("%s error no counters of %s: %s", tag, netdev, strerror(errno));
	}
	free(names);
	free(values);
}

static void report_link_message(struct nlmsghdr *message)
{
	struct ifinfomsg *info = NLMSG_DATA(message);
	int left = IFLA_PAYLOAD(message);
	const char *name = NULL;
	struct rtattr *attr;

	for (attr = IFLA_RTA(info); RTA_OK(attr, left); attr = RTA_NEXT(attr, left))
		if (attr->rta_type == IFLA_IFNAME)
			name = RTA_DATA(attr);
	if (!name)
		return;
	if (message->nlmsg_type == RTM_DELLINK)
		say("! gone %s", name);
	else if (message->nlmsg_type == RTM_NEWLINK)
		describe_link("! link", name);
}

static void read_link_events(void)
{
	static char buffer[32768] __attribute__((aligned(4)));
	ssize_t length;

	while ((length = recv(link_events, buffer, sizeof(buffer), MSG_DONTWAIT)) > 0) {
		struct nlmsghdr *message = (struct nlmsghdr *)buffer;
		int left = length;

		for (; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left))
			report_link_message(message);
	}
}

static uint64_t receive_time(struct msghdr *message)
{
	struct cmsghdr *control;

	for (control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control)) {
		struct timespec t;

		if (control->cmsg_level != SOL_SOCKET || control->cmsg_type != SCM_TIMESTAMPNS)
			continue;
		memcpy(&t, CMSG_DATA(control), sizeof(t));
		return as_ns(t);
	}
	return now_ns();
}

static void read_probes(void)
{
	static char payload[2048], control[256];
	struct sockaddr_in from;
	struct iovec iov = { .iov_base = payload, .iov_len = sizeof(payload) };
	struct msghdr message;
	struct probe *probe = (struct probe *)payload;
	ssize_t length;

	for (;;) {
		message = (struct msghdr){
			.msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1,
			.msg_control = control, .msg_controllen = sizeof(control),
		};
		length = recvmsg(udp, &message, MSG_DONTWAIT);
		if (length < 0)
			return;
		if ((size_t)length < sizeof(*probe) || ntohl(probe->magic) != PROBE_MAGIC)
			continue;
		if (probe->kind == NUMBERED) {
			log_append(&received, ntohl(probe->seq), receive_time(&message), 0);
		} else if (probe->kind == ECHO_REQUEST) {
			probe->kind = ECHO_REPLY;
			/* a reply that can't be sent is a lost one: the asker counts it */
			sendto(udp, payload, length, MSG_DONTWAIT, (struct sockaddr *)&from, sizeof(from));
		}
	}
}

static void send_probe(void)
{
	char payload[PROBE_PAYLOAD] = { 0 };
	struct probe *probe = (struct probe *)payload;
	uint64_t t_ns = now_ns(), expirations;
	int error = 0;

	/* Slots that a busy guest missed are skipped, not sent in a burst: a burst would measure itself. */
	if (read(stream_timer, &expirations, sizeof(expirations)) < 0)
		return;
	probe->magic = htonl(PROBE_MAGIC);
	probe->kind = NUMBERED;
	probe->seq = htonl(next_seq);
	probe->t_ns = htobe64(t_ns);
	if (sendto(udp, payload, sizeof(payload), MSG_DONTWAIT, (struct sockaddr *)&stream_to,
		   sizeof(stream_to)) < 0)
		error = errno;
	log_append(&sent, next_seq++, t_ns, error);
}

static void set_timer(int fd, long interval_ns)
{
	struct itimerspec spec = {
		.it_interval = { interval_ns / 1000000000L, interval_ns % 1000000000L },
		.it_value = { interval_ns / 1000000000L, interval_ns % 1000000000L },
	};

	if (timerfd_settime(fd, 0, &spec, NULL) < 0)
		die("timerfd_settime");
}

static void start_stream(const char *tag, const char *arguments)
{
	char address[INET_ADDRSTRLEN];
	long interval_us;

	if (sscanf(arguments, "%15s %ld", address, &interval_us) != 2 || interval_us < 100 ||
	    interval_us > 1000000 || inet_pton(AF_INET, address, &stream_to.sin_addr) != 1) {
		say("%s error stream wants an IPv4 address and 100 to 1000000 microseconds", tag);
		return;
	}
	stream_to.sin_family = AF_INET;
	stream_to.sin_port = htons(PEER_UDP_PORT);
	set_timer(stream_timer, interval_us * 1000);
	say("%s ok", tag);
}

/* "ip and udp and not a later fragment and dst port 47000 or 47001"; jumps count instructions to skip. */
static struct sock_filter probe_filter[] = {
	BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 12), /* ethertype */
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ETH_P_IP, 0, 9),
	BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 23), /* protocol */
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IPPROTO_UDP, 0, 7),
	BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 20), /* fragment field */
	BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, IP_OFFMASK, 5, 0),
	BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 14), /* x = length of the IPv4 header */
	BPF_STMT(BPF_LD | BPF_H | BPF_IND, 16), /* destination port */
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PEER_UDP_PORT, 1, 0),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, GUEST_UDP_PORT, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, UINT16_MAX),
	BPF_STMT(BPF_RET | BPF_K, 0),
};

/* A socket that gets what the netdev carries in either direction; -1 and errno if there is no such netdev. */
static int open_observer(const char *netdev)
{
	struct sock_fprog program = {
		.len = sizeof(probe_filter) / sizeof(probe_filter[0]), .filter = probe_filter,
	};
	struct sockaddr_ll here = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int size = OBSERVER_BUFFER, on = 1, fd, reason;

	here.sll_ifindex = if_nametoindex(netdev);
	if (!here.sll_ifindex)
		return -1;
	/* protocol 0: nothing is queued until bind(), when filter and time stamps are in place */
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) < 0 ||
	    bind(fd, (struct sockaddr *)&here, sizeof(here)) < 0) {
		reason = errno;
		close(fd);
		errno = reason;
		return -1;
	}
	return fd;
}

/* Note a frame that passed the filter, if it is a numbered probe on its way; `out`: the netdev sends it. */
static void note_passing(struct observer *observer, const char *frame, size_t length, bool out, uint64_t t_ns)
{
	size_t udp_at = ETH_HLEN + (frame[ETH_HLEN] & 0x0f) * 4;
	struct udphdr header;
	struct probe probe;
	bool to_guest;

	if (length < udp_at + sizeof(header) + sizeof(probe))
		return;
	memcpy(&header, frame + udp_at, sizeof(header));
	memcpy(&probe, frame + udp_at + sizeof(header), sizeof(probe));
	to_guest = ntohs(header.dest) == GUEST_UDP_PORT;
	/*
	 * A PF that is a bridge's port is promiscuous and gets copies of what its VFs send. The bridge may flood these
	 * to the tap, which does not make them the standby's.
	 */
	if (ntohl(probe.magic) != PROBE_MAGIC || probe.kind != NUMBERED || to_guest != out)
		return;
	observer->at = grow(observer->at, &observer->room, observer->used + 1, sizeof(*observer->at));
	observer->at[observer->used++] = (struct passing){
		.t_ns = t_ns,
		.seq = ntohl(probe.seq),
		.to_guest = to_guest,
	};
}

static void read_observer(struct observer *observer)
{
	static char frame[2048], control[256];
	struct iovec iov = { .iov_base = frame, .iov_len = sizeof(frame) };
	struct sockaddr_ll from;
	ssize_t length;

	while (observer->socket >= 0) {
		struct msghdr message = {
			.msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1,
			.msg_control = control, .msg_controllen = sizeof(control),
		};

		length = recvmsg(observer->socket, &message, MSG_DONTWAIT);
		if (length >= 0) {
			note_passing(observer, frame, length, from.sll_pkttype == PACKET_OUTGOING,
				     receive_time(&message));
		} else if (errno == EAGAIN) {
			return;
		} else if (errno != ENETDOWN) { /* told once when the netdev goes down; "! link" tells it, too */
			observer->error = errno;
			close(observer->socket);
			observer->socket = -1;
		}
	}
}

/* What the kernel still has, and what it had to drop; asking for that resets the kernel's counter. */
static void settle_observer(struct observer *observer)
{
	struct tpacket_stats stats;
	socklen_t size = sizeof(stats);

	read_observer(observer);
	if (observer->socket < 0)
		return;
	if (getsockopt(observer->socket, SOL_PACKET, PACKET_STATISTICS, &stats, &size) < 0)
		observer->error = errno;
	else
		observer->dropped += stats.tp_drops;
}

static struct observer *observer_of(const char *netdev)
{
	struct observer *observer;

	for (observer = observers; observer < observers + observer_count; observer++)
		if (!strcmp(observer->netdev, netdev))
			return observer;
	return NULL;
}

static void observe(const char *tag, const char *netdev)
{
	struct observer *observer = observer_of(netdev);
	int fd = -1;

	if (!observer && observer_count == OBSERVERS_MAX) {
		say("%s error %d netdevs are observed already, no more can be", tag, OBSERVERS_MAX);
		return;
	}
	fd = open_observer(netdev);
	if (fd < 0) {
		say("%s error cannot observe %s: %s", tag, netdev, strerror(errno));
		return;
	}
	if (!observer) {
		observer = &observers[observer_count++];
		snprintf(observer->netdev, sizeof(observer->netdev), "%s", netdev);
	} else if (observer->socket >= 0) {
		close(observer->socket);
	}
	observer->socket = fd;
	observer->used = observer->dropped = observer->error = 0;
	say("%s ok", tag);
}

static void dump_observed(const char *tag, const char *netdev)
{
	struct observer *observer = observer_of(netdev);
	const struct passing *passing;

	if (!observer) {
		say("%s error %s is not observed", tag, netdev);
		return;
	}
	settle_observer(observer);
	for (passing = observer->at; passing < observer->at + observer->used; passing++)
		say("%s = %u %s %llu", tag, passing->seq, passing->to_guest ? "to_guest" : "from_guest",
		    (unsigned long long)passing->t_ns);
	if (observer->error)
		say("%s error observing %s ended: %s", tag, netdev, strerror(observer->error));
	else if (observer->dropped)
		say("%s error the kernel dropped %lu frames of %s before they were recorded", tag,
		    observer->dropped, netdev);
	else
		say("%s ok", tag);
}

static void forget(void)
{
	struct observer *observer;

	received.used = sent.used = 0;
	next_seq = 0;
	for (observer = observers; observer < observers + observer_count; observer++) {
		settle_observer(observer);
		observer->used = observer->dropped = 0;
		if (observer->socket >= 0)
			observer->error = 0;
	}
}

static void dump(const char *tag, const struct log *log, bool with_error)
{
	const struct record *record;

	for (record = log->at; record < log->at + log->used; record++) {
		if (with_error)
			say("%s = %u %llu %d", tag, record->seq, (unsigned long long)record->t_ns,
			    record->error);
		else
			say("%s = %u %llu", tag, record->seq, (unsigned long long)record->t_ns);
	}
	say("%s ok", tag);
}

/*
 * Start a shell command with its output (both streams) going where `log` says or, without that, to `fd`. It does not
 * inherit how this process treats signals. Returns 0 or an errno; then the shell did not start.
 */
static int start_shell(pid_t *pid, const char *command, const char *log, int fd, short flags)
{
	char *argv[] = { "sh", "-c", (char *)command, NULL };
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	sigset_t none, defaults;
	int error;

	sigemptyset(&none);
	sigemptyset(&defaults);
	sigaddset(&defaults, SIGPIPE);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setflags(&attributes, flags | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &defaults);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	if (log)
		posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, log, O_WRONLY | O_CREAT | O_TRUNC,
						 0644);
	else
		posix_spawn_file_actions_adddup2(&files, fd, STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
	error = posix_spawn(pid, "/bin/sh", &files, &attributes, argv, environ);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attributes);
	return error;
}

static struct process *process_called(const char *name)
{
	struct process *process;

	for (process = spawned.at; process < spawned.at + spawned.used; process++)
		if (!strcmp(process->name, name))
			return process;
	return NULL;
}

static void spawn_process(const char *tag, const char *arguments)
{
	size_t length = strspn(arguments, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");
	struct process process = { 0 };
	char log[NAME_SIZE + 16], *command;
	int error;

	if (length == 0 || length >= NAME_SIZE || arguments[length] != ' ' || !arguments[length + 1]) {
		say("%s error spawn wants a name of up to %d letters, digits, - and _, and a command", tag,
		    NAME_SIZE - 1);
		return;
	}
	memcpy(process.name, arguments, length);
	if (process_called(process.name)) {
		say("%s error %s is running already", tag, process.name);
		return;
	}
	snprintf(log, sizeof(log), "/tmp/%s.log", process.name);
	/* exec: the process that is signalled and waited for is the command, not a shell around it */
	if (asprintf(&command, "exec %s", arguments + length + 1) < 0)
		die("asprintf");
	error = start_shell(&process.pid, command, log, -1, POSIX_SPAWN_SETSID);
	free(command);
	if (error) {
		say("%s error cannot start %s: %s", tag, process.name, strerror(error));
		return;
	}
	spawned.at = grow(spawned.at, &spawned.room, spawned.used + 1, sizeof(*spawned.at));
	spawned.at[spawned.used++] = process;
	say("%s ok", tag);
}

static void signal_process(const char *tag, const char *name, int signal_number)
{
	struct process *process = process_called(name);

	if (!process)
		say("%s error no spawned process is called %s", tag, name);
	else if (kill(-process->pid, signal_number) < 0)
		say("%s error cannot signal %s: %s", tag, name, strerror(errno));
	else
		say("%s ok", tag);
}

static void report_exit(pid_t pid, int status)
{
	struct process *process;

	for (process = spawned.at; process < spawned.at + spawned.used; process++) {
		if (process->pid != pid)
			continue;
		/* with its pid no two such lines are alike: the lab takes a repetition for the same change */
		say("! exited %s status=%d pid=%d", process->name,
		    WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), pid);
		*process = spawned.at[--spawned.used];
		return;
	}
	/* else an orphan: as the first process this one inherits them all */
}

static void reap(void)
{
	struct signalfd_siginfo news;
	pid_t pid;
	int status;

	/* signals that come close together are merged: it is waitpid() that knows */
	while (read(child_events, &news, sizeof(news)) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == job.pid && !job.exited) {
			job.exited = true;
			job.status = status;
		} else {
			report_exit(pid, status);
		}
	}
}

static void watch_children(void)
{
	sigset_t children;

	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	child_events = signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK);
	if (child_events < 0)
		die("signalfd");
}

static void start_job(const char *tag, const char *command)
{
	int ends[2], error;

	if (job.pid > 0) {
		say("%s error another command is running", tag);
		return;
	}
	if (pipe2(ends, O_CLOEXEC) < 0)
		die("pipe2");
	error = start_shell(&job.pid, command, NULL, ends[1], 0);
	close(ends[1]);
	if (error) {
		close(ends[0]);
		job.pid = 0;
		say("%s error cannot start a shell: %s", tag, strerror(error));
		return;
	}
	job.pipe = ends[0];
	job.exited = false;
	job.line.used = 0;
	snprintf(job.tag, sizeof(job.tag), "%s", tag);
}

static void end_job(void)
{
	close(job.pipe);
	job.pipe = -1;
	if (!job.exited && waitpid(job.pid, &job.status, 0) < 0)
		die("waitpid");
	job.pid = 0;
	if (WIFEXITED(job.status) && WEXITSTATUS(job.status) == 0)
		say("%s ok", job.tag);
	else if (WIFEXITED(job.status))
		say("%s error exit %d", job.tag, WEXITSTATUS(job.status));
	else
		say("%s error signal %d", job.tag, WTERMSIG(job.status));
}

static void read_job(void)
{
	char buffer[4096];
	ssize_t length = read(job.pipe, buffer, sizeof(buffer)), i;

	for (i = 0; i < length; i++) {
		if (buffer[i] != '\n') {
			text_append(&job.line, &buffer[i], 1);
			continue;
		}
		say("%s = %.*s", job.tag, (int)job.line.used, job.line.used ? job.line.at : "");
		job.line.used = 0;
	}
	if (length > 0)
		return;
	if (job.line.used)
		say("%s = %.*s", job.tag, (int)job.line.used, job.line.at);
	end_job();
}

static void obey(char *line)
{
	char *tag = strsep(&line, " "), *command = strsep(&line, " ");
	const char *arguments = line ? line : "";
	struct utsname kernel;

	if (!command)
		return;
	if (!strcmp(command, "hello")) {
		uname(&kernel);
		say("%s = %s", tag, kernel.release);
		say("%s ok", tag);
	} else if (!strcmp(command, "clock")) {
		say("%s = %llu", tag, (unsigned long long)now_ns());
		say("%s ok", tag);
	} else if (!strcmp(command, "links")) {
		list_links(tag);
	} else if (!strcmp(command, "counters")) {
		list_counters(tag, arguments);
	} else if (!strcmp(command, "stream")) {
		start_stream(tag, arguments);
	} else if (!strcmp(command, "silence")) {
		set_timer(stream_timer, 0);
		say("%s ok", tag);
	} else if (!strcmp(command, "received")) {
		dump(tag, &received, false);
	} else if (!strcmp(command, "sent")) {
		dump(tag, &sent, true);
	} else if (!strcmp(command, "observe")) {
		observe(tag, arguments);
	} else if (!strcmp(command, "observed")) {
		dump_observed(tag, arguments);
	} else if (!strcmp(command, "forget")) {
		forget();
		say("%s ok", tag);
	} else if (!strcmp(command, "run")) {
		start_job(tag, arguments);
	} else if (!strcmp(command, "spawn")) {
		spawn_process(tag, arguments);
	} else if (!strcmp(command, "term")) {
		signal_process(tag, arguments, SIGTERM);
	} else if (!strcmp(command, "kill")) {
		signal_process(tag, arguments, SIGKILL);
	} else {
		say("%s error unknown command %s", tag, command);
	}
}

static void read_commands(void)
{
	static struct text input;
	char buffer[4096];
	ssize_t length = read(port, buffer, sizeof(buffer)), i;

	for (i = 0; i < length; i++) {
		if (buffer[i] != '\n') {
			text_append(&input, &buffer[i], 1);
			continue;
		}
		text_append(&input, "", 1);
		obey(input.at);
		input.used = 0;
	}
}

/* The virtio-serial port with our name; -1 as long as there is none. */
static int open_port(void)
{
	struct dirent *entry;
	DIR *dir = opendir("/sys/class/virtio-ports");
	int fd = -1;

	while (dir && fd < 0 && (entry = readdir(dir))) {
		char path[300], name[64] = "";
		FILE *file;

		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fscanf(file, "%63s", name) == 1 && !strcmp(name, PORT_NAME)) {
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return fd;
}

static void open_sockets(void)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(GUEST_UDP_PORT) };
	struct sockaddr_nl groups = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK };
	int size = SOCKET_BUFFER, on = 1;

	udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (udp < 0 || bind(udp, (struct sockaddr *)&here, sizeof(here)) < 0)
		die("UDP socket");
	if (setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0 ||
	    setsockopt(udp, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) < 0)
		die("UDP socket options");

	link_events = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	if (link_events < 0 || bind(link_events, (struct sockaddr *)&groups, sizeof(groups)) < 0)
		die("rtnetlink socket");
}

int main(void)
{
	enum { UDP, LINKS, CLOCK, STREAM, PORT, JOB, CHILDREN, OBSERVERS };
	uint64_t expirations;
	size_t i;

	signal(SIGPIPE, SIG_IGN);
	watch_children();
	open_sockets();
	clock_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	stream_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (clock_timer < 0 || stream_timer < 0)
		die("timerfd_create");
	set_timer(clock_timer, CLOCK_INTERVAL_NS);
	puts("vnet-standby guest is up");
	fflush(stdout);

	for (;;) {
		struct pollfd fds[OBSERVERS + OBSERVERS_MAX] = {
			[UDP] = { udp, POLLIN, 0 },
			[LINKS] = { link_events, POLLIN, 0 },
			[CLOCK] = { clock_timer, POLLIN, 0 },
			[STREAM] = { stream_timer, POLLIN, 0 },
			[PORT] = { host_listens ? port : -1, POLLIN, 0 },
			[JOB] = { job.pipe, POLLIN, 0 },
			[CHILDREN] = { child_events, POLLIN, 0 },
		};
		size_t observed = observer_count; /* a command may add one */

		for (i = 0; i < observed; i++)
			fds[OBSERVERS + i] = (struct pollfd){ observers[i].socket, POLLIN, 0 };
		if (poll(fds, OBSERVERS + observed, -1) < 0)
			die("poll");
		if (fds[UDP].revents)
			read_probes();
		for (i = 0; i < observed; i++)
			if (fds[OBSERVERS + i].revents)
				read_observer(&observers[i]);
		if (fds[STREAM].revents)
			send_probe();
		if (fds[LINKS].revents)
			read_link_events();
		if (fds[CHILDREN].revents)
			reap();
		if (fds[JOB].revents)
			read_job();
		if (fds[PORT].revents & POLLIN)
			read_commands();
		else if (fds[PORT].revents & POLLHUP)
			host_listens = false;
		if (fds[CLOCK].revents &&
		    read(clock_timer, &expirations, sizeof(expirations)) > 0) {
			if (port < 0)
				port = open_port();
			host_listens = port >= 0;
			if (host_listens && flush_output())
				say("! clock %llu", (unsigned long long)now_ns());
		}
		if (port >= 0)
			flush_output();
	}
}
