/* How a snapshot is made, and put in place; snapshot.h says what it is. */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_BUILD_CORE
#include <Python.h>
#include "internal/pycore_pystate.h"
#include "internal/pycore_runtime.h"
#include "snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "pycni:1" /* with the NUL at its end 8 bytes */
#define BUILD_ID 20     /* bytes; `compile` has the linker make such a note */
#define MAX_PARTS 100
#define MAX_FOREIGN 100 /* mappings that are not the program's own */
#define GAP 16          /* pages of zeros: fewer are in the file, since each part is a call */
#define SPARE ((size_t)4 << 20) /* bytes of addresses that a call needs beside the snapshot */

/* Where the program's variables begin and end: names of the linker. What comes before belongs to
 * the dynamic linker, which has put the addresses of the C library there. */
extern char __data_start[], _end[];
extern const ElfW(Ehdr) __ehdr_start;

struct part {
    char *at;
    size_t length;
    size_t offset; /* in the file */
};

/* The beginning of the file. */
struct head {
    char magic[sizeof MAGIC];
    unsigned char program[BUILD_ID];
    uint32_t count;
    size_t page;   /* bytes; the parts begin and end with pages, but the first */
    size_t memory; /* bytes from SNAPSHOT_START on */
    size_t file;   /* bytes */
    struct part parts[MAX_PARTS];
};

/* The variables that the dynamic linker sets, although they are among the program's. */
struct of_library {
    FILE *in, *out, *err;
    char **environ;
};

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static char *round_up(char *at)
{
    size_t page = page_size();
    return at + (page - (size_t)at % page) % page;
}

/* Return the mark by which a linker knows this program from all others, NULL without one. */
static const unsigned char *build_id(void)
{
    const char *program = (const char *)&__ehdr_start;
    const ElfW(Phdr) *at = (const ElfW(Phdr) *)(program + __ehdr_start.e_phoff);

    for (int i = 0; i < __ehdr_start.e_phnum; i++, at++) {
        const ElfW(Nhdr) *note = (const ElfW(Nhdr) *)at->p_vaddr; /* the first is enough: ld's */
        if (at->p_type == PT_NOTE && note->n_type == NT_GNU_BUILD_ID && note->n_descsz == BUILD_ID)
            return (const unsigned char *)(note + 1) + (note->n_namesz + 3) / 4 * 4;
    }
    return NULL;
}

/* --- how it is made --- */

static int output = STDOUT_FILENO, errors = STDERR_FILENO;

static bool complain(const char *what, const char *why)
{
    dprintf(errors, "snapshot: %s: %s\n", what, why);
    return false;
}

static bool set_streams_aside(void)
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);

    output = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    errors = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (dup2(nothing, fd) < 0)
            return false;
    }
    close(nothing);
    return output >= 0 && errors >= 0;
}

void snapshot_begin(char **argv)
{
    int kind = personality(0xffffffff);

    /* The same sources shall give the same bytes: some hold the remains of a thread's id, which is an
     * address of the C library. Where this is forbidden there is a snapshot all the same. */
    if (!(kind & ADDR_NO_RANDOMIZE) && personality((unsigned)kind | ADDR_NO_RANDOMIZE) >= 0)
        execv("/proc/self/exe", argv);
    if (mmap(SNAPSHOT_START, SNAPSHOT_BYTES, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0)
            != SNAPSHOT_START
        || !set_streams_aside()) {
        complain("cannot begin", strerror(errno));
        _exit(EXIT_FAILURE);
    }
    clearenv(); /* nothing of the maker's is kept */
    setenv("TZ", "UTC0", 1);
    snapshot_grows = true;
}

void snapshot_show_errors(void)
{
    dup2(errors, STDERR_FILENO);
}

static bool is_zero(const char *page, size_t size)
{
    return *page == '\0' && memcmp(page, page + 1, size - 1) == 0;
}

