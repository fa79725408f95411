/*
 * Events on their way to management clients. Core and drivers emit structs
 * that the schema defines (schema/events.json: struct <event>_event); the QMP
 * server, which sits above, is the sink that turns them into JSON.
 */
#ifndef CORE_EVENT_H
#define CORE_EVENT_H

struct option_type;

/*
 * name: "BLOCK_EXPORT_DELETED"; data: struct of that type, copied. From any
 * loop; delivered on the main loop in the order of emission per loop. Without
 * a sink, nothing happens.
 */
void event_emit(const char *name, const struct option_type *type, const void *data);

/* Main loop; data is valid during the call. NULL ends delivery. */
void event_set_sink(void (*sink)(const char *name, const struct option_type *type, const void *data));

#endif
