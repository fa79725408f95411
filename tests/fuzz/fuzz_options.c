/*
 * Fuzz target: node options as JSON and as key=value text. Whatever parses
 * must survive unparsing, parsing again, copying and comparing.
 */
#include <json-c/json.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/options.h"
#include "generated/options.h"
#include "qmp/option_json.h"
#include "qmp/option_keyval.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct option_type *type, const void *options)
{
    struct json_object *json = option_to_json(type, options);
    AUTO_ERROR struct error err = {0};
    void *again, *copy = option_copy(type, options);

    if (option_parse_json(type, json, "", 0, &again, &err) || !option_equal(type, options, again) ||
        !option_equal(type, copy, again))
        abort();
    json_object_put(json);
    option_free(type, again);
    option_free(type, copy);
}

static void try_text(const struct option_type *type, const char *text, const char *implied_key)
{
    AUTO_ERROR struct error err = {0};
    void *options;
    int result = option_parse_keyval(type, text, implied_key, &options, &err);

    if (result != 0 && (!err.text || options))
        abort();
    if (options)
        check(type, options);
    option_free(type, options);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = memory_zero(size + 1);

    if (size)
        memcpy(text, data, size);
    try_text(&node_options_type, text, "driver");
    try_text(&transaction_args_type, text, NULL);
    try_text(&nbd_server_options_type, text, NULL);
    free(text);
    return 0;
}
