/* The executable of every plugin: hands the request over to the engine. Without an engine it execs
 * the frozen program, with the same result, only slower.
 *
 * The messages, on a SOCK_SEQPACKET socket, all numbers little-endian:
 *   engine:    "pycni\0", uint16 protocol number, 16 random bytes, the build
 *   launcher:  these 16 bytes, uint32 length of the plugin's type, the type; as SCM_RIGHTS the
 *              descriptors of stdin, stdout, stderr, a file that holds the environment, and CNI_NETNS
 *              if it opens
 *   engine:    int32 exit status
 * Each side serves only a process of root in its own network and mount namespaces, under its own
 * root directory: a process of a container that reaches the socket fails that test. The kernel
 * writes the sender's process id on each message (SCM_CREDENTIALS of unix(7)). A process id can be
 * reused, but the open directory /proc/PID never shows a later process with the same id. So the
 * engine opens it, then lets its random bytes come back from that process id, then reads the
 * namespaces. The launcher is younger than any engine: what has sent the engine's greeting after the
 * launcher has begun to connect, and has begun before that, had its process id in between.
 *
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
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
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

#ifndef TYPE
#define TYPE "" /* of the plugin; "" for a program that is the plugin which it is called as */
#endif
#ifndef SOCKET
#define SOCKET "/run/pycni/engine.sock" /* overridden only by tests, which run in parallel */
#endif
#define CHOICE ".pycni/engine" /* a symbolic link whose text is the choice: agent/engine_choice.py */
#define CHOICE_VARIABLE "_PYCNI_ENGINE" /* as in cni_common/serve/main.py */
#define PROTOCOL 3
#define HELLO_MS 2000 /* for each message of the engine before the request */
#define STATUS_HELLO_MS 500 /* the same of STATUS, which is to be answered within a second */
#define CHALLENGE 16 /* bytes */
#define YOUNG_NS 20000000 /* two ticks of the clock by which processes begin */
#define YOUNG_TRIES 4     /* more, each after a pause twice as long: 0.3 s in all */
#define MAX_DESCRIPTORS 5

/* CNI error codes: SPEC.md section 5 */
#define IO_FAILURE 5
#define TRY_AGAIN_LATER 11

static const char versions[] =
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":"
    "[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";

/* The identity of this executable under any name: nodes have plugins under other names, by link or copy.
 * cni_common/node/plugin_files.py looks for it in the files of CNI_PATH. */
#define IDENTITY "pycni launcher " BUILD " "
__attribute__((used)) static const char identity[] = IDENTITY TYPE;

extern char **environ;

static bool write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0 && errno == EAGAIN) {
            struct pollfd poller = {.fd = fd, .events = POLLOUT};
            (void)poll(&poller, 1, -1); /* a program with an event loop may pass such a pipe */
            continue;
        }
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

/* Hide a variable from the dynamic loader. deploy/frozen/start.py restores it, so that delegates and
 * iptables get the environment that the runtime has set. */
static bool set_aside(const char *name, const char *kept_as)
{
    const char *value = getenv(name);

    if ((value ? setenv(kept_as, value, 1) : unsetenv(kept_as)) < 0)
        return false;
    return unsetenv(name) == 0;
}

/* Let the bundle's libraries come from the bundle alone: a runtime may set these variables for its
 * own libraries, as snap does, and those can be too old for the bundle.
 *
 * PyInstaller's bootloader would set LD_LIBRARY_PATH and restart itself to find its libraries. That
 * restart takes a millisecond, and needs the machine's libz before it. If the bootloader does not
 * accept the variables it restarts itself all the same. */
