/*
 * QMP commands on a real graph: each row of a script is a request and what
 * its reply contains. Shows above all that nothing is left of what failed.
 */
#include <check.h>
#include <event2/event.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/coroutine.h"
#include "core/error.h"
#include "core/export.h"
#include "core/iothread.h"
#include "core/loop.h"
#include "core/memory.h"
#include "core/node.h"
#include "core/source.h"
#include "qmp/dispatch.h"
#include "qmp/json_write.h"

struct row {
    const char *command, *arguments; /* arguments in single quotes, or NULL */
    const char *contains;            /* of the reply, with single quotes */
};

static void setup(void)
{
    AUTO_ERROR struct error err = {0};
    struct loop *loop;

    signal(SIGPIPE, SIG_IGN);
    if (loop_create(&loop, "main", NULL, &err))
        ck_abort_msg("%s", err.text);
    loop_set_current(loop);
}

static struct json_object *parse(const char *text)
{
    AUTO_FREE char *json = memory_string(text);

    for (char *at = json; (at = strchr(at, '\''));)
        *at = '"';
    struct json_object *value = json_tokener_parse(json);

    ck_assert_msg(value, "bad JSON in the test: %s", text);
    return value;
}

static char *run_request(const char *command, const char *arguments)
{
    struct qmp_client client = {.negotiated = true};
    struct json_object *request = json_object_new_object();
    struct json_text text = {0};

    json_object_object_add(request, "execute", json_object_new_string(command));
    if (arguments)
        json_object_object_add(request, "arguments", parse(arguments));
    struct json_object *reply = qmp_dispatch(&client, request);

    json_write(&text, reply, false);
    json_text_append(&text, "", 1);
    json_object_put(reply);
    json_object_put(request);
    for (char *at = text.data; (at = strchr(at, '"'));)
        *at = '\'';
    return text.data;
}

struct script {
    const struct row *rows;
    unsigned count;
    bool done;
};

static void run_rows(void *arg)
{
    struct script *script = arg;

    for (unsigned i = 0; i < script->count; i++) {
        const struct row *row = &script->rows[i];
        AUTO_FREE char *reply = run_request(row->command, row->arguments);

        ck_assert_msg(strstr(reply, row->contains), "row %u: %s %s\n gave     %s\n expected %s", i, row->command,
                      row->arguments ? row->arguments : "", reply, row->contains);
    }
    script->done = true;
}

