/* Runs programs as a container runtime does, and measures each.
 *
 * A C program, not Python: vfork from a large process costs more, and the kernel counts
 * the parent's memory as the child's peak until the child has called exec.
 *
 * A line on stdin is a call; its fields are separated by tabs, and begin with a letter:
 *   p PROGRAM   a ARGUMENT   e VARIABLE=VALUE   i STDIN
 * An empty line starts all calls since the last one, side by side. For each of them, in the order
 * of the request, one line answers:
 *   nanoseconds from before fork to its end, microseconds of CPU, kilobytes of peak memory (both
 *   with the children it waited for), exit status, and its stdout
 * then one line with the nanoseconds of all together.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALLS_MAX 128
#define WORDS_MAX 32
#define PIPE_USUAL 65536 /* capacity of a pipe: one is read after the program's end */
#define PIPE_MAX (1 << 20) /* fs.pipe-max-size: of thousands of ports or routes */
#define LIMIT_SECONDS 300 /* for calls that run side by side; then SIGALRM ends the driver */

struct call {
    char *line;
    char *program, *input;
    char *arguments[WORDS_MAX], *environment[WORDS_MAX];
    pid_t pid; /* 0: ended */
    int output;
    uint64_t start, end;
    int status;
    struct rusage usage;
};

static struct call calls[CALLS_MAX];

__attribute__((noreturn))
static void die(const char *what)
{
    fprintf(stderr, "driver: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void parse(struct call *call, const char *line)
{
    unsigned arguments = 1;
    unsigned variables = 0;
    char *rest;

    memset(call, 0, sizeof *call);
    call->line = rest = strdup(line);
    if (!rest)
        die("strdup");
    for (char *field = strsep(&rest, "\t"); field; field = strsep(&rest, "\t")) {
        if (arguments + 1 >= WORDS_MAX || variables + 1 >= WORDS_MAX)
            die("too many fields");
        switch (field[0]) {
        case 'p':
            call->program = call->arguments[0] = field + 1;
            break;
        case 'a':
            call->arguments[arguments++] = field + 1;
            break;
        case 'e':
            call->environment[variables++] = field + 1;
            break;
        case 'i':
            call->input = field + 1;
            break;
        default:
            die("a field without its letter");
        }
    }
    if (!call->program)
        die("a call without a program");
}

static void start(struct call *call)
{
    int input[2];
    int output[2];
    int error;
    posix_spawn_file_actions_t actions;
    size_t length = call->input ? strlen(call->input) : 0;

    if (pipe2(input, O_CLOEXEC) < 0 || pipe2(output, O_CLOEXEC) < 0)
        die("pipe");
    if (length > PIPE_USUAL / 4
        && (fcntl(input[1], F_SETPIPE_SZ, PIPE_MAX) < 0
            || fcntl(output[1], F_SETPIPE_SZ, PIPE_MAX) < 0))
        die("F_SETPIPE_SZ");
    if (write(input[1], call->input, length) != (ssize_t)length)
        die("stdin does not fit into a pipe");
    close(input[1]);
    if (posix_spawn_file_actions_init(&actions)
        || posix_spawn_file_actions_adddup2(&actions, input[0], STDIN_FILENO)
        || posix_spawn_file_actions_adddup2(&actions, output[1], STDOUT_FILENO))
        die("posix_spawn_file_actions");
    call->start = now();
    error = posix_spawn(&call->pid, call->program, &actions, NULL, call->arguments,
                        call->environment);
    if (error) {
        errno = error;
        die(call->program);
    }
    posix_spawn_file_actions_destroy(&actions);
    close(input[0]);
    close(output[1]);
    call->output = output[0];
}

/* Record the end of one program; with WNOHANG, return 0 if none has ended. */
static int reap(unsigned count, int flags)
{
    int status;
    struct rusage usage;
    pid_t pid = wait4(-1, &status, flags, &usage);
    uint64_t end = now();

    if (pid < 0)
        die("wait4");
    for (unsigned i = 0; pid && i < count; i++) {
        if (calls[i].pid == pid) {
            calls[i].pid = 0;
            calls[i].end = end;
            calls[i].status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            calls[i].usage = usage;
            return 1;
        }
    }
    return 0;
}

static uint64_t microseconds(struct timeval time)
{
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_usec;
}

static void report(struct call *call)
{
    static char output[PIPE_MAX];
    size_t length = 0;
    ssize_t got;

    while ((got = read(call->output, output + length, sizeof output - length)) > 0)
        length += (size_t)got;
    close(call->output);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)output[i] < ' ')
            output[i] = ' ';
    }
    printf("%llu\t%llu\t%ld\t%d\t", (unsigned long long)(call->end - call->start),
           (unsigned long long)(microseconds(call->usage.ru_utime)
                                + microseconds(call->usage.ru_stime)),
           call->usage.ru_maxrss, call->status);
    fwrite(output, 1, length, stdout);
    putchar('\n');
    free(call->line);
}

static void run(unsigned count)
{
    unsigned ended = 0;
    uint64_t begin = now();
    uint64_t end;

    alarm(LIMIT_SECONDS);
    for (unsigned i = 0; i < count; i++) {
        start(&calls[i]);
        if (i + 1 < count)
            ended += (unsigned)reap(i + 1, WNOHANG);
    }
    while (ended < count)
        ended += (unsigned)reap(count, 0);
    alarm(0);
    end = now();
    for (unsigned i = 0; i < count; i++)
        report(&calls[i]);
    printf("%llu\n", (unsigned long long)(end - begin));
    fflush(stdout);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;
    unsigned count = 0;
    ssize_t length;

    while ((length = getline(&line, &size, stdin)) > 0) {
        line[length - 1] = '\0';
        if (!line[0]) {
            run(count);
            count = 0;
        } else if (count < CALLS_MAX) {
            parse(&calls[count++], line);
        } else {
            die("too many calls at once");
        }
    }
    return 0;
}
