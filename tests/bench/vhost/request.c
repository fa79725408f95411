/* See request.h. */
#include "tests/bench/vhost/request.h"

#include <stdlib.h>
#include <string.h>

#include "core/memory.h"

#define REQUEST_HEADER ((uint32_t)sizeof(struct virtio_blk_outhdr))
#define REQUEST_GAP_MAX 64u
#define REQUEST_GAP 0xa5        /* what gaps are filled with */
#define REQUEST_ALIGN 4096u
#define REQUEST_STATUS_UNSET 0xff

static const struct {
    uint32_t type;
    bool out, in;               /* has data that the device reads, or writes */
    uint32_t data;              /* bytes of it; 0: as many as of the disk */
} request_kinds[BENCH_OPS] = {
    [BENCH_READ] = {VIRTIO_BLK_T_IN, false, true, 0},
    [BENCH_WRITE] = {VIRTIO_BLK_T_OUT, true, false, 0},
    [BENCH_FLUSH] = {VIRTIO_BLK_T_FLUSH, false, false, 0},
    [BENCH_DISCARD] = {VIRTIO_BLK_T_DISCARD, true, false, sizeof(struct virtio_blk_discard_write_zeroes)},
    [BENCH_ZEROES] = {VIRTIO_BLK_T_WRITE_ZEROES, true, false, sizeof(struct virtio_blk_discard_write_zeroes)},
    [BENCH_ID] = {VIRTIO_BLK_T_GET_ID, false, true, VIRTIO_BLK_ID_BYTES},
};

unsigned bench_request_pieces(const struct bench_options *options)
{
    return options->segments + 2;
}

static size_t request_room(const struct bench_options *options)
{
    uint32_t data = options->size_max > VIRTIO_BLK_ID_BYTES ? options->size_max : VIRTIO_BLK_ID_BYTES;

    return options->cut ? REQUEST_HEADER + data + 1 + bench_request_pieces(options) * REQUEST_GAP_MAX : data;
}

size_t bench_request_bytes(const struct bench_options *options)
{
    return 64 + request_room(options) + REQUEST_ALIGN;
}

void bench_request_create(struct bench_request *request, uint16_t slot, struct front_memory *memory,
                          const struct bench_options *options)
{
    /* Header and status share a cache line: one goes to the device and comes back. */
    unsigned char *line = front_memory_take(memory, 64, 64);

    *request = (struct bench_request){
        .slot = slot, .room = request_room(options), .header = (void *)line, .status = line + REQUEST_HEADER};
    request->data = front_memory_take(memory, request->room, options->cut ? 1 : REQUEST_ALIGN);
    for (size_t i = 0; i < request->room; i++)
        request->data[i] = (unsigned char)(i * 7 + slot + 1);
    request->pieces = memory_array(bench_request_pieces(options), sizeof(*request->pieces));
}

void bench_request_destroy(struct bench_request *request)
{
    free(take_ptr(&request->pieces));
}

uint32_t bench_request_data_size(const struct bench_request *request)
{
    if (!request_kinds[request->op].in && !request_kinds[request->op].out)
        return 0;
    return request_kinds[request->op].data ? request_kinds[request->op].data : request->size;
}

uint32_t bench_request_writable(const struct bench_request *request)
{
    return (request_kinds[request->op].in ? bench_request_data_size(request) : 0) + 1;
}

static void request_add(struct bench_request *request, const struct bench_form *form, const void *at, uint32_t size,
                        bool writable)
{
    request->pieces[request->count++] =
        (struct front_piece){front_memory_guest(form->queue->memory, at), size, writable};
    request->readable = (uint16_t)(request->readable + !writable);
}

/* Whole sectors in each buffer, and the last sectors first. */
static void request_lay_out_plain(struct bench_request *request, const struct bench_form *form)
{
    uint32_t size = bench_request_data_size(request), sectors = size / 512;
    uint32_t parts = sectors < form->segments ? 1 : form->segments, behind = size;

    request->count = request->readable = 0;
    request_add(request, form, request->header, REQUEST_HEADER, false);
    for (uint32_t i = 0; size && i < parts; i++) {
        uint32_t part = i + 1 < parts ? sectors / parts * 512 : behind;

        behind -= part;
        request_add(request, form, request->data + behind, part, request_kinds[request->op].in);
    }
    request_add(request, form, request->status, 1, true);
    front_queue_set(form->queue, request->slot, request->pieces, request->count);
    request->laid_op = request->op;
    request->laid_size = request->size;
}

