/* Echo UDP datagrams by an AF_XDP socket in copy mode, beneath the network stack.
 *
 *   xdp INTERFACE PORT
 *
 * A program at the interface hands over what comes for PORT, by IPv4 without options or IPv6
 * without extensions, and leaves alone all else and datagrams of less than 20 bytes. Each goes back
 * to where it came from. Prints "ready", and ends at the end of stdin, when it prints the number
 * of datagrams. The program at the interface ends with this one. Status 77, with the reason on
 * stderr: this kernel has no such sockets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FRAMES = 32, FRAME = 4096, SKIPPED = 77 }; /* a ring has room for all frames */
enum { IP = ETH_HLEN, IP4_UDP = IP + 20, IP6_UDP = IP + 40, SHORTEST = IP6_UDP + 8 };

struct ring {
    uint32_t *producer, *consumer;
    char *entries; /* uint64_t of fill and completion, struct xdp_desc of rx and tx */
};

static int sock;
static char *frames;
static struct ring rx, tx, fill, completion;

static _Noreturn void fail(const char *what)
{
    int absent = errno == EAFNOSUPPORT || errno == ENOSYS || errno == EOPNOTSUPP;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(absent ? SKIPPED : EXIT_FAILURE);
}

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
    int result = (int)syscall(SYS_bpf, command, attr, sizeof *attr);
    if (result < 0)
        fail("bpf");
    return result;
}

/* The program at the interface, in the kernel's byte code. */

#define INSN(c, d, s, o, i) \
    (struct bpf_insn) { .code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) }
#define LOAD(size, to, from, offset) INSN(BPF_LDX | BPF_MEM | (size), to, from, offset, 0)
#define COPY(to, from) INSN(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0)
#define SET(to, value) INSN(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value)
#define ADD(to, value) INSN(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value)
#define UNLESS(reg, value, skip) INSN(BPF_JMP | BPF_JNE | BPF_K, reg, 0, skip, value)
#define IF(reg, value, skip) INSN(BPF_JMP | BPF_JEQ | BPF_K, reg, 0, skip, value)
#define IF_ABOVE(reg, other, skip) INSN(BPF_JMP | BPF_JGT | BPF_X, reg, other, skip, 0)
#define SKIP(skip) INSN(BPF_JMP | BPF_JA, 0, 0, skip, 0)

static int load_program(int map, uint16_t port)
{
    const struct bpf_insn program[] = {
        /*  0 */ LOAD(BPF_W, 2, 1, offsetof(struct xdp_md, data)),
        /*  1 */ LOAD(BPF_W, 3, 1, offsetof(struct xdp_md, data_end)),
        /*  2 */ COPY(4, 2),
        /*  3 */ ADD(4, SHORTEST),
        /*  4 */ IF_ABOVE(4, 3, 18), /* to 23 */
        /*  5 */ LOAD(BPF_H, 5, 2, offsetof(struct ethhdr, h_proto)),
        /*  6 */ IF(5, htons(ETH_P_IP), 4), /* to 11 */
        /*  7 */ UNLESS(5, htons(ETH_P_IPV6), 15),
        /*  8 */ LOAD(BPF_B, 6, 2, IP + 6),
        /*  9 */ LOAD(BPF_H, 5, 2, IP6_UDP + 2),
        /* 10 */ SKIP(4), /* to 15 */
        /* 11 */ LOAD(BPF_B, 6, 2, IP),
        /* 12 */ UNLESS(6, 0x45, 10),
        /* 13 */ LOAD(BPF_B, 6, 2, IP + 9),
        /* 14 */ LOAD(BPF_H, 5, 2, IP4_UDP + 2),
        /* 15 */ UNLESS(6, IPPROTO_UDP, 7),
        /* 16 */ UNLESS(5, htons(port), 6),
        /* 17 */ LOAD(BPF_W, 2, 1, offsetof(struct xdp_md, rx_queue_index)),
        /* 18 */ INSN(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map),
        /* 19 */ INSN(0, 0, 0, 0, 0), /* the other half of 18 */
        /* 20 */ SET(3, XDP_PASS),    /* where the queue has no socket */
        /* 21 */ INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map),
        /* 22 */ INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
        /* 23 */ SET(0, XDP_PASS),
        /* 24 */ INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
    };
    union bpf_attr attr = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .insns = (uintptr_t)program,
        .insn_cnt = sizeof program / sizeof *program,
        .license = (uintptr_t) "GPL",
        .expected_attach_type = BPF_XDP,
    };
    return bpf(BPF_PROG_LOAD, &attr);
}

/* Hand over the first queue's datagrams to the socket, as long as this process lives. */
static void attach(unsigned interface, uint16_t port)
{
    union bpf_attr create = {
        .map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    int map = bpf(BPF_MAP_CREATE, &create);
    uint32_t queue = 0;
    union bpf_attr update = {
        .map_fd = (uint32_t)map, .key = (uintptr_t)&queue, .value = (uintptr_t)&sock};
    bpf(BPF_MAP_UPDATE_ELEM, &update);
    union bpf_attr link = {0};
    link.link_create.prog_fd = (uint32_t)load_program(map, port);
    link.link_create.target_ifindex = interface;
    link.link_create.attach_type = BPF_XDP;
    link.link_create.flags = XDP_FLAGS_SKB_MODE;
    bpf(BPF_LINK_CREATE, &link);
}

/* The socket, its memory and its rings. */

static void set(int option, const void *value, socklen_t size)
{
    if (setsockopt(sock, SOL_XDP, option, value, size))
        fail("setsockopt");
}

static struct ring mapped(off_t page, size_t entry, const struct xdp_ring_offset *offsets)
{
    size_t size = offsets->desc + FRAMES * entry;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, sock, page);
    if (memory == MAP_FAILED)
        fail("mmap");
    return (struct ring){
        .producer = (uint32_t *)(void *)(memory + offsets->producer),
        .consumer = (uint32_t *)(void *)(memory + offsets->consumer),
        .entries = memory + offsets->desc,
    };
}

