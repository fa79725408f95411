/* What of virtio-blk's numbers both requests and configuration need (virtio 1.2, section 5.2). */
#ifndef DAEMON_VHOST_USER_BLK_H
#define DAEMON_VHOST_USER_BLK_H

#define VHOST_SECTOR_BITS 9u
/* Data of one request. What follows from the advertised limits is less. */
#define VHOST_DATA_MAX (256ull << 20)
#define VHOST_SEGMENT_SIZE_MAX (1u << 20)
#define VHOST_SEGMENTS_MAX 126u
/* Discard and write-zeroes: one range each, of less than 2 GiB. */
#define VHOST_RANGE_SECTORS_MAX ((1u << 22) - 8)

#endif
