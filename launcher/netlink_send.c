/* Waits for the kernel in place of a process that ends: sends a netlink request, and tells that the
 * kernel has acknowledged it.
 *
 * Descriptor 0 is a SOCK_SEQPACKET socket of unix(7), whose first message is the request. Descriptor
 * 1 is the netlink socket. Once the kernel has carried out the request, one byte goes to descriptor
 * 0; without that byte the request was refused, or nothing is known. Descriptors in later messages
 * are not read: the kernel closes them when this process ends.
 *
 * cni_common/kernel/link_deletion.py starts it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/netlink.h, which musl does not have */
struct acknowledgement {
    uint32_t length; /* struct nlmsghdr */
    uint16_t type;
    uint16_t flags;
    uint32_t sequence;
    uint32_t port;
    int32_t error; /* struct nlmsgerr */
};
#define NLMSG_ERROR 2

#define CALLER 0
#define KERNEL 1
#define DESCRIPTORS 1024 /* closed one by one where the kernel has no close_range (before 5.9) */

/* Close what the caller's caller has left open: a reader of such a pipe waits for its last writer. */
static void close_others(void)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, KERNEL + 1U, ~0U, 0U) == 0)
        return;
#endif
    for (int fd = KERNEL + 1; fd < DESCRIPTORS; fd++)
        (void)close(fd);
}

/* Receive a message of the kernel, which may take long; return its length, or -1. */
static ssize_t receive(void *buffer, size_t size)
{
    for (;;) {
        struct pollfd poller = {.fd = KERNEL, .events = POLLIN};
        ssize_t length = recv(KERNEL, buffer, size, MSG_DONTWAIT);

        if (length >= 0)
            return length;
        if (errno != EAGAIN && errno != EINTR)
            return -1;
        if (poll(&poller, 1, -1) < 0 && errno != EINTR)
            return -1;
    }
}

int main(void)
{
    char request[256]; /* a struct nlmsghdr with one of rtnetlink's headers, and no attributes */
    struct acknowledgement answer;
    ssize_t length;

    close_others();
    length = recv(CALLER, request, sizeof request, 0);
    if (length <= 0 || send(KERNEL, request, (size_t)length, 0) != length)
        return 1;
    if (receive(&answer, sizeof answer) != sizeof answer || answer.type != NLMSG_ERROR || answer.error)
        return 1;
    return send(CALLER, "1", 1, MSG_NOSIGNAL) == 1 ? 0 : 1;
}