static void prepare_environment(const char *program)
{
    char library[2 * PATH_MAX];
    int length = snprintf(library, sizeof library, "%.*slib",
                          (int)(base_name(program) - program), program);

    if (!set_aside("LD_PRELOAD", "_PYCNI_LD_PRELOAD") || !set_aside("LD_AUDIT", "_PYCNI_LD_AUDIT")
        || !set_aside("LD_LIBRARY_PATH", "LD_LIBRARY_PATH_ORIG")
        || length < 0 || (size_t)length >= sizeof library
        || setenv("LD_LIBRARY_PATH", library, 1) < 0)
        return;
    if (setenv("_PYI_ARCHIVE_FILE", program, 1) == 0)
        setenv("_PYI_PARENT_PROCESS_LEVEL", "-1", 1);
}

/* Tell the frozen program what was chosen where no engine serves: it may leave one behind. */
static void tell_choice(const char *directory, int length, bool has_no_engine)
{
    char path[PATH_MAX + sizeof CHOICE];
    char choice[64];
    ssize_t size = -1;

    if (has_no_engine && snprintf(path, sizeof path, "%.*s" CHOICE, length, directory) > 0)
        size = readlink(path, choice, sizeof choice - 1);
    if (size > 0) {
        choice[size] = '\0';
        (void)setenv(CHOICE_VARIABLE, choice, 1);
    } else {
        (void)unsetenv(CHOICE_VARIABLE);
    }
}

/* Exec the frozen program, with the plugin's path in this launcher's directory as argv[0]: by that
 * path the program recognises delegates of its own. */
__attribute__((noreturn))
static void start_bundle(char **argv, const char *type, bool has_no_engine)
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
    tell_choice(directory, (int)length, has_no_engine);
    prepare_environment(program);
    execv(program, argv);
    if (errno == ENOENT && access(program, F_OK) < 0)
        fail(STDOUT_FILENO, IO_FAILURE,
             "pycni: there is no '%s': the directory '.pycni' must lie beside the plugin, and a plain"
             " 'cp dist/bin/*' leaves it behind; copy it as well, or run 'make install'", program);
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
 * error. A negative limit means no limit. `sender` gets the sender's process and user, or zeros. */