/* Describe what of a range is not zero. */
static bool add_parts(struct head *head, char *from, char *to)
{
    while (from < to) {
        char *end = from; /* of the last page that has something */
        for (char *at = from; at < to && at < end + GAP * head->page; at += head->page) {
            if (!is_zero(at, head->page))
                end = at + head->page;
        }
        if (end > from) {
            if (head->count == MAX_PARTS)
                return complain("cannot keep the memory", "it has too many parts");
            head->parts[head->count++] = (struct part){from, (size_t)(end - from), head->file};
            head->file += (size_t)(end - from);
        }
        for (from = end; from < to && is_zero(from, head->page);)
            from += head->page;
    }
    return true;
}

/* Write where the memory of this process is that no other process has at the same place. */
static size_t find_foreign(ElfW(Addr) ranges[MAX_FOREIGN][2])
{
    char line[512];
    size_t count = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    ElfW(Addr) program = (ElfW(Addr))&__ehdr_start, end = (ElfW(Addr))round_up(_end);
    ElfW(Addr) memory = (ElfW(Addr))SNAPSHOT_START;

    while (maps != NULL && count < MAX_FOREIGN && fgets(line, sizeof line, maps) != NULL) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx", &from, &to) != 2)
            continue;
        if (from >= program && from < end) /* malloc's memory may be one mapping with the variables */
            from = end;
        if (from >= to || (from >= memory && from < memory + SNAPSHOT_BYTES))
            continue;
        ranges[count][0] = from;
        ranges[count++][1] = to;
    }
    return maps != NULL && fclose(maps) == 0 && count < MAX_FOREIGN ? count : 0;
}

/* Make sure that nothing in the parts leads to memory which the next process has elsewhere. */
static bool has_no_foreign_pointer(const struct head *head)
{
    ElfW(Addr) ranges[MAX_FOREIGN][2]; /* not among the variables, which are written */
    size_t count = find_foreign(ranges);

    for (uint32_t i = 0; i < head->count; i++) {
        const ElfW(Addr) *word = (const ElfW(Addr) *)head->parts[i].at;
        const char *end = head->parts[i].at + head->parts[i].length;
        for (; (const char *)word < end; word++) {
            for (size_t range = 0; range < count; range++) {
                if (*word < ranges[range][0] || *word >= ranges[range][1])
                    continue;
                dprintf(errors, "snapshot: the pointer at %p leads to %p, outside of it\n",
                        (const void *)word, (void *)*word);
                return false;
            }
        }
    }
    return count > 0;
}

static bool write_all(const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(output, data, length);
        if (written <= 0)
            return complain("cannot write", strerror(errno));
        data += written;
        length -= (size_t)written;
    }
    return true;
}

/* Fill up a page. */
static bool write_zeros(size_t length)
{
    static const char zeros[1 << 16]; /* the largest page of a kernel */
    return write_all(zeros, length);
}

/* Forget what is of this process alone. */
static void forget_process(void)
{
    PyThreadState *thread = _PyRuntimeState_GetThreadState(&_PyRuntime);

    thread->thread_id = 0;
    thread->native_thread_id = 0;
    _PyRuntime.main_thread = 0;
    _PyRuntime.gilstate.autoTSSkey = (Py_tss_t)Py_tss_NEEDS_INIT;
    stdin = stdout = stderr = NULL;
    environ = NULL;
}

bool snapshot_write(void)
{
    struct head head = {.magic = MAGIC}; /* not among the variables, which are written */
    const unsigned char *program = build_id();
    struct of_library library = {stdin, stdout, stderr, environ};
    char *edge = round_up(__data_start);

    snapshot_grows = false;
    if (program == NULL)
        return complain("cannot name the program", "it has no build id");
    memcpy(head.program, program, BUILD_ID);
    head.page = page_size();
    head.memory = (size_t)(round_up(snapshot_end) - SNAPSHOT_START);
    head.file = (sizeof head + head.page - 1) / head.page * head.page;
    /* The page of the first variables is the dynamic linker's as well: those are copied. */
    head.parts[head.count++] = (struct part){__data_start, (size_t)(edge - __data_start), head.file};
    head.file += head.page;
    forget_process();
    bool is_whole = add_parts(&head, edge, round_up(_end))
                    && add_parts(&head, SNAPSHOT_START, SNAPSHOT_START + head.memory);
    is_whole = is_whole && has_no_foreign_pointer(&head) && write_all((char *)&head, sizeof head)
               && write_zeros(head.parts[0].offset - sizeof head);
    for (uint32_t i = 0; is_whole && i < head.count; i++) {
        struct part part = head.parts[i];
        size_t next = i + 1 < head.count ? head.parts[i + 1].offset : head.file;
        is_whole = write_all(part.at, part.length)
                   && write_zeros(next - part.offset - part.length);
    }
    stdin = library.in, stdout = library.out, stderr = library.err, environ = library.environ;
    return is_whole;
}

