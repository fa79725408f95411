/*
 * NBD negotiation by table: what a client sends, and what comes back, in one
 * piece and byte by byte; every option, wrong lengths, wrong order, surplus.
 */
#include <check.h>
#include <event2/buffer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/memory.h"
#include "daemon/nbd/export.h"
#include "daemon/nbd/handshake.h"
#include "daemon/nbd/proto.h"
#include "daemon/nbd/server.h"

/* A server with three exports, one of which is not there yet. */
static struct world {
    struct nbd_server server;
    struct node nodes[2];
    struct export exports[3];
    struct nbd_export nbd[3];
} world;

static void world_add(unsigned i, const char *name, const char *description, struct node *node, bool writable)
{
    world.exports[i].consumer.edge.child = node;
    world.exports[i].writable = writable;
    world.nbd[i] = (struct nbd_export){.export = &world.exports[i], .name = name, .description = description};
    list_append(&world.server.exports, &world.nbd[i].in_server);
}

static void world_make(void)
{
    list_init(&world.server.exports);
    world.nodes[0].size = 1 << 20;
    world.nodes[1].size = 5;
    world_add(0, "disk", "the disk", &world.nodes[0], true);
    world_add(1, "ro", NULL, &world.nodes[1], false);
    world_add(2, "hidden", NULL, &world.nodes[1], false);
    world.nbd[2].hidden = true;
}

/* Replies as text. */

static const struct {
    uint32_t type;
    const char *name;
} reply_names[] = {
    {NBD_REP_ACK, "ack"},
    {NBD_REP_ERR_UNSUP, "unsup"},
    {NBD_REP_ERR_INVALID, "invalid"},
    {NBD_REP_ERR_UNKNOWN, "unknown"},
    {NBD_REP_ERR_TOO_BIG, "too-big"},
    {NBD_REP_ERR_EXT_HEADER_REQD, "ext-header"},
};

static void say_info(FILE *out, const unsigned char *data, uint32_t size)
{
    uint16_t kind = nbd_get16(data);

    ck_assert_uint_ge(size, 2);
    if (kind == NBD_INFO_EXPORT) {
        ck_assert_uint_eq(size, 12);
        fprintf(out, "export(%llu,%x)", (unsigned long long)nbd_get64(data + 2), nbd_get16(data + 10));
    } else if (kind == NBD_INFO_BLOCK_SIZE) {
        ck_assert_uint_eq(size, 14);
        fprintf(out, "blocks(%u,%u,%u)", nbd_get32(data + 2), nbd_get32(data + 6), nbd_get32(data + 10));
    } else {
        fprintf(out, "%s(%.*s)", kind == NBD_INFO_NAME ? "name" : "description", (int)size - 2, data + 2);
    }
}

static void say_reply(FILE *out, uint32_t type, const unsigned char *data, uint32_t size)
{
    if (type == NBD_REP_SERVER) {
        uint32_t name = nbd_get32(data);

        ck_assert_uint_le(name, size - 4);
        fprintf(out, "server(%.*s,%.*s)", (int)name, data + 4, (int)(size - 4 - name), data + 4 + name);
        return;
    }
    if (type == NBD_REP_INFO) {
        say_info(out, data, size);
        return;
    }
    if (type == NBD_REP_META_CONTEXT) {
        fprintf(out, "context(%u,%.*s)", nbd_get32(data), (int)size - 4, data + 4);
        return;
    }
    for (unsigned i = 0; i < array_size(reply_names); i++) {
        if (reply_names[i].type == type)
            fprintf(out, "%s", reply_names[i].name);
    }
    /* Errors say why. */
    ck_assert(type >> 31 ? size > 0 : size == 0);
}

