/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The lab's agent inside the guest.
 *
 * One process, one poll loop. It records every numbered probe that reaches the guest's UDP socket, answers echo
 * requests, sends a numbered stream of its own, and obeys the lab over a virtio-serial port, line by line:
 *
 *   lab:    TAG COMMAND [ARGUMENT...]
 *   agent:  TAG = DATA           any number of these
 *           TAG ok | TAG error TEXT
 *
 *   hello                        kernel release
 *   links                        one line a netdev: NAME key=value...
 *   counters NETDEV              its driver's counters, as ethtool -S: "COUNTER VALUE"
 *   stream ADDRESS INTERVAL_US   start the numbered stream to ADDRESS (numbers go on from where they were)
 *   silence                      stop it
 *   received, sent               the records: "SEQ GUEST_NS" and "SEQ GUEST_NS ERRNO"
 *   forget                       empty the records, number from 0 again
 *   run TEXT                     a shell command; its output, and "error exit N" unless it exits with 0
 *
 * Unasked, it says "! clock GUEST_NS" ten times a second, and "! link NAME key=value..." or "! gone NAME" when the
 * kernel reports a change of a netdev. Times are CLOCK_REALTIME nanoseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/ethtool.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
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

static struct log received, sent;
static struct text output; /* waits for the lab to read */
static int port = -1;
static bool host_listens; /* poll() would report POLLHUP again and again while the lab is away */
static int udp, link_events, clock_timer, stream_timer;
static struct sockaddr_in stream_to;
static uint32_t next_seq;

static struct {
	pid_t pid;
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
	char line[1024];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (length < 0)
		die("vsnprintf");
	if ((size_t)length >= sizeof(line))
		length = sizeof(line) - 1;
	text_append(&output, line, length);
	text_append(&output, "\n", 1);
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

static void start_job(const char *tag, const char *command)
{
	int ends[2];

	if (job.pid > 0) {
		say("%s error another command is running", tag);
		return;
	}
	if (pipe2(ends, O_CLOEXEC) < 0)
		die("pipe2");
	job.pid = fork();
	if (job.pid < 0)
		die("fork");
	if (job.pid == 0) {
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execl("/bin/sh", "sh", "-c", command, NULL);
		_exit(127);
	}
	close(ends[1]);
	job.pipe = ends[0];
	job.line.used = 0;
	snprintf(job.tag, sizeof(job.tag), "%s", tag);
}

static void end_job(void)
{
	int status;

	close(job.pipe);
	job.pipe = -1;
	if (waitpid(job.pid, &status, 0) < 0)
		die("waitpid");
	job.pid = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		say("%s ok", job.tag);
	else if (WIFEXITED(status))
		say("%s error exit %d", job.tag, WEXITSTATUS(status));
	else
		say("%s error signal %d", job.tag, WTERMSIG(status));
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
	} else if (!strcmp(command, "forget")) {
		received.used = sent.used = 0;
		next_seq = 0;
		say("%s ok", tag);
	} else if (!strcmp(command, "run")) {
		start_job(tag, arguments);
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
	enum { UDP, LINKS, CLOCK, STREAM, PORT, JOB, FDS };
	uint64_t expirations;

	signal(SIGPIPE, SIG_IGN);
	open_sockets();
	clock_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	stream_timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (clock_timer < 0 || stream_timer < 0)
		die("timerfd_create");
	set_timer(clock_timer, CLOCK_INTERVAL_NS);
	puts("vnet-standby guest is up");
	fflush(stdout);

	for (;;) {
		struct pollfd fds[FDS] = {
			[UDP] = { udp, POLLIN, 0 },
			[LINKS] = { link_events, POLLIN, 0 },
			[CLOCK] = { clock_timer, POLLIN, 0 },
			[STREAM] = { stream_timer, POLLIN, 0 },
			[PORT] = { host_listens ? port : -1, POLLIN, 0 },
			[JOB] = { job.pipe, POLLIN, 0 },
		};

		if (poll(fds, FDS, -1) < 0)
			die("poll");
		if (fds[UDP].revents)
			read_probes();
		if (fds[STREAM].revents)
			send_probe();
		if (fds[LINKS].revents)
			read_link_events();
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
