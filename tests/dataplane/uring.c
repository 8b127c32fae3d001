/* Copy between standard streams and the socket with descriptor FD, by io_uring alone.
 *
 *   uring send FD     what comes from stdin; then no more will come
 *   uring send-zc FD  the same without copies where the kernel can
 *   uring receive FD  to stdout, until the peer has sent all
 *
 * Ends with status 77, and the reason on stderr, where the kernel refuses io_uring.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ENTRIES = 4, SKIPPED = 77 };

static int peer;
static char buffer[200000]; /* no multiple of a page or segment */

static struct {
    int fd;
    uint32_t *sq_tail, *sq_array, *cq_head, *cq_tail;
    uint32_t sq_mask, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static _Noreturn void fail(const char *what, int error)
{
    fprintf(stderr, "%s: %s\n", what, strerror(error));
    exit(EXIT_FAILURE);
}

static void *map(size_t size, off_t offset)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, offset);
    if (memory == MAP_FAILED)
        fail("mmap", errno);
    return memory;
}

static void set_up(void)
{
    struct io_uring_params params = {0};
    ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &params);
    if (ring.fd < 0) {
        fprintf(stderr, "io_uring_setup: %s\n", strerror(errno));
        exit(errno == ENOSYS || errno == EPERM ? SKIPPED : EXIT_FAILURE);
    }
    char *sq = map(params.sq_off.array + params.sq_entries * sizeof(uint32_t), IORING_OFF_SQ_RING);
    char *cq = map(params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe),
                   IORING_OFF_CQ_RING);
    ring.sqes = map(params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
    ring.sq_tail = (uint32_t *)(void *)(sq + params.sq_off.tail);
    ring.sq_array = (uint32_t *)(void *)(sq + params.sq_off.array);
    ring.sq_mask = *(uint32_t *)(void *)(sq + params.sq_off.ring_mask);
    ring.cq_head = (uint32_t *)(void *)(cq + params.cq_off.head);
    ring.cq_tail = (uint32_t *)(void *)(cq + params.cq_off.tail);
    ring.cq_mask = *(uint32_t *)(void *)(cq + params.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(void *)(cq + params.cq_off.cqes);
}

static void enter(uint32_t submitted)
{
    while (syscall(SYS_io_uring_enter, ring.fd, submitted, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
        if (errno != EINTR)
            fail("io_uring_enter", errno);
}

/* Wait for the completion of an operation; return its result. */
static int32_t completion(uint64_t operation, uint32_t *flags)
{
    uint32_t head = *ring.cq_head;
    while (head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE))
        enter(0);
    const struct io_uring_cqe *done = &ring.cqes[head & ring.cq_mask];
    if (done->user_data != operation)
        fail("completion of another operation", EPROTO);
    int32_t result = done->res;
    *flags = done->flags;
    __atomic_store_n(ring.cq_head, head + 1, __ATOMIC_RELEASE);
    return result;
}

/* One operation on the socket; returns how many bytes it has moved. */
static size_t operate(uint8_t opcode, char *data, size_t size)
{
    uint32_t tail = *ring.sq_tail, slot = tail & ring.sq_mask;
    ring.sqes[slot] = (struct io_uring_sqe){
        .opcode = opcode,
        .fd = peer,
        .addr = (uintptr_t)data,
        .len = (uint32_t)size,
        .user_data = tail,
    };
    ring.sq_array[slot] = slot;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    enter(1);
    uint32_t flags;
    int32_t moved = completion(tail, &flags);
    if (moved < 0)
        fail("operation", -moved);
    while (flags & IORING_CQE_F_MORE) /* of SEND_ZC: tells when the memory is free again */
        completion(tail, &flags);
    return (size_t)moved;
}

static void send_all(uint8_t opcode)
{
    ssize_t size;
    while ((size = read(STDIN_FILENO, buffer, sizeof buffer)) > 0)
        for (size_t sent = 0; sent < (size_t)size;)
            sent += operate(opcode, buffer + sent, (size_t)size - sent);
    if (size < 0)
        fail("read", errno);
    if (shutdown(peer, SHUT_WR))
        fail("shutdown", errno);
}

static void receive_all(void)
{
    size_t size;
    while ((size = operate(IORING_OP_RECV, buffer, sizeof buffer)) > 0)
        if (fwrite(buffer, 1, size, stdout) != size)
            fail("write", errno);
    if (fflush(stdout))
        fail("write", errno);
}

int main(int argc, char **argv)
{
    const char *what = argc == 3 ? argv[1] : "";
    bool receives = strcmp(what, "receive") == 0, zero_copy = strcmp(what, "send-zc") == 0;
    if (!receives && !zero_copy && strcmp(what, "send") != 0)
        fail("usage: uring send|send-zc|receive FD", EINVAL);
    peer = atoi(argv[2]);
    set_up();
    if (receives)
        receive_all();
    else
        send_all(zero_copy ? IORING_OP_SEND_ZC : IORING_OP_SEND);
    return EXIT_SUCCESS;
}