static ssize_t receive(int sock, void *buffer, size_t size, int limit_ms, struct ucred *sender)
{
    long deadline = now_ms() + limit_ms;

    for (;;) {
        union {
            struct cmsghdr header;
            char space[CMSG_SPACE(sizeof(struct ucred))]; /* none for descriptors: they are dropped */
        } control = {.space = {0}};
        struct iovec part = {.iov_base = buffer, .iov_len = size};
        struct msghdr message = {
            .msg_iov = &part,
            .msg_iovlen = 1,
            .msg_control = control.space,
            .msg_controllen = sizeof control.space,
        };
        struct pollfd poller = {.fd = sock, .events = POLLIN};
        long left = limit_ms < 0 ? -1 : deadline - now_ms();
        ssize_t length = recvmsg(sock, &message, MSG_DONTWAIT | MSG_TRUNC | MSG_CMSG_CLOEXEC);

        if (length >= 0) {
            const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            memset(sender, 0, sizeof *sender);
            if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS)
                memcpy(sender, CMSG_DATA(header), sizeof *sender);
            return length;
        }
        if (errno != EAGAIN && errno != EINTR)
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

/* The network namespace, mount namespace and root directory of a process. */
struct surroundings {
    struct {
        dev_t device;
        ino_t inode;
    } of[3];
};

/* Read those of the process with the /proc directory `process`. */
static bool read_surroundings(int process, struct surroundings *found)
{
    static const char *const names[] = {"ns/net", "ns/mnt", "root"};

    memset(found, 0, sizeof *found); /* no padding that differs */
    for (size_t at = 0; at < sizeof names / sizeof names[0]; at++) {
        struct stat facts;
        if (fstatat(process, names[at], &facts, 0) < 0)
            return false;
        found->of[at].device = facts.st_dev;
        found->of[at].inode = facts.st_ino;
    }
    return true;
}

/* What this process contributes to a conversation: prepared while the engine wakes up. */
struct request {
    struct surroundings ours;
    int descriptors[MAX_DESCRIPTORS];
    unsigned count; /* of these; 0: not prepared yet */
};

/* The time since the boot in the ticks of /proc/PID/stat. */
static long long ticks_now(void)
{
    struct timespec now;
    long long hz = (long long)getauxval(AT_CLKTCK);

    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * hz + now.tv_nsec * hz / 1000000000;
}

/* When the process with the /proc directory `process` has begun, likewise; -1 if it has ended. */
static long long start_of(int process)
{
    char text[1024];
    int fd = openat(process, "stat", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    const char *at;
    long long start = 0;

    if (fd >= 0)
        close(fd);
    if (length <= 0)
        return -1;
    text[length] = '\0';
    at = strrchr(text, ')'); /* the end of the second field, a name with any characters */
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (!at)
        return -1;
    for (at++; *at >= '0' && *at <= '9'; at++)
        start = 10 * start + (*at - '0');
    return start;
}

/* Whether `engine`, the sender of a greeting, is a process that had begun at `connected`, and has our
 * surroundings. `is_young`: it had not begun before, as far as the clock tells. */
static bool proves_itself(const struct ucred *engine, const struct surroundings *ours,
                          long long connected, bool *is_young)
{
    struct surroundings theirs;
    char path[32];
    int process;
    bool is_ours;
    long long start;

    snprintf(path, sizeof path, "/proc/%d", (int)engine->pid);
    process = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (process < 0)
        return false;
    start = start_of(process);
    is_ours = start >= 0 && read_surroundings(process, &theirs)
              && memcmp(&theirs, ours, sizeof theirs) == 0;
    *is_young = is_ours && start >= connected;
    close(process);
    return is_ours && !*is_young;
}

/* How long to wait for the engine's greeting, in milliseconds. */
static int hello_ms(void)
{
    const char *command = getenv("CNI_COMMAND");

    return command && strcmp(command, "STATUS") == 0 ? STATUS_HELLO_MS : HELLO_MS;
}

static bool is_our_engine(int sock, const struct surroundings *ours, char *challenge,
                          long long connected, bool *is_young)
{
    static const char start[] = "pycni\0" /* a uint16 */ "\3"; /* and the NUL at its end */
    static const char build[] = BUILD;
    enum { LENGTH = sizeof start + CHALLENGE + sizeof build - 1 };
    char hello[LENGTH + 1];
    struct ucred engine;

    _Static_assert(PROTOCOL == 3, "it stands in `start`");
    if (receive(sock, hello, sizeof hello, hello_ms(), &engine) != LENGTH
        || memcmp(hello, start, sizeof start) != 0
        || memcmp(hello + sizeof start + CHALLENGE, build, sizeof build - 1) != 0
        || engine.pid <= 0 || engine.uid != 0)
        return false;
    memcpy(challenge, hello + sizeof start, CHALLENGE);
    return proves_itself(&engine, ours, connected, is_young);
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

/* Open what the request has, once. */
static bool prepare(struct request *request)
{
    const char *netns = getenv("CNI_NETNS");
    int self;
    bool has_surroundings;

    if (request->count > 0)
        return true;
    self = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (self < 0)
        return false;
    has_surroundings = read_surroundings(self, &request->ours);
    close(self);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        request->descriptors[fd] = fd;
    request->descriptors[3] = file_of_environment();
    if (!has_surroundings || request->descriptors[3] < 0)
        return false;
    request->count = 4;
    if (netns && *netns) {
        /* Opened here, as the engine may see other mounts. Not blocking: the path may be a FIFO. */
        int fd = open(netns, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd >= 0) /* otherwise the engine tries, and reports the error */
            request->descriptors[request->count++] = fd;
    }
    return true;
}

/* Return a socket to an engine of this build that waits for a request, or -1. `has_no_engine` tells
 * whether no process listens at all, `is_young` whether another try will tell more. */
static int try_to_connect(struct request *request, char *challenge, bool *has_no_engine,
                          bool *is_young)
{
    static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = SOCKET};
    /* Not blocking: connect must not wait for a full engine. */
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int yes = 1;
    long long now = ticks_now();

    *has_no_engine = *is_young = false;
    if (sock < 0)
        return -1;
    /* First the option: the engine's greeting may come right after connect. */
    if (setsockopt(sock, SOL_SOCKET, SO_PASSCRED, &yes, sizeof yes) == 0) {
        if (connect(sock, (const struct sockaddr *)&address, sizeof address) < 0)
            *has_no_engine = errno == ENOENT || errno == ECONNREFUSED;
        else if (is_root(sock) && prepare(request)
                 && is_our_engine(sock, &request->ours, challenge, now, is_young))
            return sock;
    }
    close(sock);
    return -1;
}

/* The same, with more tries where the engine, or its worker, has begun after the launcher: an engine
 * that starts forks its workers one after the other, while launchers wait at systemd's socket. */
static int connect_to_engine(struct request *request, char *challenge, bool *has_no_engine)
{
    struct timespec pause = {.tv_nsec = YOUNG_NS};
    bool is_young;
    int sock = try_to_connect(request, challenge, has_no_engine, &is_young);

    for (int tries = 0; sock < 0 && is_young && tries < YOUNG_TRIES; tries++) {
        nanosleep(&pause, NULL);
        pause.tv_nsec *= 2;
        sock = try_to_connect(request, challenge, has_no_engine, &is_young);
    }
    return sock;
}

static bool send_request(int sock, const struct request *request, const char *challenge,
                         const char *type)
{
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
    } control = {.space = {0}};
    uint32_t length = htole32((uint32_t)strlen(type));
    struct iovec parts[] = {
        {.iov_base = (char *)(uintptr_t)challenge, .iov_len = CHALLENGE},
        {.iov_base = &length, .iov_len = sizeof length},
        {.iov_base = (char *)(uintptr_t)type, .iov_len = strlen(type)},
    };
    struct msghdr message = {
        .msg_iov = parts,
        .msg_iovlen = sizeof parts / sizeof *parts,
        .msg_control = control.space,
    };
    size_t size = request->count * sizeof(int);
    ssize_t sent;

    message.msg_controllen = (socklen_t)CMSG_SPACE(size);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = (socklen_t)CMSG_LEN(size);
    memcpy(CMSG_DATA(&control.header), request->descriptors, size);
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
    struct ucred sender;
    ssize_t length = receive(sock, &status, sizeof status, -1, &sender);

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
    const char *own_type = identity + sizeof IDENTITY - 1;
    const char *type = *own_type ? own_type : base_name(argc > 0 ? argv[0] : "pycni");
    const char *command = getenv("CNI_COMMAND");
    struct request request = {.count = 0};
    char challenge[CHALLENGE];
    bool has_no_engine;
    int sock;

    if (command && strcmp(command, "VERSION") == 0) {
        signal(SIGPIPE, SIG_IGN);
        if (!write_all(STDOUT_FILENO, versions, sizeof versions - 1))
            fail(STDERR_FILENO, IO_FAILURE, "cannot write to stdout: %s", strerror(errno));
        return 0;
    }
    signal(SIGXFSZ, SIG_IGN); /* a limit on files is an error of the write: it must not end us */
    /* Without a command a person calls; without stdout the result cannot be printed. */
    if (!command || !*command || fcntl(STDOUT_FILENO, F_GETFD) < 0 || strcmp(type, "pycni") == 0
        || !complete_standard_streams())
        start_bundle(arguments, type, false);
    sock = connect_to_engine(&request, challenge, &has_no_engine);
    if (sock < 0)
        start_bundle(arguments, type, has_no_engine);
    if (!send_request(sock, &request, challenge, type)) {
        close(sock); /* without a request */
        start_bundle(arguments, type, false);
    }
    exit_as_engine_says(sock);
}
