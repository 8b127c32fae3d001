/* A snapshot of the started program: a call maps it instead of starting Python and importing modules.
 *
 * A snapshot has the variables of the program, and the memory of CPython's objects. The program's
 * addresses are fixed, and that memory lies at one address in each process, so every pointer holds.
 * The C library's own memory is not in it: each process has that as the library has made it.
 *
 * snapshot_memory.h is a part of CPython's allocator, snapshot.c makes and maps snapshots. */
#ifndef PYCNI_SNAPSHOT_H
#define PYCNI_SNAPSHOT_H
#include <stdbool.h>
#include <stddef.h>

/* Below what 39 bits address, as of ARM kernels; above all that a kernel puts anywhere by itself. */
#define SNAPSHOT_START ((char *)0x2000000000)
#define SNAPSHOT_BYTES ((size_t)64 << 20) /* at most */

/* Whether CPython's memory is taken from SNAPSHOT_START on, and where its unused part begins. */
extern bool snapshot_grows;
extern char *snapshot_end;

/* Let all that is allocated from now on be a part of the snapshot. Ends the process on failure.
 * Standard streams lead nowhere, until snapshot_show_errors: Python notes what they can do. */
void snapshot_begin(char **argv);
void snapshot_show_errors(void);

/* Write the snapshot to stdout. Python cannot go on after this. Returns whether that succeeded; what
 * failed is told on stderr. */
bool snapshot_write(void);

enum snapshot_outcome {
    SNAPSHOT_RESUMED, /* Python is as it was when the snapshot was made */
    SNAPSHOT_UNUSED,  /* there is none, or it does not fit; nothing has changed */
    SNAPSHOT_BROKEN,  /* this process is of no use any more, but for exec */
};

/* Put the snapshot of a file in place. */
enum snapshot_outcome snapshot_resume(const char *path);

#endif
