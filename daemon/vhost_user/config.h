/*
 * What the device is, as the front end is told: features and configuration
 * space (virtio 1.2, section 5.2.3 and 5.2.4).
 */
#ifndef DAEMON_VHOST_USER_CONFIG_H
#define DAEMON_VHOST_USER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/vhost_user/proto.h"

struct vhost_export;

uint64_t vhost_config_features(const struct vhost_export *export);
uint64_t vhost_config_protocol_features(void);

/* Fills all VHOST_CONFIG_MAX bytes; writeback is what the driver chose. */
void vhost_config_read(const struct vhost_export *export, bool writeback, uint8_t *data);

/* Whether the driver may write these bytes: only the cache mode. */
bool vhost_config_is_cache_mode(uint32_t offset, uint32_t size);

#endif