/* Whatever is no reply to an option is the answer to NBD_OPT_EXPORT_NAME. */
static void say_output(FILE *out, const unsigned char *data, size_t size)
{
    ck_assert_uint_ge(size, 18);
    ck_assert(nbd_get64(data) == NBD_MAGIC && nbd_get64(data + 8) == NBD_OPTION_MAGIC && nbd_get16(data + 16) == 3);
    for (size_t at = 18; at < size;) {
        if (size - at >= 20 && nbd_get64(data + at) == NBD_OPTION_REPLY_MAGIC) {
            uint32_t length = nbd_get32(data + at + 16);

            ck_assert_uint_le(length, size - at - 20);
            fprintf(out, "%u:", nbd_get32(data + at + 8));
            say_reply(out, nbd_get32(data + at + 12), data + at + 20, length);
            at += 20 + length;
        } else {
            fprintf(out, "go(%llu,%x,%zu)", (unsigned long long)nbd_get64(data + at), nbd_get16(data + at + 8),
                    size - at);
            at = size;
        }
        fputc(' ', out);
    }
}

/* What comes back to input that arrives in pieces; and the state, with what was left over. */
static char *talk(const char *input, size_t size, size_t piece)
{
    static const char *const states[] = {"flags", "option", "skip", "done", "close"};
    struct evbuffer *output = evbuffer_new();
    struct nbd_handshake handshake;
    size_t taken = 0, there = 0;
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);

    nbd_handshake_start(&handshake, &world.server, output);
    while (there < size && handshake.state < NBD_HANDSHAKE_DONE) {
        size_t step;

        there += size - there < piece ? size - there : piece;
        do {
            /* A copy of its own, so that the sanitizer sees who reads behind it. */
            AUTO_FREE char *copy = malloc(there - taken + 1);

            memcpy(copy, input + taken, there - taken);
            step = nbd_handshake_input(&handshake, copy, there - taken);
            taken += step;
            ck_assert_uint_le(taken, there);
        } while (step);
    }
    say_output(out, evbuffer_pullup(output, -1), evbuffer_get_length(output));
    fprintf(out, "%s", states[handshake.state]);
    if (handshake.state == NBD_HANDSHAKE_DONE)
        fprintf(out, "(%s%s%s%s)", handshake.export->name, handshake.structured ? ",structured" : "",
                handshake.extended ? ",extended" : "", handshake.context == handshake.export ? ",context" : "");
    fclose(out);
    evbuffer_free(output);
    return text;
}

#define FIXED "\0\0\0\3"
#define OPT(option, length) "IHAVEOPT\0\0\0" option "\0\0" length
#define NAME(length, name) "\0\0\0" length name
#define QUERY(length, text) "\0\0\0" length text
#define ALLOCATION QUERY("\17", "base:allocation")
#define STRUCTURED OPT("\10", "\0\0")
#define EXTENDED OPT("\13", "\0\0")
#define GO_DISK OPT("\7", "\0\12") NAME("\4", "disk") "\0\0"
#define SET_DISK OPT("\12", "\0\37") NAME("\4", "disk") "\0\0\0\1" ALLOCATION
#define DISK "7:export(1048576,d6d) 7:ack done"
#define DISK_DF "7:export(1048576,ded) 7:ack done"
#define DISK_PAYLOAD "7:export(1048576,1ded) 7:ack done"

#define CASE(input, expected)              \
    {                                      \
        input, sizeof(input) - 1, expected \
    }