/* Where to end a piece when left bytes remain for parts more: anywhere, but often near a sector's end or the header's. */
static uint32_t request_cut_size(struct bench_form *form, uint32_t left, unsigned parts)
{
    if (parts == 1)
        return left;
    uint32_t most = left - (parts - 1), size = 1 + (uint32_t)random_below(&form->random, most);
    uint64_t kind = random_below(&form->random, 4);
    if (kind == 0)
        size = 1 + (uint32_t)random_below(&form->random, 17);
    else if (kind == 1)
        size = size / 512 * 512 + (uint32_t)random_below(&form->random, 3);
    return size < 1 ? 1 : size > most ? most : size;
}

static void request_cut_string(struct bench_request *request, struct bench_form *form, unsigned char **at,
                               uint32_t size, unsigned parts_max, bool writable)
{
    unsigned parts = 1 + (unsigned)random_below(&form->random, parts_max < size ? parts_max : size);

    for (; parts; parts--) {
        uint32_t part = request_cut_size(form, size, parts);

        *at += random_below(&form->random, REQUEST_GAP_MAX);
        request_add(request, form, *at, part, writable);
        *at += part;
        size -= part;
    }
}

/* Copies between a string of bytes and the pieces of one direction, without the first `skip` bytes of those. */
static void request_copy(const struct bench_request *request, const struct bench_form *form, bool writable,
                         uint32_t skip, void *data, uint32_t size, bool to_pieces)
{
    unsigned i = writable ? request->readable : 0, end = writable ? request->count : request->readable;
    char *bytes = data;

    for (; i < end && size; i++) {
        const struct front_piece *piece = &request->pieces[i];
        uint32_t begin = skip < piece->size ? skip : piece->size;
        uint32_t part = piece->size - begin < size ? piece->size - begin : size;
        unsigned char *at = form->base + (piece->guest - FRONT_GUEST_BASE) + begin;

        skip -= begin;
        if (to_pieces)
            memcpy(at, bytes, part);
        else
            memcpy(bytes, at, part);
        bytes += part;
        size -= part;
    }
}

static void request_lay_out_cut(struct bench_request *request, struct bench_form *form)
{
    unsigned char *at = request->data;
    uint32_t readable = REQUEST_HEADER + (request_kinds[request->op].out ? bench_request_data_size(request) : 0);
    unsigned room = form->segments + 2;
    unsigned parts = 1 + (unsigned)random_below(&form->random, room - 1);

    memset(request->data, REQUEST_GAP, request->room);
    request->count = request->readable = 0;
    request_cut_string(request, form, &at, readable, parts, false);
    request_cut_string(request, form, &at, bench_request_writable(request), room - request->count, true);
    const struct front_piece *last = &request->pieces[request->count - 1];
    request->status = form->base + (last->guest - FRONT_GUEST_BASE) + last->size - 1;
    front_queue_set(form->queue, request->slot, request->pieces, request->count);
}

void bench_request_lay_out(struct bench_request *request, struct bench_form *form)
{
    struct virtio_blk_outhdr header = {.type = request_kinds[request->op].type};

    if (form->cut)
        request_lay_out_cut(request, form);
    else if (unlikely(request->laid_op != request->op || request->laid_size != request->size))
        request_lay_out_plain(request, form);
    if (request->op <= BENCH_WRITE)
        header.sector = request->at / 512;
    *request->status = REQUEST_STATUS_UNSET;
    if (form->cut)
        request_copy(request, form, false, 0, &header, REQUEST_HEADER, true);
    else
        *request->header = header;
    if (request->op == BENCH_DISCARD || request->op == BENCH_ZEROES) {
        struct virtio_blk_discard_write_zeroes range = {.sector = request->at / 512,
                                                        .num_sectors = request->size / 512};

        bench_request_put_data(request, form, &range);
    }
}

void bench_request_put_data(const struct bench_request *request, const struct bench_form *form, const void *data)
{
    request_copy(request, form, false, REQUEST_HEADER, (void *)data, bench_request_data_size(request), true);
}

void bench_request_get_data(const struct bench_request *request, const struct bench_form *form, void *data)
{
    request_copy(request, form, true, 0, data, bench_request_data_size(request), false);
}

bool bench_request_gaps_intact(const struct bench_request *request, const struct bench_form *form)
{
    const unsigned char *at = request->data, *end = request->data + request->room;

    for (unsigned i = 0; form->cut && i <= request->count; i++) {
        const struct front_piece *piece = i < request->count ? &request->pieces[i] : NULL;
        const unsigned char *next = piece ? form->base + (piece->guest - FRONT_GUEST_BASE) : end;

        for (; at < next; at++)
            if (*at != REQUEST_GAP)
                return false;
        at = piece ? next + piece->size : end;
    }
    return true;
}
