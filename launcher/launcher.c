/* The executable of every plugin: hands the request over to the engine. Without an engine it execs
 * the frozen program, with the same result, only slower.
 *
 * The messages, on a SOCK_SEQPACKET socket, all numbers little-endian:
 *   engine:    "pycni\0", uint16 protocol number, the build
 *   launcher:  uint32 length of the plugin's type, the type; as SCM_RIGHTS the descriptors of
 *              stdin, stdout, stderr, a file that holds the environment, and CNI_NETNS if it opens
 *   engine:    int32 exit status
 * A failure before the request is sent starts the frozen program. After that the engine may have
 * acted, and a second try could act twice: the runtime gets an error.
 *
 * Only setenv allocates memory, and every copy is bounded by the size of its buffer.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef BUILD
#error "define BUILD: the common build of launcher, engine and frozen program"
#endif
#ifndef BUNDLE
#error "define BUNDLE: the path of the frozen program, relative to the launcher's directory"
#endif

#ifndef SOCKET
#define SOCKET "/run/pycni/engine.sock" /* overridden only by tests, which run in parallel */
#endif
#define PROTOCOL 1
#define HELLO_MS 2000
#define MAX_DESCRIPTORS 5

/* CNI error codes: SPEC.md section 5 */
#define IO_FAILURE 5
#define TRY_AGAIN_LATER 11

static const char versions[] =
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
    "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";

extern char **environ;

static bool write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        data += written;
        length -= (size_t)written;
    }
    return true;
}

/* Print a CNI error object on `fd` and exit with status 1. */
__attribute__((noreturn, format(printf, 3, 4)))
static void fail(int fd, int code, const char *format, ...)
{
    char msg[PATH_MAX + 512];
    char line[sizeof msg + 128];
    va_list arguments;
    int length;

    va_start(arguments, format);
    if (vsnprintf(msg, sizeof msg, format, arguments) < 0)
        msg[0] = '\0';
    va_end(arguments);
    /* A path can hold any byte; the object must be JSON. */
    for (char *at = msg; *at; at++) {
        if (*at < ' ' || *at > '~' || *at == '"' || *at == '\\')
            *at = '?';
    }
    length = snprintf(line, sizeof line, "{\"cniVersion\":\"1.1.0\",\"code\":%d,\"msg\":\"%s\"}\n",
                      code, msg);
    signal(SIGPIPE, SIG_IGN); /* without a reader the exit status still reports the failure */
    if (length > 0)
        (void)write_all(fd, line, (size_t)length);
    exit(1);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Set the variables that PyInstaller's bootloader would set before it restarts itself to find its
 * libraries. That restart takes a millisecond, and needs the machine's libz before it. If the
 * bootloader does not accept them it restarts itself all the same. deploy/frozen/start.py removes
 * these variables. */
static void spare_bootloader(const char *program)
{
    const char *original = getenv("LD_LIBRARY_PATH");
    /* An empty entry would mean the working directory. */
    bool has_entries = original && *original;
    char library[2 * PATH_MAX];
    int length = snprintf(library, sizeof library, "%.*slib%s%s",
                          (int)(base_name(program) - program), program, has_entries ? ":" : "",
                          has_entries ? original : "");

    if (length < 0 || (size_t)length >= sizeof library
        || (original ? setenv("LD_LIBRARY_PATH_ORIG", original, 1)
                     : unsetenv("LD_LIBRARY_PATH_ORIG")) < 0
        || setenv("LD_LIBRARY_PATH", library, 1) < 0)
        return;
    if (setenv("_PYI_ARCHIVE_FILE", program, 1) == 0)
        setenv("_PYI_PARENT_PROCESS_LEVEL", "-1", 1);
}

/* Exec the frozen program, with the plugin's path in this launcher's directory as argv[0]: by that
 * path the program recognises delegates of its own. */
__attribute__((noreturn))
static void start_bundle(char **argv, const char *type)
{
    char directory[PATH_MAX];
    char called_as[PATH_MAX];
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", directory, sizeof directory);
    int first;
    int second;

    if (length < 0)
        fail(STDOUT_FILENO, IO_FAILURE, "pycni: cannot read /proc/self/exe: %s; is /proc mounted?",
             strerror(errno));
    while (length > 0 && directory[length - 1] != '/')
        length--;
    first = snprintf(called_as, sizeof called_as, "%.*s%s", (int)length, directory, type);
    second = snprintf(program, sizeof program, "%.*s%s", (int)length, directory, BUNDLE);
    if (first < 0 || second < 0 || (size_t)first >= sizeof called_as
        || (size_t)second >= sizeof program)
        fail(STDOUT_FILENO, IO_FAILURE, "pycni: the path of the plugin '%.100s' is too long", type);

    argv[0] = called_as;
    spare_bootloader(program);
    execv(program, argv);
    fail(STDOUT_FILENO, IO_FAILURE, "pycni: cannot start '%s': %s; install pycni again", program,
         strerror(errno));
}

/* Open /dev/null for each closed descriptor of 0 to 2: the request needs three descriptors, and a
 * file that is opened later must not get one of these numbers. */
static bool complete_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        /* `fd` is the lowest free number, since all lower ones are open. */
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return false;
    }
    return true;
}

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (long)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Return the length of the next message, 0 if the peer closed the socket, -1 after `limit_ms` or an
 * error. A negative limit means no limit. */