static const struct handshake_case {
    const char *input;
    size_t size;
    const char *expected;
} cases[] = {
    /* The client's flags. */
    CASE("", "flags"),
    CASE("\0\0\0", "flags"),
    CASE("\0\0\0\0", "option"),
    CASE("\0\0\0\1", "option"),
    CASE("\0\0\0\2", "option"),
    CASE(FIXED, "option"),
    CASE("\0\0\0\4", "close"),
    CASE("\200\0\0\3", "close"),
    CASE("\0\0\1\3", "close"),
    /* What is no option. */
    CASE(FIXED "IHAVEOPS\0\0\0\3\0\0\0\0", "close"),
    CASE(FIXED "ihaveopt\0\0\0\3\0\0\0\0", "close"),
    CASE(FIXED "\0\0\0\0\0\0\0\0", "close"),
    CASE(FIXED "GET / HTTP/1.1\r\n\r\n", "close"),
    CASE(FIXED "IHAVEOP", "option"),
    CASE(FIXED "IHAVEOPT\0\0\0\3\0\0\0", "option"),
    CASE(FIXED "\x25\x60\x95\x13\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "close"),
    /* Not fixed: one option only. */
    CASE("\0\0\0\0" OPT("\3", "\0\0"), "close"),
    CASE("\0\0\0\0" GO_DISK, "close"),
    CASE("\0\0\0\0" OPT("\2", "\0\0"), "close"),
    CASE("\0\0\0\0" OPT("\1", "\0\4") "disk", "go(1048576,d6d,134) done(disk)"),
    CASE("\0\0\0\2" OPT("\1", "\0\4") "disk", "go(1048576,d6d,10) done(disk)"),
    /* NBD_OPT_EXPORT_NAME. */
    CASE(FIXED OPT("\1", "\0\4") "disk", "go(1048576,d6d,10) done(disk)"),
    CASE("\0\0\0\1" OPT("\1", "\0\2") "ro", "go(5,50f,134) done(ro)"),
    CASE(FIXED OPT("\1", "\0\4") "disc", "close"),
    CASE(FIXED OPT("\1", "\0\5") "disk\0", "close"),
    CASE(FIXED OPT("\1", "\0\6") "hidden", "close"),
    CASE(FIXED OPT("\1", "\0\0"), "close"),
    CASE(FIXED OPT("\1", "\0\3") "disk", "close"),
    CASE(FIXED OPT("\1", "\0\5") "disk", "option"),
    CASE(FIXED "IHAVEOPT\0\0\0\1\377\377\377\377", "close"),
    CASE(FIXED STRUCTURED OPT("\1", "\0\4") "disk", "8:ack go(1048576,ded,10) done(disk,structured)"),
    CASE(FIXED EXTENDED OPT("\1", "\0\4") "disk", "11:ack close"),
    CASE(FIXED STRUCTURED SET_DISK OPT("\1", "\0\4") "disk",
         "8:ack 10:context(1,base:allocation) 10:ack go(1048576,ded,10) done(disk,structured,context)"),
    /* NBD_OPT_ABORT: surplus data is ignored, what follows too. */
    CASE(FIXED OPT("\2", "\0\0"), "2:ack close"),
    CASE(FIXED OPT("\2", "\0\3") "bye", "2:ack close"),
    CASE(FIXED OPT("\2", "\0\0") GO_DISK, "2:ack close"),
    /* NBD_OPT_LIST. */
    CASE(FIXED OPT("\3", "\0\0"), "3:server(disk,the disk) 3:server(ro,) 3:ack option"),
    CASE(FIXED OPT("\3", "\0\1") "x", "3:invalid option"),
    CASE(FIXED OPT("\3", "\0\0") OPT("\3", "\0\0"), "3:server(disk,the disk) 3:server(ro,) 3:ack "
                                                    "3:server(disk,the disk) 3:server(ro,) 3:ack option"),
    /* Options that there are not. */
    CASE(FIXED OPT("\0", "\0\0"), "0:unsup option"),
    CASE(FIXED OPT("\4", "\0\3") "abc", "4:unsup option"),
    CASE(FIXED OPT("\5", "\0\0"), "5:unsup option"),
    CASE(FIXED OPT("\5", "\0\0") GO_DISK, "5:unsup " DISK "(disk)"),
    CASE(FIXED OPT("\14", "\0\0"), "12:unsup option"),
    CASE(FIXED "IHAVEOPT\377\377\377\377\0\0\0\2ab" GO_DISK, "4294967295:unsup " DISK "(disk)"),
    CASE(FIXED OPT("\143", "\0\4") "data" OPT("\3", "\0\1") "x" GO_DISK, "99:unsup 3:invalid " DISK "(disk)"),
    /* NBD_OPT_INFO and NBD_OPT_GO. */
    CASE(FIXED GO_DISK, DISK "(disk)"),
    CASE(FIXED GO_DISK "more", DISK "(disk)"),
    CASE(FIXED OPT("\7", "\0\10") NAME("\2", "ro") "\0\0", "7:export(5,50f) 7:ack done(ro)"),
    CASE(FIXED OPT("\6", "\0\12") NAME("\4", "disk") "\0\0", "6:export(1048576,d6d) 6:ack option"),
    CASE(FIXED OPT("\6", "\0\12") NAME("\4", "disk") "\0\0" GO_DISK, "6:export(1048576,d6d) 6:ack " DISK "(disk)"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\4", "disc") "\0\0", "7:unknown option"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\4", "disc") "\0\0" GO_DISK, "7:unknown " DISK "(disk)"),
    CASE(FIXED OPT("\7", "\0\6") NAME("\0", "") "\0\0", "7:unknown option"),
    CASE(FIXED OPT("\7", "\0\14") NAME("\6", "hidden") "\0\0", "7:unknown option"),
    CASE(FIXED OPT("\7", "\0\20") NAME("\4", "disk") "\0\3\0\1\0\2\0\3",
         "7:name(disk) 7:description(the disk) 7:blocks(1,4096,33554432) " DISK "(disk)"),
    CASE(FIXED OPT("\6", "\0\14") NAME("\2", "ro") "\0\2\0\2\0\3",
         "6:blocks(1,4096,33554432) 6:export(5,50f) 6:ack option"),
    CASE(FIXED OPT("\6", "\0\14") NAME("\4", "disk") "\0\1\377\377", "6:export(1048576,d6d) 6:ack option"),
    CASE(FIXED OPT("\6", "\0\14") NAME("\4", "disk") "\0\1\0\0", "6:export(1048576,d6d) 6:ack option"),
    CASE(FIXED OPT("\7", "\0\0"), "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\3") "\0\0\0", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\4") "\0\0\0\0", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\5") "\0\0\0\0\0", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\10") NAME("\4", "disk"), "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\5", "disk") "\0\0", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\3", "disk") "\0\0", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") "\377\377\377\377"
                                  "disk"
                                  "\0\0",
         "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") "\177\377\377\377"
                                  "disk"
                                  "\0\0",
         "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\4", "di\0k") "\0\0", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\4", "disk") "\0\1", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\14") NAME("\4", "disk") "\0\2\0\3", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\14") NAME("\4", "disk") "\0\0\0\3", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\12") NAME("\4", "disk") "\377\377", "7:invalid option"),
    CASE(FIXED OPT("\7", "\0\13") NAME("\4", "disk") "\0\0\0" GO_DISK, "7:invalid " DISK "(disk)"),
    /* NBD_OPT_STRUCTURED_REPLY and NBD_OPT_EXTENDED_HEADERS. */
    CASE(FIXED STRUCTURED GO_DISK, "8:ack " DISK_DF "(disk,structured)"),
    CASE(FIXED STRUCTURED STRUCTURED, "8:ack 8:ack option"),
    CASE(FIXED OPT("\10", "\0\1") "x" GO_DISK, "8:invalid " DISK "(disk)"),
    CASE(FIXED EXTENDED GO_DISK, "11:ack " DISK_DF "(disk,structured,extended)"),
    CASE(FIXED OPT("\13", "\0\1") "x" GO_DISK, "11:invalid " DISK "(disk)"),
    CASE(FIXED STRUCTURED EXTENDED GO_DISK, "8:ack 11:ack " DISK_DF "(disk,structured,extended)"),
    CASE(FIXED EXTENDED STRUCTURED GO_DISK, "11:ack 8:ext-header " DISK_DF "(disk,structured,extended)"),
    CASE(FIXED EXTENDED OPT("\6", "\0\12") NAME("\4", "disk") "\0\0", "11:ack 6:export(1048576,1ded) 6:ack option"),
    /* NBD_OPT_LIST_META_CONTEXT. */
    CASE(FIXED OPT("\11", "\0\14") NAME("\4", "disk") "\0\0\0\0", "9:invalid option"),
    CASE(FIXED STRUCTURED OPT("\11", "\0\14") NAME("\4", "disk") "\0\0\0\0",
         "8:ack 9:context(0,base:allocation) 9:ack option"),
    CASE(FIXED STRUCTURED OPT("\11", "\0\25") NAME("\4", "disk") "\0\0\0\1" QUERY("\5", "base:"),
         "8:ack 9:context(0,base:allocation) 9:ack option"),
    CASE(FIXED STRUCTURED OPT("\11", "\0\25") NAME("\4", "disk") "\0\0\0\1" QUERY("\5", "qemu:"), "8:ack 9:ack option"),
    CASE(FIXED STRUCTURED OPT("\11", "\0\37") NAME("\4", "disk") "\0\0\0\1" ALLOCATION GO_DISK,
         "8:ack 9:context(0,base:allocation) 9:ack " DISK_DF "(disk,structured)"),
    CASE(FIXED STRUCTURED OPT("\11", "\0\14") NAME("\4", "disc") "\0\0\0\0", "8:ack 9:unknown option"),
    CASE(FIXED STRUCTURED OPT("\11", "\0\13") NAME("\4", "disk") "\0\0\0", "8:ack 9:invalid option"),
    /* NBD_OPT_SET_META_CONTEXT. */
    CASE(FIXED SET_DISK GO_DISK, "10:invalid " DISK "(disk)"),
    CASE(FIXED STRUCTURED SET_DISK GO_DISK,
         "8:ack 10:context(1,base:allocation) 10:ack " DISK_DF "(disk,structured,context)"),
    CASE(FIXED EXTENDED SET_DISK GO_DISK,
         "11:ack 10:context(1,base:allocation) 10:ack " DISK_PAYLOAD "(disk,structured,extended,context)"),
    CASE(FIXED STRUCTURED SET_DISK OPT("\7", "\0\10") NAME("\2", "ro") "\0\0",
         "8:ack 10:context(1,base:allocation) 10:ack 7:export(5,58f) 7:ack done(ro,structured)"),
    CASE(FIXED STRUCTURED SET_DISK OPT("\12", "\0\14") NAME("\4", "disk") "\0\0\0\0" GO_DISK,
         "8:ack 10:context(1,base:allocation) 10:ack 10:ack " DISK_DF "(disk,structured)"),
    CASE(FIXED STRUCTURED SET_DISK OPT("\12", "\0\1") "x" GO_DISK,
         "8:ack 10:context(1,base:allocation) 10:ack 10:invalid " DISK_DF "(disk,structured)"),
    CASE(FIXED STRUCTURED SET_DISK OPT("\12", "\0\14") NAME("\4", "disc") "\0\0\0\0" GO_DISK,
         "8:ack 10:context(1,base:allocation) 10:ack 10:unknown " DISK_DF "(disk,structured)"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\25") NAME("\4", "disk") "\0\0\0\1" QUERY("\5", "base:"),
         "8:ack 10:ack option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\62") NAME("\4", "disk") "\0\0\0\2" ALLOCATION ALLOCATION,
         "8:ack 10:context(1,base:allocation) 10:ack option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\50") NAME("\4", "disk") "\0\0\0\2" QUERY("\5", "zzz:x") ALLOCATION GO_DISK,
         "8:ack 10:context(1,base:allocation) 10:ack " DISK_DF "(disk,structured,context)"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\37") NAME("\4", "disk") "\0\0\0\2" ALLOCATION, "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\37") NAME("\4", "disk") "\0\0\0\0" ALLOCATION, "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\14") NAME("\4", "disk") "\377\377\377\377", "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\37") NAME("\4", "disk") "\0\0\0\1" QUERY("\20", "base:allocation"),
         "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\37") NAME("\4", "disk") "\0\0\0\1" QUERY("\16", "base:allocation"),
         "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\40") NAME("\4", "disk") "\0\0\0\1" ALLOCATION "x", "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\0"), "8:ack 10:invalid option"),
    CASE(FIXED STRUCTURED OPT("\12", "\0\4") "\377\377\377\377", "8:ack 10:invalid option"),
    /* Too big: read away up to a limit. */
    CASE(FIXED "IHAVEOPT\0\0\0\7\0\1\0\0", "7:too-big skip"),
    CASE(FIXED "IHAVEOPT\0\0\0\7\2\0\0\0", "7:too-big skip"),
    CASE(FIXED "IHAVEOPT\0\0\0\7\2\0\0\1", "close"),
    CASE(FIXED "IHAVEOPT\0\0\0\3\377\377\377\377", "close"),
};

