/* What CPython's allocator takes memory from; snapshot.patch has Objects/obmalloc.c include this.
 *
 * While a snapshot grows, all memory comes from the range of the snapshot. Later, what a snapshot
 * holds is never given back, and what is new comes from the C library. */
#include "snapshot.h"

bool snapshot_grows = false;
char *snapshot_end = SNAPSHOT_START;

/* Sizes have eight steps for each doubling, so that what is given back fits the next of about the
 * same size: files of modules are read into memory of many sizes. */
#define SMALLEST_STEP ((size_t)16)
#define BINS (8 * 24)
static void *snapshot_bins[BINS]; /* by size, the last that was given back; each leads to the next */

/* Return a size rounded up to its step, and the bin of that size. */
static size_t
snapshot_round(size_t size, size_t *bin)
{
    size_t step = SMALLEST_STEP;

    for (*bin = 0; size > 8 * step; *bin += 8)
        step *= 2;
    size_t steps = (size + step - 1) / step;
    *bin += steps - 1;
    return steps * step;
}

static bool
snapshot_has(const void *at)
{
    return (size_t)((const char *)at - SNAPSHOT_START) < SNAPSHOT_BYTES;
}

/* Return `size` more bytes of the range, NULL when it is full. */
static void *
snapshot_extend(size_t size, size_t alignment)
{
    size_t used = (size_t)(snapshot_end - SNAPSHOT_START);

    used = (used + alignment - 1) / alignment * alignment;
    if (size > SNAPSHOT_BYTES || used > SNAPSHOT_BYTES - size)
        return NULL;
    snapshot_end = SNAPSHOT_START + used + size;
    return SNAPSHOT_START + used;
}

/* A block begins with its size, which keeps the rest aligned for every type. */
#define BLOCK_HEAD 16

static size_t
snapshot_size(const void *block)
{
    return *(const size_t *)((const char *)block - BLOCK_HEAD);
}

static void *
snapshot_malloc(size_t size)
{
    size_t bin;

    if (!snapshot_grows)
        return malloc(size);
    if (size > SNAPSHOT_BYTES)
        return NULL;
    size = snapshot_round(size + BLOCK_HEAD, &bin);
    char *block = snapshot_bins[bin];
    if (block != NULL) {
        snapshot_bins[bin] = *(void **)block;
        return block;
    }
    char *head = snapshot_extend(size, BLOCK_HEAD);
    if (head == NULL)
        return NULL;
    *(size_t *)head = size - BLOCK_HEAD;
    return head + BLOCK_HEAD;
}

static void *
snapshot_calloc(size_t count, size_t each)
{
    if (!snapshot_grows)
        return calloc(count, each);
    if (count > SNAPSHOT_BYTES / each) /* the callers pass no 0 */
        return NULL;
    void *block = snapshot_malloc(count * each);
    if (block != NULL)
        memset(block, 0, count * each);
    return block;
}

static void
snapshot_free(void *block)
{
    size_t bin;

    if (!snapshot_has(block)) {
        free(block);
    } else if (snapshot_grows) {
        snapshot_round(snapshot_size(block) + BLOCK_HEAD, &bin);
        memset(block, 0, snapshot_size(block)); /* pages of zeros are not in the file */
        *(void **)block = snapshot_bins[bin];
        snapshot_bins[bin] = block;
    }
}

static void *
snapshot_realloc(void *block, size_t size)
{
    if (block == NULL)
        return snapshot_malloc(size);
    if (!snapshot_has(block))
        return realloc(block, size);
    if (size <= snapshot_size(block))
        return block;
    void *larger = snapshot_malloc(size);
    if (larger != NULL) {
        memcpy(larger, block, snapshot_size(block));
        snapshot_free(block);
    }
    return larger;
}

/* Return pages of zeros for CPython's small objects, or MAP_FAILED. */
static void *
snapshot_map(size_t size)
{
    if (!snapshot_grows)
        return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *pages = snapshot_extend(size, (size_t)sysconf(_SC_PAGESIZE));
    return pages != NULL ? pages : MAP_FAILED;
}

static void
snapshot_unmap(void *pages, size_t size)
{
    if (!snapshot_has(pages))
        munmap(pages, size);
}