static void open_socket(unsigned interface)
{
    sock = socket(AF_XDP, SOCK_RAW, 0);
    if (sock < 0)
        fail("socket");
    frames = mmap(NULL, FRAMES * FRAME, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (frames == MAP_FAILED)
        fail("mmap");
    struct xdp_umem_reg memory = {
        .addr = (uintptr_t)frames, .len = FRAMES * FRAME, .chunk_size = FRAME};
    set(XDP_UMEM_REG, &memory, sizeof memory);
    const int rings[] = {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING};
    const int entries = FRAMES;
    for (size_t i = 0; i < sizeof rings / sizeof *rings; i++)
        set(rings[i], &entries, sizeof entries);
    struct xdp_mmap_offsets offsets;
    socklen_t size = sizeof offsets;
    if (getsockopt(sock, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &size))
        fail("getsockopt");
    rx = mapped(XDP_PGOFF_RX_RING, sizeof(struct xdp_desc), &offsets.rx);
    tx = mapped(XDP_PGOFF_TX_RING, sizeof(struct xdp_desc), &offsets.tx);
    fill = mapped((off_t)XDP_UMEM_PGOFF_FILL_RING, sizeof(uint64_t), &offsets.fr);
    completion = mapped((off_t)XDP_UMEM_PGOFF_COMPLETION_RING, sizeof(uint64_t), &offsets.cr);
    struct sockaddr_xdp address = {
        .sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY, .sxdp_ifindex = interface};
    /* The queue of a socket that was closed is free some moments later. */
    for (int tries = 1000; bind(sock, (struct sockaddr *)&address, sizeof address); tries--)
        if (errno != EBUSY || !tries || usleep(10000))
            fail("bind");
}

/* Copy the next entry out of a ring; returns 0 when there is none. */
static int take(struct ring *ring, void *entry, size_t size)
{
    uint32_t at = *ring->consumer;
    if (at == __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE))
        return 0;
    memcpy(entry, ring->entries + at % FRAMES * size, size);
    __atomic_store_n(ring->consumer, at + 1, __ATOMIC_RELEASE);
    return 1;
}

/* Copy an entry into a ring. There is room, as each frame is in one ring at most. */
static void put(struct ring *ring, const void *entry, size_t size)
{
    uint32_t at = *ring->producer;
    memcpy(ring->entries + at % FRAMES * size, entry, size);
    __atomic_store_n(ring->producer, at + 1, __ATOMIC_RELEASE);
}

/* What is done with a datagram. */

static void swap(unsigned char *one, unsigned char *other, size_t size)
{
    unsigned char saved[16];
    memcpy(saved, one, size);
    memcpy(one, other, size);
    memcpy(other, saved, size);
}

static uint32_t sum(const unsigned char *data, size_t size)
{
    uint32_t found = 0;
    for (size_t i = 0; i < size; i++)
        found += i % 2 ? data[i] : (uint32_t)data[i] << 8;
    return found;
}

/* Turn a datagram round. The sender has left its checksum to an interface that never was. */
static void turn(unsigned char *frame, size_t size)
{
    int is_ip4 = frame[IP] >> 4 == 4;
    unsigned char *udp = frame + (is_ip4 ? IP4_UDP : IP6_UDP);
    unsigned char *addresses = frame + IP + (is_ip4 ? 12 : 8);
    size_t address = is_ip4 ? 4 : 16, length = (size_t)udp[4] << 8 | udp[5];
    if (udp + length > frame + size) {
        errno = EBADMSG;
        fail("datagram");
    }
    swap(frame, frame + ETH_ALEN, ETH_ALEN);
    swap(addresses, addresses + address, address);
    swap(udp, udp + 2, 2);
    udp[6] = udp[7] = 0;
    uint32_t check = sum(addresses, 2 * address) + IPPROTO_UDP + (uint32_t)length + sum(udp, length);
    while (check >> 16)
        check = (check & 0xffff) + (check >> 16);
    check = check == 0xffff ? check : ~check; /* 0 would be none */
    udp[6] = (unsigned char)(check >> 8);
    udp[7] = (unsigned char)check;
}

static unsigned echo_until_end(void)
{
    unsigned echoed = 0;
    struct pollfd waiting[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = sock, .events = POLLIN}};
    while (!waiting[0].revents) {
        struct xdp_desc frame;
        uint64_t done;
        for (; take(&rx, &frame, sizeof frame); echoed++) {
            turn((unsigned char *)frames + frame.addr, frame.len);
            put(&tx, &frame, sizeof frame);
        }
        if (sendto(sock, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0 && errno != EAGAIN && errno != EBUSY &&
            errno != ENOBUFS)
            fail("sendto");
        while (take(&completion, &done, sizeof done))
            put(&fill, &done, sizeof done);
        if (poll(waiting, 2, 20) < 0) /* nobody wakes up for a completion */
            fail("poll");
    }
    return echoed;
}

int main(int argc, char **argv)
{
    unsigned interface = argc == 3 ? if_nametoindex(argv[1]) : 0;
    if (!interface) {
        errno = EINVAL;
        fail("usage: xdp INTERFACE PORT");
    }
    open_socket(interface);
    for (uint64_t frame = 0; frame < FRAMES; frame++)
        put(&fill, &(uint64_t){frame * FRAME}, sizeof frame);
    attach(interface, (uint16_t)atoi(argv[2]));
    puts("ready");
    fflush(stdout);
    printf("%u\n", echo_until_end());
    return EXIT_SUCCESS;
}
