/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An XDP program as an administrator of the guest might have it.
 *
 *   xdp native|generic NETDEV pass|TARGET COMMAND
 *                         run COMMAND in a shell, and print how many ICMP packets NETDEV has received meanwhile
 *
 * Native: in the netdev's driver; generic: in the stack, before anything else there. The program redirects the ICMP
 * packets to the netdev TARGET, and lets everything else pass. The exit status is 0 if it could be attached and COMMAND
 * succeeded.
 */
#include <arpa/inet.h>
#include <err.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TYPE_OFFSET 12
#define PROTOCOL_OFFSET 23 /* in a frame without a VLAN tag: RFC 791, 3.1 */

/* Jumps are relative to the next instruction; this is the number of those from PASS to the end. */
#define PASS_LENGTH 2
#define JUMP_TO_PASS(at) (LENGTH - PASS_LENGTH - (at) - 1)
#define LENGTH 25

static int bpf(enum bpf_cmd command, union bpf_attr *attr, const char *what)
{
	int result = syscall(SYS_bpf, command, attr, sizeof(*attr));

	if (result < 0)
		err(1, "%s", what);
	return result;
}

static int create_counter(void)
{
	union bpf_attr attr = {
		.map_type = BPF_MAP_TYPE_ARRAY,
		.key_size = sizeof(uint32_t),
		.value_size = sizeof(uint64_t),
		.max_entries = 1,
	};

	return bpf(BPF_MAP_CREATE, &attr, "creating the map");
}

static uint64_t count(int counter)
{
	uint32_t key = 0;
	uint64_t value;
	union bpf_attr attr = {
		.map_fd = counter,
		.key = (uintptr_t)&key,
		.value = (uintptr_t)&value,
	};

	bpf(BPF_MAP_LOOKUP_ELEM, &attr, "reading the map");
	return value;
}

#define INSN(c, d, s, o, i) { .code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) }
#define LOAD(size, d, s, o) INSN(BPF_LDX | BPF_MEM | (size), d, s, o, 0)
#define MOVE(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define SET(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define ADD(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)

/* `target` is the ifindex that ICMP packets are redirected to; 0: nowhere. */
static int load_program(int counter, int target)
{
	const struct bpf_insn program[] = {
		/* too short for an IPv4 header's protocol? */
		LOAD(BPF_W, BPF_REG_6, BPF_REG_1, offsetof(struct xdp_md, data)),
		LOAD(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct xdp_md, data_end)),
		MOVE(BPF_REG_3, BPF_REG_6),
		ADD(BPF_REG_3, PROTOCOL_OFFSET + 1),
		INSN(BPF_JMP | BPF_JGT | BPF_X, BPF_REG_3, BPF_REG_2, JUMP_TO_PASS(4), 0),
		/* ICMP? */
		LOAD(BPF_H, BPF_REG_3, BPF_REG_6, TYPE_OFFSET),
		INSN(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_3, 0, JUMP_TO_PASS(6), htons(ETHERTYPE_IP)),
		LOAD(BPF_B, BPF_REG_3, BPF_REG_6, PROTOCOL_OFFSET),
		INSN(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_3, 0, JUMP_TO_PASS(8), IPPROTO_ICMP),
		/* counter[0] += 1 */
		INSN(BPF_ST | BPF_MEM | BPF_W, BPF_REG_10, 0, -4, 0),
		MOVE(BPF_REG_2, BPF_REG_10),
		ADD(BPF_REG_2, -4),
		INSN(BPF_LD | BPF_IMM | BPF_DW, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, counter),
		INSN(0, 0, 0, 0, 0), /* the upper half of what the last one loads */
		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem),
		INSN(BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_0, 0, JUMP_TO_PASS(15), 0),
		SET(BPF_REG_1, 1),
		INSN(BPF_STX | BPF_ATOMIC | BPF_DW, BPF_REG_0, BPF_REG_1, 0, BPF_ADD),
		/* redirect? */
		SET(BPF_REG_1, target),
		INSN(BPF_JMP | BPF_JEQ | BPF_K, BPF_REG_1, 0, JUMP_TO_PASS(19), 0),
		SET(BPF_REG_2, 0),
		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect),
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
		/* pass */
		SET(BPF_REG_0, XDP_PASS),
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_XDP,
		.expected_attach_type = BPF_XDP,
		.insns = (uintptr_t)program,
		.insn_cnt = LENGTH,
		.license = (uintptr_t)"GPL",
	};

	_Static_assert(sizeof(program) / sizeof(program[0]) == LENGTH, "LENGTH is wrong");
	return bpf(BPF_PROG_LOAD, &attr, "loading the program");
}

static int index_of(const char *netdev)
{
	int index = if_nametoindex(netdev);

	if (!index)
		err(1, "%s", netdev);
	return index;
}

/* The link, and with it the program, is gone with the process. */
static void attach(int program, const char *netdev, uint32_t mode)
{
	union bpf_attr attr = {
		.link_create = {
			.prog_fd = program,
			.target_ifindex = index_of(netdev),
			.attach_type = BPF_XDP,
			.flags = mode,
		},
	};

	bpf(BPF_LINK_CREATE, &attr, netdev);
}

static uint32_t mode_called(const char *name)
{
	if (!strcmp(name, "native"))
		return XDP_FLAGS_DRV_MODE;
	if (!strcmp(name, "generic"))
		return XDP_FLAGS_SKB_MODE;
	errx(2, "%s is no mode: native or generic", name);
}

int main(int argc, char **argv)
{
	int counter, target, status;

	if (argc != 5)
		errx(2, "usage: xdp native|generic NETDEV pass|TARGET COMMAND");
	target = strcmp(argv[3], "pass") ? index_of(argv[3]) : 0;
	counter = create_counter();
	attach(load_program(counter, target), argv[2], mode_called(argv[1]));
	status = system(argv[4]);
	printf("%llu\n", (unsigned long long)count(counter));
	return status ? 1 : 0;
}