/* --- how it is put in place --- */

/* Read the head of a file. Returns whether this program has written it, and it is whole. */
static bool read_head(int fd, struct head *head)
{
    const unsigned char *program = build_id();
    struct stat facts;

    return program != NULL && fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode)
           && pread(fd, head, sizeof *head, 0) == (ssize_t)sizeof *head
           && memcmp(head->magic, MAGIC, sizeof MAGIC) == 0
           && memcmp(head->program, program, BUILD_ID) == 0 && head->page == page_size()
           && head->memory <= SNAPSHOT_BYTES && head->count > 0 && head->count <= MAX_PARTS
           && head->file == (size_t)facts.st_size;
}

static bool map(char *at, size_t length, int flags, int fd, size_t offset)
{
    return length == 0
           || mmap(at, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | flags, fd, (off_t)offset) == at;
}

/* Map the parts of a range. Only the pages that are used cost something. */
static bool map_parts(int fd, const struct head *head, const char *from, const char *to)
{
    for (uint32_t i = 1; i < head->count; i++) {
        struct part part = head->parts[i];
        if (part.at >= from && part.at < to
            && !map(part.at, part.length, MAP_FIXED, fd, part.offset))
            return false;
    }
    return true;
}

/* Replace the program's variables. */
static bool map_variables(int fd, const struct head *head)
{
    struct of_library library = {stdin, stdout, stderr, environ};
    char *edge = round_up(__data_start), *end = round_up(_end);
    size_t first = (size_t)(edge - __data_start);
    bool is_whole = map(edge, (size_t)(end - edge), MAP_FIXED | MAP_ANONYMOUS, -1, 0)
                    && map_parts(fd, head, edge, end)
                    && pread(fd, __data_start, first, (off_t)head->parts[0].offset)
                           == (ssize_t)first;

    /* Also after a failure: the next program needs the environment. */
    stdin = library.in, stdout = library.out, stderr = library.err, environ = library.environ;
    return is_whole;
}

/* Let Python know its new process. */
static void tell_python(void)
{
    PyThreadState *thread = _PyRuntimeState_GetThreadState(&_PyRuntime);
    Py_tss_t *key = &_PyRuntime.gilstate.autoTSSkey;

    thread->thread_id = PyThread_get_thread_ident();
    if (PyThread_tss_create(key) != 0 || PyThread_tss_set(key, thread) != 0)
        Py_FatalError("no memory for a thread's state");
    PyOS_AfterFork_Child(); /* a process of this memory and one thread, as after a fork */
    /* As in Python's own start, but for SIGINT, which cni_common/serve/main.py handles in a call. */
    PyOS_setsig(SIGPIPE, SIG_IGN);
    PyOS_setsig(SIGXFSZ, SIG_IGN);
}

enum snapshot_outcome snapshot_resume(const char *path)
{
    struct head head;
    enum snapshot_outcome outcome = SNAPSHOT_UNUSED;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return SNAPSHOT_UNUSED;
    if (read_head(fd, &head)
        && map(SNAPSHOT_START, head.memory + SPARE, MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)) {
        bool has_memory = map_parts(fd, &head, SNAPSHOT_START, SNAPSHOT_START + head.memory);
        munmap(SNAPSHOT_START + head.memory, SPARE); /* so there is room for the variables, too */
        if (has_memory)
            outcome = map_variables(fd, &head) ? SNAPSHOT_RESUMED : SNAPSHOT_BROKEN;
        else
            munmap(SNAPSHOT_START, head.memory);
    }
    close(fd);
    if (outcome == SNAPSHOT_RESUMED)
        tell_python();
    return outcome;
}
