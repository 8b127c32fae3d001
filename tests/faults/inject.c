/* Run a command, and have one of its system calls fail, or its process killed just before it.
 *
 *   inject PLAN COMMAND [ARGUMENT...]
 *
 * Counted are the calls that change something, or could (see calls[]), of the command and of all
 * that it starts, threads and daemons included, in the order in which they come. PLAN is a file
 * that holds struct plan; it is mapped, so it may be changed while the command runs. PLAN.calls gets
 * a line for each call while LIST is the action. Ends when all that was started has ended, with the
 * command's exit status, or 128 and the signal's number.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef __x86_64__
#error "a system call is suppressed by registers of x86-64"
#endif

enum action { COUNT, KILL, FAIL, LIST };

/* As tests/faults/inject.py has it: all little-endian. */
struct plan {
    uint32_t at;      /* which call, counted from 1; 0: none */
    uint32_t action;  /* enum action */
    uint32_t error;   /* errno of FAIL */
    uint32_t lasting; /* later calls fail too */
    uint32_t spared;  /* calls of the command itself do not count, only of what it starts */
    uint32_t count;   /* calls so far */
    char what[232];   /* call number `at`, for people */
};

enum subject { PATH, FD, NONE };

static const struct call {
    int number;
    const char *name;
    enum subject subject;
    int argument; /* which is the subject */
    int flags;    /* argument that has the flags of open, or -1 */
} calls[] = {
    {SYS_open, "open", PATH, 0, 1},
    {SYS_openat, "openat", PATH, 1, 2},
    {SYS_openat2, "openat2", PATH, 1, -1},
    {SYS_creat, "creat", PATH, 0, -1},
    {SYS_write, "write", FD, 0, -1},
    {SYS_pwrite64, "pwrite", FD, 0, -1},
    {SYS_writev, "writev", FD, 0, -1},
    {SYS_pwritev, "pwritev", FD, 0, -1},
    {SYS_pwritev2, "pwritev2", FD, 0, -1},
    {SYS_sendto, "sendto", FD, 0, -1},
    {SYS_sendmsg, "sendmsg", FD, 0, -1},
    {SYS_sendmmsg, "sendmmsg", FD, 0, -1},
    {SYS_sendfile, "sendfile", FD, 0, -1},
    {SYS_copy_file_range, "copy_file_range", FD, 2, -1},
    {SYS_truncate, "truncate", PATH, 0, -1},
    {SYS_ftruncate, "ftruncate", FD, 0, -1},
    {SYS_fallocate, "fallocate", FD, 0, -1},
    {SYS_fsync, "fsync", FD, 0, -1},
    {SYS_fdatasync, "fdatasync", FD, 0, -1},
    {SYS_msync, "msync", NONE, 0, -1},
    {SYS_flock, "flock", FD, 0, -1},
    {SYS_link, "link", PATH, 1, -1},
    {SYS_linkat, "linkat", PATH, 3, -1},
    {SYS_symlink, "symlink", PATH, 1, -1},
    {SYS_symlinkat, "symlinkat", PATH, 2, -1},
    {SYS_unlink, "unlink", PATH, 0, -1},
    {SYS_unlinkat, "unlinkat", PATH, 1, -1},
    {SYS_rmdir, "rmdir", PATH, 0, -1},
    {SYS_rename, "rename", PATH, 1, -1},
    {SYS_renameat, "renameat", PATH, 3, -1},
    {SYS_renameat2, "renameat2", PATH, 3, -1},
    {SYS_mkdir, "mkdir", PATH, 0, -1},
    {SYS_mkdirat, "mkdirat", PATH, 1, -1},
    {SYS_chmod, "chmod", PATH, 0, -1},
    {SYS_fchmod, "fchmod", FD, 0, -1},
    {SYS_fchmodat, "fchmodat", PATH, 1, -1},
    {SYS_utimensat, "utimensat", FD, 0, -1},
    {SYS_setns, "setns", FD, 0, -1},
};
#define CALLS (sizeof calls / sizeof *calls)

static struct plan *plan;
static int list; /* PLAN.calls */

static void die(const char *what)
{
    fprintf(stderr, "inject: %s: %s\n", what, strerror(errno));
    exit(125);
}

/* Have the kernel stop this process, and all that it starts, at the calls that count. */
static void install_filter(void)
{
    static struct sock_filter code[5 + 5 * CALLS];
    size_t at = 0;
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                              offsetof(struct seccomp_data, arch));
    code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                              offsetof(struct seccomp_data, nr));
    for (size_t i = 0; i < CALLS; i++) {
        uint32_t number = (uint32_t)calls[i].number;
        if (calls[i].flags < 0) {
            code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1);
        } else {
            uint32_t flags = offsetof(struct seccomp_data, args) + 8u * (unsigned)calls[i].flags;
            uint32_t writing = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY);
            code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 4);
            code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, flags);
            code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, writing, 1, 0);
            code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        }
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {.len = (unsigned short)at, .filter = code};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        die("seccomp");
}

