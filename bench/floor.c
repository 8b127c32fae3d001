/* The floor: the kernel's time for one attachment, asked by one resident process.
 *
 *   floor BRIDGE|none   reads lines from stdin, and answers each with its nanoseconds:
 *   add HOST_END NETNS ADDRESS/PREFIX GATEWAY [ADDRESS/PREFIX GATEWAY]
 *   attach ...                           as add, then computes, and waits until the host's end is up
 *   route HOST_END GATEWAY/32 ADDRESS    what ptp adds to the host's end
 *   del HOST_END
 *   sysctl NAME                          writes 1 to a file of /proc/sys
 *   adds COUNT HOST_END NETNS PREFIX     COUNT at a time, each in its own process, which waits for
 *   dels COUNT HOST_END                  the start: HOST_END0, NETNS0, PREFIX.1.0/16 and so on
 *
 * An ADD opens the namespace, makes the veth pair by one message (both ends in their namespaces,
 * the host's up and in the bridge, if any), opens a socket in the container, has both ends use the
 * kernel's link-local addresses at once and heed no routers (accept_dad, accept_ra), has the kernel
 * announce addresses (arp_notify, ndisc_notify), asks for the index of eth0, and by one more sendmsg
 * gives it its addresses, sets it up and adds a default route for each gateway. A DEL is the
 * deletion of the pair. Both end with the kernel's acknowledgement; one of many DELs ends with the event that the
 * host's end is deleted, since its memory is freed later. Many DELs are grouped: each moves its pair
 * into a group, then asks for the deletion of the group. That deletion includes all pairs that were
 * moved there while it waited for the RTNL lock.
 *
 * On a bridge the kernel delivers what the container announces to each port, also after its
 * acknowledgement, on the processor of that process; and it notes later that a link has a carrier.
 * `attach` has both in its time, as a plugin has.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORDS_MAX 8
#define COUNT_MAX 250
#define IFNAME "eth0"
#define GROUP 0x70796e63
#define TRIES_MAX 1000000
#define OPER_UP 6 /* IF_OPER_UP of linux/if.h, which cannot be included beside net/if.h */
#define COMPUTATIONS 1150000 /* a millisecond and a half: what bridge does after its link is set up */

struct batch {
    _Alignas(struct nlmsghdr) char data[4096];
    size_t length;
    struct nlmsghdr *last;
    unsigned count;
};

__attribute__((noreturn))
static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Append `length` bytes, padded; `data` may be NULL for zeros. Return their address. */
static void *append(struct batch *batch, const void *data, size_t length)
{
    char *place = batch->data + batch->length;

    if (batch->length + NLMSG_ALIGN(length) > sizeof batch->data) {
        errno = EMSGSIZE;
        die("message");
    }
    memset(place, 0, NLMSG_ALIGN(length));
    if (data)
        memcpy(place, data, length);
    batch->length += NLMSG_ALIGN(length);
    if (batch->last)
        batch->last->nlmsg_len = (uint32_t)(batch->data + batch->length - (char *)batch->last);
    return place;
}

static void message(struct batch *batch, int type, int flags, const void *body, size_t length)
{
    batch->last = NULL;
    batch->last = append(batch, NULL, sizeof *batch->last);
    batch->last->nlmsg_type = (uint16_t)type;
    batch->last->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    batch->last->nlmsg_seq = ++batch->count;
    append(batch, body, length);
}

static struct rtattr *attribute(struct batch *batch, int type, const void *data, size_t length)
{
    struct rtattr header = {.rta_len = (uint16_t)RTA_LENGTH(length), .rta_type = (uint16_t)type};
    struct rtattr *place = append(batch, &header, sizeof header);

    if (length)
        append(batch, data, length);
    return place;
}

static void end_nest(struct batch *batch, struct rtattr *nest)
{
    nest->rta_len = (uint16_t)(batch->data + batch->length - (char *)nest);
}

static void text(struct batch *batch, int type, const char *value)
{
    attribute(batch, type, value, strlen(value) + 1);
}

/* Send the batch and wait for one answer to each message. Return the index in the last link. */
static int exchange(int sock, struct batch *batch, const char *what)
{
    _Alignas(struct nlmsghdr) char answer[32768];
    unsigned answered = 0;
    int index = 0;

    if (send(sock, batch->data, batch->length, 0) < 0)
        die(what);
    while (answered < batch->count) {
        ssize_t got = recv(sock, answer, sizeof answer, 0);
        size_t offset = 0;

        if (got < 0)
            die(what);
        while (offset + sizeof(struct nlmsghdr) <= (size_t)got) {
            struct nlmsghdr *one = (struct nlmsghdr *)(answer + offset);
            if (one->nlmsg_type == NLMSG_ERROR && ((struct nlmsgerr *)NLMSG_DATA(one))->error) {
                errno = -((struct nlmsgerr *)NLMSG_DATA(one))->error;
                die(what);
            }
            if (one->nlmsg_type == RTM_NEWLINK)
                index = ((struct ifinfomsg *)NLMSG_DATA(one))->ifi_index;
            offset += NLMSG_ALIGN(one->nlmsg_len);
            answered++;
        }
    }
    return index;
}