static void check_talk(const struct handshake_case *test, size_t piece)
{
    AUTO_FREE char *text = talk(test->input, test->size, piece);

    ck_assert_str_eq(text, test->expected);
}

START_TEST(test_handshake_table)
{
    check_talk(&cases[_i], SIZE_MAX);
    check_talk(&cases[_i], 1);
    check_talk(&cases[_i], 7);
}
END_TEST

/* A client may go at any byte. */
START_TEST(test_handshake_cut)
{
    for (size_t size = 0; size < cases[_i].size; size++)
        free(talk(cases[_i].input, size, SIZE_MAX));
}
END_TEST

/* Any byte may be wrong. */
START_TEST(test_handshake_flipped)
{
    for (size_t at = 0; at < cases[_i].size; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            AUTO_FREE char *input = malloc(cases[_i].size);

            memcpy(input, cases[_i].input, cases[_i].size);
            input[at] = (char)(input[at] ^ (1 << bit));
            free(talk(input, cases[_i].size, SIZE_MAX));
        }
    }
}
END_TEST

/* Names of any length up to the limit of 4096 bytes are names; longer ones are not. */
START_TEST(test_handshake_name_limit)
{
    static char name[NBD_NAME_MAX + 1];
    uint32_t length = _i ? NBD_NAME_MAX + 1 : NBD_NAME_MAX;
    static unsigned char input[4 + 16 + 4 + NBD_NAME_MAX + 1 + 2];
    unsigned char *at = nbd_put32(input, 3);

    memset(name, 'n', NBD_NAME_MAX);
    world_add(2, name, name, &world.nodes[0], true);
    at = nbd_put64(at, NBD_OPTION_MAGIC);
    at = nbd_put32(at, NBD_OPT_INFO);
    at = nbd_put32(at, 4 + length + 2);
    at = nbd_put32(at, length);
    memset(at, 'n', length);
    nbd_put16(at + length, 0);
    AUTO_FREE char *text = talk((char *)input, 4u + 16 + 4 + length + 2, SIZE_MAX);

    ck_assert_str_eq(text, _i ? "6:invalid option" : "6:export(1048576,d6d) 6:ack option");
}
END_TEST