static void run_command(int go, char **command)
{
    char byte;
    if (read(go, &byte, 1) != 1) /* until we are traced */
        die("read");
    close(go);
    install_filter();
    execv(*command, command);
    die(*command);
}

static const struct call *find(long long number)
{
    for (size_t i = 0; i < CALLS; i++)
        if (calls[i].number == number)
            return &calls[i];
    return NULL;
}

/* Write down which call it is, and of what file. */
static void describe(pid_t pid, const struct user_regs_struct *regs)
{
    const struct call *call = find((long long)regs->orig_rax);
    unsigned long long arguments[] = {regs->rdi, regs->rsi, regs->rdx, regs->r10};
    char name[PATH_MAX] = "";
    if (call && call->subject == PATH) {
        struct iovec here = {name, 200}, there = {(void *)arguments[call->argument], 200};
        while (there.iov_len && process_vm_readv(pid, &here, 1, &there, 1, 0) < 0)
            there.iov_len /= 2; /* it may end where the memory does */
        name[200] = '\0';
    } else if (call && call->subject == FD) {
        char link[64];
        snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, (int)arguments[call->argument]);
        if (readlink(link, name, sizeof name - 1) < 0)
            *name = '\0';
    }
    snprintf(plan->what, sizeof plan->what, "%s %.200s", call ? call->name : "?", name);
}

/* Tell whether the kernel does the last call once more by itself: a sysctl of the network that
 * finds the RTNL lock taken does so until it gets it, hundreds of times (restart_syscall). */
static bool is_restart(pid_t pid, const struct user_regs_struct *regs)
{
    static struct user_regs_struct last;
    static pid_t last_pid;
    char link[64], name[16] = "";
    bool same = pid == last_pid && regs->orig_rax == SYS_write && last.orig_rax == SYS_write &&
                regs->rip == last.rip && regs->rdi == last.rdi && regs->rsi == last.rsi;
    last = *regs;
    last_pid = pid;
    snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, (int)regs->rdi);
    return same && readlink(link, name, sizeof name - 1) > 0 && !strncmp(name, "/proc/sys/", 10);
}

static void on_call(pid_t pid, pid_t child)
{
    struct user_regs_struct regs;
    if ((plan->spared && pid == child) || ptrace(PTRACE_GETREGS, pid, 0, &regs) ||
        is_restart(pid, &regs))
        return;
    plan->count++;
    if (plan->action == LIST) {
        describe(pid, &regs);
        dprintf(list, "%s\n", plan->what);
    }
    bool due = plan->at && (plan->count == plan->at || (plan->lasting && plan->count > plan->at));
    if (!due)
        return;
    if (plan->count == plan->at)
        describe(pid, &regs);
    if (plan->action == KILL) {
        kill(pid, SIGKILL); /* the call does not happen any more */
    } else if (plan->action == FAIL) {
        regs.orig_rax = (unsigned long long)-1; /* no call */
        regs.rax = (unsigned long long)-(long long)plan->error;
        ptrace(PTRACE_SETREGS, pid, 0, &regs);
    }
}

static void resume(pid_t pid, int status, pid_t child)
{
    int event = status >> 16, number = WSTOPSIG(status);
    if (event == PTRACE_EVENT_SECCOMP) {
        on_call(pid, child);
        number = 0;
    } else if (event == PTRACE_EVENT_STOP && number != SIGTRAP) {
        ptrace(PTRACE_LISTEN, pid, 0, 0); /* SIGSTOP and its like */
        return;
    } else if (event) {
        number = 0;
    }
    ptrace(PTRACE_CONT, pid, 0, number); /* fails where it was killed meanwhile */
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fputs("usage: inject PLAN COMMAND [ARGUMENT...]\n", stderr);
        return 125;
    }
    int fd = open(argv[1], O_RDWR | O_CLOEXEC);
    if (fd < 0)
        die(argv[1]);
    char calls_path[PATH_MAX];
    snprintf(calls_path, sizeof calls_path, "%s.calls", argv[1]);
    list = open(calls_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (list < 0)
        die(calls_path);
    plan = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int go[2];
    if (plan == MAP_FAILED || pipe2(go, O_CLOEXEC))
        die("cannot start");
    pid_t child = fork();
    if (child == 0)
        run_command(go[0], argv + 2);
    long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE |
                   PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC;
    if (child < 0 || ptrace(PTRACE_SEIZE, child, 0, options) || write(go[1], "", 1) != 1)
        die("cannot trace");
    for (int fds = 0; fds < 3; fds++)
        close(fds); /* who reads the command's output shall see its end */
    int result = 125, status;
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR;) {
        if (pid < 0)
            continue;
        if (WIFSTOPPED(status))
            resume(pid, status, child);
        else if (pid == child)
            result = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return result;
}
