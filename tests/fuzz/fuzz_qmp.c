/*
 * libFuzzer target: QMP input as a client can send it, up to the point where
 * a command would be run. Splits the bytes, parses requests and arguments
 * against the schema, writes values and replies. The first byte says how the
 * input is cut into pieces, as it would be by the network.
 */
#include <json-c/json.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "core/error.h"
#include "qmp/dispatch.h"
#include "qmp/json_stream.h"
#include "qmp/json_write.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_write(struct json_object *value)
{
    struct json_text text = {.limit = 1u << 20};

    json_write(&text, value, false);
    json_text_clear(&text);
}

/* Values that were read are written as the same value. */
static void fuzz_round_trip(struct json_object *value)
{
    struct json_text first = {0}, second = {0};
    struct json_stream *stream = json_stream_new();
    struct json_item item;

    json_write(&first, value, false);
    json_text_append(&first, "\n", 1);
    size_t used = json_stream_feed(stream, first.data, first.size, &item);

    if (used + 1 < first.size || item.kind != JSON_ITEM_VALUE)
        abort();
    json_write(&second, item.value, false);
    json_text_append(&second, "\n", 1);
    json_item_clear(&item);
    json_stream_free(stream);
    if (first.size != second.size)
        abort();
    json_text_clear(&first);
    json_text_clear(&second);
}

static void fuzz_request(struct json_object *value)
{
    AUTO_ERROR struct error err = {0};
    struct qmp_client client = {.negotiated = true};
    struct qmp_request request;

    if (qmp_request_parse(&client, value, &request, &err)) {
        struct json_object *reply = qmp_error_reply(&err);

        fuzz_write(reply);
        json_object_put(reply);
    }
    qmp_request_clear(&request);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t piece = size && data[0] ? data[0] : SIZE_MAX;
    struct json_stream *stream = json_stream_new();

    for (size_t offset = size > 0; offset < size;) {
        struct json_item item;
        size_t length = size - offset < piece ? size - offset : piece;

        offset += json_stream_feed(stream, (const char *)data + offset, length, &item);
        if (item.kind == JSON_ITEM_VALUE) {
            fuzz_round_trip(item.value);
            fuzz_request(item.value);
        }
        json_item_clear(&item);
    }
    json_stream_free(stream);
    return 0;
}