static int netlink_socket(void)
{
    int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    int on = 1;

    if (sock < 0)
        die("socket");
    setsockopt(sock, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
    return sock;
}

static void make_pair(int sock, const char *name, int netns, int bridge)
{
    struct batch batch = {.length = 0};
    struct ifinfomsg ours = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct ifinfomsg theirs = {.ifi_flags = 0};
    struct rtattr *info;
    struct rtattr *data;
    struct rtattr *peer;

    message(&batch, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &ours, sizeof ours);
    text(&batch, IFLA_IFNAME, name);
    attribute(&batch, IFLA_MASTER, &bridge, sizeof bridge);
    info = attribute(&batch, IFLA_LINKINFO, NULL, 0);
    text(&batch, IFLA_INFO_KIND, "veth");
    data = attribute(&batch, IFLA_INFO_DATA, NULL, 0);
    peer = attribute(&batch, VETH_INFO_PEER, NULL, 0);
    append(&batch, &theirs, sizeof theirs);
    text(&batch, IFLA_IFNAME, IFNAME);
    attribute(&batch, IFLA_NET_NS_FD, &netns, sizeof netns);
    end_nest(&batch, peer);
    end_nest(&batch, data);
    end_nest(&batch, info);
    exchange(sock, &batch, "veth pair");
}

/* Return the family of `string` and its bytes. */
static int parse_address(const char *string, unsigned char *bytes)
{
    int family = strchr(string, ':') ? AF_INET6 : AF_INET;

    if (inet_pton(family, string, bytes) != 1) {
        errno = EINVAL;
        die(string);
    }
    return family;
}

static void add_address(struct batch *batch, int index, char *cidr)
{
    unsigned char bytes[16];
    char *prefix = strchr(cidr, '/');
    struct ifaddrmsg body = {.ifa_index = (uint32_t)index, .ifa_flags = IFA_F_NODAD};
    size_t length;

    if (!prefix) {
        errno = EINVAL;
        die(cidr);
    }
    *prefix = '\0';
    body.ifa_prefixlen = (uint8_t)atoi(prefix + 1);
    body.ifa_family = (uint8_t)parse_address(cidr, bytes);
    length = body.ifa_family == AF_INET ? 4 : 16;
    message(batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &body, sizeof body);
    attribute(batch, IFA_LOCAL, bytes, length);
    attribute(batch, IFA_ADDRESS, bytes, length);
}

/* Add a route by an address's attribute: RTA_GATEWAY of a default route, RTA_DST of one to a host. */
static void add_route(struct batch *batch, int index, int type, const char *address)
{
    unsigned char bytes[16];
    struct rtmsg body = {
        .rtm_table = RT_TABLE_MAIN,
        .rtm_protocol = RTPROT_BOOT,
        .rtm_scope = type == RTA_DST ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE,
        .rtm_type = RTN_UNICAST,
    };
    size_t length;

    body.rtm_family = (unsigned char)parse_address(address, bytes);
    length = body.rtm_family == AF_INET ? 4 : 16;
    if (type == RTA_DST)
        body.rtm_dst_len = (unsigned char)(length * 8);
    message(batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &body, sizeof body);
    attribute(batch, type, bytes, length);
    attribute(batch, RTA_OIF, &index, sizeof index);
}

static void configure(int sock, char **words, unsigned count)
{
    struct batch question = {.length = 0};
    struct batch batch = {.length = 0};
    struct ifinfomsg body = {.ifi_family = AF_UNSPEC};

    message(&question, RTM_GETLINK, 0, &body, sizeof body);
    text(&question, IFLA_IFNAME, IFNAME);
    body.ifi_index = exchange(sock, &question, "index of " IFNAME);

    for (unsigned i = 0; i + 1 < count; i += 2)
        add_address(&batch, body.ifi_index, words[i]);
    body.ifi_flags = body.ifi_change = IFF_UP;
    message(&batch, RTM_NEWLINK, NLM_F_ACK, &body, sizeof body);
    for (unsigned i = 0; i + 1 < count; i += 2)
        add_route(&batch, body.ifi_index, RTA_GATEWAY, words[i + 1]);
    exchange(sock, &batch, "addresses, up, routes");
}

static void set(const char *name, const char *value)
{
    char path[256];
    int fd;

    snprintf(path, sizeof path, "/proc/sys/%.200s", name);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, value, 1) != 1)
        die(path);
    close(fd);
}

