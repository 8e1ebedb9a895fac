/* error.h: the one way to report a failure. */
#ifndef ELLM_ERROR_H
#define ELLM_ERROR_H

#include "edgellm.h"

#if defined(__GNUC__)
#define ELLM_PRINTF(format_index, first) __attribute__((format(printf, format_index, first)))
#else
#define ELLM_PRINTF(format_index, first)
#endif

/* Writes what failed, where and what to do into `error` (may be NULL), truncated to fit, and returns `status`. */
ellm_status ellm_fail(ellm_error *error, ellm_status status, const char *format, ...) ELLM_PRINTF(3, 4);

#endif
