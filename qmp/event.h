/*
 * Events on their way to QMP clients: the sink of core/event.h.
 */
#ifndef QMP_EVENT_H
#define QMP_EVENT_H

/* From now on events go to all clients that have negotiated. Main loop. */
void qmp_event_start(void);

/* Ends that, and forgets events that were held back. */
void qmp_event_stop(void);

#endif