/* As CNI plugins do. The kernel then joins groups as soon as the link is up, not a second later, and
 * a bridge passes that on to each port. */
static void stay_silent(const char *name)
{
    char path[64];

    snprintf(path, sizeof path, "net/ipv6/conf/%s/accept_dad", name);
    set(path, "0");
    snprintf(path, sizeof path, "net/ipv6/conf/%s/accept_ra", name);
    set(path, "0");
}

static void add(int host, int home, int bridge, char **words, unsigned count)
{
    int netns = open(words[2], O_RDONLY | O_CLOEXEC);
    int sock;

    if (netns < 0)
        die(words[2]);
    make_pair(host, words[1], netns, bridge);
    stay_silent(words[1]);
    if (setns(netns, CLONE_NEWNET) < 0)
        die("setns");
    sock = netlink_socket();
    stay_silent(IFNAME);
    set("net/ipv4/conf/" IFNAME "/arp_notify", "1");
    set("net/ipv6/conf/" IFNAME "/ndisc_notify", "1");
    if (setns(home, CLONE_NEWNET) < 0)
        die("setns");
    configure(sock, words + 3, count - 3);
    close(sock);
    close(netns);
}

static void compute(void)
{
    volatile uint64_t state = 1;

    for (unsigned i = 0; i < COMPUTATIONS; i++)
        state = state * 6364136223846793005U + 1;
}

/* Ask for a link until the kernel has noticed its carrier: each answer waits for the RTNL lock. */
static void await_carrier(int host, const char *name)
{
    _Alignas(struct nlmsghdr) char answer[32768];
    struct ifinfomsg body = {.ifi_family = AF_UNSPEC, .ifi_index = (int)if_nametoindex(name)};

    for (unsigned tries = 0; tries < TRIES_MAX; tries++) {
        struct batch batch = {.length = 0};
        struct nlmsghdr *header = (struct nlmsghdr *)answer;
        uint32_t mask = RTEXT_FILTER_SKIP_STATS;
        ssize_t got;

        message(&batch, RTM_GETLINK, 0, &body, sizeof body);
        attribute(&batch, IFLA_EXT_MASK, &mask, sizeof mask);
        if (send(host, batch.data, batch.length, 0) < 0)
            die("link");
        got = recv(host, answer, sizeof answer, 0);
        if (got < 0 || !NLMSG_OK(header, (size_t)got) || header->nlmsg_type != RTM_NEWLINK)
            die("link");
        struct rtattr *one = IFLA_RTA(NLMSG_DATA(header));
        for (size_t left = IFLA_PAYLOAD(header); RTA_OK(one, left); one = RTA_NEXT(one, left))
            if (one->rta_type == IFLA_OPERSTATE && *(uint8_t *)RTA_DATA(one) == OPER_UP)
                return;
    }
    errno = ETIMEDOUT;
    die(name);
}

/* Add an address to the host's end, and a route to the container's address. */
static void route_host(int host, const char *name, char *gateway, const char *address)
{
    struct batch batch = {.length = 0};
    int index = (int)if_nametoindex(name);

    add_address(&batch, index, gateway);
    add_route(&batch, index, RTA_DST, address);
    exchange(host, &batch, "address and route of the host");
}

static void delete(int host, const char *name)
{
    struct batch batch = {.length = 0};
    struct ifinfomsg body = {.ifi_family = AF_UNSPEC};

    message(&batch, RTM_DELLINK, NLM_F_ACK, &body, sizeof body);
    text(&batch, IFLA_IFNAME, name);
    exchange(host, &batch, "deletion");
}

/* Move an interface into the group and delete the group; another process may have just done it. */
static void delete_group(int host, int index)
{
    struct batch batch = {.length = 0};
    struct ifinfomsg body = {.ifi_family = AF_UNSPEC, .ifi_index = index};
    uint32_t group = GROUP;

    message(&batch, RTM_SETLINK, 0, &body, sizeof body);
    attribute(&batch, IFLA_GROUP, &group, sizeof group);
    body.ifi_index = 0;
    message(&batch, RTM_DELLINK, NLM_F_ACK, &body, sizeof body);
    attribute(&batch, IFLA_GROUP, &group, sizeof group);
    if (send(host, batch.data, batch.length, 0) < 0)
        die("deletion");
}

/* Filter events to the deletion of one interface, so that no other event wakes the process. */
static void hear_only_deletion(int events, int index)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_H | BPF_ABS, offsetof(struct nlmsghdr, nlmsg_type)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htons(RTM_DELLINK), 0, 5),
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, NLMSG_HDRLEN),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_UNSPEC, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NLMSG_HDRLEN + offsetof(struct ifinfomsg, ifi_index)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, htonl((uint32_t)index), 0, 1),
        BPF_STMT(BPF_RET | BPF_K, UINT32_MAX),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof *program, .filter = program};

    if (setsockopt(events, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof filter) < 0)
        die("filter");
}