static ssize_t receive(int sock, void *buffer, size_t size, int limit_ms)
{
    long deadline = now_ms() + limit_ms;

    for (;;) {
        struct pollfd poller = {.fd = sock, .events = POLLIN};
        long left = limit_ms < 0 ? -1 : deadline - now_ms();
        ssize_t length = recv(sock, buffer, size, MSG_DONTWAIT | MSG_TRUNC);

        if (length >= 0 || (errno != EAGAIN && errno != EINTR))
            return length;
        if (limit_ms >= 0 && left <= 0)
            return -1;
        if (poll(&poller, 1, (int)left) < 0 && errno != EINTR)
            return -1;
    }
}

static bool is_root(int sock)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == 0;
}

static bool is_our_engine(int sock)
{
    static const char expected[] = "pycni\0" /* a uint16 */ "\1\0" BUILD;
    char hello[sizeof expected];

    _Static_assert(PROTOCOL == 1, "`expected` contains it");
    return receive(sock, hello, sizeof hello, HELLO_MS) == sizeof expected - 1
           && memcmp(hello, expected, sizeof expected - 1) == 0;
}

/* Return a socket to an engine of this build that waits for a request, or -1. */
static int connect_to_engine(void)
{
    static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    /* Not blocking: connect must not wait for a full engine. */
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (sock < 0)
        return -1;
    if (connect(sock, (const struct sockaddr *)&address, sizeof address) == 0 && is_root(sock)
        && is_our_engine(sock))
        return sock;
    close(sock);
    return -1;
}

/* Return a file with the content of /proc/self/environ, or -1. A file, since an environment may
 * have megabytes, too much for a message. */
static int file_of_environment(void)
{
    int fd = memfd_create("environ", MFD_CLOEXEC);
    off_t offset = 0;

    if (fd < 0)
        return -1;
    for (char **entry = environ; *entry;) {
        /* The kernel puts the strings side by side, so one call writes all of them. */
        const char *start = *entry;
        const char *end = start;
        while (*entry == end) {
            end += strlen(end) + 1;
            entry++;
        }
        while (start < end) {
            /* pwrite leaves the file's offset at its start, for the reader. */
            ssize_t written = pwrite(fd, start, (size_t)(end - start), offset);
            if (written <= 0) {
                close(fd);
                return -1;
            }
            start += written;
            offset += written;
        }
    }
    return fd;
}

static bool send_request(int sock, const char *type)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
    } control = {.space = {0}};
    uint32_t length = htole32((uint32_t)strlen(type));
    struct iovec parts[] = {
        {.iov_base = &length, .iov_len = sizeof length},
        {.iov_base = (char *)(uintptr_t)type, .iov_len = strlen(type)},
    };
    struct msghdr message = {
        .msg_iov = parts,
        .msg_iovlen = 2,
        .msg_control = control.space,
    };
    const char *netns = getenv("CNI_NETNS");
    int descriptors[MAX_DESCRIPTORS] = {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO};
    unsigned count = 4;
    ssize_t sent;

    descriptors[3] = file_of_environment();
    if (descriptors[3] < 0)
        return false;
    if (netns && *netns) {
        /* Opened here, as the engine may see other mounts. Not blocking: the path may be a FIFO. */
        descriptors[count] = open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (descriptors[count] >= 0)
            count++; /* otherwise the engine tries, and reports the error */
    }
    message.msg_controllen = (socklen_t)CMSG_SPACE(count * sizeof(int));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = (socklen_t)CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(&control.header), descriptors, count * sizeof(int));
    do {
        sent = sendmsg(sock, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

/* Wait for the engine's answer without a limit: the engine has its own time limits. */
__attribute__((noreturn))
static void exit_as_engine_says(int sock)
{
    uint32_t status = 0;
    ssize_t length = receive(sock, &status, sizeof status, -1);

    if (length == sizeof status)
        exit((int)le32toh(status));
    fail(STDOUT_FILENO, TRY_AGAIN_LATER,
         "the pycni engine (%s) took the request and then gave no answer: %s; try again", SOCKET,
         length == 0  ? "it ended"
         : length < 0 ? strerror(errno)
                      : "it sent something else");
}

int main(int argc, char **argv)
{
    char *no_arguments[] = {NULL, NULL};
    char **arguments = argc > 0 ? argv : no_arguments;
    const char *type = base_name(argc > 0 ? argv[0] : "pycni");
    const char *command = getenv("CNI_COMMAND");
    int sock;

    if (command && strcmp(command, "VERSION") == 0) {
        signal(SIGPIPE, SIG_IGN);
        if (!write_all(STDOUT_FILENO, versions, sizeof versions - 1))
            fail(STDERR_FILENO, IO_FAILURE, "cannot write to stdout: %s", strerror(errno));
        return 0;
    }
    /* Without a command a person calls; without stdout the result cannot be printed. */
    if (!command || !*command || fcntl(STDOUT_FILENO, F_GETFD) < 0 || strcmp(type, "pycni") == 0
        || !complete_standard_streams())
        start_bundle(arguments, type);
    sock = connect_to_engine();
    if (sock < 0)
        start_bundle(arguments, type);
    if (!send_request(sock, type)) {
        close(sock); /* without a request */
        start_bundle(arguments, type);
    }
    exit_as_engine_says(sock);
}