static void run_script(const struct row *rows, unsigned count)
{
    struct script script = {.rows = rows, .count = count};

    coroutine_start(loop_main, run_rows, &script);
    while (!script.done) {
        event_base_loop(loop_main->events, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        if (!loop_turn(loop_main))
            usleep(100);
    }
}

#define RUN(rows) run_script(rows, array_size(rows))
#define OK "{'return': {}}"
#define NO_NODES                                          \
    {                                                     \
        "query-named-block-nodes", NULL, "{'return': []}" \
    }

START_TEST(test_commands_nodes)
{
    static const struct row rows[] = {
        {"blockdev-add", "{'driver':'null-co','node-name':'n0','size':1048576}", OK},
        {"blockdev-add", "{'driver':'null-co','node-name':'n0'}", "Duplicate nodes with node-name='n0'"},
        {"blockdev-add", "{'driver':'null-co','node-name':'_x'}", "Invalid node-name: '_x'"},
        {"blockdev-add", "{'driver':'null-co','node-name':''}", "Invalid node-name: ''"},
        {"blockdev-add", "{'driver':'raw','node-name':'r0','file':'nope'}", "nor node-name='nope'"},
        {"blockdev-add", "{'driver':'raw','node-name':'r0','file':'r0'}", "'error'"},
        {"blockdev-add", "{'driver':'raw','node-name':'r0','offset':1048577,'file':'n0'}", "'error'"},
        {"blockdev-add", "{'driver':'raw','node-name':'r0','offset':4096,'file':'n0'}", OK},
        {"blockdev-add",
         "{'driver':'raw','node-name':'r1','file':{'driver':'raw','file':{'driver':'null-co','node-name':'in'}}}", OK},
        {"query-named-block-nodes", "{'flat':true}", "'node-name': 'r0', 'drv': 'raw', 'file': 'null-co://'"},
        {"query-named-block-nodes", NULL, "'virtual-size': 1044480"},
        {"query-named-block-nodes", NULL, "'children': [{'child': 'file', 'node-name': 'n0'}]"},
        {"query-node-options", "{'node-name':'r0'}", "'offset': 4096"},
        {"x-debug-query-block-graph", NULL, "'type': 'block-driver', 'name': 'r0'"},
        {"blockdev-del", "{'node-name':'nope'}", "Failed to find node with node-name='nope'"},
        {"blockdev-del", "{'node-name':'n0'}", "Node n0 is in use"},
        {"blockdev-del", "{'node-name':'in'}", "'error'"},
        {"blockdev-del", "{'node-name':'r0'}", OK},
        {"blockdev-del", "{'node-name':'r0'}", "Failed to find node with node-name='r0'"},
        {"blockdev-del", "{'node-name':'n0'}", OK},
        {"blockdev-del", "{'node-name':'r1'}", OK},
        NO_NODES,
    };

    RUN(rows);
    ck_assert(list_is_empty(&node_registry));
}
END_TEST

START_TEST(test_commands_transaction)
{
#define ADD(name) "{'type':'blockdev-add','data':{'driver':'null-co','node-name':'" name "'}}"
#define DEL(name) "{'type':'blockdev-del','data':{'node-name':'" name "'}}"
    static const struct row rows[] = {
        {"transaction", "{'actions':[]}", OK},
        {"transaction", "{'actions':[{'type':'abort','data':{}}]}", "Transaction aborted using Abort action"},
        {"transaction", "{'actions':[" ADD("a") "," ADD("b") ",{'type':'abort','data':{}}]}", "Abort action"},
        NO_NODES,
        {"transaction", "{'actions':[" ADD("a") "," ADD("a") "]}", "Duplicate nodes with node-name='a'"},
        NO_NODES,
        {"transaction", "{'actions':[" ADD("a") ",{'type':'blockdev-add','data':{'driver':'null-co'}}]}",
         "'node-name' must be specified for the root node"},
        NO_NODES,
        {"transaction",
         "{'actions':[" ADD("a") ",{'type':'blockdev-add','data':{'driver':'raw','node-name':'r','file':'a'}}]}", OK},
        {"transaction", "{'actions':[" DEL("r") "," ADD("b") "," DEL("nope") "]}",
         "Failed to find node with node-name='nope'"},
        {"query-node-options", "{'node-name':'r'}", "'driver': 'raw'"},
        {"query-node-options", "{'node-name':'b'}", "Cannot find device='' nor node-name='b'"},
        {"transaction", "{'actions':[" DEL("a") "]}", "Node a is in use"},
        {"transaction", "{'actions':[" DEL("r") "," DEL("a") "]}", OK},
        NO_NODES,
        /* the same thing twice, and what goes and is wanted at once */
        {"transaction", "{'actions':[" ADD("a") "," DEL("a") "]}", OK},
        NO_NODES,
        {"blockdev-add", "{'driver':'null-co','node-name':'a'}", OK},
        {"transaction", "{'actions':[" DEL("a") "," DEL("a") "]}", "'error'"},
        {"query-node-options", "{'node-name':'a'}", "'driver': 'null-co'"},
        {"transaction",
         "{'actions':[" DEL("a") ",{'type':'blockdev-add','data':{'driver':'raw','node-name':'r','file':'a'}}]}",
         "'error'"},
        {"query-node-options", "{'node-name':'a'}", "'driver': 'null-co'"},
        {"transaction", "{'actions':[" DEL("a") "," ADD("a") "," DEL("a") "]}", OK},
        NO_NODES,
    };

    RUN(rows);
    ck_assert(list_is_empty(&node_registry));
}
END_TEST

START_TEST(test_commands_sources)
{
    static const struct row rows[] = {
        {"blockdev-add", "{'driver':'null-co','node-name':'n0'}", OK},
        {"source-add", "{'id':'s0','node':'nope'}", "'error'"},
        {"source-add", "{'id':'','node':'n0'}", "'error'"},
        {"source-add", "{'id':'s0','node':'n0'}", OK},
        {"source-add", "{'id':'s0','node':'n0'}", "'error'"},
        {"query-sources", NULL, "{'return': [{'nodes': ['n0'], 'users': [], 'id': 's0', 'base': 'n0'}]}"},
        {"x-debug-query-block-graph", NULL, "'type': 'block-source', 'name': 's0'"},
        {"blockdev-del", "{'node-name':'n0'}", "Node n0 is in use"},
        {"source-del", "{'id':'nope'}", "Source 'nope' is not found"},
        {"source-del", "{'id':'s0'}", OK},
        {"blockdev-del", "{'node-name':'n0'}", OK},
        NO_NODES,
    };

    RUN(rows);
    ck_assert(list_is_empty(&source_registry));
}
END_TEST

START_TEST(test_commands_objects)
{
    static const struct row rows[] = {
        {"object-add", "{'qom-type':'iothread','id':'io'}", OK},
        {"object-add", "{'qom-type':'iothread','id':'io'}", "attempt to add duplicate property 'io' to object"},
        {"object-add", "{'qom-type':'iothread','id':'i o'}", "Parameter 'id' expects an identifier"},
        {"object-add", "{'qom-type':'iothread','id':'j','poll-max-ns':-1}", "'error'"},
        {"query-iothreads", NULL, "'id': 'io', 'thread-id': "},
        {"qom-list", "{'path':'/'}", "{'name': 'type', 'type': 'string'}"},
        {"qom-list", "{'path':'/objects'}", "{'name': 'io', 'type': 'child<iothread>'}"},
        {"qom-list", "{'path':'io'}", "{'name': 'poll-max-ns', 'type': "},
        {"qom-get", "{'path':'/objects','property':'io'}", "{'return': '/objects/io'}"},
        {"qom-get", "{'path':'io','property':'type'}", "{'return': 'iothread'}"},
        {"qom-get", "{'path':'io','property':'poll-max-ns'}", "{'return': 131072}"},
        {"qom-get", "{'path':'io','property':'aio-max-batch'}", "{'return': 0}"},
        {"qom-get", "{'path':'io','property':'cpu-affinity'}", "{'return': []}"},
        {"qom-list", "{'path':'io'}", "{'name': 'cpu-affinity', 'type': 'uint64List'}"},
        {"query-iothreads", NULL, "'aio-max-batch': 0, 'cpu-affinity': [], 'polled-ns': "},
        {"qom-get", "{'path':'io','property':'nope'}", "Property 'iothread.nope' not found"},
        {"qom-get", "{'path':'nope','property':'nope'}",
         "{'error': {'class': 'DeviceNotFound', 'desc': 'Device 'nope'"},
        {"qom-set", "{'path':'io','property':'poll-max-ns','value':5}", OK},
        {"qom-get", "{'path':'/objects/io','property':'poll-max-ns'}", "{'return': 5}"},
        {"qom-set", "{'path':'io','property':'poll-max-ns','value':'a'}",
         "Invalid parameter type for 'poll-max-ns', expected: integer"},
        {"qom-set", "{'path':'io','property':'poll-max-ns','value':1.5}", "expected: integer"},
        {"qom-set", "{'path':'io','property':'poll-max-ns','value':null}", "expected: integer"},
        {"qom-set", "{'path':'io','property':'poll-max-ns','value':-1}", "'error'"},
        {"qom-set", "{'path':'io','property':'type','value':'x'}", "Property 'iothread.type' is not writable"},
        {"qom-set", "{'path':'io','property':'nope','value':'x'}", "Property 'iothread.nope' not found"},
        {"qom-get", "{'path':'io','property':'poll-max-ns'}", "{'return': 5}"},
        {"object-del", "{'id':'nope'}", "object 'nope' not found"},
        {"object-del", "{'id':'io'}", OK},
        {"object-del", "{'id':'io'}", "object 'io' not found"},
        {"query-iothreads", NULL, "{'return': []}"},
    };

    RUN(rows);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("qmp_commands");
    TCase *tests = tcase_create("qmp_commands");

    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, setup, NULL);
    tcase_add_test(tests, test_commands_nodes);
    tcase_add_test(tests, test_commands_transaction);
    tcase_add_test(tests, test_commands_sources);
    tcase_add_test(tests, test_commands_objects);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