/* Delete the pair of `name`, and write to `done` at the kernel's event of the deletion. */
static void delete_and_tell(const char *name, int done)
{
    _Alignas(struct nlmsghdr) char answer[32768];
    struct sockaddr_nl links = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK};
    int index = (int)if_nametoindex(name);
    int events = netlink_socket();
    int host = netlink_socket();

    hear_only_deletion(events, index);
    if (bind(events, (struct sockaddr *)&links, sizeof links) < 0)
        die("bind");
    /* Another process waits for the acknowledgement, which comes an RCU grace period later. */
    if (fork() == 0) {
        delete_group(host, index);
        _exit(0);
    }
    if (recv(events, answer, sizeof answer, 0) < 0)
        die("events");
    if (write(done, "", 1) != 1)
        die("write");
    wait(NULL);
}

/* Run as process `number` of the request `words`, once `start` is closed. */
__attribute__((noreturn))
static void take_part(char **words, unsigned number, int bridge, int start, int done)
{
    char name[IFNAMSIZ];
    char netns[256];
    char address[64];
    char gateway[64];
    char *add_words[] = {NULL, name, netns, address, gateway};
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    int host = netlink_socket();
    char byte;

    snprintf(name, sizeof name, "%.10s%u", words[2], number % COUNT_MAX);
    if (words[3]) {
        snprintf(netns, sizeof netns, "%.200s%u", words[3], number);
        snprintf(address, sizeof address, "%.40s.1.%u/16", words[4], number % COUNT_MAX);
        snprintf(gateway, sizeof gateway, "%.40s.0.1", words[4]);
    }
    if (read(start, &byte, 1) < 0)
        die("read");
    if (words[3]) {
        add(host, home, bridge, add_words, 5);
        if (write(done, "", 1) != 1)
            die("write");
    } else {
        delete_and_tell(name, done);
    }
    _exit(0);
}

/* Run the number of processes in `words` at once; return the time of their start. */
static uint64_t many(char **words, int bridge)
{
    unsigned count = (unsigned)atoi(words[1]);
    int start[2];
    int done[2];
    uint64_t began;

    if (count < 1 || count > COUNT_MAX || pipe2(start, O_CLOEXEC) < 0 || pipe2(done, O_CLOEXEC) < 0)
        die("many");
    for (unsigned number = 0; number < count; number++) {
        if (fork() == 0) {
            close(start[1]);
            take_part(words, number, bridge, start[0], done[1]);
        }
    }
    close(start[0]);
    usleep(50000); /* until all processes wait */
    began = now();
    close(start[1]);
    close(done[1]);
    for (unsigned number = 0; number < count; number++) {
        char byte;
        if (read(done[0], &byte, 1) != 1)
            die("one of many");
    }
    close(done[0]);
    return began;
}

int main(int argc, char **argv)
{
    char line[1024];
    int host = netlink_socket();
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    bool pairs_alone = argc == 2 && strcmp(argv[1], "none") == 0;
    int bridge = argc == 2 && !pairs_alone ? (int)if_nametoindex(argv[1]) : 0;

    if ((!bridge && !pairs_alone) || home < 0)
        die("usage: floor BRIDGE|none");
    while (fgets(line, sizeof line, stdin)) {
        char *words[WORDS_MAX] = {NULL};
        unsigned count = 0;
        uint64_t start;

        for (char *word = strtok(line, " \n"); word && count < WORDS_MAX; word = strtok(NULL, " \n"))
            words[count++] = word;
        start = now();
        if (count >= 5 && strcmp(words[0], "add") == 0)
            add(host, home, bridge, words, count);
        else if (count >= 5 && strcmp(words[0], "attach") == 0) {
            add(host, home, bridge, words, count);
            compute();
            await_carrier(host, words[1]);
        } else if (count == 4 && strcmp(words[0], "route") == 0)
            route_host(host, words[1], words[2], words[3]);
        else if (count == 2 && strcmp(words[0], "del") == 0)
            delete(host, words[1]);
        else if (count == 2 && strcmp(words[0], "sysctl") == 0)
            set(words[1], "1");
        else if ((count == 5 && strcmp(words[0], "adds") == 0)
                 || (count == 3 && strcmp(words[0], "dels") == 0))
            start = many(words, bridge);
        else
            die("a line that is no request");
        printf("%llu\n", (unsigned long long)(now() - start));
        fflush(stdout);
        while (wait(NULL) > 0)
            continue;
    }
    return 0;
}