/* An option that is too big is read away, and the next one is in step. */
START_TEST(test_handshake_skip)
{
    size_t skip = 100000, size = 4 + 16 + skip + sizeof(GO_DISK) - 1;
    AUTO_FREE char *input = calloc(1, size);

    memcpy(input, FIXED, 4);
    memcpy(input + 4, "IHAVEOPT\0\0\0\12\0\1\206\240", 16);
    memcpy(input + size - (sizeof(GO_DISK) - 1), GO_DISK, sizeof(GO_DISK) - 1);
    for (size_t piece = 1; piece < size; piece = piece * 3 + 1) {
        AUTO_FREE char *text = talk(input, size, piece);

        ck_assert_str_eq(text, "10:too-big " DISK "(disk)");
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("nbd_handshake");
    TCase *tests = tcase_create("nbd_handshake");

    tcase_add_checked_fixture(tests, world_make, NULL);
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, test_handshake_table, 0, (int)array_size(cases));
    tcase_add_loop_test(tests, test_handshake_cut, 0, (int)array_size(cases));
    tcase_add_loop_test(tests, test_handshake_flipped, 0, (int)array_size(cases));
    tcase_add_loop_test(tests, test_handshake_name_limit, 0, 2);
    tcase_add_test(tests, test_handshake_skip);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
