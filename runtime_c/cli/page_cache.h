/* page_cache.h: a bundle out of the page cache, so that the next start reads the disk. */
#ifndef EDGELLM_RT_PAGE_CACHE_H
#define EDGELLM_RT_PAGE_CACHE_H

#include "edgellm.h"

/* Asks the system to drop every file of a bundle, but not this program, from its page cache. n_bytes: of these files;
 * n_left: what is still in memory afterwards, or cannot be looked at: pages that another process has mapped stay, and
 * memory file systems have no disk to read them from. */
ellm_status page_cache_drop(const char *directory, uint64_t *n_bytes, uint64_t *n_left, ellm_error *error);

#endif
