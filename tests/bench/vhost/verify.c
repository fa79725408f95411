/* See verify.h. */
#include "tests/bench/vhost/verify.h"

#include <errno.h>
#include <string.h>

#include "core/memory.h"

#define VERIFY_MAGIC 0x6e72696143u
#define VERIFY_STAMP 3u                 /* words: magic and run, block, write */
#define VERIFY_WORDS (4096u / 8u)       /* compared at a time */

void verify_create(struct verify *verify, uint64_t first, uint64_t count, uint32_t block_size, uint64_t run)
{
    *verify = (struct verify){
        .first = first, .count = count, .block_size = block_size, .last_write = VERIFY_FIRST - 1, .run = run};
    verify->blocks = memory_array(count, sizeof(*verify->blocks));
}

void verify_destroy(struct verify *verify)
{
    free(take_ptr(&verify->blocks));
}

bool verify_claim(struct verify *verify, uint64_t block, uint64_t count)
{
    uint32_t *blocks = verify->blocks + (block - verify->first);

    for (uint64_t i = 0; i < count; i++)
        if (blocks[i] & VERIFY_CLAIMED)
            return false;
    for (uint64_t i = 0; i < count; i++)
        blocks[i] |= VERIFY_CLAIMED;
    return true;
}

void verify_release(struct verify *verify, uint64_t block, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        verify->blocks[block - verify->first + i] &= ~VERIFY_CLAIMED;
}

void verify_release_as(struct verify *verify, uint64_t block, uint64_t count, uint32_t state)
{
    for (uint64_t i = 0; i < count; i++)
        verify->blocks[block - verify->first + i] = state;
}

uint32_t verify_next(struct verify *verify)
{
    if (++verify->last_write == VERIFY_CLAIMED)
        verify->last_write = VERIFY_FIRST;
    return verify->last_write;
}

static uint64_t verify_mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

/* What a block should hold, words [from, from + count) of it. */
static void verify_words(const struct verify *verify, uint64_t block, uint32_t write, unsigned from, unsigned count,
                         uint64_t *words)
{
    const uint64_t stamp[VERIFY_STAMP] = {VERIFY_MAGIC ^ verify->run << 24, block, write};
    uint64_t seed = verify_mix(stamp[0] + verify_mix(block) * 3 + write);

    for (unsigned i = 0; i < count; i++)
        words[i] = from + i < VERIFY_STAMP ? stamp[from + i] : verify_mix(seed + from + i);
}

void verify_fill(const struct verify *verify, uint64_t block, uint64_t count, uint32_t write, void *data)
{
    unsigned words = verify->block_size / 8;

    for (uint64_t i = 0; i < count; i++)
        verify_words(verify, block + i, write, 0, words, (uint64_t *)data + i * words);
}

/* Says what is wrong with a block. */
static int verify_explain(const struct verify *verify, uint64_t block, uint32_t state, const unsigned char *data,
                          unsigned at, struct error *err)
{
    unsigned long long number = block, offset = block * verify->block_size;
    uint64_t stamp[VERIFY_STAMP];

    memcpy(stamp, data, sizeof(stamp));
    AUTO_FREE char *should = state == VERIFY_ZERO ? memory_string("zeroes") : memory_format("write %u", state);
    if (stamp[0] == (VERIFY_MAGIC ^ verify->run << 24) && stamp[1] != block)
        return error_set(err, -EILSEQ, "block %llu (at byte %llu) should hold %s, and holds block %llu of write %llu",
                         number, offset, should, (unsigned long long)stamp[1], (unsigned long long)stamp[2]);
    if (stamp[0] == (VERIFY_MAGIC ^ verify->run << 24) && stamp[2] != state)
        return error_set(err, -EILSEQ, "block %llu (at byte %llu) should hold %s, and holds write %llu", number, offset,
                         should, (unsigned long long)stamp[2]);
    return error_set(err, -EILSEQ, "block %llu (at byte %llu) should hold %s, and differs from its byte %u on (0x%02x)",
                     number, offset, should, at, data[at]);
}

static int verify_check_block(const struct verify *verify, uint64_t block, const unsigned char *data, struct error *err)
{
    uint32_t state = verify->blocks[block - verify->first] & ~VERIFY_CLAIMED;
    uint64_t words[VERIFY_WORDS] = {0};

    if (state == VERIFY_UNKNOWN)
        return 0;
    for (unsigned from = 0; from < verify->block_size / 8; from += VERIFY_WORDS) {
        unsigned left = verify->block_size / 8 - from, count = left < VERIFY_WORDS ? left : VERIFY_WORDS;

        if (state != VERIFY_ZERO)
            verify_words(verify, block, state, from, count, words);
        if (memcmp(words, data + from * 8u, count * 8u) == 0)
            continue;
        unsigned at = from * 8u;
        while (data[at] == ((const unsigned char *)words)[at - from * 8u])
            at++;
        return verify_explain(verify, block, state, data, at, err);
    }
    return 0;
}

int verify_check(const struct verify *verify, uint64_t block, uint64_t count, const void *data, struct error *err)
{
    int rc = 0;

    for (uint64_t i = 0; i < count && rc == 0; i++)
        rc = verify_check_block(verify, block + i, (const unsigned char *)data + i * verify->block_size, err);
    return rc;
}

uint64_t verify_known(const struct verify *verify, uint64_t *block, uint64_t most)
{
    uint64_t at = *block - verify->first, count = 0;

    while (at < verify->count && verify->blocks[at] == VERIFY_UNKNOWN)
        at++;
    while (count < most && at + count < verify->count && verify->blocks[at + count] != VERIFY_UNKNOWN)
        count++;
    *block = verify->first + at;
    return count;
}
